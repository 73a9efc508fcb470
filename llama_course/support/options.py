"""Options, in one place: the dataclass that a command fills.

A class marked with `@options` is a frozen dataclass whose fields are checked (by pydantic) whenever
one is made. Its field is where an option is named, typed, bounded and explained; the command line,
a TOML file, JSON and a notebook all read it.
"""

import copy
import dataclasses
import difflib
import functools
import inspect
import math
import tomllib
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from llama_course.support.errors import UserError

T = TypeVar("T")


class OptionError(UserError):
    "An option that is wrong: which one, and why."

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} {reason}")
        self.name, self.reason = name, reason


def option(
    default: Any = ...,  # left out: the option is required
    help: str = "",  # what --help says
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    inf: bool = False,  # whether infinity is a value
    flag: bool = False,  # on the command line only `--name`, without `--no-name`
    argument: bool = False,  # on the command line by position
    hidden: bool = False,  # not on the command line: for Python, TOML and JSON only
) -> Any:
    "A field of an options class."
    words: Any = {"flag": flag, "argument": argument, "hidden": hidden}
    kind = "default_factory" if isinstance(default, type) else "default"
    given: Any = {kind: default}
    return Field(
        **given,
        description=help,
        gt=gt,
        ge=ge,
        lt=lt,
        le=le,
        allow_inf_nan=True if inf else None,
        json_schema_extra=words,
    )


def with_default(
    cls: type,  # an options class that has the field
    name: str,
    default: Any,
) -> Any:
    "The same field with another default, for a class that inherits it."
    field = copy.copy(_fields(cls)[name])
    field.default = default
    return field


@typing.dataclass_transform(frozen_default=True, field_specifiers=(option, with_default))
def options(cls: type[T]) -> type[T]:
    "The class as a frozen dataclass whose values are checked. A wrong one raises `OptionError`."
    config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    made: Any = checked_dataclass(frozen=True, config=config)(cls)
    checked = made.__init__

    @functools.wraps(checked)
    def init(self, *args, **given):
        fields = dataclasses.fields(made)
        if len(args) > len(fields):
            raise UserError(f"{made.__name__} has {len(fields)} fields, not {len(args)}.")
        given = {field.name: value for field, value in zip(fields, args)} | given
        kinds = typing.get_type_hints(made)
        for name, value in given.items():
            if name not in kinds:
                raise OptionError(name, f"is not an option{_similar(name, kinds)}")
            given[name] = _fitted(name, value, kinds[name])
        try:
            checked(self, **given)
        except ValidationError as error:
            raise _in_one_line(made, error) from None

    made.__init__ = init
    return made


def is_options(kind: Any) -> bool:
    "Whether this is a class marked with `@options`."
    return (
        isinstance(kind, type)
        and hasattr(kind, "__pydantic_fields__")
        and dataclasses.is_dataclass(kind)
    )


def from_dict(
    cls: type[T],
    values: Any,  # what was read from JSON or TOML
    where: str = "",  # the file, for the message
) -> T:
    "The options that the table holds; what it leaves out has its default. Raises `UserError`."
    place = f"{where}: " if where else ""
    if not isinstance(values, dict):
        raise UserError(f"{place}a table of options is expected, not {values!r:.60}.")
    try:
        return cls(**values)
    except OptionError as error:
        raise OptionError(f"{place}{error.name}", error.reason) from None
    except UserError as error:
        raise UserError(f"{place}{error}") from None


def read_toml(cls: type[T], path: str | Path) -> T:
    "The options in a TOML file. Raises `UserError` if it is missing, no TOML, or a value is wrong."
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}.") from None
    return from_dict(cls, values, str(path))


def as_command(
    function: Callable,  # parameters whose type is an options class stand for all its fields
) -> Callable:
    "The function as typer wants it: each field of its options classes is an option of the command."
    hints = typing.get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if is_options(kind):
            groups[parameter.name] = kind
            parameters += [_parameter(kind, name) for name in _shown(kind)]
        else:
            parameters.append(
                parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
            )

    @functools.wraps(function)
    def wrapped(**given):
        filled = {}
        for name, kind in groups.items():
            values = {field: given.pop(field) for field in _shown(kind)}
            values = {
                field: value for field, value in values.items() if not _left_out(kind, field, value)
            }
            try:
                filled[name] = kind(**values)
            except OptionError as error:
                field = _fields(kind).get(error.name)
                shown = (
                    error.name
                    if field and _words(field)["argument"]
                    else f"--{_dashed(error.name)}"
                )
                raise UserError(f"{shown} {error.reason}") from None
        return function(**filled, **given)

    call: Any = wrapped
    del call.__wrapped__
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _fields(cls: Any) -> dict[str, Any]:
    "The fields of an options class, as pydantic knows them."
    return cls.__pydantic_fields__


