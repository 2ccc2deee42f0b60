"""Follow jobs in the store until they settle, telling every status on the way.

Nobody is woken by a service that commits: a look whether anything was committed at all costs a few
microseconds, and only what has changed is read. So waiting costs the service nothing and learns at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

import click
from attrs import define, field

from edgecore.cli.common import say_service_changed
from edgecore.cli.moving import PLAIN_EVERY_S, message_of, moving, moving_line, progress_line
from edgecore.cli.output import console, lasted, visible
from edgecore.cli.rows import state_column, status_line
from edgecore.cli.tables import Column, cut
from edgecore.clock import Clock
from edgecore.config import SiteConfig
from edgecore.models import Job
from edgecore.progress import MOVING
from edgecore.reader import HistoryEntry, Reader
from edgecore.states import SETTLED
from edgecore.store_file import is_running

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["EXIT_INTERRUPTED", "EXIT_TIMEOUT", "Followed", "Looks", "follow", "wait_for_jobs"]

EXIT_TIMEOUT: Final = 3
EXIT_INTERRUPTED: Final = 130
_LOOK_S: Final = 0.05
_LOOK_ROLLBACK_S: Final = 0.5
"""Without a WAL a look takes a lock of the file, which may be on a file server."""
_SERVICE_S: Final = 1.0
_SHARE: Final = 4
"""We rest so many times longer than a look took, so that thousands of jobs cost a part of a processor."""
_ROWS: Final = 10


@define(eq=False)
class Followed:
    """One job that somebody waits for."""

    label: str | int
    """What the person calls it."""
    find: Callable[[], Job | None]
    """Looks for the job; None while the service has not taken it."""
    after: int = 0
    """It has settled only with a status above this sequence number."""
    job: Job | None = None
    """As it was last seen."""
    told: int = 0
    mark: tuple[object, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.job is not None and self.job.state in SETTLED and self.job.sequence > self.after


class _Teller(Protocol):
    """Hear how jobs go on."""

    def status(self, followed: Followed, entry: HistoryEntry) -> None:
        """Hear of one status."""

    def present(self, all_of_them: Sequence[Followed]) -> None:
        """Hear that something may look differently now."""

    def service(self, runs: bool) -> None:
        """Hear that the service has gone, or is back."""


@define(eq=False)
class Looks:
    """Say when it is time to look at a store: at once when something was committed."""

    reader: Reader
    config: SiteConfig
    service_runs: bool = True
    _seen: int | None = None
    _began: float = 0.0
    _service_looked_at: float = float("-inf")

    def pause(self) -> None:
        """Rest until the next look."""
        rest = _LOOK_S if self.config.store_mode == "wal" else _LOOK_ROLLBACK_S
        time.sleep(max(rest, _SHARE * (time.monotonic() - self._began) if self._began else 0.0))

    def news(self) -> bool:
        """Tell whether anything was committed since the last time."""
        changes = self.reader.changes()
        found = changes != self._seen
        self._seen = changes
        self._began = time.monotonic() if found else 0.0
        return found

    def service_changed(self) -> bool:
        """Tell whether the service has come or gone, looking now and then."""
        now = time.monotonic()
        if now - self._service_looked_at < _SERVICE_S:
            return False
        first = self._service_looked_at == float("-inf")
        self._service_looked_at = now
        before, self.service_runs = self.service_runs, is_running(self.config.store)
        return not first and before is not self.service_runs


def follow(looks: Looks, jobs: Sequence[Followed], teller: _Teller, *, timeout_s: float | None) -> bool:
    """Tell every status of *jobs* until all have settled; False when the time is up before."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        if looks.service_changed():
            teller.service(looks.service_runs)
        if looks.news():
            _look(looks.reader, [each for each in jobs if not each.settled], teller)
        teller.present(jobs)
        if all(each.settled for each in jobs):
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False
        looks.pause()


def _look(reader: Reader, waited_for: Sequence[Followed], teller: _Teller) -> None:
    """Read the jobs that look differently than before, and tell what became of them."""
    for each in waited_for:
        if each.job is None:
            each.job = each.find()
    marks = reader.marks([each.job.id for each in waited_for if each.job is not None])
    for each in waited_for:
        if each.job is None or marks.get(each.job.id) == each.mark:
            continue
        each.mark = marks.get(each.job.id, ())
        each.job = job = each.find() or each.job
        begin = max(each.told, each.after)
        if job.sequence > begin:
            for entry in reader.history(job.id):
                if begin < entry.sequence <= job.sequence:
                    teller.status(each, entry)
            each.told = job.sequence


