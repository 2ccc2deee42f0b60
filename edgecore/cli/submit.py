"""Send a job's definition to the site's queue, after looking at it as the service will."""

from __future__ import annotations

import json
import secrets
import sys
import uuid
from pathlib import Path
from typing import Any

import click
from attrs import evolve, frozen

from edgecore import serial
from edgecore.admission import Admission
from edgecore.cli.common import find_site, json_option, say_who_acts, site_hint, site_option
from edgecore.cli.following import wait_for_job
from edgecore.cli.output import show_json
from edgecore.config import SiteConfig
from edgecore.errors import DefinitionError, EdgeError, Problem
from edgecore.models import Job, JobDefinition, OutgoingMessage
from edgecore.reader import Reader
from edgecore.store_file import is_running

__all__ = ["submit"]


@frozen
class _Message:
    """A definition that is fit to be sent, with the id by which it can be followed."""

    definition: JobDefinition
    body: bytes


@click.command()
@click.argument("file", metavar="JOB.json|-")
@site_option
@click.option("--wait", is_flag=True, help="Follow the job until it has settled.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: not longer than this."
)
@json_option
def submit(file: str, site: Path | None, wait: bool, timeout: float | None, as_json: bool) -> None:
    """Send the job that JOB.json defines (- for stdin) to the site's queue.

    All that is wrong with it is said at once, and then nothing is sent. A definition without a job_id gets
    a fresh one, by which it can be followed from then on. With a job_id of your own, sending
    the same definition again never makes a second job.

    \b
    Examples:
      edgecore submit hello.json --wait
      edgecore submit hello.json --wait --timeout 600 --json | jq -r .state

    Exit code: 0 when sent, 2 when the definition must be corrected; with --wait 0 for JOB_FINISHED, 1 for
    another end, 3 when the time is up, 130 after Ctrl-C. In the last two cases the job goes on.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    config = find_site(site)
    with Reader(config.store) as reader:
        message = _prepare(file, config, reader)
        known = _taken(reader, config, message.definition)
        if known is not None:
            words = f"job_id {known.public_id} was taken before, as job {known.id}; sending it again changes nothing"
            click.echo(words, err=True)
        message_id = _send(config, message)
        _say(config, message.definition, message_id, as_json=as_json, wait=wait)
        if wait:
            job, code = wait_for_job(
                reader,
                lambda: _taken(reader, config, message.definition),
                timeout_s=timeout,
                quiet=as_json,
            )
            _say_end(config, message.definition, job, as_json=as_json)
            click.get_current_context().exit(code)


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


def _send(config: SiteConfig, message: _Message) -> str:
    from edgecore.service import open_broker

    message_id = uuid.uuid4().hex
    relay = open_broker(config)
    try:
        report = relay.send(
            messages=[
                OutgoingMessage(
                    exchange=config.messaging.exchange,
                    key=config.queue,
                    body=message.body,
                    message_id=message_id,
                )
            ]
        )
    finally:
        relay.close()
    if report.unroutable:
        why = "; ".join(report.unroutable.values())
        raise EdgeError(f"no queue took the job, nothing was submitted: {why}")
    return message_id


def _taken(reader: Reader, config: SiteConfig, definition: JobDefinition) -> Job | None:
    """Return the job that the definition became, once the service has taken it."""
    assert definition.job_id is not None
    # A broker that vouches for its senders decides the owner; then the newest of that id is meant.
    found = reader.find(definition.job_id, owner=config.owner) or reader.find(definition.job_id)
    named = [job for job in found if job.definition.job_id is not None]
    return named[-1] if named else None


def _say(
    config: SiteConfig, definition: JobDefinition, message_id: str, *, as_json: bool, wait: bool
) -> None:
    if not as_json:
        click.echo(f"job {definition.job_id} was sent to the queue {config.queue} of site {config.site}")
        if not wait:
            click.echo(f"follow it with: edgecore job {definition.job_id}{site_hint(config)}")
    elif not wait:
        show_json(
            {
                "job_id": definition.job_id,
                "message_id": message_id,
                "site": config.site,
                "queue": config.queue,
                "service_running": is_running(config.store),
            }
        )
    say_who_acts(config, "the job waits in the queue")


def _say_end(config: SiteConfig, definition: JobDefinition, job: Job | None, *, as_json: bool) -> None:
    from edgecore.cli.job import details, summary

    if as_json and job is None:
        show_json({"job_id": definition.job_id, "state": None})
    elif as_json and job is not None:
        show_json(summary(job))
    elif job is not None:
        click.echo(details(config, job))
