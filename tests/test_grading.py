"Notebooks that nobody has read: none scores more than it is worth, none ends the judge."

import json
import os
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from forked import Forked

from llama_course.classroom import (
    judge,
    supervisor,
)
from llama_course.classroom.exercise import load_exercises
from llama_course.classroom.generate import generate_exercises
from llama_course.classroom.grade import grade
from llama_course.classroom.gradescope import gradescope
from llama_course.classroom.supervisor import Limits
from llama_course.support.errors import UserError
from llama_course.support.forkserver import ForkServer

ROOT = Path(__file__).resolve().parent.parent
EXERCISES = dict(load_exercises())
TASKS = list(EXERCISES.values())
QUICK = Limits(memory=1 << 30, cell_seconds=1.5, call_seconds=1.5, total_seconds=60)


# ---------------------------------------------------------------- whole notebooks


NORM = """import torch
def rms_norm(x, weight, eps):
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * weight
"""
ROPE = """import torch
def rope(x, positions, theta):
    frequency = theta ** (-torch.arange(0, x.shape[-1], 2).float() / x.shape[-1])
    angle = torch.outer(positions.float(), frequency)[:, None]
    cos, sin, (even, odd) = angle.cos(), angle.sin(), (x[..., 0::2], x[..., 1::2])
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).type_as(x)
"""
BLOCK = """import torch.nn.functional as F
def pre_norm_block(x, w1, w2, g1, g2, eps):
    h = x + F.rms_norm(x, g1.shape, g1, eps) @ w1
    return h + F.rms_norm(h, g2.shape, g2, eps) @ w2
"""
WRONG = "def rms_norm(x, weight, eps): return x\n"


def write(folder, *sources, name="answers.ipynb"):
    cells = [
        {
            "cell_type": "code",
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
            "id": f"c{i}",
        }
        for i, source in enumerate(sources)
    ]
    path = Path(folder) / name
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


def points(result):
    return {row["name"]: row["points"] for row in result["exercises"]}


def run_here(path):
    "All cells of a notebook, as a learner runs them; exercise -> what `check` has said there."
    space, said = {"__name__": "__main__", "display": repr}, {}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), path.name, "exec"), space)
            marks = cell["metadata"].get("nbgrader", {})
            if marks.get("grade"):
                said[marks["grade_id"]] = space.pop("report")
    return said


def test_solutions_get_full_marks_and_exercises_none():
    found = set()
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        said = run_here(path)
        assert all(report.passed for report in said.values()), said
        for folder, share in (("solutions", 1), ("exercises", 0)):  # the cases are computed once
            result = grade(ROOT / folder / path.name)
            rows = result["exercises"]
            found |= {row["name"] for row in rows}
            assert said.keys() == {row["name"] for row in rows}
            notes = [note for note in result["notes"] if ": cell " in note]
            assert not share or not notes, notes  # every cell of a solution runs to its end
            for row in rows:
                assert row["points"] == share * row["max_points"], row
                assert row["passed"] == bool(share) and bool(row["messages"]) != bool(share)
    assert found == set(EXERCISES)


