"""Speak the language of Slurm's commands: arguments out, text in, and nothing else.

Listings are asked for with a heading and fixed separators; the name stands last, so that another user's job whose
name holds a separator costs nothing. Everything here can be tested with a string.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from edgecore.models import Group, NativeState, Observation, Refusal, Submission, Value
from edgecore_slurm.tables import BY_ITSELF, HARMLESS, OWN_OPTIONS, REFUSALS, STATES, is_hold, never_starts

__all__ = [
    "accounting_command",
    "dispatch_script",
    "foreign_options",
    "job_key",
    "listing_command",
    "parse_accounting",
    "parse_complaints",
    "parse_configuration",
    "parse_listing",
    "parse_refusal",
    "parse_submit",
    "submit_command",
]

_FORMAT: Final = "%i|%u|%T|%V|%S|%e|%N|%r|%j"
_LISTED: Final = "JOBID|USER|STATE|SUBMIT_TIME|START_TIME|END_TIME|NODELIST|REASON|NAME"
_ACCOUNTED: Final = "JobID|User|State|ExitCode|Submit|Start|End|NodeList|JobName"
_BATCH_ID: Final = re.compile(r"\d+(?:_(\d+))?")
_TIME_LENGTH: Final = len("2026-11-22T10:31:00")
_REMEMBERED: Final = 20_000
"""How many lines of listings are not parsed again: more than most accounts have jobs in a queue, in some 15 MB."""
_ALIKE: Final = 1_024
"""Of how many jobs that differ in more than their names the rest is not parsed again."""
_NOT_LAUNCHED: Final = 53
"""The signal of ``0:53``, with which Slurm accounts for a script that it could not start (JobLaunchFailure)."""


def job_key(batch_id: str, name: str) -> str:
    """Return what tells a job from a later one that has its id."""
    return f"{batch_id}/{name}"


# --------------------------------------------------------------------------------- submitting


def submit_command(group: Group, script: Path) -> list[str]:
    """Return the command that queues *group*, whose script is its only member's or `dispatch_script`."""
    indexes = ",".join(str(each.index) for each in group.submissions if each.index is not None)
    options: dict[str, Value | tuple[Value, ...]] = {
        "job-name": group.tag,
        "chdir": str(group.submissions[0].directory),
        "output": "slurm-%A_%a.out" if indexes else "slurm-%j.out",
        "nodes": group.num_nodes,
        "ntasks-per-node": group.processes_per_node,
        "time": group.wall_time_minutes,
        "comment": group.submissions[0].comment,
        "export": "NONE",
        **({"partition": group.queue} if group.queue else {}),
        **({"account": group.project} if group.project else {}),
        **({"array": indexes} if indexes else {}),
        **group.options,
    }
    given = [text for key, value in options.items() if (text := _option(key, value))]
    return ["sbatch", "--parsable", *given, "--requeue" if group.restartable else "--no-requeue", str(script)]


def _option(key: str, value: Value | tuple[Value, ...]) -> str:
    """Return an option as sbatch takes it: alone where it is true, nothing where it is false."""
    if isinstance(value, bool):
        return f"--{key}" if value else ""
    return f"--{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def foreign_options(options: Mapping[str, object]) -> list[str]:
    """Return the names among *options* that are the driver's own to set."""
    return sorted(OWN_OPTIONS.intersection(options))


