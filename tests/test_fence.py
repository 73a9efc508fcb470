"""The fence around notebooks: each measure is tried by code that wants out (C5). What is refused to
programs besides is in test_programs.py."""

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llama_course.support import seccomp
from llama_course.support.fence import DEVICES, HOME, Fence, installed_packages
from llama_course.support.forkserver import ForkServer, Lives

if sys.platform != "linux":
    pytest.skip("the fence is Linux's", allow_module_level=True)

ROOMY = Fence(
    readable=tuple(installed_packages()),
    seconds=60,
    memory=512 << 20,
    processes=8,
    open_files=64,
    disk=8 << 20,
)


def run_source(fds: list[int], source: str) -> None:
    "A life: runs the source, whose `say` reaches the test."

    def say(text: object) -> None:
        os.write(fds[0], f"{text}\n".encode())

    try:
        exec(source, {"say": say, "__name__": "__main__"})
    except BaseException as error:
        say(f"{type(error).__name__}: {error}")


SOURCES = Lives({"source": run_source})


@pytest.fixture(scope="module")
def server():
    with ForkServer("test_fence:SOURCES", environment={"API_TOKEN": "s3cret"}) as server:
        probe = server.start("source", [], Fence(), source="")
        if probe.refused:
            pytest.skip(probe.refused)
        probe.end()
        yield server


def run(server, source: str, fence: Fence = ROOMY) -> tuple[list[str], str]:
    "What the source says, and which limit it broke."
    ours, theirs = os.pipe()
    worker = server.start("source", [theirs], fence, source=textwrap.dedent(source))
    os.close(theirs)
    with os.fdopen(ours) as file:
        said = file.read().splitlines()  # until nobody behind the fence holds the other end
    return said, worker.end()


def attempt(server, source: str, fence: Fence = ROOMY) -> str:
    "The exception, or what the source said."
    said, broke = run(server, source, fence)
    return " ".join([*said, broke]).strip()


# ---------------------------------------------------------------- what is there


def test_what_a_learner_needs_is_there(server):
    said, broke = run(
        server,
        """
        import subprocess, sys, tempfile, threading, multiprocessing
        import numpy, torch
        say(torch.ones(3).sum().item())
        thread = threading.Thread(target=say, args=("a thread",))
        thread.start(), thread.join()
        child = multiprocessing.get_context("fork").Process(target=say, args=("a process",))
        child.start(), child.join()
        out = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True)
        say(out.stdout.strip())
        out = subprocess.run("echo a shell | cat", shell=True, capture_output=True, text=True)
        say(out.stdout.strip())
        with tempfile.NamedTemporaryFile("w+") as file:
            file.write("a file"), file.seek(0), say(file.read())
        say(len(open("/dev/urandom", "rb").read(8)))
        open("/dev/null", "w").write("nowhere")
        """,
        replace(ROOMY, memory=4 << 30),
    )
    assert said == ["3.0", "a thread", "a process", "42", "a shell", "a file", "8"] and broke == ""


# ---------------------------------------------------------------- files


def test_nothing_of_the_users_is_seen_but_what_is_given(server, tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "data.csv").write_text("1,2")
    (tmp_path / "token").write_text("s3cret")
    (tmp_path / "given" / "link").symlink_to(tmp_path / "token")
    fence = replace(ROOMY, readable=(*ROOMY.readable, str(tmp_path / "given")))
    read = "say(open({!r}).read())"
    assert attempt(server, read.format(str(tmp_path / "given" / "data.csv")), fence) == "1,2"
    for path in (
        tmp_path / "token",
        tmp_path / "given" / "link",
        tmp_path / "given" / ".." / "token",
    ):
        assert attempt(server, read.format(str(path)), fence).startswith("FileNotFoundError")
    runtime = Path.home() / ".local/share/jupyter/runtime"
    for path in (
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/1/root",
        "/run",
        "/var",
        "/sys",
        runtime,
        Path.home() / ".ssh",
    ):
        assert "No such file" in attempt(server, f"import os; say(os.listdir({str(path)!r}))")
    write = f"open({str(tmp_path / 'given' / 'data.csv')!r}, 'a')"
    assert "Read-only file system" in attempt(server, write, fence)
    assert (tmp_path / "given" / "data.csv").read_text() == "1,2"


@pytest.mark.parametrize("path", ["/x", "/dev/x", "/usr/x", os.__file__, "/lib/x"])
def test_nothing_can_be_written_outside_the_one_folder(server, path):
    assert "Read-only file system" in attempt(server, f"open({path!r}, 'a')")


