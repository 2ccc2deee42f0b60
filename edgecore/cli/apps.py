"""Keep the catalogue: the applications that users of a site may run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from edgecore import serial
from edgecore.applications import check_application, programs_named, read_application
from edgecore.cli.common import find_site, json_option, site_option
from edgecore.cli.output import show_json, show_table, visible
from edgecore.clock import Clock
from edgecore.desk import Desk
from edgecore.errors import EdgeError
from edgecore.models import Application, Parameter
from edgecore.reader import Reader
from edgecore.serial import nearest, shorten
from edgecore.settings import allowed_words

__all__ = ["apps"]


@click.group()
def apps() -> None:
    """Keep the catalogue of applications that users may run.

    \b
    Examples:
      edgecore apps add applications/hello.toml
      edgecore apps list
    """


@apps.command()
@click.argument("file", metavar="FILE.toml", type=click.Path(path_type=Path))
@site_option
@json_option
def add(file: Path, site: Path | None, as_json: bool) -> None:
    """Register the application that FILE.toml describes, in place of one of the same name.

    A running service uses it at once, also for jobs that it has and did not prepare yet.
    """
    config = find_site(site)
    application = read_application(file)
    check_application(application, config.launchers, source=str(file))
    for program in programs_named(application).values():
        if not os.access(program, os.X_OK):
            click.echo(f"note: {program} cannot be executed on this host", err=True)
    Desk(config.store, config.store_mode).add_application(application, now=Clock().now())
    if as_json:
        show_json(application)
    else:
        click.echo(f"application {application.name} is registered at site {config.site}")


@apps.command("list")
@site_option
@json_option
def list_(site: Path | None, as_json: bool) -> None:
    """List the catalogue."""
    config = find_site(site)
    with Reader(config.store) as reader:
        found = reader.applications()
    if as_json:
        show_json(found)
    elif not found:
        click.echo("no applications yet; `edgecore apps add FILE.toml` registers one", err=True)
    else:
        rows = [(each.name, each.executable, each.description) for each in found]
        show_table(("name", "executable", "description"), rows)


@apps.command()
@click.argument("name")
@site_option
@json_option
def show(name: str, site: Path | None, as_json: bool) -> None:
    """Show what the application NAME runs, and which values its users may give.

    Values of parameters go into a job's config_file, values of batch options into its scheduler_config; the
    site declares these for all applications.
    """
    config = find_site(site)
    with Reader(config.store) as reader:
        application = reader.application(name)
        if application is None:
            raise _unknown(name, reader)
    if as_json:
        show_json(application)
    else:
        _show(application)
        _show_values("batch option", config.scheduling.options)


@apps.command()
@click.argument("name")
@site_option
@json_option
def remove(name: str, site: Path | None, as_json: bool) -> None:
    """Take the application NAME out of the catalogue; jobs of it that are not submitted yet will fail."""
    config = find_site(site)
    with Reader(config.store) as reader:
        if not Desk(config.store, config.store_mode).remove_application(name):
            raise _unknown(name, reader)
        waiting = sum(job.definition.application == name for job in reader.active())
    if waiting:
        click.echo(f"note: {waiting} jobs that are under way name it", err=True)
    if as_json:
        show_json({"name": name, "removed": True, "active_jobs": waiting})
    else:
        click.echo(f"application {name} is no longer registered at site {config.site}")


def _unknown(name: str, reader: Reader) -> EdgeError:
    known = sorted(reader.application_names())
    listed = ", ".join(known) or "none"
    return EdgeError(f"there is no application {shorten(name)}{nearest(name, known)}; registered: {listed}")


def _show(application: Application) -> None:
    for key, value in serial.unstructure(application).items():
        if key not in ("parameters", "arguments") and value not in (None, "", False, []):
            click.echo(f"{key:<22} {visible(str(value))}")
    for number, argument in enumerate(application.arguments, 1):
        click.echo(f"{f'argument {number}':<22} {visible(argument)}")
    _show_values("parameter", application.parameters)


def _show_values(kind: str, declared: Mapping[str, Parameter]) -> None:
    if declared:
        click.echo()
        rows = [
            (name, each.type, _need(each), allowed_words(each), each.description)
            for name, each in declared.items()
        ]
        show_table((kind, "type", "default", "allowed", "description"), rows)


def _need(parameter: Parameter) -> str:
    if parameter.default is not None:
        return str(parameter.default)
    return "(required)" if parameter.required else "(none)"
