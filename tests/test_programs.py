"Programs that nobody has read do no harm behind the fence, and their lies are not believed."

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_course.support import seccomp
from llama_course.support.errors import UserError
from llama_course.support.fence import Fence
from llama_course.support.forkserver import ForkServer
from llama_course.support.programs import (
    ANYWAY,
    Sandbox,
    answer_calls,
    from_plain,
    perform,
    run_tests,
    to_plain,
)

TESTS = "assert double(2) == 4\nassert double('ab') == 'abab'\n"
RIGHT = "def double(x): return x + x"
PATIENT = Fence(seconds=60)  # the machine may be busy


@pytest.fixture(scope="module")
def box():
    try:
        with Sandbox(fence=PATIENT) as box:
            yield box
    except UserError as error:
        pytest.skip(str(error))


def told(box, program, names=("found",), tests="assert found() == 's3cret'", **more):
    "Whether the program got hold of the secret."
    return box.run(program, tests, list(names), **more)


def processes():
    "The processes that the fork server has started, or is."
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes()
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if b"support.programs" in line and state != "Z":
            found.append(int(path.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


# ---------------------------------------------------------------- right and wrong


def test_what_passes_and_what_does_not(box):
    assert box.run(RIGHT, TESTS, ["double"]) == (True, "")
    assert box.run("def double(x): return 2 * x", TESTS, ["double"]).passed
    for program, why in (
        ("def double(x): return x ** 2", "RuntimeError: TypeError"),
        ("def double(x): return 4", "AssertionError"),
        ("def double(x: return x", "SyntaxError"),
        ("def half(x): return x / 2", "KeyError: 'double'"),
        ("def double(x): return double(x)", "RecursionError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("import nothing_like_it", "ModuleNotFoundError"),
        ("def double(x): raise SystemExit(0)", "SystemExit"),
        ("\0", ""),
        ("def double(x): return '\ud800'", "AssertionError"),
    ):
        verdict = box.run(program, TESTS, ["double"])
        assert not verdict.passed and verdict.reason and why in verdict.reason, program


def test_the_whole_standard_library_is_there(box):
    modules = (
        "math re random collections itertools heapq bisect functools string datetime decimal "
        "fractions json hashlib"
        " statistics typing copy operator cmath array struct zlib bz2 lzma ctypes "
        "dataclasses enum unicodedata queue"
    )
    program = (
        f"import {', '.join(modules.split())}\n{RIGHT}\n@dataclasses.dataclass\n"
        f"class P:\n    x: int"
    )
    assert box.run(program, TESTS, ["double"]) == (True, "")
    assert box.run("import torch", "", []).reason.startswith("ModuleNotFoundError")


def test_tests_may_use_their_own_definitions_and_objects_of_the_program(box):
    before = (
        "import math\ndef poly(xs, x): return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n"
    )
    assert box.run(
        "def root(xs): return -xs[0] / xs[1]",
        "assert abs(poly([3, 4], root([3, 4]))) < 1e-9",
        ["root"],
        before,
    ).passed
    tree = (
        "class Node:\n    def __init__(self, v): self.v, self.left, self.right = v, None, None\n"
        "def depth(n): return 0 if n is None else 1 + max(depth(n.left), depth(n.right))"
    )
    tests = (
        "a = Node(1)\na.left = Node(2)\na.left.right = Node(3)\n"
        "assert depth(a) == 3 and a.left.v == 2 and not (a == a.left)"
    )
    assert box.run(tree, tests, ["Node", "depth"]) == (True, "")
    assert box.run(
        "def count(): yield from range(4)", "assert list(count()) == [0, 1, 2, 3]", ["count"]
    ).passed
    assert box.run("def f(*a, k=0): return a, k", "assert f(1, k={2}) == ((1,), {2})", ["f"]).passed
    assert "cannot be sent" in box.run("def f(g): return g(1)", "f(lambda x: x)", ["f"]).reason


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inside: (
        st.lists(inside)
        | st.tuples(inside, inside)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inside)
        | st.frozensets(st.integers())
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=80)
@given(plain)
def test_plain_data_comes_over_as_it_is(value):
    def kinds(v):
        return type(v), [*map(kinds, v)] if isinstance(v, (list, tuple)) else None

    back = from_plain(json.loads(json.dumps(to_plain(value, None))), None)
    assert back == value and kinds(back) == kinds(value)
    assert math.isnan(from_plain(json.loads(json.dumps(to_plain(math.nan, None))), None))


def test_no_subclass_comes_over():
    class Liar(int):
        def __eq__(self, other):
            return True

        def __format__(self, spec):
            return "4"

        def __hash__(self):
            return 0

    class Text(str):
        def __str__(self):
            return "other"

    class Row(list):
        def __iter__(self):
            return iter([9])

    assert (
        type(from_plain(to_plain(Liar(7), None), None)) is int
        and from_plain(to_plain(Liar(7), None), None) == 7
    )
    assert from_plain(to_plain([Text("ab"), Row([1])], None), None) == ["ab", [1]]


# ---------------------------------------------------------------- lies

LIES = {
    "ends well before the tests": "import os; os._exit(0)",
    "ends well in a call": "import os\ndef double(x): os._exit(0)",
    "leaves with SystemExit": "import sys; sys.exit(0)",
    "prints success": 'print(\'{"passed": true, "reason": ""}\', flush=True)\nprint(\'1 passed\')',
    "is equal to everything": "class Any:\n    def __eq__(self, o): return True\n"
    "def double(x): return Any()",
    "a number that is equal to everything": "class N(int):\n    def __eq__(self, o): return True\n"
    "    __hash__ = int.__hash__\ndef double(x): return N(7)",
    "replaces builtins": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\n"
    "builtins.exec = lambda *a: None\n"
    "builtins.isinstance = lambda *a: True\ndef double(x): return 0",
    "replaces json": "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\n"
    "json.loads = lambda *a: {}\ndef double(x): return 0",
    "writes to every file": "import os\ndef double(x):\n    for fd in range(3, 100):\n"
    '        try: os.write(fd, b\'{"passed": true, "reason": ""}\')\n'
    "        except OSError: pass\n    return 0",
    "answers more than was asked": "import gc, socket\ndef double(x):\n"
    "    for s in gc.get_objects():\n"
    "        if isinstance(s, socket.socket):\n"
    '            s.send(b\'{"value": {"int": "5"}}\\n\' * 9)\n    return 0',
    "closes all": "import os\nos.closerange(0, 100)\ndef double(x): return x + x",
    "an exit at the end": "import atexit, os\natexit.register(os._exit, 0)\n"
    "def double(x): return 0",
    "keeps what it is asked": "def double(x): return double",
    "code for the other side": "def double(x): return '__import__(\"os\")._exit(0)'",
    "an attribute for a value": "class D:\n    def __getattr__(self, n): return 4\n"
    "    def __call__(self, x): return 3\ndouble = D()",
    "a traceback hook": "import sys\nsys.excepthook = sys.settrace = lambda *a: "
    "__import__('os')._exit(0)\n"
    "def double(x): return 0",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_not_believed(box, lie):
    assert not box.run(LIES[lie], TESTS, ["double"]).passed
    assert box.run(RIGHT, TESTS, ["double"]).passed  # and the next one is judged as ever


LOOK = """import gc, sys
def found():
    frame, seen = sys._getframe(1), gc.get_objects()
    while frame: seen, frame = seen + [frame.f_globals, frame.f_locals], frame.f_back
    word = "".join(map(chr, (84, 69, 76, 76, 84, 65, 76, 69)))
    return any(word in repr(o) for o in seen if isinstance(o, (str, bytes, dict, list, tuple)))
"""


def test_the_program_does_not_see_the_tests(box):
    for _ in range(
        2
    ):  # the second time, the fork server has started a worker with such tests before
        assert box.run(LOOK, "TELLTALE = 1\nassert found() is False", ["found"]) == (True, "")
    seen = box.run(LOOK + "HERE = ['TELLTALE']", "assert found() is True", ["found"])
    assert seen == (True, "")  # it looks well


# ---------------------------------------------------------------- harm

CALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
REFUSED = {  # each must raise an OSError or return -1 in the cell
    "fork": "import os\nos.fork()",
    "fork by number": CALL + "assert libc.syscall(57) != -1",
    "fork by its name in C": CALL + "assert libc.fork() != -1",
    "vfork by number": CALL + "assert libc.syscall(58) != -1",
    "start a program": "import os\nos.execv('/usr/lib/x', ['x'])",
    "start a shell": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])",
    "a thread": "import threading\ntry: threading.Thread(target=print).start()\n"
    "except RuntimeError: raise OSError",
    "a socket": "import socket\nsocket.socket()",
    "a socket by number": CALL + "assert libc.syscall(41, 2, 1, 0) != -1",
    "a pair of sockets": "import socket\nsocket.socketpair()",
    "a new namespace": CALL + "assert libc.unshare(1 << 28) != -1",
    "mount": CALL + "assert libc.mount(b'none', b'/scratch', b'tmpfs', 0, None) != -1",
    "mount again, writable": CALL + "assert libc.mount(None, b'/', None, 32, None) != -1",
    "unmount": CALL + "assert libc.umount2(b'/scratch', 2) != -1",
    "chroot": "import os\nos.chroot('/scratch')",
    "trace": CALL + "assert libc.ptrace(0, 0, 0, 0) != -1",
    "become root": "import os\nos.setuid(0)",
    "become another": "import os\nos.setgroups([0])",
    "a device": "import os, stat\nos.mknod('/scratch/d', 0o600 | stat.S_IFCHR, os.makedev(1, 3))",
    "memory that is no file": "import os\nos.memfd_create('x')",
    "shared memory": CALL + "assert libc.shmget(0, 1 << 20, 0o1666) != -1",
    "write to the root": "open('/x', 'w')",
    "write to the library": "import os\nopen(os.__file__, 'a')",
    "remove the library": "import os\nos.unlink(os.__file__)",
    "change the library's mode": "import os\nos.chmod(os.__file__, 0o777)",
    "see processes": "import os\nos.listdir('/proc')[0]\n",
    "see devices": "import os\nassert os.listdir('/dev') != ['null', 'random', 'shm', "
    "'urandom', 'zero']\n"
    "open('/dev/tty')",
    "see more than it needs": "import os\nassert {*os.listdir('/')} - {'dev', 'lib', "
    "'lib64', 'scratch', 'tmp', 'usr',"
    " os.__file__.split('/')[1]}",
    "see accounts": "open('/etc/passwd')",
    "a large file": "open('f', 'wb').write(bytes(5 << 20))",
    "many large files": "for i in range(9): open(f'f{i}', 'wb').write(bytes(3 << 20))",
    "many files": "for i in range(999): open(f'f{i}', 'w').close()",
    "many open files": "a = [open('f', 'w') for i in range(99)]",
    "a gigabyte": "try: x = bytes(1 << 30)\nexcept MemoryError: raise OSError",
    "many megabytes": "x = []\ntry:\n    while len(x) < 2000: x.append(bytearray(1 << 20))\n"
    "except MemoryError: x = 0; raise OSError",
    "higher limits": "import resource\ntry: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, "
    "1 << 40))\n"
    "except ValueError: raise OSError",
    "the end of all others": "import os, signal\nos.kill(-1, signal.SIGKILL)",
}


@pytest.mark.parametrize("attack", REFUSED)
def test_harm_is_refused(box, attack):
    if "number" in attack and os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    body = "\n".join("    " + line for line in REFUSED[attack].splitlines())
    program = (
        f"try:\n{body}\n    HELD = 'it was allowed'\n"
        "except (OSError, AssertionError): HELD = 's3cret'\ndef found(): return HELD"
    )
    assert told(box, program) == (True, ""), attack


def test_files_of_the_user_are_out_of_reach(box, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("API_TOKEN", "s3cret")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text("s3cret")
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "thesis.txt").write_text("years of work")
    key = tmp_path / ".ssh" / "id_ed25519"
    with Sandbox(fence=PATIENT) as fresh:
        for attack in (
            f"FOUND = open({str(tmp_path / '.ssh' / 'id_ed25519')!r}).read()",
            "import os; FOUND = open(os.path.expanduser('~/.ssh/id_ed25519')).read()",
            "import os; FOUND = os.environ['API_TOKEN']",
            "FOUND = 's3cret' if b's3cret' in open('/proc/self/environ', 'rb').read() else ''",
            "FOUND = 's3cret' if b's3cret' in open('/proc/1/environ', 'rb').read() else ''",
            f"import shutil; shutil.rmtree({str(tmp_path / 'keep')!r})",
            f"import shutil; shutil.rmtree({str(tmp_path)!r}, ignore_errors=True)",
            f"import os; os.symlink({str(tmp_path)!r}, 'link'); FOUND = "
            f"open('link/.ssh/id_ed25519').read()",
            f"import os; os.chdir({'../' * 30!r}); FOUND = open({str(key)[1:]!r}).read()",
            f"open({str(tmp_path / 'written')!r}, 'w').write('x')",
        ):
            program = (
                f"FOUND = ''\ntry:\n    {attack}\nexcept (OSError, KeyError): pass\n"
                f"def found(): return FOUND"
            )
            assert told(fresh, program).reason.startswith("AssertionError"), attack
    with Sandbox(
        fence=Fence(seconds=1.5)
    ) as hasty:  # it wanders through a library that cannot be written to
        assert not told(hasty, "import shutil; shutil.rmtree('/', ignore_errors=True)").passed
    assert (tmp_path / "keep" / "thesis.txt").read_text() == "years of work" and not (
        tmp_path / "written"
    ).exists()


def test_no_server_is_reached(box):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        port = server.getsockname()[1]
        program = (
            f"import socket\ndef found():\n"
            f"    with socket.create_connection(('127.0.0.1', {port})): return 's3cret'"
        )
        assert "not permitted" in told(box, program).reason
        with pytest.raises(BlockingIOError):
            server.accept()


def test_what_a_cell_leaves_behind_is_gone(box):
    program = (
        "import os\nopen('note', 'w').write('s3cret')\ndef found(): return open('note').read()"
    )
    assert told(box, program).passed
    assert not told(box, "def found(): return open('note').read()").passed


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import signal; signal.pause()",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP); signal.pause()",
        "def double(x):\n    while True: pass",
        "def double(x):\n    while True: yield x\n",
        "import signal, time\nfor s in range(1, 64):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ntime.sleep(1000)",
        "import ctypes, time\nctypes.CDLL(None).prctl(1, 0)\ntime.sleep(1000)",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "while True: print('x' * 100000)",
    ],
)
def test_what_does_not_end_is_ended(box, program):
    tests = TESTS if "yield" not in program else "assert list(double(1))"
    with Sandbox(fence=Fence(seconds=1.5)) as hasty:
        before = time.monotonic()
        verdict = hasty.run(program, tests, ["double"])
        assert not verdict.passed and (
            verdict.reason == "no end in 1.5 s" or "MemoryError" in verdict.reason
        )
        assert time.monotonic() - before < 60


