"""Show results: aligned columns, with colours at a terminal where there is rich; JSON for machines.

Names and messages come from strangers and from batch systems, so control characters are made
visible before a terminal sees them.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from edgecore import serial
from edgecore.cli.tables import Column, fitted
from edgecore.clock import iso

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "exit_words", "lasted", "moment", "show_json", "show_table", "visible", "width"]

_LEAST: Final = 8


def show_json(value: object) -> None:
    """Write one JSON document to stdout."""
    click.echo(json.dumps(serial.unstructure(value), indent=2))


def visible(text: str, *, keep: str = "") -> str:
    """Return *text* with everything that a terminal would obey, except *keep*, as an escape."""
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def moment(time_us: int | None) -> str:
    """Write a stored time for people, to the second, in UTC; ``-`` for none."""
    if time_us is None:
        return "-"
    return f"{iso(time_us)[:19].replace('T', ' ')}Z"


def lasted(time_us: int) -> str:
    """Write a stretch of time for people: ``350 ms``, ``12 s``, ``3 min 20 s``, ``5 h 2 min``, ``12 d 4 h``."""
    if time_us < 1_000_000:
        return f"{max(0, time_us) // 1000} ms"
    if time_us < 10_000_000:
        return f"{time_us / 1e6:.1f} s"
    seconds = round(time_us / 1e6)
    for size, unit, smaller, small in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller} {small}"
    return f"{seconds} s"


def exit_words(code: int | None) -> str:
    """Return an exit code with the signal that it stands for: ``137 (SIGKILL)``."""
    if code is None:
        return "-"
    number = code - 256 if code > 256 else code - 128  # some batch systems add 256
    try:
        return f"{code} ({signal.Signals(number).name})" if code > 128 else str(code)
    except ValueError:
        return str(code)


def console() -> Console | None:
    """Return rich's console when stdout is a terminal and rich is installed."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False)


def width() -> int | None:
    """Return how many columns stdout has; None where it is no terminal and a line may be of any length."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def show_table(columns: Sequence[str | Column], rows: Sequence[Sequence[object]]) -> None:
    """Write rows under their columns; at a terminal as wide as it is.

    A column that is given by its title alone may be cut.
    """
    described = [Column(each, _LEAST, n) if isinstance(each, str) else each for n, each in enumerate(columns)]
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    terminal = console()
    if terminal is None:
        for line in fitted(described, cells, width()):
            click.echo("".join(cell.text for cell in line).rstrip())
        return
    from edgecore.cli.live import styled

    for line in fitted(described, cells, terminal.width):
        terminal.print(styled(line), soft_wrap=True)