def wait_for_jobs(
    reader: Reader,
    config: SiteConfig,
    jobs: Sequence[Followed],
    *,
    again: str,
    timeout_s: float | None = None,
    quiet: bool = False,
) -> int | None:
    """Follow jobs for a person; answers None when all have settled, else the exit code of the command.

    *again* is the command by which a person looks again.
    """
    looks = Looks(reader, config)
    goes_on = "the job goes on" if len(jobs) == 1 else "the jobs go on"
    try:
        with _telling(config, quiet, several=len(jobs) > 1) as teller:
            if follow(looks, jobs, teller, timeout_s=timeout_s):
                return None
    except KeyboardInterrupt:
        click.echo(f"no longer waiting; {goes_on}; to look again: {again}", err=True)
        return EXIT_INTERRUPTED
    click.echo(f"not settled after {timeout_s:g} s; {goes_on}; to look again: {again}", err=True)
    return EXIT_TIMEOUT


# ---------------------------------------------------------------------------------- telling


class _Quiet:
    """Tell nothing: the result is for a machine."""

    def status(self, followed: Followed, entry: HistoryEntry) -> None:
        """Say nothing."""

    def present(self, all_of_them: Sequence[Followed]) -> None:
        """Say nothing."""

    def service(self, runs: bool) -> None:
        """Say nothing."""


@define(eq=False)
class _Plain(_Quiet):
    """Tell one line per status."""

    config: SiteConfig
    several: bool
    _told_progress: float = field(factory=time.monotonic, init=False, kw_only=True)

    def present(self, all_of_them: Sequence[Followed]) -> None:
        """Write now and then how far transfers are."""
        if time.monotonic() - self._told_progress < PLAIN_EVERY_S:
            return
        self._told_progress = time.monotonic()
        jobs = ((each.label, each.job) for each in all_of_them if each.job is not None and not each.settled)
        for label, job in islice(((n, j) for n, j in jobs if j.state in MOVING), _ROWS):
            progress = moving(self.config, job)
            if progress is not None:
                click.echo(moving_line(progress, *([label] if self.several else [])))

    def status(self, followed: Followed, entry: HistoryEntry) -> None:
        """Write the status."""
        click.echo(self._line(followed, entry))

    def service(self, runs: bool) -> None:
        """Say that waiting may take longer, or that it goes on."""
        say_service_changed(self.config, runs)

    def _line(self, followed: Followed, entry: HistoryEntry) -> str:
        return status_line(entry, followed.label) if self.several else status_line(entry)


@define(eq=False)
class _Live(_Plain):
    """Tell at a terminal one line per status or, of several jobs, per end, and below what goes on now."""

    terminal: Console
    draw: Callable[[Callable[[], RenderableType]], None]
    _shown: object = None

    def status(self, followed: Followed, entry: HistoryEntry) -> None:
        """Write the status above what goes on now."""
        from rich.text import Text

        if not self.several or entry.state in SETTLED:
            self.terminal.print(Text(self._line(followed, entry)), soft_wrap=True)

    def present(self, all_of_them: Sequence[Followed]) -> None:
        """Draw what goes on now, where it looks differently than before."""
        now = Clock().now() // 1_000_000
        state = (now, self.terminal.size, [each.mark for each in all_of_them if not each.settled])
        if state != self._shown:
            self._shown = state
            self.draw(lambda: _picture(self.config, all_of_them, self.terminal))


def _picture(config: SiteConfig, jobs: Sequence[Followed], terminal: Console) -> RenderableType:
    """Draw a few of the jobs that have not settled, and how many there are of each kind."""
    from rich.text import Text

    from edgecore.cli.live import counted, table

    width, now = terminal.width, Clock().now()
    waiting = [each for each in jobs if not each.settled]
    if len(jobs) == 1:
        job = jobs[0].job
        if job is None:
            return Text(cut("waiting for the service to take it", width))
        words = f"{job.state} for {lasted(now - job.changed)}"
        progress = moving(config, job)
        if progress is not None:
            return progress_line(words, progress, width)
        return Text(cut(f"{words}  {visible(job.message)}", width))
    lines = [counted(Counter(each.job.state for each in jobs if each.job is not None), width)]
    room = max(0, min(_ROWS, terminal.height - 4))
    shown = [each for each in waiting if each.job is not None][:room]
    if shown:
        columns = (state_column(), Column("job", 8, 1), Column("for", None, 3), Column("message", 8, 2))
        rows = [
            (each.job.state, str(each.label), lasted(now - each.job.changed), message_of(config, each.job))
            for each in shown
            if each.job is not None
        ]
        lines += table(columns, rows, width)
    untaken = sum(each.job is None for each in jobs)
    if untaken:
        lines.append(Text(cut(f"{untaken:,} more wait for the service to take them", width)))
    return Text("\n").join(lines)


@contextmanager
def _telling(config: SiteConfig, quiet: bool, *, several: bool) -> Iterator[_Teller]:
    terminal = None if quiet else console()
    if terminal is None:
        yield _Quiet() if quiet else _Plain(config, several)
        return
    from edgecore.cli.live import live

    with live(terminal) as draw:
        yield _Live(config, several, terminal, draw)
