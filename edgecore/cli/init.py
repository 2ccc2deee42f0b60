"""Make a working site in a directory: everything on this machine, one application, one job to send.

The files are meant to be read and changed: they teach the configuration by its smallest useful case.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote_from_bytes

import click

from edgecore.applications import read_application
from edgecore.clock import Clock
from edgecore.config import read_site
from edgecore.desk import Desk
from edgecore.errors import ConfigurationError, Problem
from edgecore.models import Name
from edgecore.serial import shorten

__all__ = ["init"]

_NAME: Final = Name.__metadata__[0]  # type: ignore[attr-defined]

_SITE: Final = """\
# A site of its own on one machine: the queue, the batch system and the storage are all here.
# Paths are relative to this file. Lines that begin with # and a key show what else there is.

site = {site}                  # users address their jobs to this name
work_directory = "jobs"        # every job gets a directory below it
store = "site.sqlite"          # what the service knows; must be on a local disk

# Where job definitions come from and where status messages go. At a real site an AMQP broker:
# url = "amqps://broker.example.gov:5671/"
[messaging]
url = {queues}

# What runs the jobs. The built-in fork driver runs them on this machine, and they outlive the service.
# At a real site: driver = "slurm" (pip install edgecore-slurm), and the like.
[scheduling]
driver = "fork"
# slots = 4                    # how many processes run at once; default: this machine's processors

# Which URLs jobs may take input from and bring output to. What is not listed is refused.
[[transfer]]
prefix = {data}

# What starts an application on its nodes; an application names one, or none.
# [launchers.mpi]
# arguments = ["mpirun", "-n", "{{processes}}"]

# How much at once.
[limits]
max_queued = 100               # jobs in the batch system that do not run yet
"""

_APPLICATION: Final = """\
# What users of this site may run, and the values that they may give. Users never name a command.
# After a change: edgecore apps add applications/hello.toml

name = "hello"
description = "greet somebody after a while, and leave the greeting in a file"
executable = {program}
arguments = ["{{who}}", "{{seconds}}"]   # one argument each, whatever the values hold
max_wall_time_minutes = 60

[parameters.who]
type = "string"
description = "whom to greet"
pattern = "[A-Za-z ]{{1,40}}"          # what is not allowed here never reaches the program

[parameters.seconds]
type = "number"
description = "how long to work"
minimum = 0
maximum = 3600
default = 2
"""

_PROGRAM: Final = """\
#!/bin/sh
# The application hello: greet WHO after SECONDS. It runs in the job's data directory.
set -e
who=$1
seconds=$2
echo "working for $seconds seconds on $(uname -n)"
sleep "$seconds"
echo "Hello, $who!" | tee greeting.txt
"""

_SETTINGS: Final = """\
# The values that the job hello gives to its application. It is staged in with the job's input.
who = World
seconds = 2
"""


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--site", "name", metavar="NAME", help="The site's name. [default: that of the directory]")
def init(directory: Path, name: str | None) -> None:
    """Make a working site in DIR: a commented site.toml, an application, a job to send.

    All is on this machine: an SQLite file is the message queue, and the fork driver the batch system. Nothing
    that exists is overwritten.

    \b
    Example:
      edgecore init demo
    """
    base = directory.absolute()
    chosen = name or base.name
    if not _NAME.accepts(chosen):
        raise click.UsageError(f"the site's name {shorten(chosen)} must be {_NAME.allowed}; give --site NAME")
    files = _files(base, chosen)
    there = [path for path in files if path.exists()]
    if there:
        found = ", ".join(path.name for path in there)
        raise ConfigurationError(
            str(directory), [Problem("", found, "a site is there already; choose another")]
        )
    _write(base, files)
    config = read_site(base / "site.toml")
    application = read_application(base / "applications" / "hello.toml")
    Desk(config.store, config.store_mode).add_application(application, now=Clock().now())
    click.echo(f"site {chosen} is ready in {directory}. Next:\n{_next_commands(directory)}")


def _files(base: Path, site: str) -> Mapping[Path, str]:
    place = "/" + quote_from_bytes(os.fsencode(base)).strip("/")
    program = base / "applications" / "hello.sh"
    job = {
        "name": "hello",
        "description": "greet the world",
        "site": site,
        "application": "hello",
        "config_file": "hello.cfg",
        "wall_time_minutes": 5,
        "input_url": f"file://{place}/data/hello/",
        "output_url": f"file://{place}/data/hello-output/",
    }
    return {
        base / "site.toml": _SITE.format(
            site=_toml(site),
            queues=_toml(f"sqlite://{place}/queues.sqlite"),
            data=_toml(f"file://{place}/data/"),
        ),
        base / "applications" / "hello.toml": _APPLICATION.format(program=_toml(str(program))),
        program: _PROGRAM,
        base / "data" / "hello" / "hello.cfg": _SETTINGS,
        base / "hello.json": json.dumps(job, indent=1) + "\n",
    }


def _toml(text: str) -> str:
    """Write a TOML string; JSON's escapes are among TOML's."""
    if not text.isprintable():
        raise click.UsageError(f"{shorten(text)} cannot stand in a configuration file; choose another name")
    return json.dumps(text, ensure_ascii=False)


def _write(base: Path, files: Mapping[Path, str]) -> None:
    try:
        (base / "jobs").mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            if path.suffix == ".sh":
                path.chmod(0o755)
    except OSError as error:
        raise ConfigurationError(
            str(base), [Problem("", "", f"cannot be written: {error.strerror}: {error.filename}")]
        ) from error


def _next_commands(directory: Path) -> str:
    site, job = (shlex.quote(str(directory / name)) for name in ("site.toml", "hello.json"))
    return (
        f"  edgecore doctor {site}                     says whether all that it needs is there\n"
        f"  edgecore run {site}                        in one terminal, then in another\n"
        f"  edgecore submit {job} --site {site} --wait\n"
        f"  edgecore jobs --site {site}"
    )
