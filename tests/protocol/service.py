"""Take the steps of the service; what they prove is decided by the product's own code.

Time is reduced to how patient the service is when it decides: silence may be new, long, or so long
that the walltime is over (which can only be when nothing of the attempt lives any more). Executions
are hours apart, so that the times in answers and tokens tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import cache
from itertools import product
from typing import Final, NamedTuple

from attrs import evolve

from edgecore.batch import _parse_token
from edgecore.evidence import Conclusion, Decision, Patience, decide
from edgecore.models import NativeState, Observation
from protocol.explorer import Kind
from protocol.files import glimpses, make_ready, rename
from protocol.state import IDLE, Answer, Bounds, Memory, Rules, State, Store

__all__ = ["Act", "Silence", "judge", "service_acts"]

_HOUR: Final = 3_600_000_000
_PATIENCE: Final = Patience(grace=_HOUR, lost_after=2 * _HOUR, walltime=500 * _HOUR)


class Silence(Enum):
    """How long no listing has shown the attempt alive: the time now, and since when."""

    NEW = (100 * _HOUR, None)
    LONG = (100 * _HOUR, 0)
    PAST_WALLTIME = (1000 * _HOUR, 0)


class Act(NamedTuple):
    """What one step makes of the world; *said* is what it tells the batch system or the user."""

    label: str
    kind: Kind
    state: State
    said: str = ""


@cache
def judge(
    name: str, answer: Answer | None, silence: Silence, unwanted: bool, unclear: bool, rules: Rules
) -> Decision:
    """Ask the product what the token called *name* and *answer* prove."""
    token = _parse_token(name) if name else None
    seen = None
    if answer is not None:
        seen = Observation(
            state=NativeState.ENDED if answer.ended else NativeState.RUNNING,
            native_state="ended" if answer.ended else "alive",
            batch_id=str(answer.batch_id),
            ended=answer.execution * _HOUR + _HOUR // 2 if answer.ended else None,
        )
    if token is not None and token.batch_id is not None:
        token = evolve(token, since=int(token.file.split(".")[2]) * _HOUR)
        if seen is not None and not rules.tells_batch_ids_apart:
            seen = evolve(seen, batch_id=str(token.batch_id))
        if seen is not None and not rules.tells_executions_apart:
            seen = evolve(seen, ended=None)
    now, missed = silence.value
    return decide(token, seen, missed=missed, now=now, patience=_PATIENCE, unwanted=unwanted, unclear=unclear)


def service_acts(state: State, bounds: Bounds, rules: Rules) -> Iterator[Act]:
    """Return what the service can do next."""
    store, memory = state.store, state.memory
    if store.state == "PREPROCESSED":
        yield from _submit_next(state, bounds)
    elif store.state not in ("SUBMITTING", "SUBMITTED"):
        return
    elif memory.doing in ("submit", "wait for the batch id", "commit the batch id"):
        yield from _submit(state, bounds)
    elif memory.doing in ("idle", "asked", "looked"):
        yield from _observe(state, bounds, rules)
    elif memory.doing == "cancel":
        yield Act("asks the batch system to cancel", Kind.FAIR, _with(state, IDLE), "cancel")
    elif memory.doing in ("revoke", "fence"):
        yield from _move_token(state, bounds, rules)
    else:
        yield from _conclude(state, bounds)


def _with(state: State, memory: Memory, store: Store | None = None) -> State:
    return state._replace(memory=memory, store=store or state.store)


def _submit_next(state: State, bounds: Bounds) -> Iterator[Act]:
    store = state.store
    number = store.attempt + 1
    if store.cancelled:
        yield _end(state, "JOB_CANCELLED")
    elif number > bounds.attempts or len(state.entries) >= bounds.submissions:
        yield Act("bound reached", Kind.FAIR, _with(state, IDLE, store._replace(state="BOUND")))
    elif state.memory.doing == "idle":
        ready = make_ready(state, number)
        yield Act(f"makes run/{number}/ready", Kind.FAIR, _with(ready, Memory("intend")))
    else:
        intended = Store("SUBMITTING", number, cancelled=False)
        yield Act(
            f"commits SUBMITTING, attempt {number}", Kind.FAIR, _with(state, Memory("submit"), intended)
        )


def _submit(state: State, bounds: Bounds) -> Iterator[Act]:
    doing = state.memory.doing
    if (
        doing == "submit" and len(state.entries) >= bounds.submissions
    ):  # only without the rule of new attempts
        yield Act("bound reached", Kind.FAIR, _with(state, IDLE, state.store._replace(state="BOUND")))
    elif doing == "submit":
        yield Act("submits", Kind.FAIR, _with(state, Memory("wait for the batch id")), "submit")
    elif doing == "wait for the batch id":
        yield Act("gets no answer to its submission", Kind.FAULT, _with(state, IDLE))
        phase = state.of_attempt(state.store.attempt)[-1].phase
        if phase == "refused":
            yield Act("learns that the submission was refused", Kind.FAIR, _with(state, Memory("revoke")))
        elif phase != "on its way":
            yield Act("gets the batch id", Kind.FAIR, _with(state, Memory("commit the batch id")))
    else:
        submitted = state.store._replace(state="SUBMITTED")
        yield Act("commits SUBMITTED", Kind.FAIR, _with(state, IDLE, submitted))


def _observe(state: State, bounds: Bounds, rules: Rules) -> Iterator[Act]:
    memory, attempt = state.memory, state.store.attempt
    if memory.doing == "idle" and bounds.look_first:
        for name, kind in glimpses(state, bounds, attempt):
            yield Act(f"sees {name or 'nothing'}", kind, _with(state, Memory("looked", token=name)))
    elif memory.doing == "idle":
        for answer, kind in _listings(state, bounds):
            yield Act(f"is shown {_words(answer)}", kind, _with(state, Memory("asked", answer)))
    elif memory.doing == "looked":
        for answer, kind in _listings(state, bounds):
            yield from _decide(state, memory.token, answer, kind, bounds, rules)
    else:
        for name, kind in glimpses(state, bounds, attempt):
            yield from _decide(state, name, memory.answer, kind, bounds, rules)


def _listings(state: State, bounds: Bounds) -> Iterator[tuple[Answer | None, Kind]]:
    """Give what a listing may show of the present attempt; None where it shows nothing of it."""
    known = [entry for entry in state.of_attempt(state.store.attempt) if entry.known]
    yield None, Kind.FAULT if known else Kind.FAIR
    for entry in known:
        waits = bounds.give_up and entry.phase == "queued"
        yield Answer(entry.phase == "ended", entry.batch_id, entry.execution(entry.starts), waits), Kind.FAIR
        over = entry.starts if entry.phase == "queued" else entry.starts - 1
        if bounds.stale_end and entry.phase != "ended" and over > 0:
            yield Answer(True, entry.batch_id, entry.execution(over)), Kind.FAULT


def _words(answer: Answer | None) -> str:
    if answer is None:
        return "nothing of the attempt"
    how = "ended" if answer.ended else "waiting" if answer.waits else "alive"
    return f"batch id {answer.batch_id}, execution {answer.execution}, {how}"


def _decide(
    state: State, name: str, answer: Answer | None, kind: Kind, bounds: Bounds, rules: Rules
) -> Iterator[Act]:
    store = state.store
    if answer is not None and answer.waits and not (store.cancelled or store.given_up):
        yield Act(
            "commits that it gives the attempt up",
            Kind.FAULT,
            _with(state, IDLE, store._replace(given_up=True)),
        )
    nothing_lives = all(entry.script is None for entry in state.of_attempt(store.attempt))
    for silence, (given_up, likely) in product(Silence, _still_given_up(name, answer, store)):
        if silence is Silence.PAST_WALLTIME and not (bounds.walltime and nothing_lives):
            continue
        now = store._replace(given_up=given_up)
        found = judge(name, answer, silence, store.cancelled or given_up, store.state == "SUBMITTING", rules)
        label = f"finds {found.conclusion} (token {name or 'none'}, shown {_words(answer)}, silence {silence.name})"
        yield Act(label, max(kind, likely), _with(state, _next(found, name, now, rules), now))


def _still_given_up(name: str, answer: Answer | None, store: Store) -> Iterator[tuple[bool, Kind]]:
    """Tell whether an attempt that was given up is taken back still, by times that are not explored."""
    if not store.given_up or name == "revoked":
        yield store.given_up, Kind.FAIR
        return
    runs = answer is not None and not answer.ended and not answer.waits
    if not runs:
        yield True, Kind.FAIR
    if runs or name.startswith("running") or (answer is not None and answer.waits):
        yield False, Kind.FAIR if runs else Kind.FAULT


def _next(found: Decision, name: str, store: Store, rules: Rules) -> Memory:
    if found.conclusion is Conclusion.REVOKE and store.state == "SUBMITTING" and not rules.new_attempt:
        return Memory("submit")
    if found.conclusion is Conclusion.REVOKE:
        return Memory("revoke") if rules.revokes else Memory("never started")
    if found.conclusion is Conclusion.FENCE:
        return Memory("fence", token=name) if rules.fences else Memory("interrupted")
    if found.conclusion is Conclusion.ALIVE and (store.cancelled or store.given_up):
        return Memory("cancel")
    if found.conclusion in (Conclusion.ALIVE, Conclusion.QUIET, Conclusion.LOST):
        return IDLE
    return Memory(found.conclusion, exit_code=found.exit_code)


def _move_token(state: State, bounds: Bounds, rules: Rules) -> Iterator[Act]:
    if not rules.revokes and state.memory.doing == "revoke":
        yield Act("gives it up without a rename", Kind.FAIR, _with(state, Memory("never started")))
        return
    before, after, then = {
        "revoke": ("ready", "revoked", Memory("never started")),
        "fence": (state.memory.token, "stopped", Memory("interrupted")),
    }[state.memory.doing]
    for moved, done, kind in rename(state, bounds, state.store.attempt, before, after):
        said = "done" if done else "no such file"
        yield Act(f"mv {before} {after}: {said}", kind, _with(moved, then if done else IDLE))


def _conclude(state: State, bounds: Bounds) -> Iterator[Act]:
    store, memory = state.store, state.memory
    if memory.doing == Conclusion.NEVER_STARTED:
        if store.cancelled:
            yield _end(state, "JOB_CANCELLED")
        elif store.given_up:
            yield _end(state, "JOB_FAILED")._replace(said="given up")
        else:
            yield Act(
                "commits that the attempt never started", Kind.FAIR,
                _with(state, IDLE, store._replace(state="PREPROCESSED")), "never started",
            )  # fmt: skip
    elif memory.doing == Conclusion.ENDED and memory.exit_code == 0:
        yield _end(state, "JOB_FINISHED")
    elif store.cancelled:
        yield _end(state, "JOB_CANCELLED")
    elif bounds.retries and store.attempt <= bounds.retries and not store.given_up:
        again = _with(state, IDLE, store._replace(state="PREPROCESSED"))
        yield Act("commits EXECUTION_FAILED, another attempt follows", Kind.FAIR, again, "failed")
    else:
        yield _end(state, "JOB_FAILED")


def _end(state: State, word: str) -> Act:
    return Act(f"commits {word}", Kind.FAIR, _with(state, IDLE, state.store._replace(state=word)), word)
