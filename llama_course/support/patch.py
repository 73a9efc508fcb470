"Methods that are written in a later cell than their class."

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints


def patch(function: Callable) -> Callable:
    """Attaches the function to the class that its first parameter is annotated with.

    Works on plain functions and below `property`, `classmethod` and `staticmethod`; for a
    classmethod the annotation is the class too (`def load(cls: Llama, folder)`). The name in the
    module stays bound to the function.
    """
    inner = getattr(function, "__func__", function)
    plain: Any = function.fget if isinstance(function, property) else inner
    first = next(iter(inspect.signature(plain).parameters))
    owner = get_type_hints(plain)[first]
    plain.__qualname__ = f"{owner.__qualname__}.{plain.__name__}"
    setattr(owner, plain.__name__, function)
    return function
