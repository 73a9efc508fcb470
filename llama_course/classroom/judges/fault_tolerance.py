"""What the judge knows of the three exercises in `exercises/18_fault_tolerance.ipynb`. Spoilers
from here on."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.frail_disk import FrailDisk, Killed


def _on_disk(answer, files):
    "The answer about a folder with these files; one with a number near 15 was touched last."
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            place = Path(folder) / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(files[path])
        for place in Path(folder).iterdir():
            step = int("0" + "".join(filter(str.isdigit, place.name)))
            os.utime(place, 2 * (1e9 - abs(step - 15),))
        try:
            return answer(Path(folder))
        except ValueError as error:  # the text asks for it; json's and UTF-8's errors are its kind
            return f"ValueError for {'damaged' if type(error) is ValueError else 'one file'}"


def _checkpoint(step, random, name="step-{}", **names):
    "A whole checkpoint: path -> bytes."
    folder = name.format(step)
    data = {f"rank-{r}.safetensors": bytes(random(256) for _ in range(12)) for r in range(2)}
    data["empty.safetensors"] = b""
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in data.items()}
    table = {"step": step, "files": sums}
    data = {f"{folder}/{file}": content for file, content in data.items()}
    return data | {f"{folder}/about.json": json.dumps(table).encode()}


def _numbers(seed):
    "random(n): a number below n, the same on every machine."
    state = [seed]

    def random(n):
        state[0] = int.from_bytes(hashlib.sha256(str(state[0]).encode()).digest()[:8], "big")
        return state[0] % n

    return random


def _damage(files, step, kind, random):
    "The files, in which the checkpoint of that step has one fault."
    one = f"step-{step}/rank-1.safetensors"
    table = f"step-{step}/about.json"
    files = dict(files)
    match kind:
        case "bit":
            place = random(12)
            old = files[one]
            files[one] = old[:place] + bytes([old[place] ^ 1 << random(8)]) + old[place + 1 :]
        case "cut":
            files[one] = files[one][: random(12)]
        case "longer":
            files[one] += b"\0"
        case "missing":
            del files[one]
        case "no table":
            del files[table]
        case "half a table":
            files[table] = files[table][: len(files[table]) // 2]
        case "other step":
            files[table] = files[table].replace(b'"step": %d,' % step, b'"step": 1,')
    return files


newest_whole = Exercise(
    "newest_whole",
    chapter="18_fault_tolerance",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    call=_on_disk,
    points={"values": 8, "invariant": 2},
    hints=(
        "Two questions: in which order are folders looked at, and what must be true of one to be "
        "taken? Write a function for the second.",
        "The names end in numbers that are not padded: step-9 is older than step-10. Compare "
        "int(name.removeprefix('step-')).",
        "Damage may be anything: no about.json, one that is cut (json.JSONDecodeError is a "
        "ValueError, which you must not let out), a file that is not there, one with other bytes.",
        "hashlib.sha256(path.read_bytes()).hexdigest() for each file that the table names. "
        "Folders called .part-... are what a killed process has left behind.",
    ),
)


@newest_whole.cases
def cases_of_newest_whole(seed):
    random = _numbers(seed)
    early, middle, late = 5 + random(5), 13 + random(5), 20 + random(30)
    both = _checkpoint(middle, random) | _checkpoint(late, random) | _checkpoint(early, random)
    yield ({},)
    yield (both,)
    for kind in ("bit", "cut", "longer", "missing", "no table", "half a table", "other step"):
        yield (_damage(both, late, kind, random),)
    yield (both | _checkpoint(500, random, ".part-step-{}"),)
    yield (_checkpoint(late, random, ".part-step-{}"),)
    none = _damage(_damage(both, late, "bit", random), early, "missing", random)
    yield (none,)  # but the one in the middle
    yield (_damage(none, middle, "half a table", random),)
    yield (both | {"notes.txt": b"step-99", f"step-{late}/log.txt": b"another file"},)


@newest_whole.reference
def truth_of_newest_whole(files):
    "By the table of contents, without a disk."
    steps = {path.split("/")[0] for path in files if path.startswith("step-")}
    whole = []
    for folder in steps:
        step = int(folder[5:])
        try:
            table = json.loads(files[f"{folder}/about.json"])
            found = {name: files[f"{folder}/{name}"] for name in table["files"]}
        except (KeyError, ValueError):
            continue
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
        if sums == table["files"] and table["step"] == step:
            whole.append(step)
    return max(whole) if whole else "ValueError for damaged" if steps else None


def _newest(
    folder, *, key=lambda path: int(path.name[5:]), pattern="step-*", sums=True, step=True,
    sizes=False, refuse=True, careful=True, older=True,
):  # fmt: skip
    "The search, with a place for each mistake."
    folders = sorted((p for p in folder.glob(pattern) if p.is_dir()), key=key, reverse=True)
    for path in folders:
        try:
            table = json.loads((path / "about.json").read_text())
        except (OSError, ValueError):
            if careful:
                continue
            raise
        files = {name: path / name for name in table["files"]}
        if not all(file.is_file() for file in files.values()):
            if not older:
                break
            continue
        if sizes and any(
            file.stat().st_size != 12 for file in files.values() if "rank" in str(file)
        ):
            continue
        good = all(
            hashlib.sha256(file.read_bytes()).hexdigest() == table["files"][name]
            for name, file in files.items()
        )
        if (good or not sums) and (not step or table["step"] == int(path.name.rsplit("-", 1)[1])):
            return int(path.name.rsplit("-", 1)[1])
        if not older:
            break
    if folders and refuse:
        raise ValueError("all checkpoints are damaged")
    return None


newest_whole.right(_newest)


@newest_whole.right
def by_a_list_of_all_that_are_whole(folder):
    def is_whole(step):
        home = folder / f"step-{step}"
        if not (home / "about.json").exists():
            return False
        try:
            table = json.loads((home / "about.json").read_bytes())
            sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in home.iterdir()}
            return table["step"] == step and table["files"].items() <= sums.items()
        except json.JSONDecodeError:
            return False

    steps = [int(name[5:]) for name in os.listdir(folder) if name.startswith("step-")]
    whole = [step for step in steps if is_whole(step)]
    if steps and not whole:
        raise ValueError("nothing is whole")
    return max(whole, default=None)


@newest_whole.invariant("whichever byte of the newest one is changed, the one before it is taken")
def whichever_byte_is_changed(seen):
    random = _numbers(4)
    both = _checkpoint(7, random) | _checkpoint(31, random)
    for name in ("rank-0", "rank-1"):
        path = f"step-31/{name}.safetensors"
        for i in (0, 5, 11):
            data = both[path]
            broken = both | {path: data[:i] + bytes([data[i] ^ 0x10]) + data[i + 1 :]}
            if seen(broken).value != 7:
                return False
    return True


@newest_whole.mistake("by name", hint=2)
def by_name(folder):
    "As texts, step-9 comes after step-10: compare the numbers."
    return _newest(folder, key=lambda path: path.name)


@newest_whole.mistake("by the time of writing", hint=2)
def by_the_time_of_writing(folder):
    "A copy or a touch gives an old folder a new time: the number in the name is what counts."
    return _newest(folder, key=lambda path: path.stat().st_mtime)


@newest_whole.mistake("half-written folders are taken", hint=4)
def half_written_folders_are_taken(folder):
    "A folder called .part-step-... was never finished, however good its files look."
    return _newest(folder, pattern="*step-*", key=lambda path: int(path.name.rsplit("-", 1)[1]))


@newest_whole.mistake("sizes are compared", hint=4)
def sizes_are_compared(folder):
    "A bit that flips does not change the size of a file."
    return _newest(folder, sums=False, sizes=True)


@newest_whole.mistake("bytes are not compared", hint=4)
def bytes_are_not_compared(folder):
    "All files are there, and one has another content: only the checksum tells."
    return _newest(folder, sums=False)


@newest_whole.mistake("a broken table ends it", hint=3)
def a_broken_table_ends_it(folder):
    "about.json may be missing or cut: that is one more kind of damage, not the end of the search."
    return _newest(folder, careful=False)


@newest_whole.mistake("the older ones are not tried", hint=1)
def the_older_ones_are_not_tried(folder):
    "Where the newest is damaged, the one before it may be whole."
    return _newest(folder, older=False)


@newest_whole.mistake("the table's step is not read", hint=1)
def the_tables_step_is_not_read(folder):
    "A folder whose table speaks of another step is no checkpoint of the step in its name."
    return _newest(folder, step=False)


@newest_whole.mistake("all damaged is taken for none", hint=1)
def all_damaged_is_taken_for_none(folder):
    "To begin at step 0 would throw away a run that could perhaps be restored: refuse."
    return _newest(folder, refuse=False)


pieces_to_read = Exercise(
    "pieces_to_read",
    chapter="18_fault_tolerance",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 6, "invariant": 4},
    hints=(
        "File i holds the rows from the sum of the sizes before it to that plus its own size. "
        "Which rows does this rank want? The overlap of two intervals is [max, min).",
        "A share has ceil(rows / ranks) rows. The last ranks get what is left: fewer, or none. "
        "-(-a // b) is a divided by b, rounded up.",
        "begin and end count from the beginning of the *file*: take its first row away. A piece "
        "without rows is none.",
    ),
)


@pieces_to_read.cases
def cases_of_pieces_to_read(seed):
    random = _numbers(seed)
    yield [6, 6], 0, 1
    yield [4, 4, 4, 4], 1, 2
    yield [10], 2, 3  # 4, 4 and 2
    yield [5, 5], 3, 4  # 3, 3, 3 and 1
    yield [3, 0, 2, 0], 1, 2  # files without rows
    yield [2, 1], 4, 5  # fewer rows than ranks
    yield [0, 0], 0, 2
    yield [4, 3], 3, 6  # ceil(7 / 6) = 2: the last two ranks get none
    yield [4, 3], 5, 6
    for _ in range(4):
        ranks = 1 + random(5)
        yield [random(9) for _ in range(1 + random(5))], random(ranks), ranks


@pieces_to_read.reference
def truth_of_pieces_to_read(sizes, rank, ranks):
    "Row by row."
    rows = [(file, i) for file, size in enumerate(sizes) for i in range(size)]
    share = -(-len(rows) // ranks)
    wanted = rows[rank * share : (rank + 1) * share]
    files = dict.fromkeys(file for file, _ in wanted)
    return [
        (file, min(i for f, i in wanted if f == file), max(i for f, i in wanted if f == file) + 1)
        for file in files
    ]


def _pieces(
    sizes, rank, ranks, *, up=True, even=False, in_file=True, empty=False, last=0, whole=False
):
    "The overlaps, with a place for each mistake."
    rows = sum(sizes)
    share = -(-rows // ranks) if up else rows // ranks
    low, high = rank * share, min((rank + 1) * share, rows)
    if even:
        low, high = (r * (rows // ranks) + min(r, rows % ranks) for r in (rank, rank + 1))
    pieces, first = [], 0
    for file, size in enumerate(sizes):
        begin, end = max(low, first), min(high, first + size)
        if begin < end or (empty and low < high):
            back = first if in_file else 0
            piece = (begin - back, max(begin, end) - back - last)
            pieces.append((file, 0, size) if whole else (file, *piece))
        first += size
    return pieces


pieces_to_read.right(_pieces)


@pieces_to_read.right
def walking_through_the_files(sizes, rank, ranks):
    share = (sum(sizes) + ranks - 1) // ranks
    skip, wanted, found = share * rank, share, []
    for file in range(len(sizes)):
        begin = min(skip, sizes[file])
        end = min(begin + wanted, sizes[file])
        if end > begin:
            found.append([file, begin, end])
        skip, wanted = skip - begin, wanted - (end - begin)
    return found


@pieces_to_read.invariant("all ranks together read each row once, in order")
def all_ranks_together_read_each_row_once(seen):
    for sizes in ([7, 0, 5, 1], [3, 3], [1], [2] * 9):
        for ranks in (1, 2, 3, 4, 7, 11):
            pieces = [piece for r in range(ranks) for piece in seen(sizes, r, ranks).value]
            rows = [(file, i) for file, begin, end in pieces for i in range(begin, end)]
            if rows != [(file, i) for file, size in enumerate(sizes) for i in range(size)]:
                return False
    return True


@pieces_to_read.mistake("shares are rounded down", hint=2)
def shares_are_rounded_down(sizes, rank, ranks):
    "The rows that are left over belong to nobody: a share is rounded up."
    return _pieces(sizes, rank, ranks, up=False)


@pieces_to_read.mistake("the rest is spread evenly", hint=2)
def the_rest_is_spread_evenly(sizes, rank, ranks):
    "10 rows for 3 ranks are 4, 4 and 2 here (as torch.chunk has it), not 4, 3 and 3."
    return _pieces(sizes, rank, ranks, even=True)


@pieces_to_read.mistake("places in the whole", hint=3)
def places_in_the_whole(sizes, rank, ranks):
    "begin and end are rows of the whole matrix: each file counts its own from 0."
    return _pieces(sizes, rank, ranks, in_file=False)


@pieces_to_read.mistake("pieces without rows", hint=3)
def pieces_without_rows(sizes, rank, ranks):
    "Files of which nothing is wanted are listed as well: each would be opened for nothing."
    return _pieces(sizes, rank, ranks, empty=True)


@pieces_to_read.mistake("the last row is the end", hint=1)
def the_last_row_is_the_end(sizes, rank, ranks):
    "`end` is the row after the last, as in a slice: you give the last row itself."
    return _pieces(sizes, rank, ranks, last=1)


@pieces_to_read.mistake("whole files", hint=1)
def whole_files(sizes, rank, ranks):
    "Each file of which something is wanted is read whole: rows are read more than once."
    return _pieces(sizes, rank, ranks, whole=True)


@pieces_to_read.mistake("file by file", hint=1)
def file_by_file(sizes, rank, ranks):
    "You deal out files, not rows: with other numbers of ranks than files, shares become unequal."
    return [(i, 0, size) for i, size in enumerate(sizes) if i % ranks == rank and size]


def _save(answer, before, step, files, keep, kill_at):
    "What is on the disk after the answer was killed at its kill_at-th operation (-1: never)."
    disk = FrailDisk(before, kill_at)
    try:
        answer(disk, step, files, keep)
    except Killed:
        return {"killed": True, "files": disk.files, "off": disk.after_power_loss()}
    return {"killed": False, "files": disk.files, "off": disk.after_power_loss()}


save_checkpoint = Exercise(
    "save_checkpoint",
    chapter="18_fault_tolerance",
    kind="diagnose",
    minutes=30,
    difficulty=3,
    call=_save,
    points={"values": 4, "invariant": 6},
    hints=(
        "Imagine the process killed after each line, and in the middle of each write. Is there a "
        "whole checkpoint under every name that begins with step-?",
        "All files go into a folder with another name, .part-step-N; one rename gives all of them "
        "their name at once. What is old is removed when the new one has its name.",
        "A killed saver may have left a .part- folder with files that are none of yours: remove "
        "it before you begin.",
        "After a power loss, a file that was not synced may be empty, though its name is there: "
        "sync each file before the rename.",
    ),
)


def _stored(step, *names):
    return {f"step-{step}/{name}": f"{name} of {step}".encode() * 3 for name in names}


@save_checkpoint.cases
def cases_of_save_checkpoint(seed):
    random = _numbers(seed)
    names = ["weights", "averages", "about.json"][: 2 + random(2)]
    step = 10 + random(50)
    new = {name: f"{name}, new, {random(1000)}".encode() for name in names}
    old = _stored(step - 3, *names) | _stored(step - 6, *names)
    left = {f".part-step-{step}/shard-7": b"of a saver that was killed", "run.json": b"{}"}
    yield {}, step, new, 2, -1
    yield old, step, new, 2, -1
    yield old, step, new, 1, -1
    yield old | left, step, new, 3, -1
    yield _stored(9, "weights") | _stored(8, "weights") | _stored(10, "weights"), 11, new, 2, -1
    yield old, step, {"one": b"", "folder/two": b"22"}, 5, -1


@save_checkpoint.reference
def truth_of_save_checkpoint(before, step, files, keep, kill_at):
    kept = {path: data for path, data in before.items() if not path.startswith(".part-")}
    kept |= {f"step-{step}/{name}": data for name, data in files.items()}
    steps = sorted({int(p.split("/")[0][5:]) for p in kept if p.startswith("step-")})[-keep:]
    inside = {p: d for p, d in kept.items() if not p.startswith("step-")}
    inside |= {p: d for p, d in kept.items() if any(p.startswith(f"step-{s}/") for s in steps)}
    return {"killed": False, "files": inside, "off": inside}


def _steps(disk):
    return sorted(int(name[5:]) for name in disk.names() if name.startswith("step-"))


def _saved(
    disk, step, files, keep, *, part=".part-step-{}", clean=True, sync=True, first=False,
    numbers=_steps, gone=0, late_sync=False,
):  # fmt: skip
    "The saver, with a place for each mistake."
    place = part.format(step)

    def remove_old():
        for old in numbers(disk)[: -(keep + gone) or None] if keep + gone > 0 else numbers(disk):
            disk.remove(f"step-{old}")

    for left in disk.names() if clean else ():
        if left.startswith(".part-"):
            disk.remove(left)
    if first:
        gone = -1
        remove_old()
    for name, data in files.items():
        disk.write(f"{place}/{name}", data)
        if sync and not late_sync:
            disk.sync(f"{place}/{name}")
    if part != "step-{}":
        disk.rename(place, f"step-{step}")
    for name in files if late_sync else ():
        disk.sync(f"step-{step}/{name}")
    if not first:
        remove_old()


save_checkpoint.right(_saved)


@save_checkpoint.right
def through_a_folder_of_another_name(disk, step, files, keep):
    for name in [name for name in disk.names() if name[:6] == ".part-"]:
        disk.remove(name)
    for name in files:
        disk.write(".part-now/" + name, files[name])
    for name in files:
        disk.sync(".part-now/" + name)
    disk.rename(".part-now", f"step-{step}")
    steps = sorted((n for n in disk.names() if n.startswith("step-")), key=lambda n: -int(n[5:]))
    for old in reversed(steps[keep:]):
        disk.remove(old)


def _deaths(seen):
    "For each operation at which the saver is killed: what it leaves of each step, and whole ones."
    names = ("weights", "averages")
    new = {name: f"the new {name}".encode() for name in names}
    whole = {4: _stored(4, *names), 7: _stored(7, *names)}
    whole[9] = {f"step-9/{name}": data for name, data in new.items()}
    left = {".part-step-9/weights": b"torn", ".part-step-9/shard-3": b"of another run"}
    for before in (whole[4] | whole[7], whole[4] | whole[7] | left):
        killed, kill_at = True, 0
        while killed and kill_at < 99:
            result = seen(before, 9, new, 1, kill_at).value
            killed, kill_at = result["killed"], kill_at + 1
            of_step = lambda files, s: {
                p: d for p, d in files.items() if p.startswith(f"step-{s}/")
            }
            parts = [{s: of_step(result[how], s) for s in whole} for how in ("files", "off")]
            yield *parts, whole


@save_checkpoint.invariant(
    "killed at any moment: a whole checkpoint is there, no older than before"
)
def there_is_a_whole_checkpoint(seen):
    return all(any(found[s] == whole[s] for s in (7, 9)) for found, _, whole in _deaths(seen))


@save_checkpoint.invariant("killed at any moment: the new folder is whole or does not exist")
def the_new_folder_is_whole(seen):
    return all(found[9] in ({}, whole[9]) for found, _, whole in _deaths(seen))


@save_checkpoint.invariant("the same when the power is lost at any moment")
def the_same_when_the_power_is_lost(seen):
    return all(
        found[9] in ({}, whole[9]) and any(found[s] == whole[s] for s in (7, 9))
        for _, found, whole in _deaths(seen)
    )


@save_checkpoint.mistake("the code as it was given", hint=1)
def the_saver_as_it_was_given(disk, step, files, keep):
    "Old checkpoints go before the new one is there, and files are written under the final name."
    for old in _steps(disk)[: len(_steps(disk)) - keep + 1]:
        disk.remove(f"step-{old}")
    for name, data in files.items():
        disk.write(f"step-{step}/{name}", data)


@save_checkpoint.mistake("files under the final name", hint=2)
def files_under_the_final_name(disk, step, files, keep):
    "A saver killed between two files leaves a folder that looks like a checkpoint and is none."
    return _saved(disk, step, files, keep, part="step-{}")


@save_checkpoint.mistake("old ones are removed first", hint=2)
def old_ones_are_removed_first(disk, step, files, keep):
    "Where only one is kept, there is none at all while the new one is written."
    return _saved(disk, step, files, keep, first=True)


@save_checkpoint.mistake("what was left behind stays", hint=3)
def what_was_left_behind_stays(disk, step, files, keep):
    "Files that a killed saver has left become part of your checkpoint, or stay for ever."
    return _saved(disk, step, files, keep, clean=False)


@save_checkpoint.mistake("nothing is synced", hint=4)
def nothing_is_synced(disk, step, files, keep):
    "The name can reach the disk before the content: after a power loss the files are empty."
    return _saved(disk, step, files, keep, sync=False)


@save_checkpoint.mistake("synced after the rename", hint=4)
def synced_after_the_rename(disk, step, files, keep):
    "Between the rename and the sync the name is there and the content may not be."
    return _saved(disk, step, files, keep, late_sync=True)


@save_checkpoint.mistake("one too few is kept", hint=2)
def one_too_few_is_kept(disk, step, files, keep):
    "`keep` counts the new checkpoint: the newest `keep` stay."
    return _saved(disk, step, files, keep, gone=-1 if keep > 1 else 0)


@save_checkpoint.mistake("one too many is kept", hint=2)
def one_too_many_is_kept(disk, step, files, keep):
    "`keep` counts the new checkpoint: the newest `keep` stay, and not one more."
    return _saved(disk, step, files, keep, gone=1)


@save_checkpoint.mistake("old ones by name", hint=2)
def old_ones_by_name(disk, step, files, keep):
    "As texts, step-9 comes after step-10: the numbers decide what is old."
    in_order = lambda d: sorted((n[5:] for n in d.names() if n.startswith("step-")), key=str)
    return _saved(disk, step, files, keep, numbers=in_order)
