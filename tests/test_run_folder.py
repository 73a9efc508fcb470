"The run folder: read in every format that was ever written; something else is refused."

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llama_course.files.load import load
from llama_course.files.run import RUN_FORMAT, RunFolder
from llama_course.support.errors import UserError
from llama_course.training import Recipe

OLD = Path(__file__).parent / "data" / "run_0.1"  # made by llama_course 0.1
LOSS = 6.374611854553223  # read there
IDS = [1, 306, 300, 303, 294, 300, 291, 259, 270, 268, 292, 269]


def test_a_run_of_version_0_1_is_read():
    run = RunFolder(OLD)
    assert run.exists and run.is_done and run.facts.version == "0.1.0" and run.facts.kind is None
    assert run.recipe == Recipe(3, {"text": 1.0}, warmup=1, precision="bfloat16", attention="rows")
    assert run.facts.settings["steps"] == 3 and run.facts.seconds["training"] == 0.26
    assert np.isfinite(run.metrics()["loss"]).all() and len(run.metrics()["loss"]) == 3
    model, tokenizer = load(OLD)
    ids = torch.arange(3, 35)[None]
    loss = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).item()
    assert (
        loss == pytest.approx(LOSS, rel=1e-5) and tokenizer.encode("ROMEO: to be", bos=True) == IDS
    )


def test_what_is_written_is_read_again(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert not run.exists and run.facts.recipe is None
    run.note(kind="train", settings={"steps": 1}, seconds_per_step=0.5)
    run.note(settings={"steps": 2})
    again = RunFolder(tmp_path / "run")
    assert again.exists and again.facts == run.facts and again.facts.settings == {"steps": 2}
    assert json.loads(again.file.read_text()) == {
        "format": RUN_FORMAT,
        "kind": "train",
        "settings": {"steps": 2},
        "seconds_per_step": 0.5,
    }
    with pytest.raises(UserError, match="recipe"):
        print(again.recipe)


def test_a_number_measured_by_version_0_1_has_a_new_name(tmp_path):
    shutil.copytree(OLD, tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds_a_step": 0.25}))
    assert RunFolder(tmp_path / "run").facts.seconds_per_step == 0.25


@pytest.mark.parametrize(
    "content, text",
    [
        ("[]", "is not a llama_course run"),
        ('{"format": "other 1"}', "is not a llama_course run"),
        ('{"format": "llama_course run 9"}', "written by a later llama_course"),
        (json.dumps({"format": RUN_FORMAT, "tokenzier": "x"}), "did you mean tokenizer?"),
        (json.dumps({"format": RUN_FORMAT, "seconds": 3}), "seconds must be a table"),
        ("{", "is not readable JSON"),
    ],
)
def test_another_file_is_one_line(content, text, tmp_path):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError) as error:
        RunFolder(tmp_path)
    assert (
        text in str(error.value) and "run.json" in str(error.value) and "\n" not in str(error.value)
    )


def test_a_folder_of_other_things_is_not_free(tmp_path):
    RunFolder(tmp_path).check_free()
    (tmp_path / ".in_use").touch()
    RunFolder(tmp_path).check_free()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files and no run"):
        RunFolder(tmp_path).check_free()
