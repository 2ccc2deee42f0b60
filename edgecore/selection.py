"""Choose by patterns what of a directory is delivered.

A pattern has parts between slashes, as a path has: ``*``, ``?`` and ``[a-z]`` stand for characters within one part,
``**`` as a part of its own for any number of parts, or none. It must fit the whole path of a file or link; nothing is
special about a name that begins with a dot or a dash. Names are bytes as `os.fsdecode` gives them. A directory goes
with what is chosen in it, and by itself, be it empty, where all below it is chosen (``log/**``).

Matching keeps a set of places in each pattern, so that no pattern takes long over any name.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from attrs import frozen

__all__ = ["EVERYTHING", "Selection", "Spot"]

_ANY: Final = None
_Part: TypeAlias = re.Pattern[str] | None
"""What fits one part of a path; None for any number of parts."""


@functools.lru_cache(maxsize=1024)
def _parts(pattern: str) -> tuple[_Part, ...]:
    return tuple(_ANY if part == "**" else re.compile(fnmatch.translate(part)) for part in pattern.split("/"))


@frozen
class Spot:
    """How far the patterns of a selection have come in one directory."""

    patterns: tuple[tuple[_Part, ...], ...]
    states: tuple[frozenset[int], ...]
    """Of each pattern: how many of its parts are behind us, in every way to see it."""

    def _next(self, name: str) -> Iterable[tuple[tuple[_Part, ...], frozenset[int]]]:
        for pattern, states in zip(self.patterns, self.states, strict=True):
            further = set()
            for state in states:
                if state == len(pattern):
                    continue
                part = pattern[state]
                if part is _ANY:
                    further.add(state)
                elif part.match(name):
                    further.add(state + 1)
            yield pattern, _past_any(pattern, further)

    def takes(self, name: str) -> bool:
        """Tell whether a file or link of that name, in this directory, is chosen."""
        return not self.patterns or any(len(pattern) in states for pattern, states in self._next(name))

    def below(self, name: str) -> Spot | None:
        """Return the spot of a directory in this one; None where nothing in it can be chosen."""
        if not self.patterns:
            return self
        states = tuple(states for _, states in self._next(name))
        spot = Spot(self.patterns, states)
        return spot if any(spot._open(number) for number in range(len(states))) else None

    def _open(self, number: int) -> bool:
        return any(state < len(self.patterns[number]) for state in self.states[number])

    @property
    def whole(self) -> bool:
        """Whether all that may be in this directory is chosen, and so the directory itself."""
        return not self.patterns or any(
            pattern[-1] is _ANY and len(pattern) in states
            for pattern, states in zip(self.patterns, self.states, strict=True)
        )


@frozen
class Selection:
    """Say which files are chosen: those that fit any of the patterns; all of them where there is none."""

    patterns: tuple[str, ...] = ()

    @property
    def root(self) -> Spot:
        """The spot of the directory itself."""
        patterns = tuple(map(_parts, self.patterns))
        return Spot(patterns, tuple(_past_any(pattern, {0}) for pattern in patterns))

    def takes(self, path: Iterable[str]) -> bool:
        """Tell whether a file or link is chosen; *path* are the names on the way to it, its own at the end."""
        *above, name = path
        spot = self.within(above)
        return spot is not None and spot.takes(name)

    def within(self, parts: Iterable[str]) -> Spot | None:
        """Return the spot of a directory, named by the names on the way to it; None where nothing in it can be chosen."""
        spot: Spot | None = self.root
        for each in parts:
            spot = spot.below(each) if spot is not None else None
        return spot


EVERYTHING: Final = Selection()
"""Leaves nothing out."""


def _past_any(pattern: tuple[_Part, ...], states: set[int]) -> frozenset[int]:
    """Add the places that are reached by taking ``**`` for no part at all."""
    found = set()
    for state in states:
        found.add(state)
        while state < len(pattern) and pattern[state] is _ANY:
            state += 1
            found.add(state)
    return frozenset(found)
