"""Run a site's service in the foreground, with its log on stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from edgecore.cli.common import find_site
from edgecore.cli.output import visible

__all__ = ["run"]

_OF_EVERY_RECORD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _Lines(logging.Formatter):
    """Write a record for people: when, how bad, what."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{_time(record)[:19].replace('T', ' ')}Z {record.levelname:<7} {record.getMessage()}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return visible(text, keep="\n")


class _JsonLines(logging.Formatter):
    """Write a record for machines: one JSON object per line, with the fields of ``extra=``."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in record.__dict__.items() if key not in _OF_EVERY_RECORD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _log_to_stderr(verbose: bool, as_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else _Lines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("edgecore").setLevel(logging.DEBUG if verbose else logging.INFO)


@click.command()
@click.argument("site", type=click.Path(path_type=Path), envvar="EDGECORE_SITE", required=False)
@click.option(
    "--verbose", "-v", is_flag=True, help="Also log what is of interest only when looking for faults."
)
@click.option("--log-json", is_flag=True, help="Log JSON objects, one per line, instead of words.")
def run(site: Path | None, verbose: bool, log_json: bool) -> None:
    """Run the service of the site whose file is SITE until it is told to stop.

    SITE is by default EDGECORE_SITE, else ./site.toml. The log goes to stderr. SIGTERM and Ctrl-C let it
    finish what was begun; jobs at the batch system go on meanwhile. A second one ends it at once,
    and nothing is lost by that.

    \b
    Example:
      edgecore run /etc/edgecore/theta.toml

    Exit code: 0 after a stop in good order, 2 when a file must be corrected, 1 when it cannot start.
    """
    config = find_site(site)
    _log_to_stderr(verbose, log_json)
    from edgecore.service import run_site

    def started() -> None:
        if not log_json:
            click.echo(f"site {config.site} works; stop with Ctrl-C", err=True)

    run_site(config, started=started)