def test_the_one_folder_is_small_and_gone_afterwards(server):
    said = attempt(
        server, "import os; say(os.getcwd(), ); say(os.environ['HOME']); say(os.listdir('.'))"
    )
    assert said == f"{HOME} {HOME} []"
    assert run(server, "open('note', 'w').write('x'); import os; say(os.listdir('.'))")[0] == [
        "['note']"
    ]
    assert run(server, "import os; say(os.listdir('.'))")[0] == ["[]"]
    fill = "for i in range(9): open(f'f{i}', 'wb').write(bytes(3 << 20))"
    assert "No space left" in attempt(server, fill)
    assert "File too large" in attempt(server, "open('f', 'wb').write(bytes(9 << 20))")
    assert "No space left" in attempt(server, "for i in range(2000): open(f'f{i}', 'w')\n" * 2)


def test_no_device_but_four(server):
    said = attempt(server, "import os; say(sorted(os.listdir('/dev')))")
    assert said == str(sorted([*DEVICES, "shm"]))
    for name, number in (("mem", (1, 1)), ("zero", (1, 5)), ("sda", (8, 0))):
        made = (
            f"import os, stat; os.mknod({HOME!r} + '/{name}', 0o600 | stat.S_IFCHR, "
            f"os.makedev{number})"
        )
        assert "not permitted" in attempt(server, made)
    assert "not permitted" in attempt(
        server, "import os; os.mkfifo('pipe'); os.mknod('x', 0o600 | 0o060000, 2048)"
    )
    for name in ("tty", "kmsg", "fuse", "net/tun", "vda", "kvm"):
        assert "No such file" in attempt(server, f"open('/dev/{name}', 'rb')")


# ---------------------------------------------------------------- network


def test_no_server_is_reached(server, tmp_path):
    """Neither by the network nor by a Unix socket, be it a file that can be read or an abstract
    name."""
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    with socket.create_server(("127.0.0.1", 0)) as tcp, unix, abstract:
        unix.bind(str(tmp_path / "socket"))
        abstract.bind("\0llama_course_test")
        for listener in (tcp, unix, abstract):
            listener.listen()
            listener.settimeout(0)
        fence = replace(ROOMY, readable=(*ROOMY.readable, str(tmp_path)))
        port = tcp.getsockname()[1]
        dials = (
            f"socket.create_connection(('127.0.0.1', {port}))",
            f"socket.socket(socket.AF_UNIX).connect({str(tmp_path / 'socket')!r})",
            "socket.socket(socket.AF_UNIX).connect('\\0llama_course_test')",
            "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
            f"socket.socketpair()[0].connect({str(tmp_path / 'socket')!r})",
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
        )
        for dial in dials:
            assert "not permitted" in attempt(server, f"import socket\n{dial}", fence), dial
        for listener in (tcp, unix, abstract):
            with pytest.raises(BlockingIOError):
                listener.accept()


# ---------------------------------------------------------------- processes and rights

CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
LAST = "\nsay(f'{result} {ctypes.get_errno()}')"


def test_no_process_but_its_own_is_seen(server):
    assert (
        attempt(server, "import os; say((os.getpid(), os.getppid(), os.getuid()))")
        == "(1, 0, 65534)"
    )
    assert attempt(server, f"import os; os.kill({os.getpid()}, 0)").startswith("ProcessLookupError")
    assert "ProcessLookupError" in attempt(server, "import os, signal; os.kill(-1, signal.SIGKILL)")


@pytest.mark.parametrize(
    "call",
    [
        "ptrace(0, 0, 0, 0)",
        "unshare(1 << 28)",
        "setns(0, 0)",
        "mount(b'x', b'/scratch', b'tmpfs', 0, None)",
        "mount(None, b'/', None, 32, None)",
        "umount2(b'/usr', 2)",
        "chroot(b'/scratch')",
        "memfd_create(b'x', 0)",
        "shmget(0, 1 << 20, 0o1666)",
        "process_vm_readv(1, None, 0, None, 0, 0)",
        "clone(0, 0, 1 << 28 | 17, 0)",
        "syscall(NUMBER['bpf'], 0, 0, 0)",
        "syscall(NUMBER['io_uring_setup'], 1, 0)",
        "syscall(NUMBER['keyctl'], 0, 0)",
        "syscall(NUMBER['clone'], 1 << 28 | 17, 0, 0, 0, 0)",
        "syscall(NUMBER['clone'], 1 << 29 | 17, 0, 0, 0, 0)",
        "syscall(NUMBER['pidfd_open'], 1, 0)",
        "setuid(0)",
        "setresuid(0, 0, 0)",
        "setgroups(0, None)",
    ],
)
def test_what_is_forbidden_is_an_error(server, call):
    if os.uname().machine not in seccomp.PROCESSORS:
        pytest.skip("another processor")
    column = seccomp.PROCESSORS[os.uname().machine][0]
    calls = seccomp.FORBIDDEN | seccomp.STARTING
    number = {name: pair[column] for name, pair in calls.items()}
    result = attempt(server, f"{CALL}NUMBER = {number}\nresult = libc.{call}{LAST}")
    assert result in ("-1 1", "-1 22"), result  # not permitted; for set*id: no such user here


