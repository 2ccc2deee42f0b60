"""Show results: aligned columns when piped, tables with rich at a terminal that has it, JSON for machines.

Names and messages come from strangers and from batch systems, so control characters are made
visible before a terminal sees them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from edgecore import serial

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "moment", "show_json", "show_table", "visible"]


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
    from edgecore.clock import iso

    return f"{iso(time_us)[:19].replace('T', ' ')}Z"


def console() -> Console | None:
    """Return rich's console when stdout is a terminal and rich is installed."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write rows under their columns; the last column may be long and is cut at a terminal."""
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    terminal = console()
    if terminal is None:
        _plain(columns, cells)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1], no_wrap=True, overflow="ellipsis")
    for row in cells:
        table.add_row(*map(Text, row))
    terminal.print(table)


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in (columns, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip()[:limit])
