"A mistake that its maker can mend is one line: `UserError`."

import errno
from contextlib import contextmanager


class UserError(Exception):
    "A mistake that its maker can mend: one line that says what, where and what to do."


REFUSED = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}


@contextmanager
def disk_errors(
    path,  # what is being written
):
    "Turns the system's refusals to write (full disk, quota, no permission) into `UserError`."
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder."
        ) from None
