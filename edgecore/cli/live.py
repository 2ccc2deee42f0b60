"""Draw at a terminal what goes on now, with rich: a line or a few rows that are replaced as jobs go on.

Everything is drawn for the size that the terminal has at that moment, and is never longer than it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

from edgecore.cli.output import visible
from edgecore.cli.tables import Cell, Column, cut, fitted
from edgecore.models import JobState
from edgecore.states import SETTLED

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["counted", "live", "styled", "table"]


def styled(line: Iterable[Cell]) -> Text:
    """Return a line of a table as rich prints it."""
    return Text.assemble(*((cell.text, cell.style) for cell in line), no_wrap=True, overflow="crop")


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[Text]:
    """Return a table as lines of at most *width* columns."""
    cells = [[visible(cell) for cell in row] for row in rows]
    return [styled(line) for line in fitted(columns, cells, width)]


def counted(counts: Mapping[JobState, int], width: int) -> Text:
    """Return in one line how many jobs there are in each state, what is under way first."""
    order = sorted((state for state in JobState if counts.get(state)), key=lambda state: state in SETTLED)
    words = ", ".join(f"{counts[state]:,} {state}" for state in order) or "no jobs"
    return Text(cut(words, width), no_wrap=True, overflow="crop")


@contextmanager
def live(
    terminal: Console, *, whole_screen: bool = False
) -> Iterator[Callable[[Callable[[], RenderableType]], None]]:
    """Yield what draws: it is given a function that makes the picture, for the terminal as it is then."""
    with Live(
        console=terminal, auto_refresh=False, transient=True, screen=whole_screen, vertical_overflow="crop"
    ) as shown:
        yield lambda make: shown.update(make(), refresh=True)
