"What is to be rebuilt cannot be called: the library's own function refuses while the answer runs."

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator


def _refuse(*args: object, **kwargs: object) -> None:
    raise NameError("this function is the library's: here it is to be written by hand")


@contextlib.contextmanager
def refusing_to_run(
    *functions: Callable,  # of the library, by whatever name they were imported
) -> Iterator[None]:
    "Within it each of the functions raises `NameError`."
    plain = [inspect.unwrap(function) for function in functions]
    codes = [(f, f.__code__) for f in plain if isinstance(f, types.FunctionType)]
    try:
        for function, _ in codes:
            function.__code__ = _refuse.__code__
        yield
    finally:
        for function, code in codes:
            function.__code__ = code


def without_calling(
    *functions: Callable,  # that the answer is to do without
    call: Callable = lambda answer, *args: answer(*args),  # how it is used apart from that
) -> Callable:  # call(answer, *args) of an `Exercise`
    "How an answer is used that may not call the library's own."

    def use(answer: Callable, *args: object) -> object:
        with refusing_to_run(*functions):
            return call(answer, *args)

    return use
