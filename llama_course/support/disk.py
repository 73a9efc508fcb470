"Files that are whole or not there: atomic writes, fingerprints, JSON, and a lock on a folder."

import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from llama_course.support.errors import UserError, disk_errors


@contextmanager
def atomic_write(
    path,  # the file to write; its folder is made if it is missing
):
    "A binary file object; `path` gets all that was written to it, or stays as it was."
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(beside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True) if beside.parent.is_dir() else None


@contextmanager
def new_folder(
    folder,  # must not exist, or be empty
):
    "A folder beside it, which takes its place at the end; after an error nothing is there."
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose another folder.")
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        with disk_errors(folder):
            beside.mkdir(parents=True)
            yield beside
            if folder.exists():
                folder.rmdir()
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def fingerprint(
    path,  # a file
) -> str:  # 64 hexadecimal digits
    "The SHA-256 of the file's content."
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(
    path,
    value,  # anything that JSON can hold
):
    "Writes `value` to `path`, whole or not at all."
    with atomic_write(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


def read_json(
    path,
):
    "The value that the file holds. Raises `UserError` when it is missing or is not JSON."
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is this the right folder?") from None
    except (ValueError, OSError, RecursionError) as error:
        reason = f"is not readable JSON ({error}): restore it, or make it anew."
        raise UserError(f"{path} {reason}") from None


def read_json_table(
    path,
) -> dict:
    "The names and values that the file holds. Raises `UserError` when it holds anything else."
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no table of settings, but {value!r:.40}: restore it.")
    return value


@contextmanager
def only_one(
    folder,  # made if it is missing
):
    "Holds the folder for this process. Raises `UserError` while another one holds it."
    with disk_errors(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder) / ".in_use", "a")
    with file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{folder} is in use by another process: wait for its end,"
                " or choose another folder."
            ) from None
        yield
