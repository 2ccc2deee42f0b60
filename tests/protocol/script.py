"""Take the steps of the batch script, one rename or one look at a time, as `edgecore.batch` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from protocol.explorer import Kind
from protocol.files import glimpses, rename
from protocol.state import Bounds, Entry, Rules, Script, State

__all__ = ["GONE", "Move", "script_moves"]

GONE = Script("gone")


class Move(NamedTuple):
    """What one step makes of the script and the file server."""

    label: str
    kind: Kind
    state: State
    script: Script


def script_moves(state: State, entry: Entry, script: Script, bounds: Bounds, rules: Rules) -> Iterator[Move]:
    """Return what the script of *entry* can do next, except running its application to the end."""
    mine = entry.mine
    if script.doing in ("take", "take over"):
        wanted = script.token or "ready"
        for after, done, kind in rename(state, bounds, entry.attempt, wanted, mine):
            said = "done" if done else "no such file"
            yield Move(f"mv {wanted} {mine}: {said}", kind, after, Script("start" if done else "look"))
    elif script.doing == "look":
        for seen, kind in glimpses(state, bounds, entry.attempt):
            yield Move(f"sees {seen or 'nothing'}", kind, state, _after_look(seen, entry, bounds, rules))
        if state.token(entry.attempt) == "ready" or bounds.stale_directory:
            yield Move("found no token that it could take, ten times", Kind.FAULT, state, GONE)
    elif script.doing == "start":
        yield Move("STARTS THE APPLICATION", Kind.FAIR, state, Script("application"))
    elif script.doing in ("give back", "pause"):
        yield from _give_back(state, entry, script, bounds)


def _after_look(seen: str, entry: Entry, bounds: Bounds, rules: Rules) -> Script:
    if seen == entry.mine:
        return Script("start")
    if seen in ("", "ready"):
        return Script("take")
    word, _, rest = seen.partition(".")
    if word == "ended" and not rules.heeds_ends:
        return Script("take over", seen)
    if word not in ("running", "paused"):
        return GONE
    if rules.heeds_batch_id and rest.partition(".")[0] != str(entry.batch_id):
        return GONE
    if not rules.restarts_by_rename:
        return Script("start")
    return Script("take over", seen) if bounds.restartable else GONE


def _give_back(state: State, entry: Entry, script: Script, bounds: Bounds) -> Iterator[Move]:
    mine, ended = entry.mine, f"ended.{script.exit_code}"
    if script.doing == "pause":
        ended = f"{mine.replace('running', 'paused')}.{script.exit_code}"
    for seen, kind in glimpses(state, bounds, entry.attempt):
        if seen not in (mine, ended):
            yield Move(f"sees {seen or 'nothing'}, leaves a note", kind, state, GONE)
        elif seen == mine:
            for after, done, likely in rename(state, bounds, entry.attempt, mine, ended):
                # Without a reply it looks again, finds what it wanted, and goes.
                left = GONE if done or after.token(entry.attempt) != mine else script
                yield Move(f"mv {mine} {ended}", max(kind, likely), after, left)
        else:
            yield Move(f"sees {ended}", kind, state, GONE)
