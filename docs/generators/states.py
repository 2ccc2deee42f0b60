"""Describe every state of a job and the moves between them."""

from __future__ import annotations

from docs.generators.fields import documented, markdown_table, with_commands
from edgecore.cli.advice import NEXT
from edgecore.models import JobState
from edgecore.states import MOVES, RESUMES_AT

__all__ = ["page"]


def page(_: str) -> str:
    """Write a table of the states, and one of the moves."""
    meanings = documented(JobState)
    states = [(f"`{each}`", meanings[each], with_commands(NEXT[each].format(id="ID"))) for each in JobState]
    moves = [
        (
            f"`{each}`",
            ", ".join(f"`{to}`" for to in JobState if to in MOVES[each]) or "nothing",
            _resumed(each),
        )
        for each in JobState
    ]
    return "\n\n".join(
        [
            markdown_table(("state", "meaning", "what a person does"), states),
            "## Moves",
            markdown_table(("state", "may be followed by", "a retry resumes at"), moves),
        ]
    )


def _resumed(state: JobState) -> str:
    return f"`{RESUMES_AT[state]}`" if state in RESUMES_AT else ""
