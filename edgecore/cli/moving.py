"""Say how far the transfer of a job is: in words, as JSON, and with a bar where there is a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from edgecore import serial
from edgecore.cli.output import lasted, moment, visible
from edgecore.cli.tables import cut, width_of
from edgecore.clock import Clock, iso
from edgecore.config import SiteConfig
from edgecore.models import Job
from edgecore.progress import Progress, progress_of, sized

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "PLAIN_EVERY_S",
    "message_of",
    "moving",
    "moving_line",
    "progress_fields",
    "progress_line",
    "progress_words",
]

PLAIN_EVERY_S: Final = 10.0
"""How often a transfer is told of in lines, where nothing can be drawn over."""
_BAR: Final = 24
_LEAST_BAR: Final = 8


def moving(config: SiteConfig, job: Job) -> Progress | None:
    """Return how far the transfer of a job is; None where none is under way."""
    return progress_of(config.work_directory, job, Clock().now())


def message_of(config: SiteConfig, job: Job) -> str:
    """Return what a list says of a job: how far its transfer is, else its message."""
    progress = moving(config, job)
    return job.message if progress is None else f"staging {progress.direction}: {progress_words(progress)}"


def progress_words(progress: Progress) -> str:
    """Return what people want to know: ``58 % of 1.2 GB, 3 files, 45.1 MB/s, 11 s left``."""
    words = [sized(progress.size_bytes), f"{progress.files:,} files"]
    if progress.fraction is not None and progress.total_bytes is not None:
        words[0] = f"{progress.fraction * 100:.0f} % of {sized(progress.total_bytes)}"
    if progress.fraction == 1:
        return ", ".join(
            [*words, "being checked"]
        )  # nothing moves any more, which says nothing of how long that takes
    if progress.rate is not None:
        words.append(f"{sized(progress.rate)}/s")
    if progress.remaining_s is not None:
        words.append(f"{lasted(round(progress.remaining_s * 1e6))} left")
    return ", ".join(words)


def moving_line(progress: Progress, *whose: object) -> str:
    """Return how far a transfer is as a line of its own, such as those of statuses."""
    words = "  ".join(map(str, (*whose, progress_words(progress))))
    return visible(f"{moment(progress.told)}  {'staging ' + progress.direction:<18}  {words}")


def progress_fields(config: SiteConfig, job: Job) -> dict[str, Any] | None:
    """Return the same for machines."""
    progress = moving(config, job)
    if progress is None:
        return None
    fields: dict[str, Any] = serial.unstructure(progress)
    times = {"began": iso(progress.began), "told": iso(progress.told)}
    return {**fields, **times, "fraction": progress.fraction, "remaining_s": progress.remaining_s}


def progress_line(before: str, progress: Progress, width: int) -> RenderableType:
    """Return one line of at most *width* columns with a bar in it, where it fits and the end is known."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    words = progress_words(progress)
    room = width - width_of(before) - width_of(words) - 4
    if progress.fraction is None or room < _LEAST_BAR:
        return Text(cut(f"{before}  {words}", width), no_wrap=True, overflow="crop")
    line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for _ in range(3):
        line.add_column(no_wrap=True)
    bar = ProgressBar(total=1.0, completed=progress.fraction, width=min(_BAR, room))
    line.add_row(Text(before), bar, Text(words))
    return line
