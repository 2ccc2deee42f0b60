"""Describe every command from what click knows of it.

The words are ours: those of click's own help differ from one of its versions to the next.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Final

import click

from docs.generators.fields import markdown_table
from edgecore.cli import cli

__all__ = ["page"]

_VERBATIM: Final = "\b"


def page(_: str) -> str:
    """Write a section per command, in the order of the overview."""
    return "\n\n".join(_commands(cli, "edgecore", None))


def _commands(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    if parent is not None:
        yield _section(command, context)
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from _commands(found, each, context)


def _section(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", f"```text\n{usage}\n```", *_words(command)]
    if rows := list(_options(command)):
        parts.append(markdown_table(("option", "meaning"), rows))
    return "\n\n".join(parts)


def _options(command: click.Command) -> Iterator[tuple[str, str]]:
    """Yield the options with what they take, and what they mean."""
    for each in command.params:
        if isinstance(each, click.Option) and not each.hidden:
            names = ", ".join(sorted(each.opts, key=len))
            taken = "" if each.is_flag else f" {each.metavar or each.type.name.upper()}"
            notes = "; ".join(_notes(each))
            yield f"`{names}{taken}`", f"{each.help} [{notes}]" if notes else str(each.help)


def _notes(option: click.Option) -> Iterator[str]:
    if option.show_default:
        yield f"default: {option.default if option.show_default is True else option.show_default}"
    lowest, highest = getattr(option.type, "min", None), getattr(option.type, "max", None)
    if highest is not None:
        yield f"{lowest} to {highest}"
    elif lowest is not None:
        yield f"at least {lowest}"


def _words(command: click.Command) -> Iterator[str]:
    """Yield the paragraphs of the help; what click shows as it stands becomes a block of code."""
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines = paragraph.splitlines()
        if lines[0] != _VERBATIM:
            yield " ".join(lines)
            continue
        if not lines[1].startswith(" "):
            yield lines.pop(1)
        yield "```sh\n" + "\n".join(line.strip() for line in lines[1:]) + "\n```"
