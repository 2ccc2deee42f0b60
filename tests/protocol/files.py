"""Be the file server: renames that may lose their reply, and looks that may be out of date."""

from __future__ import annotations

from collections.abc import Iterator

from protocol.explorer import Kind
from protocol.state import Bounds, State

__all__ = ["glimpses", "make_ready", "rename"]


def make_ready(state: State, attempt: int) -> State:
    """Make the directory of *attempt* with its token, unless it is there."""
    if len(state.tokens) >= attempt:
        return state
    return state._replace(tokens=(*state.tokens, ("ready",)))


def rename(
    state: State, bounds: Bounds, attempt: int, before: str, after: str
) -> Iterator[tuple[State, bool, Kind]]:
    """Rename the token; give the state afterwards, whether the answer says that it worked, and how likely."""
    if state.token(attempt) != before:
        yield state, False, Kind.FAIR
        return
    names = (*state.tokens[attempt - 1], after) if bounds.stale_directory else (after,)
    moved = state._replace(tokens=(*state.tokens[: attempt - 1], names, *state.tokens[attempt:]))
    yield moved, True, Kind.FAIR
    if bounds.lost_replies:
        yield moved, False, Kind.FAULT


def glimpses(state: State, bounds: Bounds, attempt: int) -> Iterator[tuple[str, Kind]]:
    """Give what a look at the directory may show; "" is an empty directory."""
    names = state.tokens[attempt - 1]
    yield names[-1], Kind.FAIR
    if bounds.stale_directory:
        yield "", Kind.FAULT
        for name in dict.fromkeys(names[:-1]):
            yield name, Kind.FAULT
