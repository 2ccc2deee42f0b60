"""Refresh the generated parts of the documentation: ``python -m docs.generate [--check]``.

A page holds hand-written text, and parts between two comments that name what generates them. Only these
parts are rewritten. With ``--check`` nothing is written, and the exit code is 1 when something is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from docs.generators import cli, code, configuration, errors, failures, hooks, messages, pictures, states

__all__ = ["PARTS", "main", "refreshed", "stale"]

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent

PARTS: Final[Mapping[str, Callable[[str], str]]] = {
    "cli": cli.page,
    "code": code.piece,
    "configuration": configuration.page,
    "drivers": configuration.drivers,
    "errors": errors.page,
    "failures": failures.page,
    "fields": messages.table,
    "hook": hooks.hook,
    "states": states.page,
}
"""First word of a part's name -> what writes it, given the rest of the name."""

_PART: Final = re.compile(r"(<!-- generated: (\w+) ?([^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(text: str) -> str:
    """Return the text of a page with its generated parts as the code has them now."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]](part[3]).strip()}\n\n{part[4]}", text)


def stale() -> Iterator[tuple[Path, str]]:
    """Yield each file that is not as the code has it, with what it should hold."""
    for path in sorted(DOCS.rglob("*.md")):
        if "_build" not in path.parts:
            text = path.read_text(encoding="utf-8")
            if text != (fresh := refreshed(text)):
                yield path, fresh
    for name, drawn in pictures.PICTURES.items():
        path, picture = DOCS / "pictures" / name, drawn()
        if not path.exists() or path.read_text(encoding="utf-8") != picture:
            yield path, picture


def main(arguments: list[str]) -> int:
    """Refresh, or only check."""
    found = list(stale())
    for path, fresh in found:
        print(f"{'stale' if '--check' in arguments else 'refreshed'}: {path.relative_to(ROOT)}")
        if "--check" not in arguments:
            path.write_text(fresh, encoding="utf-8")
    return int("--check" in arguments and bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
