"What the judge knows of `newest_whole`. Spoilers ahead."

import hashlib
import json
import os
import tempfile
from pathlib import Path

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.fault_tolerance.common import _numbers


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
        case "another key":  # a bit of "files" has flipped
            files[table] = files[table].replace(b'"files"', b'"fimes"')
        case "no text":
            files[table] = files[table].replace(b'"step"', b'"st\xe5p"')
        case "a list":
            files[table] = b"[" + files[table] + b"]"
        case "another sum":
            place = files[table].rindex(b'"}') - 1
            old = files[table][place : place + 1]
            files[table] = files[table][:place] + (b"0" if old != b"0" else b"1") + b'"}}'
        case "other step":
            files[table] = files[table].replace(b'"step": %d,' % step, b'"step": 1,')
    return files


KINDS = (
    "bit", "cut", "longer", "missing", "no table", "half a table", "other step", "another key",
    "no text", "a list", "another sum",
)  # fmt: skip

newest_whole = Exercise(
    "newest_whole",
    chapter="18_fault_tolerance",
    kind="rebuild",
    minutes=25,
    difficulty=2,
    call=_on_disk,
    points={"values": 8, "laws": 2},
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
    for kind in KINDS:
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
        except (KeyError, TypeError, ValueError):
            continue
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
        if sums == table["files"] and table.get("step") == step:
            whole.append(step)
    return max(whole) if whole else "ValueError for damaged" if steps else None


def _newest(
    folder, *, key=lambda path: int(path.name[5:]), pattern="step-*", sums=True, step=True,
    sizes=False, refuse=True, careful=True, older=True, strange=True,
):  # fmt: skip
    "The search, with a place for each mistake."
    folders = sorted((p for p in folder.glob(pattern) if p.is_dir()), key=key, reverse=True)
    for path in folders:
        try:
            table = json.loads((path / "about.json").read_text("utf-8"))
        except (OSError, ValueError):
            if careful:
                continue
            raise
        try:
            files, told = {name: path / name for name in table["files"]}, table["step"]
        except (KeyError, TypeError):
            if strange:
                continue
            raise
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
        if (good or not sums) and (not step or told == int(path.name.rsplit("-", 1)[1])):
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
        except (ValueError, LookupError, TypeError):
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
    files = {"rank-0.safetensors": (0, 5, 11), "rank-1.safetensors": (0, 5, 11)}
    files["about.json"] = (
        3,
        15,
        20,
        len(both["step-31/about.json"]) - 10,
    )  # two keys, a sign, a sum
    for name, places in files.items():
        path = f"step-31/{name}"
        for i in places:
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


@newest_whole.mistake("a table of another form ends it", hint=3)
def a_table_of_another_form_ends_it(folder):
    "A flipped bit may leave valid JSON without the key that you look for: that is damage, too."
    return _newest(folder, strange=False)


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
