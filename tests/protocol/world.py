"""Put service, scripts, batch system and users into one world, and watch the properties.

The batch system keeps a list of entries. It may refuse or accept late, lose an entry (which may
start all the same), kill, requeue and forget; a listing may omit an entry that lives. What it never
does is to say that an execution ended which lives: that is the one thing that the protocol trusts.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import field, frozen

from edgecore.evidence import Conclusion
from protocol.explorer import Kind, Step
from protocol.script import GONE, script_moves
from protocol.service import Act, Silence, judge, service_acts
from protocol.state import IDLE, TERMINAL, Bounds, Entry, Rules, Script, State, Store

__all__ = ["World"]

_FAIR, _FAULT = Kind.FAIR, Kind.FAULT


@frozen(kw_only=True)
class World:
    """One job, all that can happen to it within *bounds*, under the *rules*."""

    bounds: Bounds
    rules: Rules = field(factory=Rules)

    def start(self) -> State:
        """Return the world before the service begins."""
        return State(IDLE, Store("PREPROCESSED", 0, cancelled=False), (), ())

    def is_over(self, state: State) -> bool:
        """Tell whether the job has ended, or used up the attempts that are explored."""
        return state.store.state in TERMINAL or state.store.state == "BOUND"

    def is_lost(self, state: State) -> bool:
        """Tell whether the service raises the alarm, now or after a crash, if the silence lasts."""
        store = state.store
        if store.state not in ("SUBMITTING", "SUBMITTED") or any(
            entry.known for entry in state.of_attempt(store.attempt)
        ):
            return False
        name = state.token(store.attempt)
        unclear = store.state == "SUBMITTING"
        found = judge(name, None, Silence.LONG, store.cancelled, unclear, self.rules)
        return found.conclusion is Conclusion.LOST

    def steps(self, state: State) -> Iterator[Step[State]]:
        """Return everything that can happen next; nothing beyond the bound on attempts."""
        if state.store.state == "BOUND":
            return
        yield from self._people(state)
        if state.memory != IDLE:
            yield Step("SERVICE CRASHES", _FAULT, state._replace(memory=IDLE))
        for act in service_acts(state, self.bounds, self.rules):
            yield self._served(state, act, entries=1)
            if act.said == "submit" and self.bounds.submitted_twice:
                yield self._served(state, act._replace(kind=_FAULT), entries=2)
        for place, entry in enumerate(state.entries):
            for label, kind, changed in self._batch_system(state, entry):
                yield Step(f"batch system {label} entry {place + 1}", kind, _put(state, place, changed))
            yield from self._script(state, place, entry)

    def _people(self, state: State) -> Iterator[Step[State]]:
        store = state.store
        if self.bounds.cancel and not store.cancelled and not self.is_over(state):
            yield Step("user cancels", _FAULT, state._replace(store=store._replace(cancelled=True)))
        executions = [entry.script for entry in state.of_attempt(store.attempt) if entry.script]
        if state.memory == IDLE and not executions and self.is_lost(state):
            stopped = (*state.tokens[: store.attempt - 1], ("stopped",), *state.tokens[store.attempt :])
            yield Step("OPERATOR says that it is dead", Kind.OPERATOR, state._replace(tokens=stopped))

    # ------------------------------------------------------------------------ service

    def _served(self, state: State, act: Act, *, entries: int) -> Step[State]:
        label, kind, after, said = act
        attempt = state.store.attempt
        if said == "submit":
            label = "submits" if entries == 1 else "submits, and the command repeats itself"
            number = len(state.entries) + 1
            made = (Entry(attempt, n, batch_id=n) for n in range(number, number + entries))
            after = after._replace(entries=(*state.entries, *made))
        elif said == "cancel":
            told = (
                e._replace(told_to_end=True)
                if e.attempt == attempt and e.known and e.phase in ("queued", "running")
                else e
                for e in state.entries
            )
            after = after._replace(entries=tuple(told))
        return Step(f"service {label}", kind, after, _false_report(state, said) if said else None)

    # ------------------------------------------------------------------- batch system

    def _batch_system(self, state: State, entry: Entry) -> Iterator[tuple[str, Kind, Entry]]:
        if entry.phase == "on its way":
            yield from self._arrival(state, entry)
        elif entry.phase == "queued":
            yield from self._queued(entry)
        elif entry.phase == "running":
            gone = entry._replace(script=None)
            if entry.known:
                yield "loses the running", _FAULT, entry._replace(known=False)
            yield "kills the running", _FAIR if entry.told_to_end else _FAULT, gone._replace(phase="ended")
            if entry.starts < self.bounds.starts:
                yield "interrupts and requeues", _FAULT, gone._replace(phase="queued")
        elif entry.phase == "ended":
            if entry.known:
                yield "forgets the ended", _FAULT, entry._replace(known=False)
            if entry.starts < self.bounds.starts:
                again = entry._replace(phase="queued", known=True, told_to_end=False)
                yield "requeues the ended", _FAULT, again

    def _arrival(self, state: State, entry: Entry) -> Iterator[tuple[str, Kind, Entry]]:
        awaited = state.memory.doing == "wait for the batch id" and entry.attempt == state.store.attempt
        accepted = entry._replace(phase="queued", known=True)
        yield "accepts" if awaited else "accepts late", _FAIR if awaited else _FAULT, accepted
        yield "refuses", _FAULT, entry._replace(phase="refused")
        lost = {e.batch_id for e in state.entries if not e.known and e.phase in ("queued", "running")}
        for batch_id in sorted(lost) if self.bounds.ids_again else ():
            yield f"gives the lost id {batch_id} to", _FAULT, accepted._replace(batch_id=batch_id)

    def _queued(self, entry: Entry) -> Iterator[tuple[str, Kind, Entry]]:
        if entry.starts < self.bounds.starts:
            started = entry._replace(phase="running", starts=entry.starts + 1, script=Script("take"))
            usual = entry.known and not entry.told_to_end
            yield "starts", _FAIR if usual else _FAULT, started
        if entry.known:
            yield "loses the queued", _FAULT, entry._replace(known=False)
            yield "removes the queued", _FAIR if entry.told_to_end else _FAULT, entry._replace(phase="ended")

    # ------------------------------------------------------------------------- script

    def _script(self, state: State, place: int, entry: Entry) -> Iterator[Step[State]]:
        script = entry.script
        if script is None:
            return
        who = f"script {place + 1}.{entry.starts}"
        if script.doing == "application":
            for code in (0, 1):
                ended = entry._replace(script=Script("give back", exit_code=code), exit_code=code)
                yield Step(f"{who}: APPLICATION ENDS with {code}", _FAIR, _put(state, place, ended))
            if self.bounds.restartable:
                paused = entry._replace(script=Script("pause", exit_code=1), exit_code=1)
                yield Step(f"{who}: APPLICATION ENDS, told to stop", _FAULT, _put(state, place, paused))
            return
        for label, kind, after, then in script_moves(state, entry, script, self.bounds, self.rules):
            violation = None
            changed = entry._replace(script=then)
            if then == GONE:
                changed = entry._replace(script=None, phase="ended")
            elif then.doing == "application":
                violation = self._forbidden_start(state, place)
                changed = changed._replace(ran=True)
            yield Step(f"{who}: {label}", kind, _put(after, place, changed), violation)

    def _forbidden_start(self, state: State, place: int) -> str | None:
        """Name the property that a start of the application by this entry breaks now."""
        entry, store = state.entries[place], state.store
        if state.application_lives():
            return "two executions at once"
        if store.state in TERMINAL:
            return f"a start after {store.state}"
        if entry.attempt < store.attempt or store.state == "PREPROCESSED":
            return "an attempt that was given up starts"
        if any(other.ran for other in state.of_attempt(entry.attempt) if other != entry):
            return "a second submission runs the application"
        if entry.ran and not self.bounds.restartable:
            return "a second start of what may start once"
        if state.token(entry.attempt).startswith("ended"):
            return "a start after the end was recorded"
        return None


def _put(state: State, place: int, entry: Entry) -> State:
    return state._replace(entries=(*state.entries[:place], entry, *state.entries[place + 1 :]))


def _false_report(state: State, said: str) -> str | None:
    """Name the property that the service breaks with what it commits now."""
    if said in ("submit", "cancel"):
        return None
    entries = state.of_attempt(state.store.attempt)
    if state.application_lives():
        return f"'{said}' reported while the application runs"
    if said in ("never started", "given up"):
        return f"'{said}' reported of what ran" if any(entry.ran for entry in entries) else None
    code = state.memory.exit_code
    if code is not None:
        return None if any(entry.exit_code == code for entry in entries) else "a false exit code"
    if said in ("failed", "JOB_FAILED") and state.token(state.store.attempt).startswith("ended"):
        return "a failure reported although an end was recorded"
    return None
