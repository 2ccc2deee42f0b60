"""Read what Slurm's own servers wrote: which jobs they took, which they lost, which they were asked to end.

slurmctld saves its state every few seconds only. Killed, it forgets what it acknowledged since, says so when it starts
again, has the nodes kill what it does not know, and gives the same numbers out again. A node that still runs the job
which had a number, or has just killed it, refuses the one that has it now, and Slurm ends that.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from attrs import Factory, define, frozen

__all__ = ["ClusterLog", "Death", "read_cluster_log"]

_LINE: Final = re.compile(r"\[(?P<time>[^\]]+)\] (?:error: )?(?P<text>.*)")
_NUMBER: Final = r"(?:(?P<member>\d+_\d+)\()?(?P<number>\d+)"
_CLOCKS_S: Final = 1.0
"""How much earlier than a job says it began a log may tell of it."""
_AT_ONCE_S: Final = 20.0
"""How long after it refused a job a node has Slurm cancel it."""


@frozen
class Death:
    """The words by which a server told that it would not, or not any more, run a job."""

    time: float
    words: str
    birth: float | None
    """When that job had been given its number; None for a member of an array, which got it later."""


@define
class ClusterLog:
    """What they wrote, by Slurm's number of a job; times in seconds since the epoch."""

    starts: list[float] = Factory(list)
    """When slurmctld started."""
    births: dict[str, list[float]] = Factory(lambda: defaultdict(list))
    """When a number was given out; more than once where the job was forgotten."""
    deaths: dict[str, list[Death]] = Factory(lambda: defaultdict(list))
    kills: list[tuple[float, str]] = Factory(list)
    """When somebody else than Slurm itself asked to end which job, by its batch id."""
    members: dict[str, str] = Factory(dict)
    """Batch id of a member of an array -> the number that it got when it began."""

    def loss(self, *numbers: str, since: float) -> str:
        """Return the words by which Slurm lost the job that had these numbers then; empty where it did not."""
        for number in numbers:
            for death in self.deaths.get(number, ()):
                if death.time >= since - _CLOCKS_S and death.birth == self.born(number, since):
                    return f"{_clock(death.time)} {death.words}"
        again = [(time, number) for number in numbers for time in self.births.get(number, ()) if time > since]
        return f"{_clock(min(again)[0])} gave its number {min(again)[1]} to another job" if again else ""

    def born(self, number: str, before: float) -> float | None:
        """Return when the job began its life that had this number at a time."""
        births = self.births.get(number, ())
        place = bisect_right(births, before)
        return births[place - 1] if place else None

    def numbers(self, batch_id: str) -> Sequence[str]:
        """Return under which numbers the logs tell of a job: an array's, and its member's own."""
        own = self.members.get(batch_id)
        return [batch_id.partition("_")[0], *([own] if own else ())]

    def reissued(self) -> Sequence[str]:
        """Return the numbers that were given out more than once."""
        return [number for number, births in self.births.items() if len(births) > 1]


def read_cluster_log(directory: Path) -> ClusterLog:
    """Read the logs of all servers that one cluster has had."""
    log = ClusterLog()
    reading = _Reading(log)
    for time, text in _lines(directory / "slurmctld"):
        reading.controller(time, text)
    for path in sorted(directory.glob("n[0-9]*")):
        for time, text in _lines(path):
            reading.node(path.name, time, text)
    return log


def _lines(path: Path) -> Iterator[tuple[float, str]]:
    for line in path.read_text(errors="replace").splitlines():
        if found := _LINE.fullmatch(line):
            yield datetime.fromisoformat(found["time"]).timestamp(), found["text"]


@define(eq=False)
class _Reading:
    """What the lines so far have told."""

    log: ClusterLog
    begun: dict[str, float | None] = Factory(dict)
    """Number -> the birth of the job that began last under it."""

    def controller(self, time: float, text: str) -> None:
        for pattern, take in _CONTROLLER.items():
            if found := re.search(pattern, text):
                take(self, time, text, found)
                return

    def node(self, name: str, time: float, text: str) -> None:
        found = re.match(r"Could not launch job (\d+) and not able to requeue it, cancelling job", text)
        if found is None:
            return
        number = found[1]
        death = Death(time, f"{name}: {text}", self.log.born(number, time))
        self.log.deaths[number].append(death)
        self.log.kills[:] = [
            kill
            for kill in self.log.kills
            if kill[1] != number or not time - _CLOCKS_S <= kill[0] <= time + _AT_ONCE_S
        ]

    def started(self, time: float, text: str, found: re.Match[str]) -> None:
        self.log.starts.append(time)

    def submitted(self, time: float, text: str, found: re.Match[str]) -> None:
        self.log.births[found["number"]].append(time)

    def asked_to_end(self, time: float, text: str, found: re.Match[str]) -> None:
        self.log.kills.append((time, found["batch_id"]))

    def began(self, time: float, text: str, found: re.Match[str]) -> None:
        if found["member"]:
            self.log.members[found["member"]] = found["number"]
        self.begun[found["number"]] = self.log.born(found["number"], time)

    def forgotten(self, time: float, text: str, found: re.Match[str]) -> None:
        """Take note of what it knows nothing of when it starts, what it only believes to run, what could not begin."""
        number = found["number"]
        self.log.deaths[number].append(Death(time, text, self.log.born(number, time)))

    def orphaned(self, time: float, text: str, found: re.Match[str]) -> None:
        """Take note of what a node runs, has begun, and has to kill; its number may be another job's by now."""
        number = found["number"]
        self.log.deaths[number].append(Death(time, text, self.begun.get(number)))


_CONTROLLER: Final[Mapping[str, Callable[[_Reading, float, str, re.Match[str]], None]]] = {
    r"^slurmctld version \S+ started": _Reading.started,
    r"^_slurm_rpc_submit_batch_job: JobId=(?P<number>\d+)": _Reading.submitted,
    r"REQUEST_KILL_JOB JobId=(?P<batch_id>\d+(?:_\d+)?)": _Reading.asked_to_end,
    rf"(?:Allocate|Started) JobId={_NUMBER}": _Reading.began,
    r"^Purged files for defunct batch JobId=(?P<number>\d+)": _Reading.forgotten,
    rf"^Killing non-startable batch JobId={_NUMBER}": _Reading.forgotten,
    rf"^Batch JobId={_NUMBER}\)? missing from batch node": _Reading.forgotten,
    r"^Orphan StepId=(?P<number>\d+)\.batch reported": _Reading.orphaned,
    r"^Registered PENDING JobId=\S+ StepId=(?P<number>\d+)\.batch on node": _Reading.orphaned,
}


def _clock(time: float) -> str:
    return datetime.fromtimestamp(time).strftime("%H:%M:%S.%f")[:-3]
