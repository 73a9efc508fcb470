"Methods that are written in a later cell than their class."

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def patch(function: Callable) -> Callable:
    """Attaches the function to the class that its first parameter is annotated with.

    Works on plain functions and below `property`, `classmethod` and `staticmethod`; for a
    classmethod the annotation is the class too (`def load(cls: Llama, folder)`). A name that the
    module has already keeps its meaning there: a method `gradients` does not take the place of a
    function `gradients`.
    """
    inner = getattr(function, "__func__", function)
    plain: Any = function.fget if isinstance(function, property) else inner
    first = next(iter(inspect.signature(plain).parameters))
    owner = get_type_hints(plain)[first]
    plain.__qualname__ = f"{owner.__qualname__}.{plain.__name__}"
    setattr(owner, plain.__name__, function)
    before = plain.__globals__.get(plain.__name__)
    is_new = before is None or getattr(before, "__qualname__", "") == plain.__qualname__
    return function if is_new else before
