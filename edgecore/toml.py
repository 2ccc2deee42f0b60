"""Read TOML that may be hostile or broken: bounded in size, depth and time, with one error for all that is wrong."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from edgecore.errors import ConfigurationError, DefinitionError, Problem

__all__ = ["parse_toml", "read_toml"]

_LIMIT_BYTES: Final = 1024 * 1024


def read_toml(path: Path) -> dict[str, Any]:
    """Return what an operator's TOML file holds. Raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # no path at all: it holds a NUL
        raise _refused(path, f"cannot be read: {error}") from error
    if len(content) > _LIMIT_BYTES:
        raise _refused(path, f"a configuration file has at most {_LIMIT_BYTES:,} bytes")
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _refused(path, f"is not TOML: {error}") from error
    return parse_toml(text, source=str(path))


def parse_toml(
    text: str, *, source: str, error: type[ConfigurationError] | type[DefinitionError] = ConfigurationError
) -> dict[str, Any]:
    """Parse TOML, or raise *error* with the line that is wrong."""
    # tomllib needs a time that grows with the cube of a dotted key's length: hours for 1 MiB.
    if chain := _DOTTED.search(_STRING.sub("s", text)):
        raise error(source, [Problem("", repr(chain[0][:60]), "a dotted key has at most 5 parts")])
    try:
        return tomllib.loads(text)
    except RecursionError:
        problem = Problem("", "very deep nesting", "such a file has tables of keys and values")
        raise error(source, [problem]) from None
    except ValueError as raised:  # beside TOMLDecodeError: a number or a date that Python cannot hold
        line = _LINE.search(str(raised))
        problem = Problem(line[1] if line else "", "", f"is not TOML: {raised}")
        raise error(source, [problem]) from None


def _refused(path: Path, allowed: str) -> ConfigurationError:
    return ConfigurationError(str(path), [Problem("", "", allowed)])


_STRING: Final = re.compile(
    r'"""(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*+(?:"{3,5})?'
    r"|'''(?:[^']|'{1,2}(?!'))*+(?:'{3,5})?"
    r'|"(?:[^"\\\n]|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+"
)
"""A string, closed or not, or a comment."""
_DOTTED: Final = re.compile(r"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){5}[\w-]", re.ASCII)
_LINE: Final = re.compile(r"at (line \d+)")
