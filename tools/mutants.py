"""How well judges refuse wrong answers: `python tools/mutants.py 08 rope`, or `make mutants N=08`.

Every solution is changed at one place (a comparison, an operation, a number, an argument, a line
left out), and its judge is asked. A mutant that gets full points has survived: either the change
changes nothing that the task promises, and then it stands with its reason in EQUIVALENT, or the
judge has a hole. The exit status is 1 if fewer than 99.5 % of the others are refused. With
`--table` the scores are put into docs/mutants.md, each chapter in its row.
"""

import argparse
import ast
import contextlib
import copy
import io
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama_course.classroom.exercise import Exercise, load_exercises
from llama_course.classroom.learner import check

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = ROOT / "tests/data/equivalent_mutants.toml"
TABLE = ROOT / "docs/mutants.md"
LEAST = 0.995

SWAPS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Div,), ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
    ast.LShift: (ast.RShift,), ast.RShift: (ast.LShift,),
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "amin": "amax", "amax": "amin", "sum": "mean", "mean": "sum",
    "exp": "log", "log": "exp", "sin": "cos", "cos": "sin", "sqrt": "square", "rsqrt": "sqrt",
    "argmax": "argmin", "argmin": "argmax", "startswith": "endswith", "triu": "tril",
    "tril": "triu", "floor": "ceil", "ceil": "floor", "any": "all", "all": "any",
}  # fmt: skip
# what means the same with two of its arguments exchanged
SYMMETRIC = {"min", "max", "maximum", "minimum", "gcd", "hypot", "logaddexp", "transpose",
             "promote_types"}  # fmt: skip


class Answer(NamedTuple):
    "A solved exercise: what its notebook defines before, and the cell with the solution."

    name: str
    before: str
    solution: str


class Mutant(NamedTuple):
    "One change of a solution."

    change: str  # the line before and after
    source: str


def answers(path: Path) -> Iterator[Answer]:
    "The exercises of a solved notebook."
    code, start = "", ""
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        meta, source = cell["metadata"].get("nbgrader", {}), "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if meta.get("grade"):
            yield Answer(meta["grade_id"], code, start)
            code, start = code + "\n" + start, ""
        elif meta.get("solution"):
            start += "\n" + source
        else:
            code, start = code + "\n" + start + "\n" + source, ""


def _places(node: Any) -> Iterator[tuple[str, ast.AST]]:
    "Other nodes that could stand where this one stands."
    new = lambda: copy.deepcopy(node)
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        for swap in SWAPS.get(type(node.op), ()):
            changed = new()
            changed.op = swap()
            yield "operation", changed
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for swap in SWAPS.get(type(op), ()):
                changed = new()
                changed.ops[i] = swap()
                yield "comparison", changed
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        values: tuple = (node.value + 1, node.value - 1)
        if isinstance(node.value, bool):
            values = (not node.value,)
        elif isinstance(node.value, float):
            values = (node.value * 2, 0.0)
        for value in values:
            yield "constant", ast.Constant(value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield "sign", node.operand
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        changed = new()
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield "condition", changed
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        for i in range(len(node.args) - 1 if name not in SYMMETRIC else 0):
            changed = new()
            changed.args[i], changed.args[i + 1] = changed.args[i + 1], changed.args[i]
            yield "arguments", changed
        for i in range(len(node.keywords)):
            changed = new()
            del changed.keywords[i]
            yield "argument", changed
        if isinstance(node.func, ast.Attribute) and len(node.args) < 2:  # x.float() becomes x
            yield "call", node.func.value
    if isinstance(node, ast.Slice):
        for end in ("lower", "upper", "step"):
            if getattr(node, end):
                changed = new()
                setattr(changed, end, None)
                yield "slice", changed
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        changed = new()
        changed.attr = NAMES[node.attr]
        yield "name", changed
    if isinstance(node, ast.Name) and node.id in NAMES:
        yield "name", ast.Name(NAMES[node.id], node.ctx)
    if isinstance(node, (ast.AugAssign, ast.Expr)) and not isinstance(
        getattr(node, "value", None), ast.Constant
    ):
        yield "line", ast.Pass()


class _Exchange(ast.NodeTransformer):
    "Puts another node in the place of one, found by its number in the walk."

    def __init__(self, number: int, new: ast.AST):
        self.number, self.new, self.at = number, new, -1

    def visit(self, node: ast.AST) -> ast.AST:
        self.at += 1
        if self.at == self.number:
            self.at += sum(1 for _ in ast.walk(node)) - 1
            return self.new
        return super().generic_visit(node)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    "All nodes in the order in which a transformer meets them."
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)


def _without_notes(tree: ast.Module) -> ast.Module:
    "The module without annotations, which change nothing."
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
    return tree


