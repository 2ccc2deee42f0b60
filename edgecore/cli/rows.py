"""Describe how jobs, statuses and alarms are shown in every list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgecore.cli.output import moment, visible
from edgecore.cli.tables import Column
from edgecore.models import Intent, Job, JobState
from edgecore.reader import Alarm, HistoryEntry
from edgecore.states import SETTLED

__all__ = ["alarm_lines", "job_columns", "job_row", "state_column", "state_words", "status_line"]

_FAILED: Final = "bold red"
_STYLES: Final = {
    JobState.JOB_FINISHED: "green",
    JobState.RUNNING: "cyan",
    JobState.HELD: "yellow",
    JobState.LOST: _FAILED,
    JobState.JOB_REJECTED: _FAILED,
    JobState.JOB_CANCELLED: "magenta",
    **{state: _FAILED for state in JobState if state.endswith("_FAILED")},
}
_MOST_ALARMS: Final = 3
_ASKED: Final = {Intent.HELD: " (hold asked)", Intent.CANCELLED: " (cancel asked)"}


def state_words(job: Job) -> str:
    """Return the state, with what the user wants of the job until it is settled."""
    return job.state if job.state in SETTLED else f"{job.state}{_ASKED.get(job.intent, '')}"


def state_column() -> Column:
    """Describe the column of the state, which is never cut."""
    return Column("state", None, 0, _style)


def _style(cell: str) -> str:
    return next((style for state, style in _STYLES.items() if cell.split(" ")[0] == state), "")


def job_columns() -> tuple[Column, ...]:
    """Describe the columns of a list of jobs."""
    return (
        Column("id", None, 0),
        Column("name", 12, 2),
        Column("application", 6, 5),
        state_column(),
        Column("since", None, 4),
        Column("message", 20, 3),
    )


def job_row(job: Job, message: str) -> tuple[str, ...]:
    """Return what stands in the columns; *message* is what there is to say of it now."""
    return (
        str(job.id),
        job.name,
        job.definition.application,
        state_words(job),
        moment(job.changed),
        message,
    )


def status_line(entry: HistoryEntry, *whose: object) -> str:
    """Return one status as a line: when, what, *whose*, and the message."""
    words = "  ".join(map(str, (*whose, entry.message)))
    return visible(f"{moment(entry.time)}  {entry.state:<18}  {words}").rstrip()


def alarm_lines(alarms: Sequence[Alarm]) -> list[str]:
    """Return a line for each of the first alarms, and one for how many more there are."""
    lines = [visible(f"alarm: {alarm.subject}: {alarm.message}") for alarm in alarms[:_MOST_ALARMS]]
    more = len(alarms) - len(lines)
    return [*lines, f"and {more} alarms more"] if more else lines
