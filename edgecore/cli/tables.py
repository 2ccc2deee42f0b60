"""Fit tables to the width of a terminal: what matters stays whole, long words are cut in the middle.

Widths are counted in columns of a terminal, where a Chinese character takes two.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Final

from attrs import frozen

__all__ = ["Cell", "Column", "cut", "fitted", "width_of"]

_GAP: Final = 2


@frozen
class Column:
    """Describe one column of a table."""

    title: str
    least: int | None = None
    """How narrow it may become; None where it is never cut."""
    rank: int = 0
    """Of columns that do not fit, the one of the highest rank goes first; 0 stays, if need be with the first cut."""
    style: Callable[[str], str] = lambda cell: ""
    """How a cell looks at a terminal that has colours."""


@frozen
class Cell:
    """What stands in one place of a table, as wide as its column."""

    text: str
    style: str


def width_of(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Return *text* in at most *width* columns; of a longer one, its beginning and its end."""
    if width_of(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    tail = _first(text[::-1], (width - 1) // 2)[::-1]
    return f"{_first(text, width - 1 - width_of(tail))}…{tail}"


def _first(text: str, width: int) -> str:
    """Return as much of the beginning as fits."""
    for number, character in enumerate(text):
        width -= _width(character)
        if width < 0:
            return text[:number]
    return text


def fitted(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None
) -> list[tuple[Cell, ...]]:
    """Return the titles and the rows as cells of equal width, in at most *width* columns; None for any number.

    Raises ValueError where a row has not as many cells as there are columns.
    """
    natural = [
        max(map(width_of, cells)) for cells in zip([each.title for each in columns], *rows, strict=True)
    ]
    widths = dict(enumerate(natural)) if width is None else _widths(columns, natural, width)
    lines = [[(each.title, "bold") for each in columns]]
    lines += [[(cell, each.style(cell)) for each, cell in zip(columns, row, strict=True)] for row in rows]
    last = max(widths)
    return [
        tuple(Cell(_filled(line[n][0], widths[n], n == last), line[n][1]) for n in sorted(widths))
        for line in lines
    ]


def _filled(text: str, width: int, last: bool) -> str:
    shown = cut(text, width)
    return shown if last else shown + " " * (width - width_of(shown) + _GAP)


def _widths(columns: Sequence[Column], natural: Sequence[int], width: int) -> dict[int, int]:
    """Return the number of each column that is shown, and how wide it is."""
    widths = {
        number: wanted if column.least is None else min(wanted, column.least)
        for number, (column, wanted) in enumerate(zip(columns, natural, strict=True))
    }
    for number in sorted(widths, key=lambda number: -columns[number].rank):
        if _total(widths) > width and columns[number].rank > 0 and len(widths) > 1:
            del widths[number]
    room = width - _total(widths)
    if room < 0:
        first = min(widths)
        widths[first] = max(1, widths[first] + room)
    while room > 0 and (narrow := [number for number in widths if widths[number] < natural[number]]):
        widths[min(narrow, key=lambda number: widths[number])] += 1
        room -= 1
    return widths


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)
