"""Offer a site's work on the command line: ``edgecore COMMAND``.

A command composes what the library has and holds no knowledge of its own; its module is imported when
the command is used. Results go to stdout, as words or with ``--json`` as one JSON document; everything
else goes to stderr. Exit code 0 is success, 2 a file or an argument to be corrected, 1 anything
else that went wrong; `submit`, `cancel` and `retry` have more for ``--wait``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import IO, Any, Final

import click

from edgecore.errors import ConfigurationError, DefinitionError, EdgeError

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "init": ("init", "Make a working site in a directory, to begin with."),
    "run": ("run", "Run a site's service until it is told to stop."),
    "submit": ("submit", "Send a job to the site."),
    "jobs": ("jobs", "List jobs, newest first."),
    "job": ("job", "Show all that is known about one job, and what to do next."),
    "cancel": ("requests", "Ask the service to cancel jobs."),
    "hold": ("requests", "Ask the service to keep jobs from starting."),
    "release": ("requests", "Ask the service to let held jobs go on."),
    "retry": ("requests", "Ask the service to resume failed jobs where they failed."),
    "apps": ("apps", "Keep the catalogue of applications that users may run."),
    "doctor": ("doctor", "Examine a site: all that its service will need, and what to do."),
    "drivers": ("drivers", "List installed drivers and plugins."),
}
"""Command -> module below this package, and the line that the overview shows without importing it."""


class _Failure(click.ClickException):
    """Show an error of the library as words."""

    def __init__(self, error: EdgeError) -> None:
        super().__init__(_in_words(error))

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the error to stderr."""
        from edgecore.cli.output import visible

        click.echo(f"error: {visible(self.message, keep=chr(10))}", err=True)


class _ToBeCorrected(_Failure):
    """Show an error that the writer of a file corrects."""

    exit_code = 2


def _in_words(error: EdgeError) -> str:
    if isinstance(error, ConfigurationError | DefinitionError) and len(error.problems) > 1:
        return "\n  ".join([f"{error.source}:", *map(str, error.problems)])
    return str(error)


class _Commands(click.Group):
    """Find commands by name in `COMMANDS`, importing a module only when its command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a newcomer's first day."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgecore.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command for one that does not exist."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from edgecore.serial import nearest

            ctx.fail(f"no such command {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview from the table, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; errors that are meant for people lose their traceback."""
        try:
            return super().invoke(ctx)
        except EdgeError as error:
            correct = isinstance(error, ConfigurationError | DefinitionError)
            raise (_ToBeCorrected if correct else _Failure)(error) from error
        except KeyboardInterrupt:
            from edgecore.cli.following import EXIT_INTERRUPTED

            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgecore", prog_name="edgecore")
def cli() -> None:
    """Take jobs from a message queue, run each exactly once at this site, report every step.

    \b
    The first minutes:
      edgecore init demo
      edgecore run demo/site.toml                                  (in one terminal)
      edgecore submit demo/hello.json --site demo/site.toml --wait (in another)

    Commands find their site through --site SITE.toml, the variable EDGECORE_SITE, or a site.toml in
    the present directory. `edgecore COMMAND --help` shows examples.
    """


def main() -> None:
    """Be the entry point ``edgecore``."""
    cli(prog_name="edgecore")