def _words(field: Any) -> dict:
    "What `option` noted for the command line."
    return {"flag": False, "argument": False, "hidden": False} | (field.json_schema_extra or {})


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _similar(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {near[0]}?" if near else f"; there are {', '.join(known)}."


def _members(kind: Any) -> tuple:
    "The types that a type may be: `int | None` has two."
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _fitted(name: str, value: Any, kind: Any) -> Any:
    "The value in Python's types: JSON, TOML and the command line know neither paths nor tuples."
    members = _members(kind)
    if isinstance(value, float) and math.isnan(value):
        raise OptionError(name, "must be a number, not nan.")
    if isinstance(value, str) and Path in members and str not in members:
        return Path(value)
    for member in members:
        if typing.get_origin(member) is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(member)
            each = inner[:1] * len(value) if inner[1:] == (...,) else inner
            return (
                tuple(_fitted(name, v, k) for v, k in zip(value, each))
                if len(each) == len(value)
                else tuple(value)
            )
        if is_options(member) and isinstance(value, dict):
            return from_dict(member, value, name)
    return value


def _in_one_line(cls: type, error: ValidationError) -> OptionError:
    "The first thing that pydantic found, in the course's words."
    first = error.errors(include_url=False)[0]
    name, value = str(first["loc"][0]), first.get("input")
    if first["type"] == "missing":
        return OptionError(name, "is missing.")
    field = _fields(cls).get(name)
    reason = _expected(field, first)
    return OptionError(name, f"{reason}, not {value!r:.60}.")


def _expected(field: Any, error: Any) -> str:
    "What the field would have taken."
    kind, about = error["type"], error.get("ctx", {})
    bounds = (
        {
            k: getattr(m, k)
            for m in field.metadata
            for k in ("gt", "ge", "lt", "le")
            if hasattr(m, k)
        }
        if field
        else {}
    )
    both = "ge" in bounds and "le" in bounds
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        if both:
            return f"must be from {bounds['ge']:g} to {bounds['le']:g}"
        words = {"gt": "above {}", "ge": "{} or more", "lt": "below {}", "le": "{} or less"}
        return "must be " + " and ".join(words[k].format(f"{v:g}") for k, v in bounds.items())
    plain = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a number",
        "bool_type": "true or false",
        "string_type": "a text",
        "tuple_type": "a list",
        "dict_type": "a table",
        "path_type": "a path",
    }
    if kind == "literal_error":
        return f"must be {about['expected'].replace(chr(39), '')}"
    return f"must be {plain[kind]}" if kind in plain else f"is wrong ({error['msg']})"


def _shown(cls: type) -> list[str]:
    "The fields that the command line has."
    return [name for name, field in _fields(cls).items() if not _words(field)["hidden"]]


def _left_out(cls: type, name: str, value: Any) -> bool:
    "Whether the option was not given: typer's list is empty where the default stands for it."
    return value in (None, [], ()) and not _fields(cls)[name].is_required()


def _parameter(cls: type, name: str) -> inspect.Parameter:
    "One field as a parameter of the command."
    field, words = _fields(cls)[name], _words(_fields(cls)[name])
    kind = typing.get_type_hints(cls)[name]
    plain: Any = next(m for m in _members(kind) if m is not type(None))
    if typing.get_origin(plain) is tuple:
        plain = list[typing.get_args(plain)[0]]  # type: ignore[misc]
    elif typing.get_origin(plain) is typing.Literal:
        plain = type(typing.get_args(plain)[0])
    default: Any = (
        inspect.Parameter.empty
        if field.is_required()
        else field.get_default(call_default_factory=True)
    )
    if isinstance(default, tuple):
        default = list(default) or None
    if words["argument"]:
        about = typer.Argument(help=field.description)
    else:
        names = [f"--{_dashed(name)}"] if words["flag"] or plain is not bool else []
        about = typer.Option(*names, help=field.description)
    if default is None:
        plain = plain | None
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[plain, about]
    )
