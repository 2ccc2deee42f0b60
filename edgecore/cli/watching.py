"""Show the jobs of a site as they change: a table at a terminal, else a line for every change of state."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import click
from attrs import define, field

from edgecore.cli.common import look_again, say_service_changed, say_who_acts
from edgecore.cli.following import EXIT_INTERRUPTED, Looks
from edgecore.cli.jobs import Choice
from edgecore.cli.moving import PLAIN_EVERY_S, message_of, moving, moving_line
from edgecore.cli.output import console
from edgecore.cli.rows import alarm_lines, job_columns, job_row, status_line
from edgecore.cli.tables import cut
from edgecore.clock import iso
from edgecore.config import SiteConfig
from edgecore.models import Job
from edgecore.progress import MOVING, Progress
from edgecore.reader import HistoryEntry, Reader
from edgecore.states import SETTLED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["Changes", "watch_jobs"]

_MOST_TRANSFERS: Final = 64
_MOVING_S: Final = 1.0
"""How often what moves is drawn anew."""


def watch_jobs(config: SiteConfig, reader: Reader, choice: Choice, *, as_json: bool) -> int:
    """Show changes until somebody interrupts it; answers the exit code."""
    say_who_acts(config, "nothing changes")
    terminal = None if as_json else console()
    looks = Looks(reader, config)
    try:
        if terminal is None:
            _write_lines(looks, choice, as_json)
        else:
            _draw(looks, choice, terminal)
    except KeyboardInterrupt:
        click.echo(f"no longer watching; the jobs go on; to look again: {look_again(config)}", err=True)
    return EXIT_INTERRUPTED


# ------------------------------------------------------------------------------------ lines


@define(eq=False)
class Changes:
    """Find what jobs went through since the last look, whatever any clock says."""

    reader: Reader
    _newest: int = field(init=False)
    _known: Mapping[int, int] = field(init=False)
    """Job that is not settled -> the sequence of the last status that was seen."""

    def __attrs_post_init__(self) -> None:
        self._newest = self.reader.newest()
        self._known = self.reader.moving(self._newest)

    def look(self) -> Iterator[tuple[Job, HistoryEntry]]:
        """Yield every status that is new."""
        moving = self.reader.moving(self._newest)
        before, self._known = self._known, {}
        for job_id in sorted({*before, *moving}):
            seen = before.get(job_id)
            if seen is not None and moving.get(job_id) == seen:
                self._known[job_id] = seen
                continue
            job = self.reader.job(job_id)
            if job is None:
                continue
            if job.state not in SETTLED:
                self._known[job_id] = job.sequence
            history = [entry for entry in self.reader.history(job_id) if entry.sequence <= job.sequence]
            if seen is None and job_id <= self._newest:  # it was settled, and goes on again
                settled = [entry.sequence for entry in history[:-1] if entry.state in SETTLED]
                seen = settled[-1] if settled else 0
            yield from ((job, entry) for entry in history if entry.sequence > (seen or 0))
        self._newest = max([self._newest, *moving])


def _write_lines(looks: Looks, choice: Choice, as_json: bool) -> None:
    changes, told = Changes(looks.reader), time.monotonic()
    looks.news()
    while True:
        if looks.service_changed():
            say_service_changed(looks.config, looks.service_runs)
        if looks.news():
            for job, entry in changes.look():
                if choice.fits(job) and (not choice.states or entry.state in choice.states):
                    click.echo(_as_json(job, entry) if as_json else status_line(entry, job.id, job.name))
        if not as_json and time.monotonic() - told >= PLAIN_EVERY_S:
            told = time.monotonic()
            for job, progress in _transfers(looks, choice):
                click.echo(moving_line(progress, job.id, job.name))
        looks.pause()


def _transfers(looks: Looks, choice: Choice) -> Iterator[tuple[Job, Progress]]:
    """Yield the latest jobs whose transfers are under way, and how far these are."""
    for job in looks.reader.latest(_MOST_TRANSFERS, states=MOVING):
        progress = moving(looks.config, job) if choice.fits(job) else None
        if progress is not None:
            yield job, progress


def _as_json(job: Job, entry: HistoryEntry) -> str:
    fields = {
        "id": job.id,
        "job_id": job.public_id,
        "name": job.name,
        "owner": job.owner,
        "application": job.definition.application,
        "state": entry.state,
        "sequence": entry.sequence,
        "time": iso(entry.time),
        "attempt": entry.attempt,
        "message": entry.message,
    }
    return json.dumps(fields)


# ---------------------------------------------------------------------------------- a table


def _draw(looks: Looks, choice: Choice, terminal: Console) -> None:
    from edgecore.cli.live import live

    size: object = None
    drawn = 0.0
    with live(terminal, whole_screen=True) as draw:
        while True:
            changed = looks.service_changed() or terminal.size != size
            if time.monotonic() - drawn >= _MOVING_S:
                drawn = time.monotonic()
                changed |= any(_transfers(looks, choice))
            if looks.news() or changed:
                size = terminal.size
                draw(lambda: _picture(looks, choice, terminal))
            looks.pause()


def _picture(looks: Looks, choice: Choice, terminal: Console) -> Text:
    """Draw as much as the terminal has room for: who works, alarms, counts, and the latest jobs."""
    from rich.text import Text

    from edgecore.cli.live import counted, table

    reader, width = looks.reader, terminal.width
    runs = "" if looks.service_runs else " - ITS SERVICE IS NOT RUNNING"
    lines = [Text(cut(f"site {looks.config.site}{runs} - Ctrl-C ends", width), style="bold")]
    lines += [Text(cut(line, width), style="bold red") for line in alarm_lines(reader.alarms())]
    lines.append(counted(reader.counts(), width))
    room = terminal.height - len(lines) - 1
    if room > 0:
        found = choice.latest(reader, limit=room)
        lines += table(job_columns(), [job_row(job, message_of(looks.config, job)) for job in found], width)
    return Text("\n", no_wrap=True).join(lines[: terminal.height])
