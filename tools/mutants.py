"""How well judges refuse wrong answers: `python tools/mutants.py 08 rope`, or `make mutants N=08`.

Every solution is changed at one place (a comparison, an operation, a number, an argument, a line
left out), and its judge is asked, up to the first fault that it finds. A mutant that gets full
points has survived: either the change changes nothing that the task promises, and then it stands
with its reason in EQUIVALENT, or the judge has a hole. The exit status is 1 if fewer than 99.5 % of
the others are refused. With `--table` the scores are put into docs/mutants.md, a row per chapter.
"""

import argparse
import ast
import contextlib
import copy
import datetime
import functools
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama_course.classroom.exercise import Exercise, load_exercises
from llama_course.classroom.observation import observe
from llama_course.classroom.surroundings import neutral
from llama_course.classroom.trial import (
    Findings,
    Trial,
    gradient_fault,
    trial_of,
    value_fault,
)

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = ROOT / "tests/data/equivalent_mutants.toml"
TABLE = ROOT / "docs/mutants.md"
LEAST = 0.995
FOLDER = "MUTANTS_FOLDER"  # in the environment: where mutants may write

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


class Bench(NamedTuple):
    "An exercise whose mutants are judged: what all of them share is made once."

    exercise: Exercise
    trial: Trial
    space: dict  # what the notebook defines before the solution


def bench(answer: Answer, exercise: Exercise) -> Bench:
    "The truth of the cases, and the notebook up to the solution."
    space: dict = {"display": lambda *args: None, "__name__": "__main__"}
    with quiet():
        exec(compile(answer.before, "before", "exec"), space)
        with neutral():
            trial = trial_of(exercise, 0)
    return Bench(exercise, trial, space)


def quiet() -> contextlib.ExitStack:
    "Within it nothing is printed."
    stack = contextlib.ExitStack()
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
    return stack


def has_full_points(function: Callable, exercise: Exercise, trial: Trial) -> bool:
    "Whether the judge finds nothing in any look; it ends at the first fault."
    watch = functools.partial(observe, function, call=exercise.call)
    findings, seen = Findings(trial, watch), []
    with neutral():
        for case in trial.cases:
            now = watch(*case.args, wrt=exercise.where, cotangent=case.cotangent)
            if value_fault(exercise, case, now):
                return False
            if "gradients" in exercise.points and gradient_fault(exercise, case, now):
                return False
            seen.append(now)
        findings.seen = seen
        looks = [look for look in ("cost", "laws") if look in exercise.points]
        return not any(any(findings.faults(look)) for look in looks)


def verdict(
    bench: Bench,
    source: str,
    processor: float,  # seconds of the processor that it may take
    wall: float,  # seconds on the clock, for code that waits
) -> str:  # "passed", "refused" or "too slow"
    "What the judge says of a changed solution, in a process of its own."
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
            signal.setitimer(signal.ITIMER_PROF, processor)  # SIGPROF ends it
            os.chdir(tempfile.mkdtemp(dir=os.environ[FOLDER]))
            with quiet():
                exec(compile(source, "mutant", "exec"), bench.space)
                function = bench.space[bench.exercise.name]
                passed = has_full_points(function, bench.exercise, bench.trial)
            os.write(writable, b"1" if passed else b"0")
        finally:
            os._exit(0)
    os.close(writable)
    said, status = b"", 0
    try:
        ready = select.select([readable], [], [], wall)[0]
        said = os.read(readable, 1) if ready else b"?"
    finally:
        if said:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(readable)
    if said == b"?" or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return "too slow"
    return "passed" if said == b"1" else "refused"


HEAD = """# How well the judges refuse

Every solution is changed at one place, and its judge is asked (`tools/mutants.py`). Of each
exercise {most} changes are drawn by a seed, or all where there are fewer. A change that changes
nothing that the task promises is *equivalent*: it has full points, and
`tests/data/equivalent_mutants.toml` gives the reason. A change that survived is there with its
reason, or the judge was mended; the share is of the changes that are not equivalent.
`make mutants ARGS=--table` counts again and writes this page.

| chapter | exercises | changes | equivalent | refused | counted |
|---|---|---|---|---|---|
"""


COLUMNS = 6  # of the table


class Score(NamedTuple):
    "A chapter's counts."

    exercises: int = 0
    drawn: int = 0
    equivalent: int = 0
    refused: int = 0

    @property
    def survived(self) -> int:
        "Changes that are neither refused nor known to be equivalent."
        return self.drawn - self.equivalent - self.refused


