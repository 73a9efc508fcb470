"A pretended disk, whose user can be killed at any operation, and which can lose power."


class Killed(BaseException):
    "The process ended here; no `except Exception` goes on."


class FrailDisk:
    """Files by path. A process that is killed leaves a write half done. A loss of power takes the
    content of files that were not synced; their names stay."""

    def __init__(
        self,
        files: dict[str, bytes],  # what is there already, by path
        kill_at: int = -1,  # the operation that is not finished, from 0; -1: none
    ):
        self.files = dict(files)
        self.unsynced: set[str] = set()
        self.left = kill_at

    def write(self, path: str, data: bytes) -> None:
        "A new file, or new content of an old one. Folders come by themselves."
        if not isinstance(path, str) or not path.strip("/") or path != path.strip("/"):
            raise ValueError(f"no path of a file: {path!r}")
        self.files[path] = bytes(data)[: len(data) // 2]
        self.unsynced.add(path)
        self._count()
        self.files[path] = bytes(data)

    def sync(self, path: str) -> None:
        "Waits until the content of the file is on the disk."
        if path not in self.files:
            raise FileNotFoundError(path)
        self._count()
        self.unsynced.discard(path)

    def rename(self, old: str, new: str) -> None:
        "Another name for a file (one of that name is replaced) or for a folder, all at once."
        inside, there = self._inside(old), self._inside(new)
        if not inside:
            raise FileNotFoundError(old)
        if there and (inside != [old] or there != [new]):
            raise FileExistsError(new)
        self._count()
        for path in inside:
            moved = new + path[len(old) :]
            self.files[moved] = self.files.pop(path)
            self.unsynced.discard(moved)
            if path in self.unsynced:
                self.unsynced.remove(path)
                self.unsynced.add(moved)

    def remove(self, path: str) -> None:
        "A file, or a folder: one file after the other."
        for one in self._inside(path):
            self._count()
            del self.files[one]
            self.unsynced.discard(one)

    def names(
        self,
        folder: str = "",  # none: the whole disk
    ) -> list[str]:
        "The names in a folder, in order; an empty list if there is no such folder."
        start = f"{folder}/" if folder else ""
        return sorted({p[len(start) :].split("/")[0] for p in self.files if p.startswith(start)})

    def after_power_loss(self) -> dict[str, bytes]:
        "What is found when the power is back."
        return {path: b"" if path in self.unsynced else data for path, data in self.files.items()}

    def _inside(self, path: str) -> list[str]:
        return [p for p in sorted(self.files) if p == path or p.startswith(f"{path}/")]

    def _count(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
