"""Run a site's service in the foreground, with its log where the site's ``[log]`` says."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import evolve

from edgecore.cli import logs
from edgecore.cli.common import find_site
from edgecore.errors import StoreLocked

__all__ = ["run"]


@click.command()
@click.argument("site", type=click.Path(path_type=Path), envvar="EDGECORE_SITE", required=False)
@click.option(
    "--verbose", "-v", is_flag=True, help="Also log what is of interest only when looking for faults."
)
@click.option("--log-json", is_flag=True, help="Log JSON objects, one per line, instead of words.")
@click.option(
    "--unless-running", is_flag=True, help="Say nothing and succeed where the service runs already: for cron."
)
def run(site: Path | None, verbose: bool, log_json: bool, unless_running: bool) -> None:
    """Run the service of the site whose file is SITE until it is told to stop.

    SITE is by default EDGECORE_SITE, else ./site.toml. The log goes to stderr, or where [log] in that file
    says; [metrics] has counters written for Prometheus, and [alarms] names a program that is told of alarms.
    SIGTERM, SIGHUP and Ctrl-C let it finish what was begun; jobs at the batch system go on meanwhile. A
    second one ends it at once, and nothing is lost by that.

    \b
    Examples:
      edgecore run /etc/edgecore/theta.toml
      edgecore run --unless-running /etc/edgecore/theta.toml

    Exit code: 0 after a stop in good order, 2 when a file must be corrected, 1 when it cannot start or
    when a part of it failed, after which what supervises it should start it again.
    """
    config = find_site(site)
    table = evolve(
        config.log,
        level="debug" if verbose else config.log.level,
        format="json" if log_json else config.log.format,
    )
    logs.set_up(table, config.site, source=config.source)
    from edgecore.service import run_site

    def started() -> None:
        if not unless_running and (table.format == "text" or table.file):
            click.echo(f"site {config.site} works; stop with Ctrl-C", err=True)

    try:
        run_site(config, started=started)
    except StoreLocked:
        if not unless_running:
            raise
