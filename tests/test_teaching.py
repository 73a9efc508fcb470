"The teacher's guide and the slides: what they name is there, and the slides need no network."

import re
import subprocess
import sys
from pathlib import Path

from llama_course.classroom import grade
from llama_course.command import cli

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")


def test_the_guide_names_what_there_is():
    "Commands with their options, targets of make, notebooks to hand out, and every status."
    for line in re.findall(r"llama-course ([^`\n]*)", GUIDE):
        name, *words = line.split()
        options = {o for p in cli.make_command(name).params for o in p.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
    grades = {o for p in cli.make_command("grade").params for o in p.opts}
    assert set(re.findall(r"`(--[a-z]+)", GUIDE)) <= grades
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)", GUIDE)) <= targets
    handed_out = set(re.findall(r"`(\d\d_\w+)`", GUIDE))
    assert handed_out and all((ROOT / "solutions" / f"{n}.ipynb").exists() for n in handed_out)
    for status in grade.STATUSES:
        assert f"| {status} |" in GUIDE


def test_the_slides_hold_the_notebooks_figures_and_need_no_network(tmp_path):
    line = [sys.executable, "docs/slides.py", tmp_path / "slides.html"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    page = (tmp_path / "slides.html").read_text()
    count = int(done.stdout.split()[0])
    body = page[: page.index("const slides")]
    assert count == body.count("<section") >= 15
    assert body.count('src="data:image/') + body.count("<svg") >= 8
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", body)
    assert "<table" not in body and "](" not in body and "|---" not in body  # prose alone
