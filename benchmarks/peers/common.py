"""Say what a tool is asked to do, and what it answers; for the processes of the tools, which have no edgecore.

Only the standard library is imported here.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

__all__ = ["Asked", "Measured", "answer"]


@dataclass(frozen=True)
class Asked:
    """Some jobs that do nothing, in a partition whose nodes are down or not."""

    jobs: int
    partition: str
    directory: str
    ends: bool
    """Whether they run, and their ends are waited for."""
    poll_s: int


@dataclass(frozen=True)
class Measured:
    """What it took until all had their ids or, where they run, until all were known to have ended."""

    seconds: float
    cpu_s: float
    """User and system time of the tool's own process."""
    commands_s: float
    """The same of the commands that it ran."""


def answer(work: Callable[[Asked], None]) -> None:
    """Do *work* as the first argument of this process asks, and print what it took."""
    asked = Asked(**json.loads(sys.argv[1]))
    before, begun = _used(), time.perf_counter()
    work(asked)
    seconds, after = time.perf_counter() - begun, _used()
    print(json.dumps(asdict(Measured(seconds, after[0] - before[0], after[1] - before[1]))), flush=True)


def _used() -> tuple[float, float]:
    own, commands = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, commands.ru_utime + commands.ru_stime
