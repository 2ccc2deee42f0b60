"""Show one job: where it is, what happened to it, what it printed, and what to do next."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from edgecore import batch, serial
from edgecore.cli.advice import failure, next_step
from edgecore.cli.common import find_job, find_site, json_option, site_option
from edgecore.cli.moving import moving, progress_fields, progress_line, progress_words
from edgecore.cli.output import console, exit_words, lasted, moment, show_json, show_table, visible
from edgecore.cli.rows import state_column, state_words
from edgecore.cli.tables import Column
from edgecore.cli.waiting import waits_for
from edgecore.clock import Clock, iso
from edgecore.config import SiteConfig
from edgecore.manifest import MANIFEST
from edgecore.models import Attempt, Job, JobState
from edgecore.reader import HistoryEntry, Reader
from edgecore.states import SETTLED

__all__ = ["details", "job", "summary"]

_TAIL_BYTES: Final = 8192
_TAIL_LINES: Final = 10
_EXCERPT_LINES: Final = 40
_WHO: Final = {
    "submitter": "for who submitted it",
    "operator": "for the operator of this site",
    "nobody": "nobody's fault",
}
_S = JobState


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


def details(config: SiteConfig, job: Job) -> str:
    """Return the first lines about a job: what it is, where it is, why, what to do."""
    return _lines(_facts(config, job))


def _facts(config: SiteConfig, job: Job) -> dict[str, object]:
    definition, found = job.definition, failure(job)
    directory = batch.job_directory(config.work_directory, job.id)
    failed = f"at {job.failed_state}: " if job.failed_state else ""
    return {
        "job": f"{job.id} ({job.name})",
        "sender's id": "" if definition.job_id is None else definition.job_id,
        "owner": job.owner,
        "application": definition.application,
        "state": f"{state_words(job)} since {moment(job.changed)}",
        "why" if job.failed_state or job.state is _S.JOB_REJECTED else "message": f"{failed}{job.message}",
        "means": "" if found is None else f"{found.means} ({_WHO[found.who]})",
        "input": definition.input_url or "",
        "output": definition.output_url or "",
        "manifest": _manifest(config, job) or "",
        "directory": directory if directory.is_dir() else f"{directory} (not there)",
        "next": next_step(job),
    }


def _lines(values: Mapping[str, object]) -> str:
    """Write named values under each other; one of several lines as several."""
    lines = []
    for key, value in values.items():
        texts = value if isinstance(value, tuple | list) else (value,)
        for number, text in enumerate(map(str, texts)):
            if text:
                lines.append(f"{key if number == 0 else '':<12} {visible(text)}")
    return "\n".join(lines)


def _show(config: SiteConfig, reader: Reader, job: Job) -> None:
    now = Clock().now()
    rejection, alarm = reader.rejection(job.id), reader.alarm(f"job {job.id}")
    facts = _facts(config, job)
    then = facts.pop("next")
    if rejection is not None:
        facts = {**facts, "why": rejection.reasons, "message id": rejection.message_id or "none"}
        facts |= {"sha256": rejection.sha256, "size": f"{rejection.size_bytes:,} bytes"}
    facts["alarm"] = "" if alarm is None else f"{alarm.message} (since {moment(alarm.raised)})"
    facts["waits for"] = waits_for(config, reader, job, now)
    progress, terminal = moving(config, job), console()
    if progress is not None and terminal is None:
        facts["transfer"] = progress_words(progress)
    click.echo(_lines({**facts, "next": then}))
    if progress is not None and terminal is not None:
        terminal.print(progress_line(f"{'transfer':<12}", progress, terminal.width))
    if rejection is not None:
        _show_text("the message", rejection.excerpt.splitlines()[:_EXCERPT_LINES])
    click.echo("\nhistory")
    history = [
        (moment(e.time), "-" if spent is None else lasted(spent), e.state, e.attempt or "-", e.message)
        for e, spent in _spent(reader.history(job.id), job, now)
    ]
    columns = (Column("time", None), Column("lasted", None), state_column(), Column("attempt", None, 2))
    show_table((*columns, Column("message", 8, 1)), history)
    _show_attempts(reader.attempts(job.id))
    transfers = reader.transfers(job.id)
    if transfers:
        click.echo("\ntransfers")
        rows = [
            (t.direction, t.files, t.size_bytes, lasted(t.ended - t.started), t.verified or "-", t.url)
            for t in transfers
        ]
        show_table(("way", "files", "bytes", "lasted", "compared by", "url"), rows)
    data = batch.data_directory(config.work_directory, job.id)
    for name, text in _printed(config, job).items():
        _show_text(f"{data / name}, last lines" if text else f"{data / name} is empty", text.splitlines())


def _show_text(title: str, lines: Sequence[str]) -> None:
    click.echo(f"\n{title}")
    for line in lines:
        click.echo(f"  {visible(line, keep=chr(9))}")


def _spent(history: Sequence[HistoryEntry], job: Job, now: int) -> list[tuple[HistoryEntry, int | None]]:
    """Return with each status how long it lasted, microseconds; None for one that lasts for ever."""
    ends: list[int | None] = [entry.time for entry in history[1:]]
    ends.append(None if job.state in SETTLED else now)
    return [(e, None if end is None else max(0, end - e.time)) for e, end in zip(history, ends, strict=True)]


def _show_attempts(attempts: Sequence[Attempt]) -> None:
    if attempts:
        click.echo("\nattempts")
        columns = (Column("attempt", None), Column("batch id", 8, 1), Column("submitted", None, 5))
        rest = (Column("started", None, 6), Column("ended", None, 4), Column("exit code", None, 2))
        show_table((*columns, *rest, Column("reason", 8, 3)), [_attempt_row(attempt) for attempt in attempts])


def _attempt_row(attempt: Attempt) -> tuple[object, ...]:
    times = map(moment, (attempt.submitted, attempt.started, attempt.ended))
    code = exit_words(attempt.exit_code)
    return (attempt.number, attempt.batch_id or "-", *times, code, attempt.reason)


def _everything(config: SiteConfig, reader: Reader, job: Job) -> dict[str, object]:
    now, found = Clock().now(), failure(job)
    rejection, alarm = reader.rejection(job.id), reader.alarm(f"job {job.id}")
    data = batch.data_directory(config.work_directory, job.id)
    printed = _printed(config, job)
    return {
        **summary(job),
        "definition": serial.unstructure(job.definition),
        "plan": serial.unstructure(job.plan),
        "failures": job.failures,
        "next_try": iso(job.due) if job.due > now and job.state not in SETTLED else None,
        "directory": str(batch.job_directory(config.work_directory, job.id)),
        "data_directory": str(data),
        "manifest": _manifest(config, job),
        "history": [
            {**_with_times(entry), "lasted_s": None if spent is None else spent / 1e6}
            for entry, spent in _spent(reader.history(job.id), job, now)
        ],
        "attempts": [
            {**_with_times(attempt), "exit_words": exit_words(attempt.exit_code)}
            for attempt in reader.attempts(job.id)
        ],
        "transfers": [_with_times(transfer) for transfer in reader.transfers(job.id)],
        "printed": printed,
        "printed_files": {name: str(data / name) for name in printed},
        "failure": None
        if found is None
        else {"kind": found.kind, "step": found.step, "who": found.who, "means": found.means},
        "progress": progress_fields(config, job),
        "waits_for": waits_for(config, reader, job, now),
        "alarm": None if alarm is None else {"message": alarm.message, "raised": iso(alarm.raised)},
        "rejection": serial.unstructure(rejection),
        "next": next_step(job),
    }


def _with_times(record: object) -> dict[str, Any]:
    """Return a record as plain data, its times as ISO 8601."""
    times = ("time", "intended", "submitted", "started", "ended", "missed", "waiting", "stuck")
    data: dict[str, Any] = serial.unstructure(record)
    return {key: iso(value) if key in times and value is not None else value for key, value in data.items()}


def _manifest(config: SiteConfig, job: Job) -> str | None:
    """Return where the list of what was staged out lies; None where there is none."""
    if job.attempt is None or job.definition.output_url is None:
        return None
    path = batch.run_directory(config.work_directory, job.id, job.attempt.number).path / MANIFEST
    return str(path) if path.is_file() else None


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
