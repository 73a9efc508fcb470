"""The calls of the kernel that a process gives up for good, as a seccomp filter.

Nothing here needs a right: any process may give up its own. What is forbidden answers "operation
not permitted", so a program sees an error, not its end; only calls in the numbering of another
processor end it.
"""

import ctypes
import os
import platform

FORBIDDEN = {  # call: its number on x86_64 and on aarch64, None where there is none
    # sockets: no server is reached, also none that has a file for a name
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "mknodat": (259, 33), "mknod": (133, None),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273),
    "kexec_load": (246, 104), "fanotify_init": (300, 262), "personality": (135, 92),
    "syslog": (103, 116),
}  # fmt: skip
STARTING = {  # forbidden as well to a process that may start none
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435),
    "execve": (59, 221), "execveat": (322, 281), "socketpair": (53, 199),
}  # fmt: skip
PROCESSORS = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, the kernel's name

_LOAD, _MASK, _EQUAL, _AT_LEAST, _ANY_BIT, _LEAVE = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06  # of BPF
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE, _UNKNOWN = (
    _ERROR | 1,
    _ERROR | 38,
)  # EPERM; ENOSYS, at which the C library takes an older call
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24  # places of a call's number and arguments
_NEW_NAMESPACE = (
    0x7E020080  # the flags of `clone` for user, pid, net, mount, ipc, uts, cgroup, time
)
Instruction = tuple[int, int, int, int]  # operation, steps to skip if true, if false, operand


class Filter(ctypes.Structure):
    "The kernel's `struct sock_fprog`."

    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def c_call(
    name: str,  # of a function of the C library
    *args: object,
) -> int:
    "What the function returns. Raises `OSError` where that is -1."
    libc = ctypes.CDLL(None, use_errno=True)
    result = getattr(libc, name)(*args)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def filter_steps(
    machine: str,  # such as "x86_64"
    may_start: bool,  # threads and processes, in the namespaces that there are
) -> list[Instruction]:
    "The filter's program. Raises `OSError` for a processor whose numbers are not known here."
    if machine not in PROCESSORS:
        raise OSError(0, f"no list of calls for {machine}")
    column, name = PROCESSORS[machine]
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, name), (_LEAVE, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, 1 << 30), (_LEAVE, 0, 0, _KILL),  # x32's numbers
    ]  # fmt: skip
    calls = FORBIDDEN if may_start else FORBIDDEN | STARTING
    for number in filter(None, (numbers[column] for numbers in calls.values())):
        steps += [(_EQUAL, 0, 1, number), (_LEAVE, 0, 0, _REFUSE)]
    clone, clone3, pair = (
        STARTING[call][column] or 0 for call in ("clone", "clone3", "socketpair")
    )
    if may_start:
        steps += [
            # the flags of clone3 lie in memory, where no filter can look
            (_EQUAL, 0, 1, clone3), (_LEAVE, 0, 0, _UNKNOWN),
            (_EQUAL, 0, 4, clone), (_LOAD, 0, 0, _FIRST),
            (_ANY_BIT, 0, 1, _NEW_NAMESPACE), (_LEAVE, 0, 0, _REFUSE), (_LEAVE, 0, 0, _ALLOW),
            # a pair of streams is a pipe; a pair of datagram sockets could be sent to any name
            (_EQUAL, 0, 5, pair), (_LOAD, 0, 0, _SECOND), (_MASK, 0, 0, 15),
            (_EQUAL, 1, 0, 1), (_LEAVE, 0, 0, _REFUSE), (_LEAVE, 0, 0, _ALLOW),
        ]  # fmt: skip
    return [*steps, (_LEAVE, 0, 0, _ALLOW)]


def forbid(may_start: bool = False) -> None:
    "From here on the calls are refused to this process and all that it starts. Raises `OSError`."
    steps = filter_steps(platform.machine(), may_start)
    code = b"".join(
        operation.to_bytes(2, "little") + bytes([true, false]) + operand.to_bytes(4, "little")
        for operation, true, false, operand in steps
    )
    c_call("prctl", 38, 1, 0, 0, 0)  # no program that it starts may have more rights
    c_call("prctl", 22, 2, ctypes.byref(Filter(len(steps), code)), 0, 0)
