"""Turn documents into models and back: the one converter of the project.

Reading is strict: no value is coerced, no key is guessed, and every problem of a document is
reported at once, each with its path, what was found and what is allowed. The rules stand beside
the types in `edgecore.models`.
"""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import attrs
from cattrs import BaseValidationError, ClassValidationError, Converter, IterableValidationError
from cattrs.errors import ForbiddenExtraKeysError, IterableValidationNote
from cattrs.gen import make_mapping_structure_fn

from edgecore.errors import ConfigurationError, DefinitionError, Problem
from edgecore.models import Between, Text

__all__ = ["learn", "nearest", "parse_json", "shorten", "structure", "to_json", "unstructure"]

T = TypeVar("T")

_DEEPEST: Final = 50
_LONGEST_NUMBER: Final = 400
_MOST_PROBLEMS: Final = 50
_MOST_BITS: Final = 64
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


class _Invalid(ValueError):
    """One value that breaks its rule; becomes a Problem once its path is known."""

    def __init__(self, found: object, allowed: str) -> None:
        super().__init__(allowed)
        self.found = shorten(found)
        self.allowed = allowed


# -------------------------------------------------------------------------------- reading


def structure(
    cls: type[T],
    value: object,
    *,
    source: str,
    error: type[ConfigurationError] | type[DefinitionError] = ConfigurationError,
) -> T:
    """Read plain data as *cls*, or raise *error* naming *source* and all its problems."""
    try:
        return _CONVERTER.structure(value, cls)
    except (BaseValidationError, _Invalid) as raised:
        problems = list(islice(_problems(raised, "", cls), _MOST_PROBLEMS + 1))
        if len(problems) > _MOST_PROBLEMS:
            problems[-1] = Problem("", "", "and more problems; correct these first")
        raise error(source, problems) from None


