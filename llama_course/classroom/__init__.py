"Exercises and their judge: `check` in a notebook, `grade` for files."

from llama_course.classroom.learner import check, hint
from llama_course.classroom.observation import observe

__all__ = ["check", "hint", "observe"]
