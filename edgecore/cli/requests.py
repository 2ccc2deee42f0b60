"""Ask a site's service to do something with jobs: cancel, hold, release, retry.

The request is written into the store; the service is woken, and carries it out, or does so when it is
next started.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from attrs import frozen

from edgecore.cli.common import (
    find_job,
    find_site,
    json_option,
    look_again,
    say_who_acts,
    site_option,
)
from edgecore.cli.following import Followed, wait_for_jobs
from edgecore.cli.output import show_json, visible
from edgecore.clock import Clock
from edgecore.config import SiteConfig
from edgecore.control import objection
from edgecore.desk import Desk
from edgecore.errors import EdgeError
from edgecore.models import Job, JobState
from edgecore.reader import Reader
from edgecore.store_file import is_running

__all__ = ["cancel", "hold", "release", "retry"]


@frozen
class _Asked:
    """What came of one ID that was named."""

    text: str
    job: Job | None
    objection: str | None


_ids = click.argument("ids", metavar="ID...", nargs=-1, required=True)
_wait: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--wait", is_flag=True, help="Follow each job until it has settled."
)


@click.command()
@_ids
@site_option
@_wait
@json_option
def cancel(ids: tuple[str, ...], site: Path | None, wait: bool, as_json: bool) -> None:
    """Ask the service to cancel jobs, whatever they are doing. ID is ours or the sender's.

    A job that is LOST is given up on your word that nothing of it lives.

    \b
    Example:
      edgecore cancel 1507945011064986 --wait

    Exit code: 0 when all was asked (with --wait: and all were cancelled), else 1.
    """
    _request("cancel", ids, site, JobState.JOB_CANCELLED if wait else None, as_json)


@click.command()
@_ids
@site_option
@json_option
def hold(ids: tuple[str, ...], site: Path | None, as_json: bool) -> None:
    """Ask the service to keep jobs from starting; one that runs already goes on to its end.

    \b
    Example:
      edgecore hold 1507945011064986
    """
    _request("hold", ids, site, None, as_json)


@click.command()
@_ids
@site_option
@json_option
def release(ids: tuple[str, ...], site: Path | None, as_json: bool) -> None:
    """Ask the service to let held jobs go on.

    \b
    Example:
      edgecore release 1507945011064986
    """
    _request("release", ids, site, None, as_json)


@click.command()
@_ids
@site_option
@click.option(
    "--from-start", is_flag=True, help="Begin with staging in, so that input corrected at its URL is fetched."
)
@_wait
@json_option
def retry(ids: tuple[str, ...], site: Path | None, from_start: bool, wait: bool, as_json: bool) -> None:
    """Ask the service to resume jobs at the step that failed. ID is ours or the sender's.

    What was staged in is used as it now lies in data/ of the job's directory; with --from-start, input that has
    changed at its URL is fetched over it, and configuration files are read anew.
    For a job that is LOST it is your word that nothing of it lives.

    \b
    Examples:
      edgecore retry 1507945011064986 --wait
      edgecore retry 1507945011064986 --from-start

    Exit code: 0 when all was asked (with --wait: and all finished), else 1.
    """
    _request("retry", ids, site, JobState.JOB_FINISHED if wait else None, as_json, from_start=from_start)


def _request(
    command: str,
    ids: Sequence[str],
    site: Path | None,
    wanted: JobState | None,
    as_json: bool,
    *,
    from_start: bool = False,
) -> None:
    config = find_site(site)
    with Reader(config.store) as reader:
        asked = [_ask(command, text, config, reader, from_start) for text in dict.fromkeys(ids)]
        for each in asked:
            _say(command, each, as_json)
        if any(each.objection is None for each in asked):
            say_who_acts(config, "the request waits in the store")
        code = int(any(each.objection is not None for each in asked))
        jobs = [each.job for each in asked if each.job is not None and each.objection is None]
        if wanted is not None and jobs:
            code = max(code, _wait_for(config, reader, jobs, wanted, as_json))
        if as_json:
            show_json([_as_data(command, each, config) for each in asked])
    click.get_current_context().exit(code)


def _ask(command: str, text: str, config: SiteConfig, reader: Reader, from_start: bool) -> _Asked:
    try:
        job = find_job(reader, text)
    except EdgeError as error:
        return _Asked(text, None, str(error))
    against = objection(command, job, from_start=from_start)
    if against is None:
        Desk(config.store, config.store_mode).request(
            command, job.id, asked_by=getpass.getuser(), now=Clock().now(), from_start=from_start
        )
    return _Asked(text, job, against)


def _say(command: str, asked: _Asked, as_json: bool) -> None:
    if asked.objection is not None:
        what = "" if asked.job is None else f"cannot {command} job {asked.job.id} ({asked.job.name}): "
        click.echo(f"error: {visible(f'{what}{asked.objection}', keep=chr(10))}", err=True)
    elif asked.job is not None and not as_json:
        click.echo(f"asked: {command} job {asked.job.id} ({asked.job.name}), which was {asked.job.state}")


def _wait_for(config: SiteConfig, reader: Reader, jobs: Sequence[Job], wanted: JobState, quiet: bool) -> int:
    def follow(job: Job) -> Followed:
        return Followed(job.public_id, lambda: reader.job(job.id), after=job.sequence)

    again = look_again(config, *(job.id for job in jobs))
    followed = [follow(job) for job in jobs]
    code = wait_for_jobs(reader, config, followed, again=again, quiet=quiet)
    reached = all(each.job is not None and each.job.state is wanted for each in followed)
    return int(not reached) if code is None else code


def _as_data(command: str, asked: _Asked, config: SiteConfig) -> dict[str, object]:
    return {
        "asked_for": asked.text,
        "command": command,
        "id": None if asked.job is None else asked.job.id,
        "accepted": asked.objection is None,
        "objection": asked.objection,
        "service_running": is_running(config.store),
    }
