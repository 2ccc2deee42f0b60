"""Follow a job in the store until it settles, telling every status on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import click

from edgecore.cli.output import console, moment, visible
from edgecore.models import Job, JobState
from edgecore.reader import HistoryEntry, Reader
from edgecore.states import SETTLED

__all__ = ["EXIT_INTERRUPTED", "EXIT_TIMEOUT", "follow", "wait_for_job"]

EXIT_TIMEOUT: Final = 3
EXIT_INTERRUPTED: Final = 130
_LOOK_S: Final = 0.2
"""A service that commits wakes nobody, so that waiting costs it nothing; a look is one indexed row."""


class _Teller(Protocol):
    """Hear how a job goes on."""

    def status(self, entry: HistoryEntry) -> None:
        """Hear of one status."""

    def present(self, job: Job | None) -> None:
        """Hear what the job does now; None while the service has not taken it."""


def follow(
    reader: Reader, find: Callable[[], Job | None], teller: _Teller, *, after: int, timeout_s: float | None
) -> Job | None:
    """Tell every status above sequence *after* until the job is settled; None when the time is up."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    told = after
    while True:
        job = find()
        teller.present(job)
        if job is not None and job.sequence > told:
            for entry in reader.history(job.id):
                if told < entry.sequence <= job.sequence:
                    teller.status(entry)
            told = job.sequence
        if job is not None and job.state in SETTLED and job.sequence > after:
            return job
        if deadline is not None and time.monotonic() >= deadline:
            return None
        time.sleep(_LOOK_S)


def wait_for_job(
    reader: Reader,
    find: Callable[[], Job | None],
    *,
    wanted: JobState = JobState.JOB_FINISHED,
    after: int = 0,
    timeout_s: float | None,
    quiet: bool = False,
) -> tuple[Job | None, int]:
    """Follow a job for a person; returns it as it settled, and the exit code of the command."""
    try:
        with _telling(quiet) as teller:
            job = follow(reader, find, teller, after=after, timeout_s=timeout_s)
    except KeyboardInterrupt:
        click.echo("no longer waiting; the job goes on", err=True)
        return find(), EXIT_INTERRUPTED
    if job is None:
        click.echo(f"not settled after {timeout_s:g} s; the job goes on", err=True)
        return find(), EXIT_TIMEOUT
    return job, 0 if job.state is wanted else 1


class _Quiet:
    """Tell nothing: the result is for a machine."""

    def status(self, entry: HistoryEntry) -> None:
        """Say nothing."""

    def present(self, job: Job | None) -> None:
        """Say nothing."""


class _Plain(_Quiet):
    """Tell one line per status."""

    def status(self, entry: HistoryEntry) -> None:
        """Write the status."""
        click.echo(_line(entry))


class _Live:
    """Tell one line per status at a terminal, and below them what goes on now."""

    def __init__(self, write: Callable[[str], None], show: Callable[[str], None]) -> None:
        self._write = write
        self._show = show

    def status(self, entry: HistoryEntry) -> None:
        """Write the status above the last line."""
        self._write(_line(entry))

    def present(self, job: Job | None) -> None:
        """Replace the last line."""
        doing = "waiting for the service to take it" if job is None else f"{job.state} {job.message}"
        self._show(visible(doing))


@contextmanager
def _telling(quiet: bool) -> Iterator[_Teller]:
    terminal = None if quiet else console()
    if terminal is None:
        yield _Quiet() if quiet else _Plain()
        return
    from rich.text import Text

    with terminal.status("waiting") as live:
        yield _Live(
            lambda line: terminal.print(Text(line), soft_wrap=True), lambda words: live.update(Text(words))
        )


def _line(entry: HistoryEntry) -> str:
    return f"{moment(entry.time)}  {entry.state:<18}  {visible(entry.message)}".rstrip()
