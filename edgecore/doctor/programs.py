"""Examine the programs that a site runs: launchers and what the catalogue of applications names.

What runs on compute nodes is looked for on this host, which in most sites sees the same file systems.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from attrs import evolve, frozen

from edgecore.applications import check_application, launcher_arguments, programs_named
from edgecore.clock import Clock
from edgecore.config import SiteConfig
from edgecore.doctor.catalogue import ADD, catalogue
from edgecore.doctor.checks import LIMIT_S, Check, findings_of
from edgecore.errors import ConfigurationError, EdgeError
from edgecore.models import Application, Finding, Level, SiteContext
from edgecore.telling import open_alarm_command

__all__ = ["program_checks"]

_HEAD_BYTES: Final = 256
_BINARY: Final = b"\x7fELF"


def program_checks(config: SiteConfig, context: SiteContext) -> Iterator[Check]:
    """Return what is looked at in launchers and applications."""
    programs = _Programs(config, context.environment)
    yield Check(title="launchers", subject="launchers", find=programs.launchers)
    if config.alarms.command:
        yield Check(title="alarms", subject="command", find=programs.alarms)
    yield Check(title="applications", subject="catalogue", find=programs.applications, limit_s=2 * LIMIT_S)


@frozen
class _Programs:
    config: SiteConfig
    environment: Mapping[str, str]

    def launchers(self) -> Iterator[Finding]:
        """Look for the first argument of each launcher where the batch script will."""
        if not self.config.launchers:
            yield Finding("launchers", Level.OK, "none")
            return
        used = {one.launcher for one in catalogue(self.config)}
        for name, table in self.config.launchers.items():
            yield self._launcher(name, table.arguments, used=name in used)

    def _launcher(self, name: str, arguments: tuple[str, ...], *, used: bool) -> Finding:
        filled = launcher_arguments(arguments, num_nodes=1, processes_per_node=1)
        if not filled:
            return Finding(name, Level.OK, "no arguments: the application itself is started")
        path = self.environment.get("PATH", os.defpath)
        found = shutil.which(filled[0], path=path)
        if found is not None:
            return Finding(name, Level.OK, found)
        # A prologue may change the PATH of jobs, and nobody may use this launcher.
        certain = used and not self.config.script.prologue
        words = f"{filled[0]} is not an executable file on PATH={path}"
        if self.config.script.prologue:
            words += ", unless the prologue of [script] changes it"
        remedy = f"install it, write its absolute path into [launchers.{name}], or set PATH in [environment]"
        return Finding(name, Level.FAILURE if certain else Level.WARNING, words, remedy)

    def alarms(self) -> Iterator[Finding]:
        """Look for the operator's program that is told of alarms, as every start does; it is not run."""
        try:
            open_alarm_command(self.config, Clock())
        except ConfigurationError as error:
            yield from findings_of("command", error)
        else:
            yield Finding("command", Level.OK, self.config.alarms.command[0])

    def applications(self) -> Iterator[Finding]:
        """Look at every entry of the catalogue, its programs, and how it fits the site."""
        if not os.path.exists(self.config.store):
            yield Finding("catalogue", Level.OK, "empty: there is no store yet")
            return
        broken: list[Finding] = []
        found = catalogue(self.config, broken.append)
        yield from broken
        if not found and not broken:
            remedy = "register what users may run: edgecore apps add FILE.toml"
            yield Finding("catalogue", Level.WARNING, "empty: every job will be rejected", remedy)
        for application in found:
            trouble = [*self._declared(application), *_programs(application), *self._fits(application)]
            yield from trouble or [Finding(application.name, Level.OK, application.executable)]

    def _declared(self, application: Application) -> Iterator[Finding]:
        try:
            check_application(application, self.config.launchers)
        except EdgeError as error:
            yield from (evolve(finding, remedy=ADD) for finding in findings_of(application.name, error))

    def _fits(self, application: Application) -> Iterator[Finding]:
        """Compare what an application allows with what a definition gets by default."""
        defaults = self.config.defaults
        for key, default, most in (
            ("num_nodes", defaults.num_nodes, application.max_nodes),
            ("wall_time_minutes", defaults.wall_time_minutes, application.max_wall_time_minutes),
        ):
            if most is not None and default > most:
                words = f"[defaults] {key} = {default:,} is more than the {most:,} that it allows"
                remedy = f"users must give {key}; or lower the default, or raise the application's limit"
                yield Finding(application.name, Level.WARNING, words, remedy)


def _programs(application: Application) -> Iterator[Finding]:
    for key, path in programs_named(application).items():
        if fault := _fault(Path(path), needs_head=key != "executable"):
            words = f"{key} {path} {fault}"
            yield Finding(application.name, Level.FAILURE, words, f"repair {path}, or {ADD}")
        elif Path(path).stat().st_mode & stat.S_IWOTH:
            words = f"{key} {path} can be written by every account of this host"
            yield Finding(application.name, Level.WARNING, words, f"chmod o-w {path}")
    directory = application.directory
    if directory is not None and not (os.path.isdir(directory) and os.access(directory, os.R_OK | os.X_OK)):
        words = f"directory {directory} is not there, or this account may not read it"
        yield Finding(application.name, Level.FAILURE, words, f"make it readable, or {ADD}")


def _fault(path: Path, *, needs_head: bool) -> str:
    """Say why a program could not be started by us; nothing when it could."""
    if not os.path.exists(path):
        return "is not there, or this account may not look for it"
    if not path.is_file():
        return "is no file"
    if not os.access(path, os.X_OK):
        return "may not be executed by this account"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return ""  # what may be executed and not read is a program of its own
    if head.startswith(_BINARY):
        return ""
    match = re.match(rb"#![ \t]*([^ \t\n]+)", head)
    if match is None:  # a shell would run it as a script, and the kernel does not
        return "is neither a program nor begins with #!" if needs_head else ""
    interpreter = os.fsdecode(match[1])
    return "" if shutil.which(interpreter) else f"wants {interpreter}, which is not there"
