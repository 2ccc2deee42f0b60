"""Find and read a user's settings file, and give every value the type that was declared for it.

A settings file is TOML or JSON by its ending, else lines of ``key = value``. Such lines hold text,
which the declared type turns into a value; TOML and JSON values must have that type already.
All that is wrong in a file is reported at once, each with line, key, value and what is allowed.

Lines of ``key = value``: ``#`` or ``;`` at the beginning makes a comment. Quotes around a value are
optional; there are no escapes. `` #`` inside a value without quotes is refused, since nobody can tell
whether it was meant. Where several values are allowed, commas part them.

An operator's ``pattern`` is trusted. The limit on a value's length keeps an ordinary one fast, but one with
nested repetition, such as ``(a+)+b``, can take for ever on a value made for it.
"""

from __future__ import annotations

import codecs
import errno
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias, get_args

from attrs import frozen

from edgecore import serial
from edgecore.errors import DefinitionError, Problem
from edgecore.models import Parameter, RelativePath, Text, Value
from edgecore.toml import parse_toml

__all__ = [
    "ConfigurationFile",
    "Setting",
    "Settings",
    "TypedValues",
    "allowed_words",
    "find_configuration",
    "read_settings",
    "typed_setting",
    "typed_values",
]

_LIMIT_BYTES: Final = 1024 * 1024
_LONGEST_TEXT: Final = 4096
_MOST_VALUES: Final = 10_000
_MOST_PROBLEMS: Final = 100
_INTEGERS: Final = range(-(2**63), 2**63)

TypedValues: TypeAlias = Mapping[str, Value | tuple[Value, ...]]
"""Key -> its value, or its values where several are allowed."""


@frozen
class Setting:
    """One value as it stands in a file, before its type is known."""

    value: object
    line: int | None = None
    written: bool = False
    """Whether it is the text of a ``key = value`` line, to be read by its declared type."""


Settings: TypeAlias = Mapping[str, Setting]


@frozen
class ConfigurationFile:
    """A settings file that was found, with what it held when it was found."""

    path: Path
    content: bytes


class _Unfit(ValueError):
    """One value that may not stand where it stands; becomes a Problem where the place is known."""

    def __init__(self, found: object, allowed: str) -> None:
        super().__init__(allowed)
        self.found = serial.shorten(found)
        self.allowed = allowed


# ------------------------------------------------------------------------------------ finding


def find_configuration(name: str, data: Path, application_directory: Path | None = None) -> ConfigurationFile:
    """Read the file *name* from the job's data, or else from the application's directory.

    No link below either directory is followed, so that nothing in staged input leads out of it.
    Raises DefinitionError; OSError when the file system itself fails, which may pass.
    """
    if not _is_inside(name):
        raise _refused(name, [Problem("", "", f"a file name must be {_PATH_WORDS}")])
    places = [place for place in (data, application_directory) if place is not None]
    for place in places:
        content = _read_below(place, name)
        if content is not None:
            return ConfigurationFile(place / name, content)
    raise _refused(name, [Problem("", "", f"there is no such file in {' or in '.join(map(str, places))}")])


