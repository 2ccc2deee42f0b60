"""Describe every key of a site's file from the classes that read it.

The meaning of a key is the text below its field; a key without one is an error.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import attrs

from docs.generators.fields import Field, fields_of, markdown_table
from edgecore.config import SiteConfig
from edgecore.models import Option

__all__ = ["drivers", "page"]

_ROOT: Final = Path(__file__).parents[2]
_WRITTEN: Final[Mapping[tuple[str, str], str]] = {("environment", "inherit"): "pass"}
"""Table and field -> the key as the file has it."""
_OPEN: Final[Mapping[tuple[str, str], str]] = {
    ("scheduling", "options"): "scheduling.options.NAME",
    ("environment", "set"): "environment.set",
    ("plugins", "settings"): "plugins.NAME",
}
"""Table and field -> a table of its own, whose keys are not ours."""
_OF_THE_DRIVER: Final = "settings"


def page(_: str) -> str:
    """Write a section per table of the file."""
    top = [each for each in fields_of(SiteConfig) if _table(each) is None and each.name != "source"]
    parts = ["## Top of the file", _keys("", top)]
    for each in fields_of(SiteConfig):
        table = _table(each)
        if table is not None:
            parts += _section(each.name, *table)
    return "\n\n".join(parts)


def drivers(_: str) -> str:
    """Write the keys of every built-in driver and layer."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = []
    for group, offers in project["entry-points"].items():
        role = group.removeprefix("edgecore.")
        for name, target in offers.items() if group.startswith("edgecore.") else ():
            module, _, cls = target.partition(":")
            found = getattr(importlib.import_module(module), cls)
            rows = [
                _row(each, each.name, f"{target}.{each.name}")
                for each in fields_of(found)
                if (role, each.name) != ("messaging", "url")
            ]
            head = f"### {role}: {name}"
            parts.append(f"{head}\n\n{_key_table(rows) if rows else 'No keys of its own.'}")
    return "\n\n".join(parts)


def _table(field: Field) -> tuple[str, type] | None:
    """Return how a field that is a table of the file is headed there, and its class."""
    hint: Any = field.type
    if isinstance(hint, type) and attrs.has(hint):
        return f"[{field.name}]", hint
    inner = [each for each in get_args(hint) if isinstance(each, type) and attrs.has(each)]
    if not inner:
        return None
    many = get_origin(hint) is tuple
    return (f"[[{field.name}]]" if many else f"[{field.name}.NAME]"), inner[0]


def _section(name: str, title: str, cls: type) -> Iterator[str]:
    yield f"## `{title}`"
    doc = " ".join((cls.__doc__ or "").split())
    told = doc.partition(": ")[2]
    if not doc.startswith("Method generated"):
        yield _beginning(told)
    own = [each for each in fields_of(cls) if each.name != _OF_THE_DRIVER and (name, each.name) not in _OPEN]
    if own:
        yield _keys(name, own)
    for each in fields_of(cls):
        if (name, each.name) in _OPEN:
            yield f"### `[{_OPEN[name, each.name]}]`"
            yield _beginning(each.meaning.partition(": ")[2] or each.meaning)
            if each.name == "options":
                yield _keys("scheduling.options.NAME", fields_of(Option))
        elif each.name == _OF_THE_DRIVER:
            yield "All other keys of this table belong to the driver: see [built-in drivers](#built-in-drivers)."


def _keys(table: str, fields: Iterable[Field]) -> str:
    rows = []
    for each in fields:
        key = _WRITTEN.get((table, each.name), each.name)
        rows.append(_row(each, key, f"{table}.{key}" if table else key))
    return _key_table(rows)


def _row(field: Field, key: str, place: str) -> tuple[str, ...]:
    if not field.meaning:
        raise LookupError(f"nothing says what {place} means: write a text below its field")
    return f"`{key}`", field.words, field.default, _beginning(field.meaning.removeprefix(f"``{key}``: "))


def _key_table(rows: list[tuple[str, ...]]) -> str:
    return markdown_table(("key", "type", "default", "meaning"), rows)


def _beginning(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}"
