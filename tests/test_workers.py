"What a worker and the judge say to each other, and what is read of a notebook."

import ast
import json
import math
import socket
import time
import types
from pathlib import Path
from random import Random

import pytest
import torch
from test_grading import write

import llama_course.classroom
from llama_course.classroom import (
    notebooks,
    protocol,
    supervisor,
    worker,
)
from llama_course.classroom.compare import misfit
from llama_course.classroom.grade import grade
from llama_course.classroom.observation import Observation
from llama_course.classroom.protocol import CellReply, ForeignMessage, NamesReply, ObservationReply


def length(n):
    return n.to_bytes(8, "big")


def framed(body, blob=b""):
    return length(len(body)) + length(len(blob)) + body + blob


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 40,
        b"\xff" * 40,
        framed(b"{}" * 9),
        framed(b"null"),
        framed(b'{"tree": 1}', b"\xff" * 4),
        length(1 << 40) + length(0),
        b"",
        length(9),
        framed(b'{"tree": {"is": null}}'),
        framed(b"[" * 99999),
        framed(b'{"message": {}, "tree": {"tensor": ["0", [999999999999]]}}'),
        framed(b'{"message": {}, "tree": {"is": {"a": 1}}}'),
        framed(b'{"message": {}, "tree": {"other": 5}}'),
        framed(b'{"message": {}, "tree": {"dict": [[{"list": []}, {"is": 1}]]}}'),
        framed(b'{"message": {}, "tree": {"is": null}}'),
        framed(b'{"message": 3, "tree": {"is": null}}'),
        framed(b'{"message": {"note": 3, "replaced": []}, "tree": {"is": null}}'),
        framed(b'{"message": {"note": "", "replaced": [], "more": 1}, "tree": {"is": null}}'),
    ],
)
def test_a_broken_channel_is_no_danger(data):
    """Whatever stands on the judge's socket is an end or a foreign message, which `ask` turns
    into AnswerLost."""
    ours, theirs = socket.socketpair()
    theirs.sendall(data), theirs.close()
    with ours, pytest.raises((EOFError, ForeignMessage)):
        protocol.receive_reply(ours, CellReply)


