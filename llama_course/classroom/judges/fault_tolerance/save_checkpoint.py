"What the judge knows of `save_checkpoint`. Spoilers ahead."

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.frail_disk import FrailDisk, Killed
from llama_course.classroom.judges.fault_tolerance.common import _numbers


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
    points={"values": 4, "laws": 6},
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
