"An option is named, typed, bounded and explained in one place; a wrong value is one line."

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from llama_course.support.errors import UserError
from llama_course.support.options import (
    as_command,
    from_dict,
    option,
    options,
    read_toml,
    with_default,
)


@options
class Sampling:
    "How a token is drawn."

    temperature: float = option(1.0, "0 is greedy", ge=0)
    top_k: int | None = option(None, "the k likeliest", ge=1)


@options
class Job:
    "What is to be done."

    weights: Path = option(help="a folder")
    data: tuple[Path, ...] = option((), "files")
    rows: int = option(4, "texts at once", ge=1, le=1024)
    lr: float | None = option(None, "the peak", gt=0)
    cap: float = option(math.inf, "examples", gt=0, inf=True)
    precision: Literal["float32", "bfloat16"] = option("float32", "of products")
    compiled: bool = option(False, "compile first", flag=True)
    shares: dict[str, float] = option(dict, "proportions", hidden=True)
    sampling: Sampling = option(Sampling(), "of answers", hidden=True)

    def __post_init__(self):
        if self.rows == 13:
            raise UserError("13 rows bring bad luck: take 12.")


def test_it_is_a_frozen_dataclass():
    job = Job("somewhere", rows=2)
    assert job.weights == Path("somewhere") and job.cap == math.inf and job.shares == {}
    assert dataclasses.replace(job, rows=3).rows == 3 and dataclasses.asdict(job)["rows"] == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.rows = 5


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (dict(rows=0), "rows must be from 1 to 1024, not 0."),
        (dict(rows=1.5), "rows must be a whole number, not 1.5."),
        (dict(rows=True), "rows must be a whole number, not True."),
        (dict(rows="4"), "rows must be a whole number, not '4'."),
        (dict(lr=math.nan), "lr must be a number, not nan."),
        (dict(lr=math.inf), "lr must be a number, not inf."),
        (dict(lr=-1.0), "lr must be above 0, not -1.0."),
        (dict(cap=math.nan), "cap must be a number, not nan."),
        (dict(precision="float16"), "precision must be float32 or bfloat16, not 'float16'."),
        (dict(compiled="yes"), "compiled must be true or false, not 'yes'."),
        (dict(row=3), "row is not an option: did you mean rows?"),
        (dict(rows=13), "13 rows bring bad luck: take 12."),
        (dict(sampling={"temperature": -1}), "sampling: temperature must be 0 or more, not -1."),
    ],
)
def test_a_wrong_value_is_one_line(wrong, line):
    with pytest.raises(UserError) as error:
        Job("w", **wrong)
    assert str(error.value) == line


def test_a_missing_option_is_named():
    with pytest.raises(UserError, match="^weights is missing.$"):
        Job()
    with pytest.raises(UserError, match="^recipe.toml: rows must be from 1 to 1024"):
        from_dict(Job, {"weights": "w", "rows": 5000}, "recipe.toml")
    with pytest.raises(UserError, match="a table of options is expected"):
        from_dict(Job, [1])


def test_toml_is_read_by_the_same_class(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text(
        'weights = "w"\ndata = ["a", "b"]\nlr = 1\n[shares]\ncode = 0.5\n[sampling]\ntop_k = 3\n'
    )
    assert read_toml(Job, file) == Job(
        "w", (Path("a"), Path("b")), lr=1, shares={"code": 0.5}, sampling=Sampling(top_k=3)
    )
    file.write_text("weights = ")
    with pytest.raises(UserError, match="is not TOML"):
        read_toml(Job, file)
    with pytest.raises(UserError, match="cannot read .*nothing"):
        read_toml(Job, tmp_path / "nothing")


def test_the_command_line_is_read_by_the_same_class():
    seen = []
    app = typer.Typer()

    def work(
        job: Job,
        sampling: Sampling,
        as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
    ):
        "Does it."
        seen.append((job, sampling, as_json))

    app.command()(as_command(work))
    run = lambda *words: CliRunner().invoke(app, words)
    assert run("--weights", "w").exit_code == 0 and seen[-1] == (Job("w"), Sampling(), False)
    done = run(
        "--weights",
        "w",
        "--data",
        "a",
        "--data",
        "b",
        "--rows",
        "7",
        "--compiled",
        "--temperature",
        "0",
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert seen[-1] == (Job("w", ("a", "b"), 7, compiled=True), Sampling(temperature=0.0), True)
    assert str(run("--weights", "w", "--lr", "nan").exception) == "--lr must be a number, not nan."
    assert str(run("--weights", "w", "--precision", "int8").exception).startswith(
        "--precision must be float32 or"
    )
    text = run("--help").output
    assert all(
        words in text
        for words in ("Does it.", "--compiled", "texts at once", "the k likeliest", "as JSON")
    )
    assert "--no-compiled" not in text and "--shares" not in text


@options
class Bold(Sampling):
    "The same with another default."

    temperature: float = with_default(Sampling, "temperature", 2.0)


def test_a_default_can_differ_and_nothing_else_does():
    assert (Bold().temperature, Sampling().temperature, Bold().top_k) == (2.0, 1.0, None)
    with pytest.raises(UserError, match="temperature must be 0 or more"):
        Bold(temperature=-1.0)
    app = typer.Typer(rich_markup_mode=None)
    app.command()(as_command(lambda_free(Bold)))
    help = CliRunner().invoke(app, ["--help"]).stdout
    assert "0 is greedy" in help and "[default: 2.0]" in help


def lambda_free(kind):
    "A function with one group of options."

    def run(how: kind):
        pass

    return run
