"""Put what stands in attrs classes into words: types, limits, defaults, and the text below each field."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen

from edgecore.models import Between, Text

__all__ = ["Field", "cell", "documented", "fields_of", "markdown_table", "with_commands"]

_PLAIN: Final[Mapping[object, str]] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    Any: "any value",
}

_COMMAND: Final = re.compile(
    r"edgecore (?:apps (?:add|list|show)|[a-z]+)(?: (?:[A-Z]+(?:\.toml)?|--[a-z-]+)\b)*|\[+[a-z]+\]+(?: [a-z]+_[a-z_]+)?"
)
"""A command as it is typed, or a table of a site's file with its key."""


@frozen
class Field:
    """One field of an attrs class, as a reader of the documentation needs it."""

    name: str
    type: object
    words: str
    """The type and its limits."""
    default: str
    """``required``, or the default as TOML has it."""
    meaning: str
    """The text below the field; empty where there is none."""


def documented(cls: type) -> dict[str, str]:
    """Return name -> the string that stands below the assignment of that name, of *cls* and its bases."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if each.__module__.startswith("edgecore"):
            found |= _documented(each)
    return found


def _documented(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign):
            target: ast.expr = statement.target
        elif isinstance(statement, ast.Assign):
            target = statement.targets[0]
        else:
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            assert isinstance(target, ast.Name)
            found[target.id] = " ".join(str(following.value.value).split())
    return found


def fields_of(cls: type) -> tuple[Field, ...]:
    """Return the public fields of an attrs class, in their order."""
    hints = get_type_hints(cls, include_extras=True)
    meanings = documented(cls)
    return tuple(
        Field(
            name=each.name,
            type=hints[each.name],
            words=_words(hints[each.name]),
            default=_default(each),
            meaning=meanings.get(each.name, ""),
        )
        for each in attrs.fields(cls)
        if each.init and not each.name.startswith("_")
    )


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _limited(arguments[0], arguments[1])
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(_words(each) for each in arguments if each is not type(None)))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list: {_words(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "table"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return f"a `{hint.__name__}`"
    return _PLAIN.get(hint, f"`{getattr(hint, '__name__', hint)}`")


def _limited(hint: Any, rule: object) -> str:
    if isinstance(rule, Between):
        return f"{_PLAIN[hint]}, {_number(rule.minimum)} to {_number(rule.maximum)}"
    assert isinstance(rule, Text)
    return rule.allowed


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


def _default(field: attrs.Attribute[Any]) -> str:
    default = field.default
    if default is attrs.NOTHING:
        return "required"
    factory = getattr(default, "factory", None)
    if factory is not None:
        return "none" if factory in (dict, tuple, list) else "see there"
    if default is None or default in ("", ()):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def cell(text: str) -> str:
    """Return text fit for a cell of a table; RST's double backticks become Markdown's."""
    return " ".join(text.split()).replace("``", "`").replace("|", r"\|")


def with_commands(words: str) -> str:
    """Return advice with its commands and tables of a site's file marked as such."""
    return _COMMAND.sub(r"`\g<0>`", words)


def markdown_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Write a table."""
    lines = [head, tuple("---" for _ in head), *(tuple(map(cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
