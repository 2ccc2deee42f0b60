"""List the jobs of a site."""

from __future__ import annotations

from pathlib import Path

import click

from edgecore.cli.common import find_site, json_option, site_option
from edgecore.cli.job import state_words, summary
from edgecore.cli.output import moment, show_json, show_table
from edgecore.models import JobState
from edgecore.reader import Reader

__all__ = ["jobs"]


@click.command()
@site_option
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in JobState], case_sensitive=False),
    metavar="STATE",
    help="Only jobs in this state; may be given several times.",
)
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="At most so many."
)
@click.option("--counts", is_flag=True, help="Instead, how many jobs there are in each state.")
@json_option
def jobs(site: Path | None, states: tuple[str, ...], limit: int, counts: bool, as_json: bool) -> None:
    """List jobs, newest first: id, name, application, state, since when, message.

    \b
    Examples:
      edgecore jobs --state RUNNING --state QUEUED
      edgecore jobs --state JOB_FAILED --json | jq -r '.[].id' | xargs edgecore retry
    """
    config = find_site(site)
    wanted = [JobState(state) for state in states]
    with Reader(config.store) as reader:
        if counts:
            _show_counts({s: n for s, n in reader.counts().items() if not wanted or s in wanted}, as_json)
            return
        found = reader.latest(limit, states=wanted)
    if as_json:
        show_json([summary(job) for job in found])
        return
    if not found:
        click.echo("no such jobs" if wanted else "no jobs yet", err=True)
        return
    rows = [
        (job.id, job.name, job.definition.application, state_words(job), moment(job.changed), job.message)
        for job in found
    ]
    show_table(("id", "name", "application", "state", "since", "message"), rows)


def _show_counts(counts: dict[JobState, int], as_json: bool) -> None:
    ordered = {state.value: counts[state] for state in JobState if state in counts}
    if as_json:
        show_json(ordered)
    else:
        show_table(("state", "jobs"), list(ordered.items()))
