"Exercises and their judge: `check` in a notebook, `grade` for files."

from llama_course.classroom.learner import check, hint
from llama_course.classroom.observation import observe
from llama_course.classroom.progress import progress

__all__ = ["check", "hint", "observe", "progress"]