def test_a_new_namespace_is_refused_by_clone3_too(server):
    source = (
        CALL
        + """
    import struct
    args = struct.pack("11Q", 1 << 28, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    result = libc.syscall(435, args, len(args))""".replace("\n    ", "\n")
        + LAST
    )
    assert attempt(server, source) == "-1 38"  # unknown: the C library falls back to clone


def test_all_processes_count_and_end_with_the_worker(server):
    "Also those that have left the session, whose parent has ended, or that ignore every signal."
    bomb = """
    import os, signal, time
    say("begins")
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
                for number in range(1, 60):
                    try: signal.signal(number, signal.SIG_IGN)
                    except (OSError, ValueError): pass
                if os.fork(): os._exit(0)
                time.sleep(1000)
        except OSError: pass
        time.sleep(0.002)
    """
    before = len(os.listdir("/proc"))
    said, broke = run(server, bomb)
    assert said == ["begins"] and broke == "it started more than 8 processes"
    assert len(os.listdir("/proc")) < before + 100
    assert run(
        server, "import os\nif os.fork() == 0:\n  import time; time.sleep(1000)\nsay('left')"
    )[0] == ["left"]


def test_where_nothing_may_start_no_thread_does(server):
    alone = Fence(readable=ROOMY.readable)
    for source in ("import os; os.fork()", "import subprocess; subprocess.run(['/bin/true'])"):
        assert "not permitted" in attempt(server, source, alone)
    assert "can't start new thread" in attempt(
        server, "import threading; threading.Thread(target=print).start()", alone
    )


# ---------------------------------------------------------------- time, memory, output


def test_time_is_bounded(server):
    hasty = replace(ROOMY, seconds=0.5)
    assert attempt(server, "while True: pass", hasty) == "it took longer than 0.5 s"
    assert attempt(server, "import time; time.sleep(1000)", hasty) == "it took longer than 0.5 s"


def test_memory_is_bounded_in_each_process(server):
    for source in ("x = bytes(1 << 30)", "x = []\nwhile True: x.append(bytearray(1 << 20))"):
        assert attempt(server, source) == "MemoryError:"
    shared = "import mmap; x = mmap.mmap(-1, 1 << 30)"
    assert "Cannot allocate memory" in attempt(server, shared)
    segment = (
        "from multiprocessing import shared_memory as s; s.SharedMemory(create=True, size=64 << 20)"
    )
    said = attempt(server, segment + ".buf[:] = bytes(64 << 20)")
    assert "File too large" in said or "No space left" in said


def test_memory_is_bounded_in_all_processes_together(server):
    fence = replace(ROOMY, memory=200 << 20, processes=64)
    greedy = """
    import os, time
    for _ in range(16):
        if os.fork() == 0:
            x = bytearray(120 << 20)
            for i in range(0, len(x), 4096): x[i] = 1
            time.sleep(1000)
    time.sleep(1000)
    """
    assert attempt(server, greedy, fence) == "its processes used too much memory"


def test_open_files_are_bounded(server):
    assert "Too many open files" in attempt(server, "x = [open('/dev/null') for _ in range(99)]")
    raised = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (9999, 9999))"
    assert attempt(server, raised).startswith("ValueError")


def test_output_leads_nowhere(server, capfd):
    source = (
        "import os\nfor fd in (1, 2): os.write(fd, b'x' * 99999)\nprint('y' * 99999)\n"
        "say(repr(os.read(0, 9)))"
    )
    assert attempt(server, source) == "b''"
    assert capfd.readouterr() == ("", "")


def test_no_descriptor_comes_along(server):
    source = """
    import os
    for fd in range(3, 64):
        try: say(os.readlink(f"/dev/fd/{fd}"))
        except OSError: pass
        try: os.fstat(fd), say(fd)
        except OSError: pass
    """
    assert len(run(server, source)[0]) == 1  # the pipe that it speaks into


# ---------------------------------------------------------------- its own life