def dispatch_script(submissions: Sequence[Submission]) -> str:
    """Return the one script of an array, which becomes the batch script of its member."""
    cases = [f"{each.index}) exec /bin/sh {shlex.quote(str(each.script))} ;;" for each in submissions]
    return "\n".join(["#!/bin/sh", 'case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac", "exit 75", ""])


def parse_submit(output: str) -> str | None:
    """Return the id from ``ID`` or ``ID;CLUSTER``; None when there is none."""
    found = re.search(r"^(\d+)(;\S+)?$", output, re.MULTILINE)
    return found[1] if found else None


def parse_refusal(errors: str) -> Refusal | None:
    """Tell what kind of refusal it is; None when the outcome is not known.

    Limits are named on a line before the general words: those that the job alone breaks stay broken.
    """
    kind = next((kind for words, kind in REFUSALS.items() if words in errors), None)
    alone = any(never_starts(line.removeprefix("sbatch: error: ")) for line in errors.splitlines())
    return Refusal.PERMANENT if kind is Refusal.TRANSIENT and alone else kind


# ---------------------------------------------------------------------------------- observing


def listing_command(user: str) -> list[str]:
    """List all jobs, also in hidden partitions and just ended, each member of an array on a line of its own."""
    return ["squeue", "-a", "-r", "-t", "all", "-u", user, "-o", _FORMAT]


def accounting_command(user: str, since_s: int, names: Sequence[str] = ()) -> list[str]:
    """Ask for what was in the system after a time, seconds since the epoch."""
    start = datetime.fromtimestamp(max(0, since_s), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    chosen = [f"--name={','.join(names)}"] if names else []
    return ["sacct", "-X", "-P", "-u", user, "-S", start, *chosen, "-o", _ACCOUNTED.replace("|", ",")]


def parse_listing(output: bytes) -> Mapping[str, Observation] | None:
    """Return the jobs that ``squeue`` shows by `job_key`; None when it is no listing."""
    return _parse(output, _LISTED, _listed)


def parse_accounting(output: bytes) -> Mapping[str, Observation] | None:
    """Return the jobs that ``sacct`` shows by `job_key`; None when it is no listing."""
    return _parse(output, _ACCOUNTED, _accounted)


def _parse(
    output: bytes, header: str, parse: Callable[[bytes], Observation]
) -> Mapping[str, Observation] | None:
    first, *lines = output.split(b"\n")
    if first.decode("utf-8", "replace") != header:
        return None
    jobs = {}
    for line in lines:
        try:
            seen = parse(line)
        except ValueError:  # a line that is not whole costs its own job
            continue
        jobs[job_key(seen.batch_id, seen.name)] = seen
    return jobs


@functools.lru_cache(_REMEMBERED)
def _listed(line: bytes) -> Observation:
    """Return what a line of squeue says, which is nearly always what it said at the look before. Raises ValueError."""
    job, user, said, submitted, begins, ends, nodes, reason, name = line.decode().split("|", 8)
    told = _told(said, submitted, begins, ends, nodes, reason)
    return Observation(batch_id=job, name=name, owner=user, index=_index(job), **told)


@functools.lru_cache(_ALIKE)
def _told(said: str, submitted: str, begins: str, ends: str, nodes: str, reason: str) -> Mapping[str, Any]:
    """Return what squeue says of a job beside what it is called, which the members of an array have in common."""
    word = _first_word(said)
    reason = "" if reason in ("None", "(null)") else reason
    state = STATES.get(word, NativeState.UNKNOWN)
    if state is NativeState.QUEUED and is_hold(reason):
        state = NativeState.HELD
    ended = state is NativeState.ENDED
    waits = state in (NativeState.QUEUED, NativeState.HELD)
    # Else START_TIME is a prediction, or when it was cancelled before it had nodes.
    begun = state is NativeState.RUNNING or (ended and nodes != "")
    return {
        "state": state,
        "native_state": word,
        "exit_code": 0 if word == "COMPLETED" else None,
        "reason": _end_reason(word, said, reason) if ended else reason if waits else "",
        "never_starts": waits and never_starts(reason),
        "queued": _time(submitted),
        "started": _time(begins) if begun else None,
        "ended": _time(ends) if ended else None,  # for what runs, too
        "nodes": nodes if begun else "",
    }


def _accounted(line: bytes) -> Observation:
    """Return what a line of sacct says. Raises ValueError."""
    job, user, said, code_and_signal, submitted, begun, ended_at, nodes, name = line.decode().split("|", 8)
    word = _first_word(said)
    state = STATES.get(word, NativeState.UNKNOWN)
    ended = state is NativeState.ENDED
    code, signal = (int(number) for number in code_and_signal.split(":"))
    launched = signal != _NOT_LAUNCHED
    nodes = "" if nodes == "None assigned" else nodes
    by_itself = word in BY_ITSELF and launched  # else it is 0:0, 0:15 or 0:125, which says less than the word
    return Observation(
        state=state,
        native_state=word,
        batch_id=job,
        name=name,
        owner=user,
        index=_index(job),
        exit_code=code if by_itself and not signal else None,
        signal=signal if by_itself and signal else None,
        reason=_end_reason(word, said, "" if launched else "JobLaunchFailure") if ended else "",
        queued=_time(submitted),
        started=_time(begun) if nodes else None,
        ended=_time(ended_at) if ended else None,
        nodes=nodes,
    )


def _first_word(state: str) -> str:
    """Return the word that decides: of ``CANCELLED by 1001``, ``COMPLETING*``, ``CANCELLED+``."""
    return state.partition(" ")[0].rstrip("*+")


def _index(batch_id: str) -> int | None:
    """Return the number of a member of an array. Raises ValueError where it is no id."""
    found = _BATCH_ID.fullmatch(batch_id)
    if found is None:
        raise ValueError(batch_id)
    return int(found[1]) if found[1] else None


def _end_reason(word: str, state: str, reason: str) -> str:
    """Say why it ended; of what ended by itself, only what the exit code does not say."""
    if word not in BY_ITSELF:
        return state.replace("_", " ").lower()
    return "" if reason in ("NonZeroExitCode", "RaisedSignal") else reason


def _time(text: str) -> int | None:
    """Return microseconds UTC; the listings are made with TZ=UTC."""
    if text in ("N/A", "Unknown", "None", ""):
        return None
    if len(text) != _TIME_LENGTH:
        raise ValueError(text)
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp()) * 1_000_000


def parse_configuration(output: str) -> Mapping[str, str]:
    """Return the settings that ``scontrol show config`` prints."""
    return {found[1]: found[2] for found in re.finditer(r"^(\w+) *= (.*?) *$", output, re.MULTILINE)}


# ------------------------------------------------------------------------------------- acting


def parse_complaints(errors: str) -> Mapping[str, str] | None:
    """Return for which ids scancel or scontrol did nothing, and why; None when that is not all they say."""
    complaints = {}
    for line in filter(None, map(str.strip, errors.splitlines())):
        found = re.fullmatch(
            r"(?P<why>.+) for job (?P<id>\d+(_\d+)?)"
            r"|(?P<id2>\d+(_\d+)?): (?P<why2>.+)"
            r"|scancel: error: Kill job error on job id (?P<id3>\d+(_\d+)?): (?P<why3>.+)",
            line,
        )
        if not any(words in line for words in HARMLESS):
            return None
        if found is not None:
            batch_id = found["id"] or found["id2"] or found["id3"]
            complaints[batch_id] = found["why"] or found["why2"] or found["why3"]
    return complaints
