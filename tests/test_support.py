"The small things that everything leans on: optional packages, and methods that are attached later."

import signal

import numpy as np
import pytest

from llama_course.support.compare import differences
from llama_course.support.errors import UserError
from llama_course.support.kernels import SIZE, tools
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


def test_threads_meet_without_leaving_their_kernel():
    numba = pytest.importorskip("numba", reason="pip install 'llama_course[fast]'")
    join, meet = tools().join, tools().meet

    @numba.njit(parallel=True)
    def rounds(threads, wanted, n):
        memory, teams = np.zeros(SIZE, np.int64), np.zeros(threads, np.int64)
        done, ahead = np.zeros((threads, 8), np.int64), np.zeros(threads, np.int64)
        for _ in numba.prange(threads):
            me, team = join(memory, wanted)
            if team:
                teams[me] = team
                for r in range(n):
                    done[me, 0] = r + 1
                    meet(memory, team)
                    for other in range(team):
                        ahead[me] += done[other, 0] != r + 1
                    meet(memory, team)
        return teams, ahead

    threads = numba.get_num_threads()
    for wanted in (
        threads,
        threads + 1,
        1,
    ):  # all; one never comes; no waiting
        teams, ahead = rounds(threads, wanted, 500)
        size = teams.max()
        assert (teams[:size] == size).all() and not teams[size:].any() and not ahead.any()


def test_memory_is_found_by_its_address():
    pytest.importorskip("numba", reason="pip install 'llama_course[fast]'")
    numbers = np.arange(6, dtype=np.float32)
    assert tools().numbers_at(numbers.ctypes.data, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    room = tools().room(3, 5)
    assert room.shape == (3, 5) and room.ctypes.data % 64 == 0