# Each attack stands in a notebook with a right pre_norm_block, which must keep its ten points,
# and either a right or a wrong rms_norm, which must get what it is worth.
ATTACKS = {
    "loops for ever": (NORM, "while True: pass", 10),
    "loops after the definition, in the same cell": (NORM + "while True: pass", "", 10),
    "os._exit": (NORM, "import os\nos._exit(0)", 10),
    "os._exit after the definition, in the same cell": (NORM + "import os\nos._exit(0)", "", 10),
    "sys.exit": (NORM, "import sys\nsys.exit(0)", 10),
    "raises": (NORM, "1 / 0", 10),
    "crashes in native code": (NORM, "import ctypes\nctypes.string_at(0)", 10),
    "eats memory in torch": (
        NORM,
        "import torch\nx = []\nwhile True: x.append(torch.ones(1 << 25))",
        10,
    ),
    "eats memory in python": (NORM, "x = [0]\nwhile True: x = x + x", 10),
    "endless recursion": (NORM, "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", 10),
    "fills the disk": (
        NORM,
        "with open('big', 'wb') as f:\n  while True: f.write(bytes(1 << 20))",
        10,
    ),
    "leaves threads behind": (
        NORM,
        """import threading
def f():
    while True: pass
for _ in range(3): threading.Thread(target=f).start()""",
        10,
    ),
    "ends a little later": (
        NORM,
        """import os, threading
threading.Timer(0.05, lambda: os._exit(0)).start()""",
        10,
    ),
    "ends while it is judged": (
        NORM.replace("    wide", "    seen.append(x)\n    wide", 1) + "seen = []",
        """
import os, threading, time
def end():
    while not seen: time.sleep(0.001)
    os._exit(0)
threading.Thread(target=end).start()""",
        10,
    ),
    "definitions that end": (NORM, "import os\ndef f(x=os._exit(0)): pass", 10),
    "waits for input": (NORM, "input('password?')", 10),
    "writes to every descriptor": (
        NORM,
        """import os
for fd in range(3, 200):
    try: os.write(fd, bytes(999))
    except OSError: pass""",
        10,
    ),
    "closes every descriptor": (NORM, "import os\nos.closerange(0, 200)", 10),
    "ends its group": (NORM, "import os, signal\nos.killpg(0, signal.SIGKILL)", 10),
    "ends all that it may": (
        NORM,
        "import os, signal\nif os.getpid() == 1: os.kill(-1, signal.SIGKILL)",
        10,
    ),
    "magics": (NORM, "%matplotlib inline\n!echo 10 points\nx = 1", 10),
    "syntax error": (NORM, "def broken(:", 10),
    "answer loops": ("def rms_norm(x, weight, eps):\n  while True: pass", "", 0),
    "answer exits": ("import os\ndef rms_norm(x, weight, eps): os._exit(0)", "", 0),
    "answer returns a monster": (
        "import torch\ndef rms_norm(*a): return torch.ones(1 << 28)",
        "",
        0,
    ),
    "answer returns a labyrinth": (
        """def rms_norm(x, weight, eps):
    a = []
    for _ in range(99999): a = [a]
    return a""",
        "",
        0,
    ),
    "answer raises SystemExit": (
        "def rms_norm(x, weight, eps): raise SystemExit('10 of 10')",
        "",
        0,
    ),
    "prints success": (
        WRONG,
        "print('rms_norm: 10 of 10 points', '{\"points\": 10, \"passed\": true}')",
        0,
    ),
    "overwrites check": (
        """from llama_course.classroom import learner
learner.check = lambda f: 10""",
        WRONG + "check = learner.check",
        0,
    ),
    "patches the judge": (
        """from llama_course.classroom import compare, judge as j
j.judge = compare.misfit = j.find_fault = j.value_fault = lambda *a, **k: ''""",
        WRONG,
        0,
    ),
    "patches observe": (
        """from llama_course.classroom import observation as o, worker as w
o.observe = w.answers = lambda *a, **k: ({'error': ''}, {})""",
        WRONG,
        0,
    ),
    "patches the channel": (
        """from llama_course.classroom import protocol as p, worker as w
p.send = p.receive = p.pack_tree = p.unpack_tree = w.run_cell = None""",
        NORM,
        10,
    ),
    "patches the exercise": (
        """from llama_course.classroom.exercise import EXERCISES
task = EXERCISES['rms_norm']
task.truth, task.make_cases, task.factor = (lambda x, weight, eps: x), (lambda seed: []), 1e9""",
        WRONG,
        0,
    ),
    "patches torch": (
        """import torch, torch.nn.functional as F
torch.allclose = torch.equal = lambda *a, **k: True
F.rms_norm = lambda x, *a: x
torch.Tensor.__le__ = lambda *a: torch.tensor(True)""",
        WRONG,
        0,
    ),
    "patches torch, right answer": (
        "import torch\ntorch.rsqrt = torch.Tensor.square = None",
        NORM,
        10,
    ),
    "equal to everything": (
        WRONG
        + """
class Yes(float):
    __eq__ = __le__ = __lt__ = lambda *a: True
def rms_norm(x, weight, eps): return Yes()""",
        "",
        0,
    ),
    "a tensor that lies": (
        """import torch
class Lie(torch.Tensor):
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None): return True
def rms_norm(x, weight, eps): return x.as_subclass(Lie)""",
        "",
        0,
    ),
    "leaves modes on": (
        NORM,
        """import torch
torch.set_grad_enabled(False)
torch.inference_mode().__enter__()
torch.set_default_dtype(torch.float64)""",
        10,
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_notebook_scores_what_its_answers_are_worth(attack, tmp_path, capfd):
    first, second, worth = ATTACKS[attack]

    def parts():
        return torch.allclose, F.rms_norm, judge.judge, EXERCISES["rms_norm"].truth

    before = parts()
    result = grade(write(tmp_path, first, second, BLOCK), QUICK)
    assert points(result) == {"rms_norm": worth, "lean_rms_norm": 0, "pre_norm_block": 10}, result
    assert before == parts()
    out, err = capfd.readouterr()
    assert out == err == ""  # nothing of the learner's reaches the judge's output
    assert all(
        "\n" not in line
        for row in result["exercises"]
        for line in row["messages"] + result["notes"]
    )


def test_a_ledger_is_not_talked_down(tmp_path):
    """The values are right, the memory is not: patching what counts, before or during the call,
    is no help."""
    greedy = """import torch
KEPT = []
def answer(x, weight, eps):
    KEPT.append(x.double() * 1)
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)"""
    early = """import gc, torch
from llama_course.classroom import observation
from llama_course.support import ledger
from torch.multiprocessing import reductions
ledger.Counter.kept = lambda self, result: 0
ledger.Counter.note = lambda *a: None
ledger.storages = lambda tree: {}
reductions.StorageWeakRef.expired = lambda self: True
torch.UntypedStorage.nbytes = lambda self: 0
torch.Tensor.untyped_storage = None
ledger.FORMULAS.clear()
observation.observe.__code__ = (lambda *a, **k: None).__code__"""
    late = """from llama_course.classroom import observation
def lean_rms_norm(*a):
    observation.Counter.kept = lambda *a: 0
    return answer(*a)"""
    both = ((greedy, early, "lean_rms_norm = answer"), "saved_bytes"), ((greedy, late), "replaces")
    for sources, text in both:
        row = grade(write(tmp_path, *sources, BLOCK), QUICK)["exercises"][1]
        assert (
            row["name"] == "lean_rms_norm" and row["points"] <= 6 and text in row["messages"][0]
        ), row


def running(marker):
    "Whether there is a process with this text in its command line lives."
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in line.read_bytes():
                return True
        except OSError:
            continue
    return False


def gone(marker, seconds=5):
    end = time.monotonic() + seconds
    while running(marker) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(marker)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


NO_FENCE = "fence.make_root = lambda f: seccomp.c_call('umount2', b'/nowhere', 0); "


@pytest.fixture(params=["fenced", "without namespaces"])
def fence(request, monkeypatch):
    """Both ways in which Linux keeps a worker: with namespaces of its own, and without, as in
    some containers."""
    if request.param == "without namespaces":
        real = ForkServer.command

        def command(self, sock):
            *rest, start = real(self, sock)
            assert "forkserver.serve_forks(" in start
            return [
                *rest,
                start.replace("forkserver.serve_forks(", NO_FENCE + "forkserver.serve_forks("),
            ]

        monkeypatch.setattr(ForkServer, "command", command)
    supervisor.close_fork_server()
    yield request.param == "fenced"
    supervisor.close_fork_server()


@linux
def test_nothing_is_left_behind(fence, tmp_path):
    """Children end with the worker, also those that left its group; a bomb is stopped; the judge
    lives on."""
    child = (
        "import subprocess\nsubprocess.Popen(['sleep', '7654321'])\n"
        "subprocess.Popen(['sleep', '7654321'], start_new_session=True)"
    )
    bomb = """
import os, time
for _ in range(150):
    if os.getpid() != os.getsid(0): os.setsid()
    if os.fork() == 0: time.sleep(7654)
time.sleep(60)
"""
    parent = "import os, signal\nif os.getppid() > 1: os.kill(os.getppid(), signal.SIGKILL)"
    patient = Limits(
        memory=1 << 30, cell_seconds=20, call_seconds=10, total_seconds=200
    )  # the count ends it, not the clock
    result = grade(write(tmp_path, NORM, child, bomb, parent, BLOCK), patient)
    assert points(result) == {"rms_norm": 10, "lean_rms_norm": 0, "pre_norm_block": 10}, result
    assert "more than 64 processes" in str(result["notes"])
    assert ("without a fence" in str(result["notes"])) == (not fence)
    supervisor.close_fork_server()
    assert gone("7654321")


@linux
def test_files_outside_its_folder_are_safe_where_the_kernel_helps(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    folder = str(tmp_path).encode()
    attack = (
        f"open({str(precious)!r}, 'w').write('yours')",
        f"import os; os.remove({str(precious)!r})",
        "from llama_course.classroom import judge; open(judge.__file__, 'a').write('# bad')",
        f"import ctypes; assert ctypes.CDLL(None).mount(b'x', {folder!r}, b'tmpfs', 0, 0), "
        f"'mounted'",
        f"import os; os.kill({os.getpid()}, 9)",
        "open('own.txt', 'w').write('this is allowed')",
        f"assert open({str(precious)!r}).read() == 'mine', 'its own folder can be read'",
    )
    result = grade(write(tmp_path, NORM, *attack), QUICK)
    notes = str(result["notes"])
    if "without a fence" in notes:
        pytest.skip("no namespaces here")
    assert precious.read_text() == "mine" and points(result)["rms_norm"] == 10
    assert notes.count("Read-only file system") == 3 and "ProcessLookupError" in notes
    assert "mounted" not in notes and "cell 7" not in notes and "cell 8" not in notes


def test_limits_are_those_that_were_asked_for(tmp_path):
    limits = Limits(cell_seconds=1, total_seconds=30)  # on a busy machine, too
    result = grade(write(tmp_path, NORM, *["while True: pass"] * 9, BLOCK), limits)
    assert points(result) == {"rms_norm": 10, "lean_rms_norm": 0, "pre_norm_block": 10}, result
    assert "only its definitions count" in str(result)
    result = grade(
        write(tmp_path, *["while True: pass"] * 7, NORM, BLOCK), Limits(cell_seconds=0.3)
    )
    assert points(result)["rms_norm"] == 10  # broken often: run by its definitions


def test_workers_without_a_fork_server(tmp_path, monkeypatch):
    "As on a system that cannot fork: each worker is a fresh Python."
    monkeypatch.setattr(
        supervisor, "start_worker", lambda sock, fence, folder: supervisor.Alone(sock, folder)
    )
    result = grade(write(tmp_path, NORM, "import os\nos._exit(0)", BLOCK), QUICK)
    assert points(result) == {"rms_norm": 10, "lean_rms_norm": 0, "pre_norm_block": 10}, result


@linux
def test_workers_end_with_a_judge_that_is_killed(tmp_path):
    path = write(tmp_path, NORM, "import subprocess\nsubprocess.run(['sleep', '7654322'])")
    here = {"TMPDIR": str(tmp_path)}  # what it leaves behind when it is killed
    judge = Forked(grade, str(path), **here)
    end = time.monotonic() + 60
    while not running("7654322") and time.monotonic() < end:
        time.sleep(0.05)
    assert running("7654322")
    judge.kill(), judge.wait()
    assert gone("7654322")


def test_the_last_definition_counts(tmp_path):
    assert points(grade(write(tmp_path, NORM, WRONG), QUICK))["rms_norm"] == 0
    assert points(grade(write(tmp_path, WRONG, NORM), QUICK))["rms_norm"] == 10


def test_cells_for_ipython_are_run_as_far_as_possible(tmp_path):
    sources = (
        "%time x = 1\n!ls\nimport torch",
        "%%timeit\n" + WRONG,
        "%%bash\nexit 1",
        "print?\n" + NORM.removeprefix("import torch\n"),
    )
    result = grade(write(tmp_path, *sources), QUICK)
    assert points(result)["rms_norm"] == 10 and "left out" in str(result["notes"])


def test_a_helper_beside_the_notebook_can_be_imported(tmp_path):
    (tmp_path / "my_helpers.py").write_text(NORM)
    assert (
        points(grade(write(tmp_path, "from my_helpers import rms_norm"), QUICK))["rms_norm"] == 10
    )


def test_what_is_missing_is_said_with_the_path(tmp_path):
    result = grade(write(tmp_path, NORM.replace("def rms_norm", "def rms_nrom"), BLOCK), QUICK)
    message = result["exercises"][0]["messages"][0]
    assert str(tmp_path / "answers.ipynb") in message and "found: pre_norm_block" in message


def test_bad_paths_are_told_in_one_line(tmp_path):
    empty, none = tmp_path / "empty", tmp_path / "none"
    for folder in (empty, none):
        folder.mkdir()
    write(none, "def other(): pass")
    files = {
        "text.ipynb": b"hello",
        "binary.ipynb": bytes(range(256)),
        "list.ipynb": b"[1]",
        "nocells.ipynb": b'{"a": 1}',
        "old.ipynb": b'{"worksheets": [], "nbformat": 3}',
        "cells.ipynb": b'{"cells": [1]}',
        "deep.ipynb": b"[" * 10**6,
        "odd.ipynb": b'{"cells": [{"metadata": {"nbgrader": [1]}},'
        b' {"metadata": null, "source": 3}]}',
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for path in (
        tmp_path / "missing.ipynb",
        empty,
        none,
        *(tmp_path / name for name in files),
    ):
        with pytest.raises(UserError) as error:
            grade(path)
        assert (
            str(path) in str(error.value)
            and "\n" not in str(error.value)
            and len(str(error.value)) < 500
        )


def test_a_folder_of_notebooks(tmp_path):
    write(tmp_path, NORM, name="norm.ipynb"), write(tmp_path, "x = 1", name="notes.ipynb")
    write(
        tmp_path,
        ROPE,
        name="rope.ipynb",
    )
    result = grade(tmp_path, QUICK)
    assert points(result) == {
        "rms_norm": 10,
        "lean_rms_norm": 0,
        "pre_norm_block": 0,
        "rope": 10,
        "shift_keys": 0,
        "decode_step": 0,
    }
    assert any("answers no exercise" in note for note in result["notes"])


def test_a_foreign_message_costs_only_its_own_notebook(tmp_path):
    "C2: a cell writes a message of its own to every socket it finds."
    forge = """import os, socket, struct
body = BODY
for fd in range(3, 64):
    try: os.write(fd, struct.pack(">QQ", len(body), 0) + body)
    except OSError: pass"""
    (tmp_path / "all").mkdir()
    for i, body in enumerate(
        (b'{"tree": {"is": null}}', b'{"message": {"note": ""}, "tree": {"is": null}}')
    ):
        folder = tmp_path / f"f{i}"
        folder.mkdir()
        write(folder, forge.replace("BODY", repr(body)), NORM, BLOCK, name="forged.ipynb")
        write(
            folder,
            ROPE,
            name="rope.ipynb",
        )
        result = grade(folder, QUICK)
        assert points(result)["rope"] == 10 and points(result)["pre_norm_block"] == 10, result
        assert any("wrote to the judge's own channel" in note for note in result["notes"])


# ---------------------------------------------------------------- formats for teachers


def test_gradescope(tmp_path):
    result = gradescope(grade(write(tmp_path, NORM, WRONG, BLOCK), QUICK))
    json.dumps(result)
    rows = [
        (test["name"], test["score"], test["max_score"], test["status"]) for test in result["tests"]
    ]
    assert rows == [
        ("rms_norm", 0, 10, "failed"),
        ("lean_rms_norm", 0, 10, "failed"),
        ("pre_norm_block", 10, 10, "passed"),
    ]
    assert all(t["output"] for t in result["tests"][:2])


def test_exercises_are_what_the_solutions_generate(tmp_path):
    first, second = (generate_exercises(ROOT / "solutions", tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == sorted(
        path.name for path in (ROOT / "exercises").glob("*.ipynb")
    )
    for one, other in zip(first, second):
        assert (
            one.read_bytes() == other.read_bytes() == (ROOT / "exercises" / one.name).read_bytes()
        )
        nbformat.validate(nbformat.read(one, as_version=4))
        text = one.read_text()
        assert "BEGIN SOLUTION" not in text and '"outputs": []' in text and "YOUR CODE HERE" in text
    with pytest.raises(UserError):
        generate_exercises(tmp_path / "nothing", tmp_path / "c")


def test_points_in_the_notebooks_are_those_of_the_exercises():
    for path in (ROOT / "solutions").glob("*.ipynb"):
        cells = [
            cell["metadata"].get("nbgrader", {}) for cell in json.loads(path.read_text())["cells"]
        ]
        graded = {meta["grade_id"]: meta["points"] for meta in cells if meta.get("grade")}
        assert graded == {task.name: task.max_points for task in TASKS if task.chapter == path.stem}


# ---------------------------------------------------------------- the truth is not there

SEARCHES = [
    "import llama_course.classroom.judges.norm.rms_norm as truth\nprint(truth.with_rsqrt)",
    "from llama_course.classroom.exercise import EXERCISES\nEXERCISES['rms_norm'].rights[0]",
    "from llama_course.classroom.exercise import find_exercise\n"
    "find_exercise('rms_norm').truth(torch.ones(2), torch.ones(2), 1.0)",
    "import gc, types\nfrom llama_course.classroom import exercise\n"
    "known = [f for f in gc.get_objects() if isinstance(f, types.FunctionType)\n"
    "         and f.__name__.startswith(('with_rsqrt', 'truth_of', 'cases_of'))]\nknown[0]",
    "import sys\nframe = sys._getframe()\nspaces = []\nwhile frame:\n"
    "    spaces += [frame.f_globals, frame.f_locals]; frame = frame.f_back\n"
    "next(s['calls'] for s in spaces if 'calls' in s)['rms_norm'].__globals__['with_rsqrt']",
    f"open({str(ROOT / 'llama_course/classroom/judges/norm/rms_norm.py')!r}).read()",
    f"open({str(ROOT / 'solutions/08_norm.ipynb')!r}).read()",
    f"import os\nos.listdir({str(ROOT / 'llama_course/classroom/judges')!r})[0]",
]


def test_behind_the_fence_nobody_finds_the_right_answers(tmp_path):
    "Nor in memory, nor in a file; and what a notebook asks of `check` there is no error."
    asks = "from llama_course.classroom import check\ncheck(rms_norm)"
    result = grade(write(tmp_path, NORM, asks, *SEARCHES))
    notes = "\n".join(result["notes"])
    if "without a fence" in notes:
        pytest.skip("no fence can be built here")
    assert points(result)["rms_norm"] == 10
    assert "cell 2:" not in notes and "NameError" not in notes and "SyntaxError" not in notes
    assert all(f"cell {i}:" in notes for i in range(3, 3 + len(SEARCHES))), notes
