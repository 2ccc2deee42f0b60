"""Hold a value against a type hint to the last field, as hook specifications and models write them."""

from __future__ import annotations

import collections.abc
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from edgecore.errors import Problem
from edgecore.models import Between, Text
from edgecore.serial import shorten
from edgecore.testing.invariants import stated

__all__ = ["breaches"]


def breaches(value: object, kind: Any, path: str = "answer") -> Iterator[Problem]:
    """Say everything in *value* that is not of the type *kind*, each with its path.

    Knows what hook specifications and models are written with. A bool is no int, an int is a float,
    an attrs object must have every field right and must keep what its class states in words.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _annotated(value, kind, path)
    elif origin in (Union, types.UnionType):
        yield from _union(value, kind, path)
    elif origin is Literal:
        if value not in get_args(kind) or type(value) is bool:
            yield _problem(path, value, _name(kind))
    elif not _is_outwardly(value, kind):
        yield _problem(path, value, _name(kind))
    elif origin is collections.abc.Mapping:
        assert isinstance(value, Mapping)
        yield from _mapping(value, kind, path)
    elif origin in (tuple, collections.abc.Sequence):
        assert isinstance(value, Sequence)
        for number, item in enumerate(value):
            yield from breaches(item, get_args(kind)[0], f"{path}[{number}]")
    elif attrs.has(kind):
        yield from _fields(value, kind, path)


def _is_outwardly(value: object, kind: Any) -> bool:
    """Tell whether *value* is of *kind*, whatever is inside it."""
    outer = get_origin(kind) or kind
    if outer is None or outer is types.NoneType:
        return value is None
    if outer is float:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    if outer in (str, int, bool, bytes):
        return type(value) is outer
    if outer is collections.abc.Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)
    if outer is collections.abc.Callable:
        return callable(value)
    return isinstance(value, outer)


def _annotated(value: object, kind: Any, path: str) -> Iterator[Problem]:
    base, *rules = get_args(kind)
    wrong = tuple(breaches(value, base, path))
    yield from wrong
    for rule in () if wrong else rules:
        if isinstance(rule, Text) and not rule.accepts(str(value)):
            yield _problem(path, value, rule.allowed)
        elif isinstance(rule, Between) and not rule.minimum <= float(str(value)) <= rule.maximum:
            yield _problem(path, value, f"a number from {rule.minimum:,} to {rule.maximum:,}")


def _union(value: object, kind: Any, path: str) -> Iterator[Problem]:
    tried = {arm: tuple(breaches(value, arm, path)) for arm in get_args(kind)}
    if all(tried.values()):
        near = [wrong for arm, wrong in tried.items() if _is_outwardly(value, _bare(arm))]
        yield from near[0] if near else (_problem(path, value, _name(kind)),)


def _mapping(value: Mapping[object, object], kind: Any, path: str) -> Iterator[Problem]:
    keys, values = get_args(kind)
    for key, item in value.items():
        yield from breaches(key, keys, f"the key {shorten(key)} of {path}")
        yield from breaches(item, values, f"{path}[{shorten(key)}]")


def _fields(value: Any, kind: type, path: str) -> Iterator[Problem]:
    wrong = [
        problem
        for name, hint in _hints(kind).items()
        for problem in breaches(getattr(value, name), hint, f"{path}.{name}")
    ]
    # What is stated in words makes sense only for what has its types right.
    yield from wrong or (attrs.evolve(one, path=_joined(path, one.path)) for one in stated(value))


def _joined(path: str, inner: str) -> str:
    return f"{path}.{inner}" if inner else path


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: hints[one.name] for one in attrs.fields(kind)}


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _name(kind: Any) -> str:
    """Write a type for people."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is None or kind is types.NoneType:
        return "None"
    if origin is Annotated:
        return _name(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(_name, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    inner = f"[{', '.join(_name(each) for each in arguments if each is not ...)}]" if arguments else ""
    return f"{getattr(origin or kind, '__name__', str(kind))}{inner}"


def _problem(path: str, value: object, allowed: str) -> Problem:
    found = "None" if value is None else f"{shorten(value)} ({type(value).__name__})"
    return Problem(path, found, allowed)
