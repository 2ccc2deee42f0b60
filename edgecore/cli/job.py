"""Show one job: where it is, what happened to it, what it printed, and what to do next."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from edgecore import batch, serial
from edgecore.cli.common import find_job, find_site, json_option, site_option
from edgecore.cli.output import moment, show_json, show_table, visible
from edgecore.cli.rows import state_words
from edgecore.clock import iso
from edgecore.config import SiteConfig
from edgecore.models import Attempt, Intent, Job, JobState
from edgecore.reader import Reader
from edgecore.states import AT_BATCH_SYSTEM, SETTLED

__all__ = ["NEXT", "details", "job", "summary"]

_TAIL_BYTES: Final = 8192
_TAIL_LINES: Final = 10
_S = JobState
_ENDS: Final = "Nothing: the service ends it as JOB_FAILED, and says why."

NEXT: Final[Mapping[JobState, str]] = {
    _S.CREATED: "Nothing: its input is to be staged in.",
    _S.STAGED_IN: "Nothing: it is to be prepared for its submission.",
    _S.STAGE_IN_FAILED: _ENDS,
    _S.PREPROCESSED: "Nothing: it waits for its turn to be submitted.",
    _S.PREPROCESS_FAILED: _ENDS,
    _S.SUBMITTING: "Nothing: it is being submitted; if the answer got lost, it is looked for by its tag.",
    _S.SUBMITTED: "Nothing: the batch system has it. To take it back: edgecore cancel {id}",
    _S.SUBMIT_FAILED: _ENDS,
    _S.SUBMIT_DISABLED: "A dry run ends here. To submit it when that is over: edgecore retry {id}",
    _S.QUEUED: "Nothing: the batch system starts it when there is room. To take it back: edgecore cancel {id}",
    _S.HELD: "Look at the reason: the batch system holds it. If you held it: edgecore release {id}",
    _S.RUNNING: "Nothing: it runs. To end it: edgecore cancel {id}",
    _S.LOST: "Look whether it lives, by its batch id. If you know that it does not: edgecore retry {id} "
    "runs it again, edgecore cancel {id} gives it up",
    _S.EXECUTION_FINISHED: "Nothing: its output is to be looked at.",
    _S.EXECUTION_FAILED: "Nothing: it is tried again, or what there is is staged out and the job ends.",
    _S.POSTPROCESSED: "Nothing: its output is to be staged out.",
    _S.POSTPROCESS_FAILED: _ENDS,
    _S.STAGED_OUT: "Nothing: it is about to finish.",
    _S.STAGE_OUT_FAILED: _ENDS,
    _S.JOB_FINISHED: "Nothing: it is done.",
    _S.JOB_FAILED: "Correct the cause (what was staged in lies in data/ of its directory); then edgecore retry {id} "
    "resumes it at the step that failed. If the input was corrected at its URL: edgecore retry {id} --from-start",
    _S.JOB_CANCELLED: "Nothing: it is over. Submit it again if it is wanted after all.",
    _S.JOB_REJECTED: "Correct the definition and submit it again.",
}
"""State -> what a person does about it."""

_STUCK: Final = (
    "The batch system says that it will never start it as it is, for the reason above. Correct the cause there, or take "
    "it back: edgecore cancel {id}. Otherwise it fails after the time that [timing] stuck_after_s of the site says."
)


def summary(job: Job) -> dict[str, object]:
    """Return what machines are told of a job in a list."""
    attempt = job.attempt
    return {
        "id": job.id,
        "job_id": job.public_id,
        "name": job.name,
        "owner": job.owner,
        "application": job.definition.application,
        "state": job.state,
        "intent": job.intent,
        "sequence": job.sequence,
        "since": iso(job.changed),
        "message": job.message,
        "failed_state": job.failed_state,
        "attempt": attempt.number if attempt else 0,
        "batch_id": attempt.batch_id if attempt else None,
        "exit_code": attempt.exit_code if attempt else None,
    }


@click.command()
@click.argument("job_id", metavar="ID")
@site_option
@json_option
def job(job_id: str, site: Path | None, as_json: bool) -> None:
    """Show all that is known about the job ID (ours or the sender's), and what to do next.

    \b
    Example:
      edgecore job 1507945011064986
    """
    config = find_site(site)
    with Reader(config.store) as reader:
        found = find_job(reader, job_id)
        if as_json:
            show_json(_everything(config, reader, found))
        else:
            _show(config, reader, found)


def next_step(job: Job) -> str:
    """Return what a person does about the job now."""
    if job.state not in SETTLED and job.intent is Intent.HELD:
        return f"It is kept from starting, as asked. To let it go on: edgecore release {job.id}"
    if job.state not in SETTLED and job.intent is Intent.CANCELLED:
        return "Nothing: it is being cancelled."
    if job.state in AT_BATCH_SYSTEM and job.attempt is not None and job.attempt.stuck is not None:
        return _STUCK.format(id=job.id)
    waits = f" The next try is at {moment(job.due)}." if job.due and job.state not in SETTLED else ""
    return NEXT[job.state].format(id=job.id) + waits


def details(config: SiteConfig, job: Job) -> str:
    """Return the first lines about a job: what it is, where it is, why, what to do."""
    definition = job.definition
    directory = batch.job_directory(config.work_directory, job.id)
    failed = f"at {job.failed_state}: " if job.failed_state else ""
    values: Mapping[str, object] = {
        "job": f"{job.id} ({job.name})",
        "sender's id": "" if definition.job_id is None else definition.job_id,
        "owner": job.owner,
        "application": definition.application,
        "state": f"{state_words(job)} since {moment(job.changed)}",
        "why" if job.failed_state or job.state is _S.JOB_REJECTED else "message": f"{failed}{job.message}",
        "input": definition.input_url or "",
        "output": definition.output_url or "",
        "directory": directory if directory.is_dir() else f"{directory} (not there)",
        "next": next_step(job),
    }
    lines = [f"{key:<12} {visible(str(value))}" for key, value in values.items() if str(value)]
    return "\n".join(lines)


def _show(config: SiteConfig, reader: Reader, job: Job) -> None:
    click.echo(details(config, job))
    click.echo("\nhistory")
    history = [(moment(e.time), e.state, e.attempt, e.message) for e in reader.history(job.id)]
    show_table(("time", "state", "attempt", "message"), history)
    attempts = reader.attempts(job.id)
    if attempts:
        click.echo("\nattempts")
        show_table(
            ("attempt", "batch id", "submitted", "started", "ended", "exit code", "reason"),
            [_attempt_row(attempt) for attempt in attempts],
        )
    transfers = reader.transfers(job.id)
    if transfers:
        click.echo("\ntransfers")
        rows = [(t.direction, t.files, t.size_bytes, t.verified or "-", t.url) for t in transfers]
        show_table(("way", "files", "bytes", "compared by", "url"), rows)
    for name, text in _printed(config, job).items():
        click.echo(f"\n{name}, last lines" if text else f"\n{name} is empty")
        for line in text.splitlines():
            click.echo(f"  {line}")


def _attempt_row(attempt: Attempt) -> tuple[object, ...]:
    code = "-" if attempt.exit_code is None else attempt.exit_code
    times = map(moment, (attempt.submitted, attempt.started, attempt.ended))
    return (attempt.number, attempt.batch_id or "-", *times, code, attempt.reason)


def _everything(config: SiteConfig, reader: Reader, job: Job) -> dict[str, object]:
    return {
        **summary(job),
        "definition": serial.unstructure(job.definition),
        "plan": serial.unstructure(job.plan),
        "directory": str(batch.job_directory(config.work_directory, job.id)),
        "history": [_with_times(entry) for entry in reader.history(job.id)],
        "attempts": [_with_times(attempt) for attempt in reader.attempts(job.id)],
        "transfers": [_with_times(transfer) for transfer in reader.transfers(job.id)],
        "printed": _printed(config, job),
        "next": next_step(job),
    }


def _with_times(record: object) -> dict[str, Any]:
    """Return a record as plain data, its times as ISO 8601."""
    times = ("time", "intended", "submitted", "started", "ended", "missed", "waiting", "stuck")
    data: dict[str, Any] = serial.unstructure(record)
    return {key: iso(value) if key in times and value is not None else value for key, value in data.items()}


def _printed(config: SiteConfig, job: Job) -> dict[str, str]:
    """Return the last lines that the latest attempt has written, by file name."""
    if job.attempt is None:
        return {}
    data = batch.data_directory(config.work_directory, job.id)
    names = (f"stdout.{job.attempt.number}.txt", f"stderr.{job.attempt.number}.txt")
    found = {name: _tail(data / name) for name in names}
    return {name: text for name, text in found.items() if text is not None}


def _tail(path: Path) -> str | None:
    """Return the last lines of a regular file; None where there is none: the directory is a stranger's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return None
        written = os.pread(descriptor, _TAIL_BYTES, max(0, found.st_size - _TAIL_BYTES))
    finally:
        os.close(descriptor)
    text = written.decode("utf-8", "replace")
    return "\n".join(visible(line, keep="\t") for line in text.splitlines()[-_TAIL_LINES:])
