"""Visit every state that a model can reach, breadth first, and report what goes wrong there.

Breadth first means that the trace of a violation is a shortest one. A step that breaks a property
is recorded and not followed. Liveness is a question to the finished graph: from which states can no
sequence of fair steps reach an end? That equals "it ends, under strong fairness, once faults pause".
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable
from enum import IntEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

from attrs import field, frozen

__all__ = ["Exploration", "Kind", "Model", "Step", "explore"]


class Kind(IntEnum):
    """Who takes a step, as far as liveness asks."""

    FAIR = 0
    """Happens in the end when it stays possible."""
    FAULT = 1
    """A fault, a delay or a user's wish: may happen, need not."""
    OPERATOR = 2
    """A person decides."""


S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One thing that can happen next."""

    label: str
    kind: Kind
    state: S
    violation: str | None = None
    """The property that this step breaks."""


class Model(Protocol[S]):
    """What can be explored."""

    def start(self) -> S:
        """Return the first state."""
        ...

    def steps(self, state: S) -> Iterable[Step[S]]:
        """Return everything that can happen next."""
        ...

    def is_over(self, state: S) -> bool:
        """Tell whether the job has ended."""
        ...


@frozen
class Exploration(Generic[S]):
    """What a finished exploration found."""

    states: int
    steps: int
    violations: dict[str, list[str]]
    """Property -> the labels of a shortest way to break it."""
    needs_operator: list[S]
    """From here fair steps cannot reach an end, and with an operator's help they can."""
    stuck: list[S]
    """From here nothing but a fault can reach an end."""


@frozen
class _Graph(Generic[S]):
    """Keep the visited states and the steps between them that are not faults."""

    index: dict[S, int] = field(factory=dict)
    states: list[S] = field(factory=list)
    parents: list[tuple[int, str]] = field(factory=list)
    """Number of the state that led here first, and the label of the step."""
    sources: array[int] = field(factory=lambda: array("I"))
    targets: array[int] = field(factory=lambda: array("I"))
    kinds: bytearray = field(factory=bytearray)

    def number(self, state: S, source: int, label: str) -> int:
        """Return the number of *state*; a new one is remembered as reached from *source*."""
        known = self.index.setdefault(state, len(self.states))
        if known == len(self.states):
            self.states.append(state)
            self.parents.append((source, label))
        return known

    def connect(self, source: int, target: int, kind: Kind) -> None:
        """Remember a step for the question of liveness."""
        self.sources.append(source)
        self.targets.append(target)
        self.kinds.append(kind)

    def way_to(self, number: int) -> list[str]:
        """Return the labels of a shortest way from the start."""
        labels = []
        while number > 0:
            number, label = self.parents[number]
            labels.append(label)
        return labels[::-1]

    def able_to_reach(self, goal: Callable[[S], bool], allowed: set[Kind]) -> bytearray:
        """Mark the states from which steps of the *allowed* kinds can reach *goal*."""
        before: list[list[int]] = [[] for _ in self.states]
        for source, target, kind in zip(self.sources, self.targets, self.kinds, strict=True):
            if kind in allowed:
                before[target].append(source)
        marked = bytearray(map(goal, self.states))
        waiting = [number for number, mark in enumerate(marked) if mark]
        while waiting:
            for source in before[waiting.pop()]:
                if not marked[source]:
                    marked[source] = 1
                    waiting.append(source)
        return marked


def explore(model: Model[S], *, until: str | None = None, limit: int = 3_000_000) -> Exploration[S]:
    """Visit all reachable states, or stop at the first breach of the property *until*.

    Raises OverflowError when there are more than *limit* states. Liveness is judged as far as visited.
    """
    graph: _Graph[S] = _Graph()
    graph.number(model.start(), 0, "")
    violations: dict[str, list[str]] = {}
    steps = 0
    for number, state in enumerate(graph.states):  # the list grows while we walk it
        for label, kind, after, violation in model.steps(state):
            steps += 1
            if violation is not None:
                violations.setdefault(violation, [*graph.way_to(number), label])
                continue
            target = graph.number(after, number, label)
            if kind is not Kind.FAULT and target != number:
                graph.connect(number, target, kind)
        if until in violations:
            break
        if len(graph.states) > limit:
            raise OverflowError(f"more than {limit} states; choose smaller bounds")
    alone = graph.able_to_reach(model.is_over, {Kind.FAIR})
    helped = graph.able_to_reach(model.is_over, {Kind.FAIR, Kind.OPERATOR})
    return Exploration(
        states=len(graph.states),
        steps=steps,
        violations=violations,
        needs_operator=[s for s, a, h in zip(graph.states, alone, helped, strict=True) if h and not a],
        stuck=[s for s, h in zip(graph.states, helped, strict=True) if not h],
    )
