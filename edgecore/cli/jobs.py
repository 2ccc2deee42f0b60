"""List the jobs of a site, once or as they change."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Final

import click
from attrs import frozen

from edgecore.cli.common import find_site, json_option, say_if_still, site_option
from edgecore.cli.job import summary
from edgecore.cli.moving import message_of, progress_fields
from edgecore.cli.output import show_json, show_table
from edgecore.cli.rows import alarm_lines, job_columns, job_row
from edgecore.clock import Clock, microseconds
from edgecore.config import SiteConfig
from edgecore.models import Job, JobState
from edgecore.reader import Reader
from edgecore.serial import nearest, shorten

__all__ = ["Choice", "jobs"]

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@frozen(kw_only=True)
class Choice:
    """Say which jobs somebody wants to see."""

    states: tuple[JobState, ...] = ()
    owner: str | None = None
    application: str | None = None
    since: int = 0
    limit: int

    @property
    def all_jobs(self) -> bool:
        """Whether no job is left out but for its age."""
        return not (self.states or self.owner or self.application or self.since)

    def latest(self, reader: Reader, limit: int | None = None) -> tuple[Job, ...]:
        """Return the latest of the jobs."""
        return reader.latest(
            min(self.limit, limit if limit is not None else self.limit),
            states=self.states,
            owner=self.owner,
            application=self.application,
            since=self.since,
        )

    def fits(self, job: Job) -> bool:
        """Tell whether *job* is one of them, whatever its state."""
        return (
            (self.owner is None or job.owner == self.owner)
            and (self.application is None or job.definition.application == self.application)
            and job.id >= self.since
        )


def _states(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[JobState, ...]:
    """Read states, in small letters too, or name the one that was meant."""
    found = []
    for word in words:
        try:
            found.append(JobState(word.upper().replace("-", "_")))
        except ValueError:
            near = nearest(word.upper(), JobState)
            known = ", ".join(JobState)
            raise click.BadParameter(f"there is no state {shorten(word)}{near}; there are {known}") from None
    return tuple(found)


def _since(ctx: click.Context, param: click.Parameter, word: str | None) -> int:
    """Read a time, or how long ago it is, as microseconds UTC; 0 for none."""
    if word is None:
        return 0
    try:
        if ago := re.fullmatch(r"(\d{1,9})([smhdw])", word):
            return max(0, Clock().now() - int(ago[1]) * _UNITS_S[ago[2]] * 1_000_000)
        return max(0, microseconds(datetime.fromisoformat(word)))
    except (ValueError, OverflowError):
        allowed = "say 90m, 12h, 3d or 2w, or a date and time in UTC: 2026-11-22T14:00"
        raise click.BadParameter(f"{shorten(word)} is no time; {allowed}") from None


@click.command()
@site_option
@click.option(
    "--state", "states", multiple=True, callback=_states, metavar="STATE",
    help="Only jobs in this state; may be given several times.",
)  # fmt: skip
@click.option("--owner", metavar="NAME", help="Only jobs of this owner.")
@click.option("--application", "-a", metavar="NAME", help="Only jobs of this application.")
@click.option(
    "--since", callback=_since, metavar="TIME",
    help="Only jobs that came since then: 90m, 12h, 3d, or 2026-11-22T14:00 (UTC).",
)  # fmt: skip
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    metavar="NUMBER",
    default=20,
    show_default=True,
    help="At most so many.",
)
@click.option("--counts", is_flag=True, help="Instead, how many jobs there are in each state.")
@click.option("--watch", is_flag=True, help="Go on and show every change, until Ctrl-C.")
@json_option
def jobs(
    site: Path | None,
    states: tuple[JobState, ...],
    owner: str | None,
    application: str | None,
    since: int,
    limit: int,
    counts: bool,
    watch: bool,
    as_json: bool,
) -> None:
    """List jobs, newest first: id, name, application, state, since when, message.

    With --watch a table that follows the jobs; where stdout is no terminal, a line for every change of state, and every ten
    seconds one for each transfer; with --json each change as an object on a line of its own.

    \b
    Examples:
      edgecore jobs --state RUNNING --state QUEUED
      edgecore jobs --owner atlas --since 12h --watch
      edgecore jobs --state JOB_FAILED --json | jq -r '.[].id' | xargs edgecore retry
    """
    config = find_site(site)
    choice = Choice(states=states, owner=owner, application=application, since=since, limit=limit)
    if counts and (watch or owner or application or since):
        raise click.UsageError("--counts counts all jobs, by state only")
    with Reader(config.store) as reader:
        if counts:
            _show_counts({s: n for s, n in reader.counts().items() if not states or s in states}, as_json)
        elif watch:
            from edgecore.cli.watching import watch_jobs

            click.get_current_context().exit(watch_jobs(config, reader, choice, as_json=as_json))
        else:
            _show(config, choice, reader, as_json)


def _show(config: SiteConfig, choice: Choice, reader: Reader, as_json: bool) -> None:
    found = choice.latest(reader)
    if as_json:
        show_json([{**summary(job), "progress": progress_fields(config, job)} for job in found])
        return
    if found:
        show_table(job_columns(), [job_row(job, message_of(config, job)) for job in found])
    else:
        click.echo("no jobs yet" if choice.all_jobs else "no such jobs", err=True)
    for line in alarm_lines(reader.alarms()):
        click.echo(line, err=True)
    say_if_still(config)


def _show_counts(counts: dict[JobState, int], as_json: bool) -> None:
    ordered = {state.value: counts[state] for state in JobState if state in counts}
    if as_json:
        show_json(ordered)
    else:
        show_table(("state", "jobs"), list(ordered.items()))
