"The small things that everything leans on: optional packages, and methods that are attached later."

import signal

import pytest

from llama_course.support.compare import differences
from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.support.patch import patch
from llama_course.support.signals import Stopped, stop_signals


def test_a_missing_package_is_one_line_that_names_the_extra():
    assert need("json.decoder", "data").JSONDecoder
    with pytest.raises(
        UserError, match=r"package no_such_thing is missing: pip install 'llama_course\[data\]'"
    ):
        need("no_such_thing.inside", "data")


class Box:
    def __init__(self, content):
        self.content = content


def test_a_patched_method_is_like_one_that_stands_in_the_class():
    @patch
    def double(self: Box):
        return 2 * self.content

    @patch
    @property
    def size(self: Box):
        return len(self.content)

    @patch
    @classmethod
    def empty(cls: Box):
        return cls([])

    assert Box(3).double() == 6 and Box([1, 2]).size == 2 and Box.empty().content == []
    assert (
        Box.double.__qualname__ == "Box.double" and Box.empty.__func__.__qualname__ == "Box.empty"
    )


def test_a_signal_is_noted_once_and_the_second_one_ends_the_process():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_signals() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(Stopped) as stop, stop_signals():
        signal.raise_signal(signal.SIGTERM)
        raise OSError("the compiler is gone")
    assert stop.value.number == signal.SIGTERM
    with pytest.raises(OSError), stop_signals():
        raise OSError("nobody asked")


def test_differences_are_named():
    assert differences({"a": {"lr": 1, "b": 2}}, {"a": {"lr": 3, "b": 2}}) == "a lr was 1, is 3"
    assert differences({"a": 1}, {"a": 1}) == "" and differences({}, {"a": 1}) == "a was None, is 1"


def outer():
    return "the module's own"


def test_a_patched_method_leaves_a_function_of_its_name_alone():
    @patch
    def outer(self: Box):
        return "the method"

    assert outer() == "the module's own" == globals()["outer"]() and Box(1).outer() == "the method"