def test_a_crash_is_no_success(box):
    for program in (
        "import ctypes; ctypes.string_at(0)",
        "import os; os.abort()",
        "def double(x): return [0] * 10**9",
        "import ctypes; ctypes.CDLL(None).syscall(1 << 30)",
        "def double(x): return 'x' * (1 << 24)",
        "x = []\nx.append(x)\ndef double(y): return x",
    ):
        assert not box.run(program, TESTS, ["double"]).passed, program
    assert box.run(RIGHT, TESTS, ["double"]).passed


def test_nothing_is_left_running():
    try:
        first = set(processes())
    except OSError:
        pytest.skip("no /proc")
    try:
        with Sandbox(fence=Fence(seconds=1)) as box:
            server = set(processes()) - first
            box.run("import time; time.sleep(1000)", TESTS, ["double"])
            assert set(processes()) - first == server  # only the fork server itself
    except UserError as error:
        pytest.skip(str(error))
    assert not set(processes()) - first


def test_when_the_caller_dies_all_die(tmp_path):
    code = (
        "import sys, time\nfrom llama_course.support.programs import Sandbox\n"
        "from llama_course.support.fence import Fence\n"
        "with Sandbox(fence=Fence(seconds=1000)) as box:\n"
        "    print(box.server.process.pid, flush=True)\n"
        "    box.run('import time; time.sleep(1000)', '', ['x'])"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    line = caller.stdout.readline()
    if not line:
        pytest.skip("no fence can be built here")
    server = int(line)
    family = lambda: [
        pid
        for pid in processes()
        if pid == server or f" {server} " in Path(f"/proc/{pid}/stat").read_text()
    ]
    assert wait_for(lambda: len(family()) >= 3)
    everyone = [pid for pid in processes()]
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    caller.stdout.close()
    assert wait_for(lambda: not alive(server)), "the fork server goes on"
    own = [pid for pid in everyone if pid in family()]
    assert wait_for(lambda: not any(map(alive, own)))


# ---------------------------------------------------------------- where no fence can be built


def changed(monkeypatch, line):
    "The fork server runs another line first."
    real = ForkServer.command

    def command(self, sock):
        *rest, start = real(self, sock)
        assert "forkserver.serve_forks(" in start
        return [*rest, start.replace("forkserver.serve_forks(", f"{line}; forkserver.serve_forks(")]

    monkeypatch.setattr(ForkServer, "command", command)


NO_FENCE = "fence.make_root = lambda f: seccomp.c_call('umount2', b'/nowhere', 0)"


def test_without_a_fence_nothing_is_run(monkeypatch, tmp_path):
    changed(monkeypatch, NO_FENCE)
    monkeypatch.delenv(ANYWAY, raising=False)
    with pytest.raises(UserError, match=f"none is run.*{ANYWAY}=1"):
        with Sandbox() as box:
            box.run(f"open({str(tmp_path / 'x')!r}, 'w')", "", [])
    assert not (tmp_path / "x").exists()


def test_a_fence_that_falls_later_runs_nothing(box, monkeypatch, tmp_path):
    changed(monkeypatch, "forkserver.trial = lambda: ''; " + NO_FENCE)
    with pytest.raises(UserError, match="none is run"), Sandbox(fence=PATIENT) as open_box:
        assert not open_box.run(f"open({str(tmp_path / 'x')!r}, 'w')", "", []).passed
    assert not (tmp_path / "x").exists()


def test_by_name_it_runs_behind_the_other_walls(monkeypatch, tmp_path):
    changed(monkeypatch, NO_FENCE)
    monkeypatch.setenv(ANYWAY, "1")
    monkeypatch.setenv("API_TOKEN", "s3cret")
    with Sandbox(fence=PATIENT) as weak:
        assert weak.run(RIGHT, TESTS, ["double"]).passed
        for lie in LIES.values():
            assert not weak.run(lie, TESTS, ["double"]).passed
        assert not told(weak, "import os\ndef found(): return os.environ.get('API_TOKEN')").passed
        home = (
            f"import os\nHERE = {os.getcwd()!r}\ndef found():\n"
            "    return 's3cret' if os.getcwd() != HERE and not os.listdir('.') else ''"
        )
        assert told(weak, home).passed
        if sys.platform == "linux":
            assert "not permitted" in told(weak, "import os\nos.fork()").reason
        assert not told(weak, "x = bytes(1 << 30)\ndef found(): return 's3cret'").passed


def test_each_wall_stands_alone(box, monkeypatch, tmp_path):
    (tmp_path / "key").write_text("s3cret")
    read = f"def found(): return open({str(tmp_path / 'key')!r}).read()"
    changed(monkeypatch, "forkserver.forbid = lambda **_: None")
    with Sandbox(fence=PATIENT) as fence_only:
        assert fence_only.run(RIGHT, TESTS, ["double"]).passed
        assert "No such file" in told(fence_only, read).reason
        dial = "import socket\ndef found():\n    socket.create_connection(('127.0.0.1', 9), 2)"
        assert "unreachable" in told(fence_only, dial).reason
        assert (
            "not permitted"
            in told(fence_only, "import os\ndef found(): os.chroot('/scratch')").reason
        )
        alone = (
            "import os\ndef found(): return 's3cret' if os.getpid() == 1 and os.getuid() "
            "== 65534 else ''"
        )
        assert told(fence_only, alone).passed
        lost = "import os, time\nif os.fork() == 0: time.sleep(1000)\ndef found(): return 's3cret'"
        first = set(processes())
        assert (
            told(fence_only, lost).passed and set(processes()) <= first
        )  # the kernel ended the child


def test_numbers_of_calls_are_those_of_the_kernel():
    headers = {
        "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        "aarch64": Path("/usr/include/asm-generic/unistd.h"),
    }
    seen = 0
    for machine, path in headers.items():
        if not path.is_file():
            continue
        numbers = dict(
            line.split()[1:3]
            for line in path.read_text().splitlines()
            if line.startswith("#define __NR") and len(line.split()) == 3
        )
        for call, pair in (seccomp.FORBIDDEN | seccomp.STARTING).items():
            number = pair[seccomp.PROCESSORS[machine][0]]
            known = numbers.get(f"__NR_{call}", numbers.get(f"__NR3264_{call}"))
            if known and known.isdigit():
                assert int(known) == number, (machine, call)
                seen += 1
            elif number is None:
                assert known is None, (machine, call)
    if not seen:
        pytest.skip("no headers of the kernel here")


def test_two_threads_are_enough_for_the_language():
    ours, theirs = socket.socketpair()
    threading.Thread(target=answer_calls, args=(theirs, RIGHT), daemon=True).start()
    assert run_tests(ours, {"before": "", "tests": TESTS, "names": ["double"]}) == ""


def test_perform_does_what_the_tests_ask():
    assert perform({"do": "find", "name": "f"}, {"f": 3}, []) == 3
    ask = {
        "do": "call",
        "thing": {"kept": 0},
        "args": to_plain((2, 5), None),
        "named": to_plain({}, None),
    }
    assert perform(ask, {}, [pow]) == 32