def test_what_was_sent_is_what_comes():
    ours, theirs = socket.socketpair()
    tree = (
        torch.ones(2, 3).T.bfloat16(),
        [1, "two", None, b"3", math.nan],
        {"x": 0.1, 2: True},
        torch,
    )
    protocol.send(ours, {"found": ["f"], "replaced": [], "turn": 7}, tree)
    reply, (a, b, c, d) = protocol.receive_reply(theirs, NamesReply)
    assert (
        reply == NamesReply(found=["f"], replaced=[], turn=7)
        and a.stride() == (1, 3)
        and a.dtype == torch.bfloat16
    )
    assert b[:4] == [1, "two", None, b"3"] and math.isnan(b[4]) and c == {"x": 0.1, 2: True}
    assert type(d).__name__ == "module" and type(d) is not type(torch)
    with pytest.raises(ValueError):
        protocol.send(ours, {}, torch.zeros(protocol.LARGEST_BLOB // 8, dtype=torch.float64))


SEEN = {
    "error": "",
    "modified": [],
    "saved_bytes": 1,
    "largest_tensor": 2,
    "flops": 3,
    "backward_flops": 4,
    "collectives": {"all_reduce": [1, 8]},
    "replaced": [],
    "turn": 1,
}


@pytest.mark.parametrize(
    "lie",
    [
        {"flops": "9"},
        {"flops": -1},
        {"flops": 10**300},
        {"flops": 1.5},
        {"flops": True},
        {"modified": [7]},
        {"modified": "x"},
        {"modified": [-1]},
        {"error": 3},
        {"collectives": {"all_reduce": 5}},
        {"collectives": {"a": [1]}},
        {"replaced": None},
        {"value": 1},
        {"grads": [1, 2]},
        {"grads": 1},
        {"tree": 5},
    ],
)
def test_a_forged_observation_is_no_danger(lie):
    "Nothing that a worker says is taken for an observation that it cannot be."
    values = {"value": 1, "grads": lie.pop("grads", [None])}
    tree = lie.pop("tree", values)
    ours, theirs = socket.socketpair()
    protocol.send(ours, SEEN | lie, tree)
    with pytest.raises(ForeignMessage):
        reply, tree = protocol.receive_reply(theirs, ObservationReply)
        supervisor.observation(reply, tree, 2, 1)
    protocol.send(ours, SEEN, values | {"grads": [None]})
    seen = supervisor.observation(*protocol.receive_reply(theirs, ObservationReply), 2, 1)
    assert (
        seen
        == Observation(
            value=1,
            grads=[None],
            saved_bytes=1,
            largest_tensor=2,
            flops=3,
            backward_flops=4,
            collectives={"all_reduce": (1, 8)},
        )
        and seen.collective_bytes == 8
    )


@pytest.mark.parametrize(
    "source",
    [
        "# " + "import " * 30000,
        "import " * 30000 + "x",
        "a = " * 100000,
        "(" * 90000,
        "x" * 10**6,
        " " * 10**6 + "import rope",
        "\n" * 10**6 + "rope = 1",
    ],
)
def test_a_long_cell_is_read_at_once(source, tmp_path):
    "C3: in time that grows with its length: a regular expression took minutes for the first."
    notebooks.defined_names(source)
    found = notebooks.read_notebook(write(tmp_path, source)).claims
    assert found == (["rope"] if "rope" in source else [])
    notebooks.python_only(source[:50000])


def test_names_are_found_where_they_are_defined():
    source = """def one(x): return later
class two: pass
three = 3
four, five = 4, 5
six == 6
from a import seven, eight as nine
    import ten
async def eleven(): pass
(twelve) = 12
"""
    found = notebooks.defined_names(source)
    assert {"one", "two", "three", "seven", "eight", "nine", "ten"} <= found
    assert not found & {"later", "x", "four", "five", "six", "a", "eleven", "twelve"}


def test_cells_are_run_one_by_one():
    module = types.ModuleType("__main__")
    assert (
        "left out" in worker.run_cell(module, 1, "%matplotlib inline\n!rm -rf /nothing\na = 2")
        and module.a == 2
    )
    note = worker.run_cell(module, 2, "def f():\n    return a / 0\nb = 1\nf()")
    assert (
        note.startswith("ZeroDivisionError")
        and "line 4 of cell 2" not in note
        and "(line 2 of cell 2)" in note
    )
    assert module.b == 1 and worker.run_cell(module, 3, "import sys\nsys.exit(0)").startswith(
        "SystemExit"
    )
    assert (
        not worker.run_cell(module, 4, "def g(): return 7\nwhile True: pass", whole=False)
        and module.g() == 7
    )


def test_what_was_replaced_is_put_back():
    put_back = worker.guard([torch, torch.Tensor, torch.nn.functional])
    torch.allclose = torch.Tensor.__le__ = lambda a, b: True
    assert put_back() == ["torch.allclose", "Tensor.__le__"]
    assert put_back() == [] and not torch.allclose(torch.zeros(1), torch.ones(1))


def test_the_whole_home_is_never_readable(tmp_path, monkeypatch):
    """A notebook that lies in the home itself can read the files beside it, but no folder and
    nothing hidden."""
    (
        (tmp_path / ".netrc").write_text("s3cret"),
        (tmp_path / "data.csv").write_text("1"),
        (tmp_path / ".ssh").mkdir(),
    )
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    beside = [
        path for path in supervisor.readable_folders(tmp_path) if path.startswith(str(tmp_path))
    ]
    assert beside == [str(tmp_path / "data.csv")]
    assert str(tmp_path / ".ssh") in supervisor.readable_folders(tmp_path / ".ssh")
    assert not any(
        tmp_path.is_relative_to(path) for path in supervisor.readable_folders(tmp_path.parent)
    )


def test_no_pickle():
    "What a worker sends is never unpickled."
    for path in Path(llama_course.classroom.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not imported & {"pickle", "dill", "marshal", "shelve", "multiprocessing"}
        assert not called & {"torch.load", "eval", "pickle.loads"}
        assert path.stem != "protocol" or "safetensors.torch.load" in called


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="nobody counts the waiting")
def test_what_others_take_of_the_processor_is_not_the_notebooks_time(tmp_path, monkeypatch):
    "A call waits for its processor for longer than its limit: it is right all the same."
    from hostile import NORM

    slow = NORM.replace("    wide", "    import time; time.sleep(0.4)\n    wide", 1)
    path = write(tmp_path, slow)
    limits = supervisor.Limits(memory=1 << 30, call_seconds=0.3, total_seconds=30)
    assert grade(path, limits)["exercises"][0]["points"] == 0
    began = time.monotonic()
    waits = lambda worker: 0.9 * (time.monotonic() - began)  # ten times the work
    monkeypatch.setattr(supervisor.Worker, "waited", waits)
    assert grade(path, limits)["exercises"][0]["points"] == 10


def mutated(random, value):
    "The value, with something in it replaced by something else; often of another type."
    odd = [
        None, True, -1, 0, 1 << 70, 1.5, "", "x" * 50, [], {}, [[]], {"tensor": ["0", [0]]},
        {"is": 1}, {"other": "a\0b"}, {"bytes": "zz"}, {"dict": [[{"list": []}, {"is": 1}]]},
        {"tensor": ["9", []]}, {"tensor": ["0", [5, 5]]}, {"tuple": 3}, math.inf, "\ud800",
    ]  # fmt: skip
    if random.random() < 0.3 or not isinstance(value, (dict, list)) or not value:
        return random.choice(odd)
    if isinstance(value, list):
        place = random.randrange(len(value))
        return [mutated(random, v) if i == place else v for i, v in enumerate(value)]
    place = random.choice(list(value))
    if random.random() < 0.2:
        return {**{k: v for k, v in value.items() if k != place}, random.choice(["", "new"]): 1}
    return {k: mutated(random, v) if k == place else v for k, v in value.items()}


def test_ten_thousand_forged_messages_are_replies_or_foreign():
    """Whatever stands on the socket, an observation or a `ForeignMessage` comes of it, and the
    judge can compare what the observation holds with anything."""
    random = Random(16)
    tensors: dict = {}
    values = {"value": torch.ones(2, 3), "grads": [torch.zeros(2), None]}
    tree = protocol.pack_tree(values, tensors)
    blob = protocol.safetensors.torch.save(tensors)
    whole = {"message": SEEN, "tree": tree}
    outcomes = {"taken": 0, "foreign": 0}
    for _ in range(10_000):
        kind = random.randrange(4)
        forged, more = json.dumps(whole).encode(), blob
        if kind == 0:  # another tree of JSON
            forged = json.dumps(mutated(random, whole)).encode()
        elif kind == 1:  # other bytes in it
            place = random.randrange(len(forged))
            forged = forged[:place] + random.randbytes(random.randrange(9)) + forged[place + 1 :]
        elif kind == 2:  # other tensors
            place = random.randrange(len(more))
            more = more[:place] + random.randbytes(random.randrange(9)) + more[place + 1 :]
        data = framed(forged, more)
        if kind == 3:  # another frame: the lengths lie, or the end is missing
            data = data[: random.randrange(len(data))] if random.random() < 0.5 else data
            data = random.randbytes(random.randrange(17)) + data[random.randrange(17) :]
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            try:
                reply, tree = protocol.receive_reply(ours, ObservationReply)
                seen = supervisor.observation(reply, tree, 2, 2)
            except (EOFError, ForeignMessage):
                outcomes["foreign"] += 1
                continue
        outcomes["taken"] += 1
        assert isinstance(seen, Observation)
        said = misfit(seen.value, torch.ones(2, 3), torch.float32, 8.0)
        assert isinstance(said, str)
    assert outcomes["foreign"] > 5000 and outcomes["taken"] > 100, outcomes