def mutants(solution: str) -> list[Mutant]:
    "Every change of the solution, each once."
    tree = _without_notes(ast.parse(solution))
    lines = ast.unparse(tree).splitlines()
    found: dict[str, str] = {}
    for number, node in enumerate(_walk(tree)):
        for _, new in _places(node):
            changed = _Exchange(number, new).visit(copy.deepcopy(tree))
            with contextlib.suppress(Exception):
                source = ast.unparse(ast.fix_missing_locations(changed))
                compile(source, "mutant", "exec")
                pairs = zip(lines, source.splitlines())
                if source.splitlines() == lines:
                    continue
                was, now = next(((a, b) for a, b in pairs if a != b), (lines[-1], "(left out)"))
                found.setdefault(f"{was.strip()}  ->  {now.strip()}", source)
    return [Mutant(change, source) for change, source in found.items()]


def points(answer: Answer, source: str, exercise: Exercise, seconds: float) -> float:
    "What the judge gives the changed solution, in a process of its own; 0 if it does not end."
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
            os.chdir(tempfile.mkdtemp())
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                space: dict = {"display": lambda *args: None, "__name__": "__main__"}
                exec(compile(answer.before + "\n" + source, "mutant", "exec"), space)
                report = check(space[exercise.name], exercise.name)
            os.write(writable, b"1" if report.passed else b"0")
        finally:
            os._exit(0)
    os.close(writable)
    try:
        ready = select.select([readable], [], [], seconds)[0]
        said = os.read(readable, 1) if ready else b""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(readable)
    return float(said == b"1")


def write_table(
    scores: dict[str, tuple[int, int, int]],  # chapter -> exercises, mutants tried, refused
    most: int,  # mutants drawn of each exercise
) -> None:
    "Puts the chapters' rows into the table; those of other chapters stay."
    head = (
        "# How well the judges refuse\n\nEvery solution is changed at one place, and its judge is "
        "asked (`make mutants`, `tools/mutants.py`).\nChanges that change nothing that the task "
        "promises are left out; `tests/data/equivalent_mutants.toml` gives the reason of each.\n\n"
        "| chapter | exercises | mutants, drawn at random | refused | command |\n"
        "|---|---|---|---|---|\n"
    )
    rows = {}
    if TABLE.exists():
        lines = TABLE.read_text("utf-8").splitlines()
        rows = {line.split("|")[1].strip(): line for line in lines if line[2:4].isdigit()}
    for chapter, (exercises, tried, refused) in scores.items():
        command = f'`make mutants N={chapter[:2]} ARGS="--most {most}"`'
        rows[chapter] = f"| {chapter} | {exercises} | {tried} | {refused} | {command} |"
    counts = [[int(part) for part in row.split("|")[2:5]] for row in rows.values()]
    exercises, tried, refused = (sum(column) for column in zip(*counts))
    share = f"{refused / max(tried, 1):.2%}"
    total = f"| all | {exercises} | {tried} | {refused} ({share}) | `make mutants` |"
    TABLE.write_text(head + "\n".join([*(rows[c] for c in sorted(rows)), total]) + "\n", "utf-8")


def main() -> int:
    "The table of scores; 1 if the judges let too much pass."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", help="chapters (08) or exercises (rms_norm); none: all")
    parser.add_argument("--most", type=int, default=40, help="mutants of each exercise")
    parser.add_argument("--seconds", type=float, default=20, help="for one mutant")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn")
    parser.add_argument("--table", action="store_true", help="note the scores in docs/mutants.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    exercises = load_exercises()
    reasons = {
        (row["exercise"], row["change"]): row["reason"]
        for row in tomllib.loads(EQUIVALENT.read_text("utf-8")).get("equivalent", [])
    }
    tried = refused = 0
    scores: dict[str, tuple[int, int, int]] = {}
    for path in sorted((ROOT / "solutions").glob("*.ipynb")):
        for answer in answers(path):
            if options.which and not {path.stem[:2], path.stem, answer.name} & set(options.which):
                continue
            began, exercise = time.monotonic(), exercises[answer.name]
            if not points(answer, answer.solution, exercise, options.seconds):
                print(f"{answer.name}: its own solution is refused", flush=True)
                return 1
            some = mutants(answer.solution)
            random.Random(f"{options.seed} {answer.name}").shuffle(some)
            some = [m for m in some if (answer.name, m.change) not in reasons][: options.most]
            alive = [m for m in some if points(answer, m.source, exercise, options.seconds)]
            tried, refused = tried + len(some), refused + len(some) - len(alive)
            n, of, out = scores.get(path.stem, (0, 0, 0))
            scores[path.stem] = n + 1, of + len(some), out + len(some) - len(alive)
            took = time.monotonic() - began
            print(
                f"{answer.name:24} {len(some) - len(alive):3} of {len(some):3} {took:5.0f} s",
                flush=True,
            )
            for mutant in alive:
                print(f"    {mutant.change}", flush=True)
    if options.table and scores:
        write_table(scores, options.most)
    print(f"{refused} of {tried} mutants are refused: {refused / max(tried, 1):.2%}")
    return int(refused < LEAST * tried)


if __name__ == "__main__":
    sys.exit(main())
