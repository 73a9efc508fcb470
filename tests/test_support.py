"The small things that everything leans on: optional packages, and methods that are attached later."
import pytest

from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.support.patch import patch


def test_a_missing_package_is_one_line_that_names_the_extra():
    assert need("json.decoder", "data").JSONDecoder
    with pytest.raises(UserError, match=r"package no_such_thing is missing: pip install 'llama_course\[data\]'"):
        need("no_such_thing.inside", "data")


class Box:
    def __init__(self, content): self.content = content


def test_a_patched_method_is_like_one_that_stands_in_the_class():
    @patch
    def double(self: Box): return 2 * self.content

    @patch
    @property
    def size(self: Box): return len(self.content)

    @patch
    @classmethod
    def empty(cls: Box): return cls([])

    assert Box(3).double() == 6 and Box([1, 2]).size == 2 and Box.empty().content == []
    assert Box.double.__qualname__ == "Box.double" and Box.empty.__func__.__qualname__ == "Box.empty"
