"""Find what commands work on: the site's file and the job that somebody means."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from edgecore.config import SiteConfig, read_site
from edgecore.errors import ConfigurationError, EdgeError, Problem
from edgecore.models import Job, JobState
from edgecore.reader import Reader
from edgecore.serial import shorten
from edgecore.store_file import is_running, stands_still

__all__ = [
    "admitted",
    "find_job",
    "find_site",
    "json_option",
    "look_again",
    "say_if_still",
    "say_service_changed",
    "say_who_acts",
    "site_option",
]

F = TypeVar("F", bound=Callable[..., Any])

_VARIABLE: Final = "EDGECORE_SITE"
_HERE: Final = Path("site.toml")
_WAYS: Final = f"give --site SITE.toml, set {_VARIABLE}, or work in a directory that has a {_HERE}"


def site_option(command: F) -> F:
    """Give a command the option ``--site``."""
    return click.option(
        "--site",
        "-s",
        type=click.Path(path_type=Path),
        envvar=_VARIABLE,
        help=f"The site's file. [default: {_VARIABLE}, else ./{_HERE}]",
    )(command)


def json_option(command: F) -> F:
    """Give a command the option ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")(command)


def find_site(path: Path | None) -> SiteConfig:
    """Read the site's file. Raises ConfigurationError."""
    chosen = path or _HERE
    if not chosen.exists():
        raise ConfigurationError("the site's file", [Problem("", f"no {chosen}", _WAYS)])
    return read_site(chosen)


def _site_hint(config: SiteConfig) -> str:
    """Return what a later command must add to find the same site; nothing where it finds it anyway."""
    default = os.environ.get(_VARIABLE) or _HERE
    return "" if Path(default).absolute() == config.source else f" --site {shlex.quote(str(config.source))}"


def look_again(config: SiteConfig, *ids: object) -> str:
    """Return the command by which a person looks again at one job, or at all."""
    return f"edgecore {f'job {ids[0]}' if len(ids) == 1 else 'jobs'}{_site_hint(config)}"


def say_if_still(config: SiteConfig) -> None:
    """Say on stderr that the service is there and does nothing."""
    if still := stands_still(config.store):
        which = f"edgecore doctor {shlex.quote(str(config.source))}"
        click.echo(f"the service of site {config.site} {still}; what to do: {which}", err=True)


def say_who_acts(config: SiteConfig, what: str) -> None:
    """Say on stderr that *what* waits, when no service is there to do it."""
    say_if_still(config)
    if not is_running(config.store):
        start = f"edgecore run {shlex.quote(str(config.source))}"
        click.echo(
            f"the service of site {config.site} is not running here; {what} until it is: {start}", err=True
        )


def say_service_changed(config: SiteConfig, runs: bool) -> None:
    """Say on stderr, to somebody who looks on, that the service has gone or is back."""
    words = "runs again" if runs else "has stopped; nothing changes until it runs again"
    click.echo(f"the service of site {config.site} {words}", err=True)


def admitted(jobs: Sequence[Job]) -> Sequence[Job]:
    """Return the jobs that were no refused message; one of those may bear the id of a job, before it or after it."""
    return [job for job in jobs if job.state is not JobState.JOB_REJECTED]


def find_job(reader: Reader, text: str) -> Job:
    """Return the job that *text* names: by our id, else by the sender's. Raises EdgeError.

    Where one of an id was taken, those that were rejected are meant by our id only.
    """
    # Ours first, so that no sender can hide a job behind an id of their own choice.
    job = reader.job(int(text)) if text.isascii() and text.isdecimal() and len(text) < 19 else None
    if job is not None:
        return job
    found = reader.find(text)
    if not found:
        raise EdgeError(f"there is no job {shorten(text)} in this store; `edgecore jobs` lists them")
    found = tuple(admitted(found)) or found
    if len(found) > 1:
        which = "\n  ".join(f"{each.id} of {each.owner}: {each.name}, {each.state}" for each in found)
        raise EdgeError(f"{len(found)} jobs are called {shorten(text)}; name one by our id:\n  {which}")
    return found[0]