def parse_json(body: bytes, *, source: str, limit_bytes: int = 1024 * 1024) -> Any:
    """Parse strict JSON: UTF-8, no duplicate keys, no NaN, at most 50 levels deep.

    Raises DefinitionError, with line and column where the text is not JSON.
    """
    if len(body) > limit_bytes:
        raise _refused(source, f"{len(body):,} bytes", f"at most {limit_bytes:,} bytes are allowed")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(
            source, f"byte {error.object[error.start]:#04x} at {error.start}", "must be UTF-8"
        ) from None
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise _refused(source, _where(text, error), _what(text, error)) from None
    except RecursionError:
        raise _refused(source, "very deep nesting", f"at most {_DEEPEST} levels are allowed") from None
    except _Invalid as error:
        raise _refused(source, error.found, error.allowed) from None
    if body.count(b"[") + body.count(b"{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise _refused(source, "deep nesting", f"at most {_DEEPEST} levels are allowed")
    return value


def _refused(source: str, found: str, allowed: str) -> DefinitionError:
    return DefinitionError(source, (Problem("", found, allowed),))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Invalid(key, "a key may stand only once in an object")
            seen.add(key)
    return result


def _constant(word: str) -> object:
    raise _Invalid(word, "JSON has no such number")


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise _Invalid(digits, f"a number has at most {_LONGEST_NUMBER} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits[: _LONGEST_NUMBER + 1])
    if len(digits) > _LONGEST_NUMBER or not math.isfinite(number):
        raise _Invalid(digits, "this number is out of range")
    return number


def _where(text: str, error: json.JSONDecodeError) -> str:
    line = text.splitlines()[error.lineno - 1 : error.lineno] if text.strip() else []
    shown = shorten(line[0].strip()) if line else "nothing"
    return f"{shown} at line {error.lineno}, column {error.colno}"


def _what(text: str, error: json.JSONDecodeError) -> str:
    closing = text[error.pos :].lstrip()[:1] in ("}", "]")
    if (closing and text[: error.pos].rstrip().endswith(",")) or "trailing comma" in error.msg:
        return "not JSON: remove the comma after the last item"
    return f"not JSON: {error.msg}"


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for item in level for child in _children(item)]
    return depth


def _children(item: object) -> Iterable[object]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


# -------------------------------------------------------------------------------- writing


def unstructure(value: object) -> Any:
    """Return a model as plain data: dicts, lists, strings, numbers, None."""
    return _CONVERTER.unstructure(value)


def to_json(value: object) -> str:
    """Write a model or plain data as one line of JSON."""
    return _ENCODER.encode(_CONVERTER.unstructure(value))


def learn(*models: type) -> None:
    """Make now what reads and writes *models*, which takes milliseconds each, instead of with the first of them."""
    for model in models:
        _CONVERTER.get_structure_hook(model)
        _CONVERTER.get_unstructure_hook(model)


# ------------------------------------------------------------------------------- problems


def shorten(value: object, width: int = 80) -> str:
    """Show a value to people in at most *width* characters, control characters escaped."""
    if isinstance(value, str):
        text = repr(value[: width + 1])
    elif isinstance(value, dict | list | tuple):
        text = f"{type(value).__name__} of {len(value)}"
    else:
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**width else "a huge number"
    return text if len(text) <= width else text[: width - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """Name the known word that *word* was probably meant to be, as a sentence, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _problems(error: BaseException, path: str, cls: object) -> Iterator[Problem]:
    if isinstance(error, ClassValidationError):
        located, others = error.group_exceptions()
        for inner, note in located:
            yield from _problems(inner, f"{path}.{note.name}" if path else str(note.name), note.type)
        for inner in others:
            yield from _problems(inner, path, error.cl)
    elif isinstance(error, IterableValidationError):
        for inner, item in error.group_exceptions()[0]:
            yield from _problems(
                inner,
                f"{path}[{item.index}]" if isinstance(item.index, int) else f"{path}.{item.index}",
                item.type,
            )
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl) if field.init]
        for key in sorted(error.extra_fields):
            where = f"{path}.{key}" if path else str(key)
            yield Problem(shorten(where)[1:-1] or "''", "", f"unknown key{nearest(str(key), known)}")
    elif isinstance(error, _Invalid):
        yield Problem(path, error.found, error.allowed)
    elif isinstance(error, KeyError):
        yield Problem(path, "", "is required")
    else:
        yield Problem(path, "", str(error) or type(error).__name__)


# ------------------------------------------------------------------------------- converter

_Hook = Callable[[Any, Any], Any]


def _text(value: object, _: object) -> str:
    if type(value) is not str:
        raise _Invalid(value, "must be a string")
    return value


def _any_whole(value: object, _: object) -> int:
    if type(value) is not int:
        raise _Invalid(value, "must be a whole number")
    return value


def _whole(value: object, _: object) -> int:
    value = _any_whole(value, _)
    if value.bit_length() > _MOST_BITS:  # Python itself refuses to write very long ones
        raise _Invalid(value, f"must be a whole number of at most {_MOST_BITS} bits")
    return value


def _number(value: object, _: object) -> float:
    if type(value) is int:
        return _whole(value, int)
    if type(value) is not float or not math.isfinite(value):
        raise _Invalid(value, "must be a number")
    return value


def _truth(value: object, _: object) -> bool:
    if type(value) is not bool:
        raise _Invalid(value, "must be true or false")
    return value


def _path(value: object, _: object) -> Path:
    if type(value) is not str or not value.startswith("/") or "\x00" in value:
        raise _Invalid(value, "must be an absolute path")
    return Path(value)


def _annotated(kind: Any) -> _Hook:
    base, *rules = get_args(kind)
    ranged = base is int and any(isinstance(rule, Between) for rule in rules)
    inner = _any_whole if ranged else _CONVERTER.get_structure_hook(base)

    def hook(value: Any, _: object) -> Any:
        value = inner(value, base)
        for rule in rules:
            if isinstance(rule, Text) and not rule.accepts(value):
                raise _Invalid(value, f"must be {rule.allowed}")
            if isinstance(rule, Between) and not rule.minimum <= value <= rule.maximum:
                raise _Invalid(value, f"must be from {rule.minimum:,} to {rule.maximum:,}")
        return value

    return hook


def _base(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_origin(kind) or kind


_JSON_TYPES: Final[Mapping[Any, tuple[type, ...]]] = {
    float: (int, float),
    tuple: (list, tuple),
    Mapping: (dict,),
    Path: (str,),
    Literal: (str,),
}


def _union(kind: Any) -> _Hook:
    arms = [arm for arm in get_args(kind) if arm is not types.NoneType]
    optional = len(arms) < len(get_args(kind))
    by_type: dict[type, Any] = {}
    for arm in arms:
        base = _base(arm)
        for accepted in _JSON_TYPES.get(base, (dict,) if attrs.has(base) else (base,)):
            by_type.setdefault(accepted, arm)
    words = {
        str: "a string",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        list: "a list",
        dict: "a table",
    }
    allowed = " or ".join([words[key] for key in by_type if key in words] + (["null"] if optional else []))

    def hook(value: Any, _: object) -> Any:
        if value is None and optional:
            return None
        arm = by_type.get(type(value))
        if arm is None:
            if len(arms) == 1:  # its own words are better
                return _CONVERTER.structure(value, arms[0])
            raise _Invalid(value, f"must be {allowed}")
        return _CONVERTER.structure(value, arm)

    return hook


def _literal(value: Any, kind: Any) -> Any:
    allowed = get_args(kind)
    if type(value) is not str or value not in allowed:
        near = nearest(value, allowed) if isinstance(value, str) else ""
        raise _Invalid(value, f"must be one of {', '.join(allowed)}{near}")
    return value


def _enumeration(value: Any, kind: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise _Invalid(value, f"must be one of {', '.join(kind)}") from None


def _items(values: Iterable[object], kind: Any, structured: _Hook) -> tuple[Any, ...]:
    """Read the items of a list, and none any more once there are more problems than are ever told."""
    items: list[Any] = []
    errors: list[Exception] = []
    for index, value in enumerate(values):
        try:
            items.append(structured(value, kind))
        except Exception as error:
            error.add_note(IterableValidationNote(f"item {index}", index, kind))
            errors.append(error)
            if len(errors) > _MOST_PROBLEMS:
                break
    if errors:
        raise IterableValidationError("some items are wrong", errors, tuple)
    return tuple(items)


def _strict_container(inner: _Hook, expected: tuple[type, ...], allowed: str) -> _Hook:
    def hook(value: Any, kind: Any) -> Any:
        if not isinstance(value, expected):
            raise _Invalid(value, allowed)
        return inner(value, kind)

    return hook


def _origin_is(*origins: object) -> Callable[[object], bool]:
    return lambda kind: get_origin(kind) in origins


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, hook in ((str, _text), (int, _whole), (float, _number), (bool, _truth), (Path, _path)):
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook(StrEnum, _enumeration)  # by its class, or it would pass as any string
    converter.register_structure_hook_func(_origin_is(Literal), _literal)

    @converter.register_structure_hook_factory(_origin_is(tuple))
    def _tuples(kind: Any) -> _Hook:
        item = get_args(kind)[0]
        structured = converter.get_structure_hook(item)
        return _strict_container(
            lambda value, _: _items(value, item, structured), (list, tuple), "must be a list"
        )

    @converter.register_structure_hook_factory(_origin_is(Mapping))
    def _mappings(kind: Any) -> _Hook:
        return _strict_container(
            make_mapping_structure_fn(kind, converter), (dict,), "must be a table of keys and values"
        )

    @converter.register_structure_hook_factory(attrs.has)
    def _classes(kind: Any) -> _Hook:
        return _strict_container(
            converter.gen_structure_attrs_fromdict(kind), (dict,), "must be a table of keys and values"
        )

    converter.register_structure_hook_factory(_origin_is(Union, types.UnionType), _union)
    converter.register_structure_hook_factory(_origin_is(Annotated), _annotated)
    converter.register_unstructure_hook(Path, str)
    return converter


_CONVERTER: Final = _converter()
