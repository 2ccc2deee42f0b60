"""Speak the language of the fake batch system: arguments out, text in, and nothing else.

Its manual is the docstring of `edgecore.testing.fake.plain`. Everything here can be tested with a string.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edgecore.models import Group, NativeState, Observation, Refusal, Submission

__all__ = [
    "dispatch_script",
    "job_key",
    "parse_complaints",
    "parse_listing",
    "parse_refusal",
    "parse_submit",
    "submit_command",
]

_STATES: Final = {
    "WAIT": NativeState.QUEUED,
    "HOLD": NativeState.HELD,
    "RUN": NativeState.RUNNING,
    "DONE": NativeState.ENDED,
    "FAIL": NativeState.ENDED,
    "CANCELLED": NativeState.ENDED,
    "NODE_FAIL": NativeState.ENDED,
    "NO_MEMORY": NativeState.ENDED,
    "TIME_LIMIT": NativeState.ENDED,
}
"""Every state of the manual. A real driver cites the page here."""
_BY_ITSELF: Final = {"DONE", "FAIL"}
"""Ends about which the exit code says all there is to say."""
_REFUSALS: Final = {
    "no such queue or account": Refusal.PERMANENT,
    "cannot read": Refusal.PERMANENT,
    "too many jobs": Refusal.TRANSIENT,
}
_HEADERS: Final = (
    b"ID|NAME|OWNER|STATE|QUEUED|STARTED|NODES|REASON",
    b"ID|NAME|OWNER|STATE|QUEUED|STARTED|ENDED|EXIT|SIGNAL|NODES",
)


def job_key(batch_id: str, name: str) -> str:
    """Return how the commands name a job, so that one which got its id later is left alone."""
    return f"{batch_id}/{name}"


# --------------------------------------------------------------------------------- submitting


def submit_command(group: Group, script: Path) -> list[str]:
    """Return the command that queues *group*, whose script is its only member's or `dispatch_script`."""
    options = {
        "--name": group.tag,
        "--directory": str(group.submissions[0].directory),
        "--nodes": str(group.num_nodes),
        "--processes": str(group.processes_per_node),
        "--minutes": str(group.wall_time_minutes),
        "--comment": group.submissions[0].comment,
    }
    options |= {"--queue": group.queue} if group.queue else {}
    options |= {"--account": group.project} if group.project else {}
    indexes = [str(each.index) for each in group.submissions if each.index is not None]
    options |= {"--array": ",".join(indexes)} if indexes else {}
    chosen = [f"--option={key}={value}" for key, value in group.options.items()]
    requeue = [] if group.restartable else ["--no-requeue"]
    return ["fsub", *(f"{key}={value}" for key, value in options.items()), *chosen, *requeue, str(script)]


def dispatch_script(submissions: Sequence[Submission]) -> str:
    """Return the one script of an array, which becomes the batch script of its member."""
    cases = [f"{each.index}) exec /bin/sh {shlex.quote(str(each.script))} ;;" for each in submissions]
    return "\n".join(["#!/bin/sh", 'case "$FAKE_INDEX" in', *cases, "esac", "exit 75", ""])


def parse_submit(output: str) -> str | None:
    """Return the id that was printed; None when there is none."""
    found = re.search(r"^submitted (\d+)$", output, re.MULTILINE)
    return found[1] if found else None


def parse_refusal(errors: str) -> Refusal | None:
    """Tell what kind of refusal it is; None when the words are none, and the outcome is not known."""
    return next((kind for words, kind in _REFUSALS.items() if f"refused: {words}" in errors), None)


# ---------------------------------------------------------------------------------- observing


def parse_listing(output: bytes) -> Mapping[str, Observation] | None:
    """Return the jobs that ``fstat`` or ``facct`` lists by `job_key`; None when it is no listing.

    A line that is not whole is left out, and so is one whose numbers are none: it costs that one job.
    """
    lines = output.split(b"\n")
    if lines[0] not in _HEADERS:
        return None
    columns = lines[0].decode().split("|")
    jobs = {}
    for line in lines[1:]:
        fields = line.decode("utf-8", "replace").split("|")
        if len(fields) != len(columns):
            continue
        try:
            seen = _observation(dict(zip(columns, fields, strict=True)))
        except ValueError:
            continue
        jobs[job_key(seen.batch_id, seen.name)] = seen
    return jobs


def _observation(record: Mapping[str, str]) -> Observation:
    """Return what one line says. Raises ValueError."""
    state, word = _state(record["STATE"])
    reason = record.get("REASON", "")
    if state is NativeState.ENDED and word not in _BY_ITSELF:
        reason = record["STATE"].replace("_", " ").lower()
    return Observation(
        state=state,
        native_state=word,
        batch_id=record["ID"],
        name=record["NAME"],
        owner=record["OWNER"],
        index=int(record["ID"].partition("_")[2]) if "_" in record["ID"] else None,
        exit_code=_number(record.get("EXIT")),
        signal=_number(record.get("SIGNAL")),
        reason=reason,
        never_starts=reason.startswith("never:"),
        queued=_time(record["QUEUED"]),
        started=_time(record["STARTED"]),
        ended=_time(record.get("ENDED")),
        nodes=record["NODES"],
    )


def _state(text: str) -> tuple[NativeState, str]:
    """Return the state and its first word, which decides: ``CANCELLED by root``, ``RUN*``."""
    word = text.partition(" ")[0].rstrip("*+")
    return _STATES.get(word, NativeState.UNKNOWN), word


def _number(text: str | None) -> int | None:
    return int(text) if text else None


def _time(text: str | None) -> int | None:
    return int(text) * 1_000_000 if text else None


# ------------------------------------------------------------------------------------- acting


def parse_complaints(errors: str) -> Mapping[str, str]:
    """Return for which batch ids ``fdel``, ``fhold`` or ``frls`` did nothing, and why."""
    return {found[1]: found[2] for found in re.finditer(r"^f\w+: (\S+): (.+)$", errors, re.MULTILINE)}
