"Exercises and their judge: `check` in a notebook, `grade` for files."
from llama_course.classroom.grading import check, hint, observe

__all__ = ["check", "hint", "observe"]
