"""Show a file of the repository, whole or in pieces that make it up, as a page tells the reader to write it.

``code PLACE as NAME [from A] [to B]``: the file, or the lines from the definition or heading A up to B.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["piece"]

_ROOT: Final = Path(__file__).parents[2]
_NAMED: Final = re.compile(r"(?P<place>\S+) as (?P<name>\S+)(?: from (?P<begin>.+?))?(?: to (?P<end>.+))?")
_LANGUAGES: Final = {".py": "python", ".toml": "toml", ".cfg": "ini", ".json": "json", ".md": "markdown"}


def piece(name: str) -> str:
    """Write the name of the file and the piece; the first one begins it, the others are added to it."""
    found = _NAMED.fullmatch(name)
    assert found is not None, f"write code PLACE as NAME [from A] [to B], not {name!r}"
    path = _ROOT / found["place"]
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    begin = _line(lines, found["begin"]) if found["begin"] else 0
    end = _line(lines, found["end"]) if found["end"] else len(lines)
    lead = f"Add to `{found['name']}`:" if begin else f"`{found['name']}`:"
    return f"{lead}\n\n```{_LANGUAGES[path.suffix]}\n{''.join(lines[begin:end])}```"


def _line(lines: list[str], name: str) -> int:
    """Return where a definition, with its decorators, or a heading of dashes begins."""
    pattern = re.compile(
        rf"\s*(?:def {re.escape(name)}\(|class {re.escape(name)}[(:]|# -+ {re.escape(name)}$)"
    )
    places = [number for number, line in enumerate(lines) if pattern.match(line)]
    assert len(places) == 1, f"{name} stands {len(places)} times in the file"
    place = places[0]
    while lines[place - 1].lstrip().startswith("@"):
        place -= 1
    return place