def _read_below(directory: Path, name: str) -> bytes | None:
    """Return what the regular file *name* holds; None when there is no such file."""
    try:
        with open(_open_below(directory, name), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _refused(name, [Problem("", "", f"is not a regular file in {directory}")])
            return file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        words = _OPEN_WORDS.get(error.errno or 0)
        if words is None:
            raise
        raise _refused(name, [Problem("", "", f"cannot be read in {directory}: {words}")]) from error


_OPEN_WORDS: Final[Mapping[int, str]] = {
    errno.ELOOP: "it is a link, and links are not followed",
    errno.ENOTDIR: "its path goes through a link or a file; only plain directories are followed",
    errno.ENXIO: "it is not a regular file",
    errno.EISDIR: "it is a directory",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENAMETOOLONG: "its name is too long",
}


def _open_below(directory: Path, name: str) -> int:
    folder = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    *parents, last = PurePosixPath(name).parts
    fd = os.open(directory, folder)
    try:
        for part in parents:
            below = os.open(part, folder | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        # O_NONBLOCK: opening a FIFO that somebody staged must not wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(last, flags, dir_fd=fd)
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------------ reading


def read_settings(content: bytes, name: str) -> Settings:
    """Read the content of the settings file *name* as TOML, JSON or lines, by its ending.

    Raises DefinitionError with every problem.
    """
    if len(content) > _LIMIT_BYTES:
        raise _refused(name, [Problem("", "", f"a settings file has at most {_LIMIT_BYTES:,} bytes")])
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"byte {content[error.start]:#04x}"
        raise _refused(name, [Problem(f"line {line}", found, "the file must be UTF-8 text")]) from None
    reader = _READERS.get(PurePosixPath(name).suffix.lower(), _read_lines)
    return reader(text, name)


def _read_lines(text: str, name: str) -> Settings:
    settings: dict[str, Setting] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.split("\n"), 1):
        if len(problems) > _MOST_PROBLEMS:
            break
        content = line.strip(" \t\r")
        if not content or content[0] in "#;":
            continue
        key, equals, value = (part.strip(" \t") for part in content.partition("="))
        if content[0] == "[":
            words = "there are no sections in this file; remove the header"
            problems.append(Problem(f"line {number}", serial.shorten(content), words))
        elif not (key and equals):
            problems.append(Problem(f"line {number}", serial.shorten(content), "a line must be key = value"))
        elif key in settings:
            words = f"a key may stand only once; it stands in line {settings[key].line} already"
            problems.append(Problem(_where(key, number), serial.shorten(value), words))
        else:
            settings[key] = Setting(value, number, written=True)
    if problems:
        raise _refused(name, problems)
    return settings


def _read_toml(text: str, name: str) -> Settings:
    return _with_lines(parse_toml(text, source=name, error=DefinitionError), text, _TOML_KEY)


def _read_json(text: str, name: str) -> Settings:
    document = serial.parse_json(text.encode(), source=name, limit_bytes=_LIMIT_BYTES)
    if not isinstance(document, dict):
        raise _refused(name, [Problem("", serial.shorten(document), "must be an object of keys and values")])
    return _with_lines(document, text, _JSON_KEY)


_READERS: Final[Mapping[str, Callable[[str, str], Settings]]] = {".toml": _read_toml, ".json": _read_json}

_TOML_KEY: Final = re.compile(r"^[ \t]*+[\"']?([A-Za-z0-9._-]++)[\"']?[ \t]*+=", re.ASCII)
_JSON_KEY: Final = re.compile(r'"([A-Za-z0-9._-]++)"[ \t]*+:', re.ASCII)


def _with_lines(document: Mapping[str, object], text: str, key: re.Pattern[str]) -> Settings:
    """Add the line of each key, where only one line can be meant."""
    lines: dict[str, int | None] = {}
    for number, line in enumerate(text.split("\n"), 1):
        for match in key.finditer(line):
            lines[match[1]] = None if match[1] in lines else number
    return {name: Setting(value, lines.get(name)) for name, value in document.items()}


# ------------------------------------------------------------------------------------- typing


def typed_values(parameters: Mapping[str, Parameter], settings: Settings, *, source: str) -> TypedValues:
    """Return the value of every parameter that is set or has a default, in declared order.

    Raises DefinitionError with every problem: values of the wrong type, unknown keys with the
    nearest known one, and what is missing.
    """
    problems: list[Problem] = []
    values: dict[str, Value | tuple[Value, ...]] = {}
    for name, parameter in parameters.items():
        if (setting := settings.get(name)) is not None:
            value = typed_setting(parameter, setting, _where(name, setting.line), problems)
            if value is not None:
                values[name] = value
        elif parameter.default is not None:
            values[name] = parameter.default
        elif parameter.required:
            problems.append(Problem(name, "", f"is required: {allowed_words(parameter)}"))
    unknown = [key for key in settings if key not in parameters]
    known = f"; known: {', '.join(parameters)}" if parameters else "; no key is declared here"
    for name in unknown[: _MOST_PROBLEMS + 1]:  # looking for near misses is slow
        near = serial.nearest(name[:100], parameters)
        problems.append(Problem(_where(name, settings[name].line), "", f"unknown key{near or known}"))
    if problems:
        raise _refused(source, problems)
    return values


def typed_setting(
    parameter: Parameter, setting: Setting, where: str, problems: list[Problem]
) -> Value | tuple[Value, ...] | None:
    """Return the typed value or values of one setting; add what is wrong to *problems*."""
    before = len(problems)
    values: list[Value] = []
    try:
        items = _items(setting) if parameter.list else [_item(setting)]
    except _Unfit as error:
        problems.append(Problem(where, error.found, error.allowed))
        return None
    for index, item in enumerate(items):
        value = _parsed(parameter, item) if setting.written else item
        if _fits(parameter, value):
            values.append(value)  # type: ignore[arg-type]
        else:
            place = f"{where}[{index}]" if parameter.list else where
            problems.append(Problem(place, serial.shorten(item), f"must be {_one_words(parameter)}"))
    if len(problems) > before:
        return None
    return tuple(values) if parameter.list else values[0]


def allowed_words(parameter: Parameter) -> str:
    """Say in words what a parameter takes."""
    return f"one or more values, each {_one_words(parameter)}" if parameter.list else _one_words(parameter)


def _one_words(parameter: Parameter) -> str:
    if parameter.choices:
        return "one of " + ", ".join(map(repr, parameter.choices))
    words = _TYPE_WORDS[parameter.type]
    if parameter.minimum is not None:
        words += f", at least {parameter.minimum:,}"
    if parameter.maximum is not None:
        words += f", at most {parameter.maximum:,}"
    if parameter.pattern is not None:
        words += f", matching {parameter.pattern} as a whole"
    if parameter.type in _TEXTS and not _allows_dash(parameter):
        words += ", not beginning with '-'"
    return words


_PATH_WORDS: Final = (
    "a path relative to the job's data directory, up to 255 characters, without '.', '..', "
    "backslashes or characters that cannot be printed"
)
_TYPE_WORDS: Final[Mapping[str, str]] = {
    "integer": "a whole number in decimal digits",
    "number": "a number",
    "boolean": "true or false",
    "string": f"1 to {_LONGEST_TEXT:,} printable characters",
    "path": _PATH_WORDS,
}
_TEXTS: Final = ("string", "path")


def _items(setting: Setting) -> Sequence[object]:
    items = _split(str(setting.value)) if setting.written else setting.value
    if not isinstance(items, list | tuple):
        raise _Unfit(items, "must be a list")
    if not 1 <= len(items) <= _MOST_VALUES:
        raise _Unfit(items, f"must have 1 to {_MOST_VALUES:,} values; leave the key out for none")
    return items


def _item(setting: Setting) -> object:
    """Take the quotes from a written value."""
    if not setting.written:
        return setting.value
    text = str(setting.value)
    if not text.startswith(("'", '"')):
        return _plain(text)
    match = _QUOTED.fullmatch(text)
    if match is None:
        raise _Unfit(text, "must end with the quote that it begins with, and have none in between")
    return match["double"] or match["single"] or ""


_QUOTED: Final = re.compile(r"""(?:"(?P<double>[^"]*+)"|'(?P<single>[^']*+)')(?:[ \t]++#.*+)?""", re.DOTALL)
_LISTED: Final = re.compile(
    r"""[ \t]*+(?:"(?P<double>[^"]*+)"|'(?P<single>[^']*+)'|(?P<plain>(?!["'])[^,]*+))[ \t]*+(?P<end>,|\Z)"""
)


def _split(text: str) -> list[object]:
    items: list[object] = []
    position = 0
    while match := _LISTED.match(text, position):
        plain = match["plain"]
        items.append(
            match["double"] or match["single"] or "" if plain is None else _plain(plain.strip(" \t"))
        )
        if not match["end"]:
            return items
        position = match.end()
    raise _Unfit(text[position:], "must be values with commas between; a quoted value ends with its quote")


def _plain(text: str) -> str:
    if " #" in text or "\t#" in text:
        allowed = "put the value into quotes, or the comment on a line of its own"
        raise _Unfit(text, allowed)
    return text


_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?")
_TRUTH: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def _parsed(parameter: Parameter, item: object) -> Value | None:
    """Read a written value by its declared type; None when it cannot be read so."""
    text = str(item)
    if parameter.type in _TEXTS:
        return text
    if len(text) > _LONGEST_TEXT:
        return None
    if parameter.type == "boolean":
        return _TRUTH.get(text.lower())
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if parameter.type == "number" and _NUMBER.fullmatch(text) else None


def _fits(parameter: Parameter, value: object) -> bool:
    """Tell whether *value* has the declared type and keeps the declared limits."""
    if isinstance(value, bool) or parameter.type == "boolean":
        fits = isinstance(value, bool) and parameter.type == "boolean"
    elif isinstance(value, int):
        fits = parameter.type in ("integer", "number") and value in _INTEGERS and _between(parameter, value)
    elif isinstance(value, float):
        fits = parameter.type == "number" and math.isfinite(value) and _between(parameter, value)
    else:
        fits = isinstance(value, str) and parameter.type in _TEXTS and _fits_text(parameter, value)
    return fits and (not parameter.choices or value in parameter.choices)


def _between(parameter: Parameter, value: float) -> bool:
    low, high = parameter.minimum, parameter.maximum
    return (low is None or low <= value) and (high is None or value <= high)


def _fits_text(parameter: Parameter, text: str) -> bool:
    if len(text) > _LONGEST_TEXT or not text.isprintable():
        return False
    if parameter.type == "path" and not _is_inside(text):
        return False
    if parameter.choices:  # they are the operator's own words
        return True
    if text.startswith("-") and not _allows_dash(parameter):
        return False
    return Text(parameter.pattern, "").accepts(text) if parameter.pattern is not None else text != ""


def _allows_dash(parameter: Parameter) -> bool:
    """Tell whether the pattern speaks of a leading dash: it begins with one, or has ``\\-``.

    A pattern such as ``.+`` also matches ``--output=/etc/passwd``, and hardly on purpose.
    """
    pattern = parameter.pattern or ""
    return pattern.lstrip("^([?:").startswith("-") or r"\-" in pattern


_RELATIVE: Final[Text] = get_args(RelativePath)[1]


def _is_inside(path: str) -> bool:
    return _RELATIVE.accepts(path) and path.isprintable() and "\\" not in path


# ------------------------------------------------------------------------------------ refusing


def _where(key: str, line: int | None) -> str:
    name = serial.shorten(key)[1:-1]
    return f"line {line}, {name}" if line else name


def _refused(source: str, problems: Iterable[Problem]) -> DefinitionError:
    found = list(problems)
    if len(found) > _MOST_PROBLEMS:
        found = [*found[:_MOST_PROBLEMS], Problem("", "", "and more problems")]
    return DefinitionError(source, found)
