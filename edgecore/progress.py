"""Let other processes see how far a transfer is: one small file in the job's directory, there while it moves.

It is written at most once a second, never for a transfer that takes less, and replaced as a whole. Nobody decides by it:
what a killed service leaves behind is too old after a while, and is written over by the next try.
"""

from __future__ import annotations

import json
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeAlias

from attrs import define, field, frozen

from edgecore import batch, serial
from edgecore.clock import Clock
from edgecore.errors import EdgeError
from edgecore.models import Job, JobState, TransferUpdate
from edgecore.parts import new_file

__all__ = ["MOVING", "Direction", "Progress", "Teller", "progress_of", "sized"]

Direction: TypeAlias = Literal["in", "out"]

MOVING: Final = (JobState.CREATED, JobState.POSTPROCESSED, JobState.EXECUTION_FAILED)
"""States in which a job may be staged in or out."""
_FILE: Final = "progress.json"
_EVERY_S: Final = 1.0
_WINDOW_S: Final = 10.0
"""The rate is that of so many seconds."""
_BEGINNING_US: Final = 3_000_000
_OLD_US: Final = 30_000_000
"""Nobody has written for so long: no transfer is under way."""
_LIMIT_BYTES: Final = 65_536


@frozen(kw_only=True)
class Progress:
    """How far a transfer is, as it was last told."""

    direction: Direction
    """``in`` or ``out``."""
    began: int
    """When this try began, microseconds UTC."""
    told: int
    """When this was so."""
    files: int
    size_bytes: int
    """What is right at the destination, with what a former try had brought."""
    total_bytes: int | None
    """None while it is not known."""
    rate: float | None
    """Bytes a second, lately; None while it is not known."""

    @property
    def fraction(self) -> float | None:
        """How much of it is there, from 0 to 1."""
        return min(1.0, self.size_bytes / self.total_bytes) if self.total_bytes else None

    @property
    def remaining_s(self) -> float | None:
        """How long it takes at this rate; None in the first seconds, which say nothing about the rest."""
        if self.total_bytes is None or self.rate is None or self.rate < 1:
            return None
        if self.told - self.began < _BEGINNING_US:
            return None
        return max(0, self.total_bytes - self.size_bytes) / self.rate


@define(eq=False)
class Teller:
    """Write how far one transfer is."""

    directory: Path
    """The job's own."""
    direction: Direction
    clock: Clock
    _began: int = field(init=False)
    _due: float = field(init=False)
    _seen: deque[tuple[float, int]] = field(init=False, factory=deque)
    _last: TransferUpdate | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._began = self.clock.now()
        self._due = self.clock.monotonic() + _EVERY_S

    def tell(self, update: TransferUpdate) -> None:
        """Take what a driver tells; most of the time this does nothing else."""
        self._last = update
        self.still()

    def still(self) -> None:
        """Note that the transfer lives, whether or not anything moved."""
        now = self.clock.monotonic()
        if self._last is None or (now < self._due and self._seen):
            return
        self._seen.append((now, self._last.size_bytes))
        if now < self._due:
            return
        self._due = now + _EVERY_S
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        with suppress(OSError):  # a full disk is the transfer's trouble, not this file's
            self._write(self._last)

    def close(self) -> None:
        """Take the file away."""
        with suppress(OSError):
            (self.directory / _FILE).unlink(missing_ok=True)

    def _write(self, last: TransferUpdate) -> None:
        now = self.clock.now()
        # After the clock was set back, readers would not believe a beginning that is still to come.
        self._began = min(self._began, now)
        told = Progress(
            direction=self.direction,
            began=self._began,
            told=now,
            files=last.files,
            size_bytes=last.size_bytes,
            total_bytes=last.total_bytes,
            rate=self._rate(),
        )
        new = self.directory / f"{_FILE}.new"
        with new_file(new) as opened:
            opened.write(serial.to_json(told).encode())
        new.replace(self.directory / _FILE)

    def _rate(self) -> float | None:
        (begin_s, begin), (end_s, end) = self._seen[0], self._seen[-1]
        return max(0, end - begin) / (end_s - begin_s) if end_s > begin_s else None


def progress_of(work: Path, job: Job, now: int) -> Progress | None:
    """Return how far the transfer of a job is; None where none is under way, as far as can be seen.

    *now* is the time in microseconds UTC. A job that has nothing to be staged costs no look at the disk.
    """
    definition = job.definition
    direction = "in" if job.state is JobState.CREATED else "out"
    url = definition.input_url if direction == "in" else definition.output_url
    if job.state not in MOVING or url is None:
        return None
    try:
        file = batch.job_directory(work, job.id) / _FILE
        opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            document = json.loads(os.read(opened, _LIMIT_BYTES))
        finally:
            os.close(opened)
        found = serial.structure(Progress, document, source=str(file))
    except (OSError, ValueError, RecursionError, EdgeError):
        return None
    fits = found.direction == direction and 0 <= found.began <= now + _OLD_US
    return found if fits and abs(now - found.told) < _OLD_US else None


def sized(number: float) -> str:
    """Write a number of bytes for people: ``7 bytes``, ``1.2 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
