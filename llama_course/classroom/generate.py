"Exercise notebooks, made from the solved ones."

from pathlib import Path

from llama_course.support.errors import UserError
from llama_course.support.optional import need


def generate_exercises(
    solutions: str | Path = "solutions",  # folder of the solved notebooks
    exercises: str | Path = "exercises",  # folder that gets the notebooks without solutions
) -> list[Path]:  # of the notebooks written
    "The notebooks that learners open, made by nbgrader's preprocessors. Raises `UserError`."
    nbformat, steps = need("nbformat", "grading"), need("nbgrader.preprocessors", "grading")
    chain = (
        steps.LockCells, steps.ClearSolutions, steps.ClearOutput, steps.ClearHiddenTests,
        steps.ClearMarkScheme, steps.ComputeChecksums, steps.CheckCellMetadata,
    )  # fmt: skip
    written = []
    for source in sorted(Path(solutions).glob("*.ipynb")):
        notebook, resources = nbformat.read(source, as_version=4), dict[str, str]()
        for step in chain:
            notebook, resources = step().preprocess(notebook, resources)
        for key in notebook.metadata.keys() - {"kernelspec"}:
            del notebook.metadata[key]
        nbformat.validate(notebook)
        target = Path(exercises) / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = nbformat.writes(notebook) + "\n"
        target.write_text(text, encoding="utf-8", newline="\n")
        written.append(target)
    if not written:
        raise UserError(f"no solved notebook in {solutions}: start it in the project's folder")
    return written
