"The old place of `Sandbox`, which is `llama_course.support.programs` now."

from llama_course.support.programs import Sandbox

__all__ = ["Sandbox"]
