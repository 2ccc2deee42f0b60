"""Send definitions of jobs to the site's queue, after looking at them as the service will."""

from __future__ import annotations

import json
import secrets
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any

import click
from attrs import evolve, frozen

from edgecore import serial
from edgecore.admission import Admission
from edgecore.cli.common import admitted, find_site, json_option, look_again, say_who_acts, site_option
from edgecore.cli.following import Followed, wait_for_jobs
from edgecore.cli.job import details, summary
from edgecore.cli.output import show_json
from edgecore.config import SiteConfig
from edgecore.errors import DefinitionError, EdgeError, Problem
from edgecore.models import Job, JobDefinition, JobState, OutgoingMessage
from edgecore.reader import Reader
from edgecore.store_file import is_running

__all__ = ["submit"]


@frozen
class _Message:
    """A definition that is fit to be sent, with the id by which it can be followed."""

    definition: JobDefinition
    body: bytes


@click.command()
@click.argument("files", metavar="JOB.json|-...", nargs=-1, required=True)
@site_option
@click.option("--wait", is_flag=True, help="Follow the jobs until all have settled.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: not longer than this."
)
@json_option
def submit(
    files: tuple[str, ...], site: Path | None, wait: bool, timeout: float | None, as_json: bool
) -> None:
    """Send the jobs that the files define (- for stdin) to the site's queue.

    All that is wrong with any of them is said at once, and then nothing is sent. A definition without a job_id
    gets a fresh one, by which it can be followed from then on. With a job_id of your own, sending
    the same definition again never makes a second job.

    \b
    Examples:
      edgecore submit hello.json --wait
      edgecore submit hello.json --wait --timeout 600 --json | jq -r .state
      edgecore submit jobs/*.json --wait

    With --json one document: of several files, a list. Exit code: 0 when sent, 2 when a definition must be
    corrected; with --wait 0 when all are JOB_FINISHED, 1 for another end, 3 when the time is up, 130 after
    Ctrl-C. In the last two cases the jobs go on.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    if files.count("-") > 1:
        raise click.UsageError("stdin (-) can be read once")
    config = find_site(site)
    with Reader(config.store) as reader:
        messages = _prepare_all(files, config, reader)
        refused = _refused_before(reader, messages)
        for message in messages:
            _warn_of_repetition(reader, config, message.definition, refused)
        ids = _send(config, messages)
        _say(config, messages, ids, as_json=as_json, wait=wait)
        if wait:
            click.get_current_context().exit(_wait(config, reader, messages, refused, timeout, as_json))


def _wait(
    config: SiteConfig,
    reader: Reader,
    messages: Sequence[_Message],
    refused: Set[int],
    timeout: float | None,
    as_json: bool,
) -> int:
    def follow(definition: JobDefinition) -> Followed:
        assert definition.job_id is not None
        return Followed(definition.job_id, lambda: _taken(reader, config, definition, refused))

    jobs = [follow(message.definition) for message in messages]
    code = wait_for_jobs(
        reader, config, jobs, again=_again(config, messages), timeout_s=timeout, quiet=as_json
    )
    for each in jobs:
        each.job = each.find()
    _say_end(config, jobs, as_json=as_json)
    finished = all(each.job is not None and each.job.state is JobState.JOB_FINISHED for each in jobs)
    return code or int(not finished)


def _again(config: SiteConfig, messages: Sequence[_Message]) -> str:
    return look_again(config, *(message.definition.job_id for message in messages))


def _refused_before(reader: Reader, messages: Sequence[_Message]) -> Set[int]:
    """Return the rejected jobs of the same ids: what they were refused for was corrected, or is refused anew."""
    found = (job for message in messages for job in reader.find(str(message.definition.job_id)))
    return {job.id for job in found if job.state is JobState.JOB_REJECTED}


def _warn_of_repetition(
    reader: Reader, config: SiteConfig, definition: JobDefinition, refused: Set[int]
) -> None:
    known = _taken(reader, config, definition, refused)
    if known is not None:
        taken = f"job_id {known.public_id} was taken before, as job {known.id}"
        click.echo(f"{taken}; sending it again changes nothing", err=True)


def _prepare_all(files: Sequence[str], config: SiteConfig, reader: Reader) -> Sequence[_Message]:
    """Read and check all definitions. Raises DefinitionError with the problems of all of them."""
    messages, refused = [], []
    for file in files:
        try:
            messages.append(_prepare(file, config, reader))
        except DefinitionError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        problems = [
            evolve(problem, path=": ".join(filter(None, (error.source, problem.path))))
            for error in refused
            for problem in error.problems
        ]
        raise DefinitionError(f"{len(refused)} of {len(files)} definitions", problems)
    return messages


def _read(file: str, limit_bytes: int) -> tuple[bytes, str]:
    if file == "-":
        return sys.stdin.buffer.read(limit_bytes + 1), "stdin"
    try:
        with Path(file).open("rb") as opened:
            return opened.read(limit_bytes + 1), file
    except OSError as error:
        raise DefinitionError(file, [Problem("", "", f"cannot be read: {error.strerror}")]) from error


def _prepare(file: str, config: SiteConfig, reader: Reader) -> _Message:
    """Read and check a definition, and see to it that it has a job_id. Raises DefinitionError."""
    body, source = _read(file, config.limits.max_message_bytes)
    admission = Admission(config=config, applications=reader.application_names)
    read = admission.read(body, source)
    if not isinstance(read, JobDefinition):
        advice = f"is a request, not a job; use: edgecore {read.command} {read.job_id}"
        raise DefinitionError(source, [Problem("command", read.command, advice)])
    if read.job_id is not None:
        return _Message(read, body)
    document: dict[str, Any] = serial.parse_json(body, source=source, limit_bytes=len(body))
    fresh = f"{read.name[:80]}-{secrets.token_hex(8)}"
    written = json.dumps({**document, "job_id": fresh}, ensure_ascii=False, separators=(",", ":"))
    return _Message(evolve(read, job_id=fresh), written.encode())


def _send(config: SiteConfig, messages: Sequence[_Message]) -> Sequence[str]:
    """Send all, and return their message ids. Raises EdgeError, naming what no queue took."""
    from edgecore.partners import open_broker

    sent = [
        OutgoingMessage(
            exchange=config.messaging.exchange,
            key=config.queue,
            body=message.body,
            message_id=uuid.uuid4().hex,
        )
        for message in messages
    ]
    relay = open_broker(config)
    try:
        report = relay.send(messages=sent)
    finally:
        relay.close()
    if report.unroutable:
        lost = "no queue took the job" if len(sent) == 1 else f"no queue took {len(report.unroutable)} jobs"
        why = "; ".join(dict.fromkeys(report.unroutable.values()))
        rest = "nothing was submitted" if len(sent) == len(report.unroutable) else "the others were submitted"
        raise EdgeError(f"{lost}, {rest}: {why}")
    return [each.message_id for each in sent]


def _taken(reader: Reader, config: SiteConfig, definition: JobDefinition, refused: Set[int]) -> Job | None:
    """Return the job that the definition became, once the service has taken it; *refused* was before it."""
    assert definition.job_id is not None
    for owner in (config.owner, None):  # a broker that vouches for its senders decides the owner
        found = [
            job
            for job in reader.find(definition.job_id, owner=owner)
            if job.definition.job_id is not None and job.id not in refused
        ]
        if found:
            return (admitted(found) or found)[-1]
    return None


def _say(
    config: SiteConfig, messages: Sequence[_Message], ids: Sequence[str], *, as_json: bool, wait: bool
) -> None:
    where = f"sent to the queue {config.queue} of site {config.site}"
    if not as_json:
        if len(messages) == 1:
            click.echo(f"job {messages[0].definition.job_id} was {where}")
        else:
            click.echo(f"{len(messages)} jobs were {where}")
        if not wait:
            click.echo(f"follow {'it' if len(messages) == 1 else 'them'} with: {_again(config, messages)}")
    elif not wait:
        running = is_running(config.store)
        _show(
            {
                "job_id": message.definition.job_id,
                "message_id": message_id,
                "site": config.site,
                "queue": config.queue,
                "service_running": running,
            }
            for message, message_id in zip(messages, ids, strict=True)
        )
    say_who_acts(config, "the job waits in the queue" if len(messages) == 1 else "the jobs wait in the queue")


def _say_end(config: SiteConfig, jobs: Sequence[Followed], *, as_json: bool) -> None:
    if as_json:
        _show(
            {"job_id": each.label, "state": None} if each.job is None else summary(each.job) for each in jobs
        )
        return
    for each in jobs:
        if each.job is not None and (len(jobs) == 1 or each.job.state is not JobState.JOB_FINISHED):
            click.echo(details(config, each.job))
    if len(jobs) > 1:
        counts = Counter(str(each.job.state) if each.job else "not taken yet" for each in jobs)
        click.echo(", ".join(f"{number:,} {state}" for state, number in sorted(counts.items())))


def _show(documents: Iterable[dict[str, object]]) -> None:
    """Write one JSON document: of one job its object, of several a list."""
    found = list(documents)
    show_json(found[0] if len(found) == 1 else found)
