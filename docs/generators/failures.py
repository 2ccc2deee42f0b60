"""Describe every kind of failure that a job can have, from the table by which the commands give advice."""

from __future__ import annotations

import string

from docs.generators.fields import markdown_table, with_commands
from edgecore.cli.advice import FAILURES
from edgecore.models import JobState
from edgecore.states import RESUMES_AT

__all__ = ["page"]


def page(_: str) -> str:
    """Write a table for each step that can fail, in the order of a job's way."""
    parts = []
    for step in (state for state in JobState if state in RESUMES_AT):
        rows = [
            (f"`{each.kind}`", each.means, each.who, _filled(each.todo))
            for each in FAILURES
            if each.step is step
        ]
        parts += [
            f"## `{step}`",
            markdown_table(("kind", "what it means", "who can mend it", "what to do"), rows),
        ]
    return "\n\n".join(parts)


def _filled(todo: str) -> str:
    """Put words in capitals where a job's own values would stand."""
    names = {name for _, name, _, _ in string.Formatter().parse(todo) if name}
    return with_commands(todo.format(**{name: name.upper() for name in names}))
