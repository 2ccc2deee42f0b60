"""Say what all parts of the scheduling contract share: what a subclass declares, and what tests are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from edgecore.testing.batch_system import BatchSystem, Ending
from edgecore.testing.bench import Bench

__all__ = ["FAULTS", "MakeBench", "SchedulingTests", "not_shown"]

MakeBench = Callable[..., Bench]
"""Makes a site on the batch system of the test; arguments are keys of ``[timing]``."""

FAULTS: Final[Mapping[int, str]] = {
    1: "missing from a listing",
    2: "query fails",
    3: "query hangs",
    4: "accounting lags or is off",
    5: "unknown state word",
    6: "decorated state word",
    7: "damaged output",
    8: "batch id re-used",
    9: "id printed, exit not zero",
    10: "submit dies after acceptance",
    11: "service killed",
    12: "requeue",
    13: "ended or held by others",
    14: "ended and purged while away",
    15: "gone without a word",
    16: "refused for load",
    17: "ended job shows up again",
    18: "acknowledged, then lost",
    19: "can never run",
}
"""The fault matrix: number -> its name in the table of coverage."""


def not_shown(cls: type, fault: int, variant: str | None = None) -> str:
    """Return why *cls* says that it cannot show a fault, or one variant of it; empty where it can."""
    cannot = getattr(cls, "cannot", {})
    reason = cannot.get(fault) or (cannot.get((fault, variant)) if variant is not None else None)
    return str(reason or "")


class SchedulingTests:
    """Hold what the author of a driver declares; see `edgecore.testing.SchedulingContract`."""

    driver: ClassVar[str]
    """The driver's name in ``[scheduling]``."""
    live: ClassVar[bool] = False
    """Whether the batch system of these tests is a real one."""
    by_hand: ClassVar[frozenset[str]] = frozenset()
    """Tests to mark as ``long``, where another class has shown the same or they take minutes."""
    cannot: ClassVar[Mapping[int | tuple[int, str], str]] = {}
    """Fault, or fault and variant -> why this batch system cannot show it. Those tests are skipped."""
    words: ClassVar[Mapping[Ending, str]] = {
        Ending.CANCELLED: "cancel",
        Ending.NODE_FAILURE: "node",
        Ending.OUT_OF_MEMORY: "memory",
        Ending.TIME_LIMIT: "time",
    }
    """Ending -> a part of the reason that the batch system gives, in lower case, ``_`` as a space."""
    accepted: ClassVar[Mapping[str, Any]] = {}
    """What a group may ask for here, such as ``{"queue": "batch", "options": {"constraint": "knl"}}``; also
    ``{"num_nodes": 1}`` where there are no two."""
    longest_s: ClassVar[float] = 15.0
    """Seconds in which every hook comes back, also when the batch system's commands do not."""
    most_commands: ClassVar[int] = 4
    """How many commands one look at hundreds of jobs may take."""

    @pytest.fixture
    def batch_system(self) -> Iterator[BatchSystem]:
        """Yield a fresh batch system, and leave nothing of it behind."""
        raise NotImplementedError("a contract class has a fixture `batch_system`; see SchedulingContract")

    @pytest.fixture(autouse=True)
    def _skip_what_cannot_be_shown(self, request: pytest.FixtureRequest) -> None:
        for mark in request.node.iter_markers("fault"):
            if reason := not_shown(type(self), *mark.args):
                pytest.skip(f"fault {mark.args[0]}: {reason}")

    @pytest.fixture
    def make_bench(self, tmp_path: Path, batch_system: BatchSystem) -> MakeBench:
        """Make a site on the batch system; arguments are keys of ``[timing]``."""

        def make(**timing: float) -> Bench:
            return Bench.make(tmp_path / "site", self.driver, batch_system, timing)

        return make