def write_table(
    scores: dict[str, Score],  # by chapter
    most: int,  # changes drawn of each exercise
) -> None:
    "Puts the chapters' rows into the table; those of other chapters stay."
    rows = {}
    if TABLE.exists():
        lines = [line for line in TABLE.read_text("utf-8").splitlines() if line[2:4].isdigit()]
        rows = {
            line.split("|")[1].strip(): line for line in lines if line.count("|") == COLUMNS + 1
        }
    for chapter, score in scores.items():
        cells = (chapter, *score, datetime.date.today().isoformat())
        rows[chapter] = f"| {' | '.join(map(str, cells))} |"
    counts = [Score(*(int(part) for part in row.split("|")[2:6])) for row in rows.values()]
    total = Score(*(sum(column) for column in zip(*counts)))
    share = f"{total.refused / (total.drawn - total.equivalent):.2%}"
    last = f"| all | {' | '.join(map(str, total))} ({share}) | |"
    text = HEAD.format(most=most) + "\n".join([*(rows[c] for c in sorted(rows)), last]) + "\n"
    TABLE.write_text(text, "utf-8")


def survivors(
    answer: Answer,
    exercise: Exercise,
    reasons: dict,  # (exercise, change) -> why it is equivalent
    options: argparse.Namespace,
) -> Score | None:
    "The counts of one exercise, and a line for what survived; None if its own solution does."
    began, ours = time.monotonic(), bench(answer, exercise)
    before = time.process_time(), time.monotonic()
    with quiet():
        exec(compile(answer.solution, "solution", "exec"), ours.space)
        right = has_full_points(ours.space[answer.name], exercise, ours.trial)
    processor, wall = time.process_time() - before[0], time.monotonic() - before[1]
    if not right:
        print(f"{answer.name}: its own solution is refused", flush=True)
        return None
    limits = 1 + 8 * processor, max(options.seconds, 8 * wall)
    every = mutants(answer.solution)
    for _, change in {(n, c) for n, c in reasons if n == answer.name} - {
        (answer.name, mutant.change) for mutant in every
    }:
        print(f"    no such change any more: {change}", flush=True)
    random.Random(f"{options.seed} {answer.name}").shuffle(every)
    drawn = every[: options.most]
    some = [mutant for mutant in drawn if (answer.name, mutant.change) not in reasons]
    said = [verdict(ours, mutant.source, *limits) for mutant in some]
    alive = [mutant for mutant, word in zip(some, said) if word == "passed"]
    score = Score(1, len(drawn), len(drawn) - len(some), len(some) - len(alive))
    print(
        f"{answer.name:24} {score.refused:4} of {len(some):4}, {score.equivalent:2} equivalent, "
        f"{said.count('too slow')} too slow; {len(every)} in all; {time.monotonic() - began:.0f} s",
        flush=True,
    )
    for mutant in alive:
        print(f"    {mutant.change}", flush=True)
    return score


def main() -> int:
    "The table of scores; 1 if the judges let too much pass."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", help="chapters (08) or exercises (rms_norm); none: all")
    parser.add_argument("--most", type=int, default=40, help="changes of each exercise")
    parser.add_argument("--seconds", type=float, default=20, help="for one of them, if it waits")
    parser.add_argument("--seed", type=int, default=0, help="which are drawn")
    parser.add_argument("--table", action="store_true", help="note the scores in docs/mutants.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    exercises = load_exercises()
    reasons = {
        (row["exercise"], row["change"]): row["reason"]
        for row in tomllib.loads(EQUIVALENT.read_text("utf-8")).get("equivalent", [])
    }
    scores: dict[str, Score] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        for path in sorted((ROOT / "solutions").glob("*.ipynb")):
            for answer in answers(path):
                names = {path.stem[:2], path.stem, answer.name}
                if options.which and not names & set(options.which):
                    continue
                score = survivors(answer, exercises[answer.name], reasons, options)
                if score is None:
                    return 1
                so_far = scores.get(path.stem, Score())
                scores[path.stem] = Score(*(a + b for a, b in zip(so_far, score)))
    if options.table and scores:
        write_table(scores, options.most)
    total = Score(*(sum(column) for column in zip(*scores.values())))
    asked = total.drawn - total.equivalent
    print(f"{total.refused} of {asked} mutants are refused: {total.refused / max(asked, 1):.2%}")
    return int(total.refused < LEAST * asked)


if __name__ == "__main__":
    sys.exit(main())