def test_the_worker_ends_when_the_caller_lets_go(server):
    ours, theirs = os.pipe()
    worker = server.start(
        "source", [theirs], ROOMY, source="import time; say('here'); time.sleep(1000)"
    )
    os.close(theirs)
    with os.fdopen(ours) as file:
        assert file.readline() == "here\n"
        ender = threading.Thread(target=worker.end)
        ender.start()
        assert file.read() == ""
        ender.join()


def test_all_end_when_the_caller_is_killed(tmp_path):
    code = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_fence as t
with t.ForkServer("test_fence:SOURCES") as server:
    worker = server.start("source", [1], t.ROOMY, source="import time; say('here'); "
    "time.sleep(1000)")
    time.sleep(1000)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout.readline() == "here\n"
        caller.kill()
        assert caller.stdout.read() == ""  # it comes when the last who holds the pipe has ended


def test_without_namespaces_the_rest_still_holds(monkeypatch, tmp_path):
    "Sockets, limits, counts: by seccomp and the monitor, which need no namespace."
    real = ForkServer.command

    def command(self, sock):
        *rest, start = real(self, sock)
        broken = "fence.make_root = lambda f: seccomp.c_call('umount2', b'/nowhere', 0); "
        return [*rest, start.replace("forkserver.serve_forks(", broken + "forkserver.serve_forks(")]

    monkeypatch.setattr(ForkServer, "command", command)
    with ForkServer("test_fence:SOURCES") as server:
        assert "umount2" in server.start("source", [], ROOMY, source="").refused
        lenient = replace(ROOMY, required=False)
        worker = server.start("source", [], lenient, source="")
        assert "umount2" in worker.not_fenced and Path(worker.home).parent == Path(
            os.environ.get("TMPDIR", "/tmp")
        )
        worker.end()
        assert not Path(worker.home).exists()
        assert "not permitted" in attempt(server, "import socket; socket.socket()", lenient)
        assert attempt(server, "x = bytes(1 << 30)", lenient) == "MemoryError:"
        lost = """
        import os, time
        for _ in range(20):
            if os.fork() == 0:
                os.setsid()
                if os.fork(): os._exit(0)
                time.sleep(1000)
        time.sleep(1000)
        """
        assert attempt(server, lost, lenient) == "it started more than 8 processes"
        left = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  time.sleep(1000)\nsay('left')"
        begun = time.monotonic()
        assert attempt(server, left, lenient) == "left" and time.monotonic() - begun < 60


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_without_namespaces_roots_worker_is_nobody(monkeypatch, tmp_path_factory):
    "As in Gradescope's container: the file of the results is root's, the notebook's code is not."
    real = ForkServer.command
    broken = "fence.make_root = lambda f: seccomp.c_call('umount2', b'/nowhere', 0); "
    readable = "forkserver.python_folders = list; "  # here Python may lie in root's own home

    def command(self, sock):
        *rest, start = real(self, sock)
        serve = "forkserver.serve_forks("
        return [*rest, start.replace(serve, broken + readable + serve)]

    monkeypatch.setattr(ForkServer, "command", command)
    with tempfile.NamedTemporaryFile("w") as results, ForkServer("test_fence:SOURCES") as server:
        os.chmod(results.name, 0o644)
        lenient = replace(ROOMY, readable=(results.name,), required=False)
        said, _ = run(
            server,
            f"""
            import os
            say((os.getuid(), os.getgid(), os.getgroups()))
            open('own', 'w').write('its own folder'), say('wrote')
            for how in ('r', 'a'):
                try: say(open({results.name!r}, how).read())
                except OSError as error: say(type(error).__name__)
            os.setuid(0)
            """,
            lenient,
        )
        assert said[:4] == ["(65534, 65534, [])", "wrote", "", "PermissionError"], said
        assert said[4].startswith("PermissionError")
        private = replace(lenient, readable=(str(tmp_path_factory.getbasetemp()),))
        assert run(server, "import os; say(os.getuid())", private)[0] == ["0"]


@pytest.mark.parametrize("may_start", [True, False])
@pytest.mark.parametrize("machine", seccomp.PROCESSORS)
def test_the_filter_is_a_program_that_ends(machine, may_start):
    steps = seccomp.filter_steps(machine, may_start)
    assert len(steps) < 4096 and steps[-1][3] == 0x7FFF0000
    for place, (_, true, false, _) in enumerate(steps):
        assert place + 1 + max(true, false) < len(steps) or (true, false) == (0, 0)
    with pytest.raises(OSError, match="no list of calls for z80"):
        seccomp.filter_steps("z80", may_start)
