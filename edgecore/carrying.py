"""Carry files in threads that the calling thread watches; for drivers that move files.

The calling thread only watches: it tells *progress* how far the transfer is, stops it when *progress*
raises, and gives up when nothing moves, even if the system never returns from a read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from attrs import define, field, frozen

from edgecore.errors import TransferInterrupted
from edgecore.models import TransferProgress, TransferReport, TransferUpdate

__all__ = ["Halted", "Patience", "Tally", "carry", "share"]

T = TypeVar("T")

_BEAT_S: Final = 0.5
_ENDING_S: Final = 30.0
"""How long a stopped transfer is waited for; one that hangs in the system ends when that lets it go."""


class Halted(Exception):  # not an EdgeError: it never leaves `carry`
    """Ends a working thread whose work is no longer wanted."""


@define
class Tally:
    """How far a transfer is; every thread writes here, and learns here that it must end."""

    files: int = 0
    skipped_files: int = 0
    size_bytes: int = 0
    total_bytes: int | None = None
    current: str = ""
    beats: int = 0
    checksums: dict[str, str] = field(factory=dict)
    """As in `TransferReport`."""
    halted: bool = False
    _lock: threading.Lock = field(factory=threading.Lock)

    def beat(self, moved_bytes: int = 0) -> None:
        """Note that the transfer lives and that *moved_bytes* more are right at the destination."""
        with self._lock:
            self.beats += 1
            self.size_bytes += moved_bytes
        self.check()

    def check(self) -> None:
        """Raise Halted when the work is no longer wanted; nothing has moved."""
        if self.halted:
            raise Halted

    def arrived(self, *, skipped: bool) -> None:
        """Note that one more file, or link, stands under its final name."""
        with self._lock:
            self.files += 1
            self.skipped_files += skipped
        self.beat()

    def update(self) -> TransferUpdate:
        """Say how far the transfer is."""
        return TransferUpdate(
            files=self.files, size_bytes=self.size_bytes, total_bytes=self.total_bytes, current=self.current
        )

    def report(self, verified: str) -> TransferReport:
        """Say what was carried, and how its content was compared."""
        return TransferReport(
            files=self.files,
            size_bytes=self.size_bytes,
            skipped_files=self.skipped_files,
            verified=verified,
            checksums=self.checksums,
        )


@frozen
class Patience:
    """When to give up a transfer, and what to say then."""

    no_progress_s: float
    between: str
    """From where to where nothing moved."""
    hint: str
    """What to look for."""


def carry(
    work: Callable[[], None],
    tally: Tally,
    progress: TransferProgress,
    limit: Patience,
) -> None:
    """Do *work* in a thread and watch it to its end; raise what it raises, and whatever *progress* raises."""
    ended, errors = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # handed to the calling thread, which raises it
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="carry", daemon=True).start()
    try:
        _watch(ended, tally, progress, limit)
    except BaseException:
        tally.halted = True
        ended.wait(_ENDING_S)
        raise
    if errors:
        raise errors[0]
    progress(tally.update())


def _watch(ended: threading.Event, tally: Tally, progress: TransferProgress, limit: Patience) -> None:
    beats, moved = -1, time.monotonic()
    while True:
        progress(tally.update())
        if ended.wait(min(_BEAT_S, limit.no_progress_s)):
            return
        if beats != tally.beats:
            beats, moved = tally.beats, time.monotonic()
        elif time.monotonic() - moved >= limit.no_progress_s:
            raise TransferInterrupted(
                f"nothing moved {limit.between} for {limit.no_progress_s:g} s (last: {tally.current}); {limit.hint}"
            )


def share(do: Callable[[T], None], pieces: Iterator[T], tally: Tally, *, threads: int) -> None:
    """Do every piece in one of several threads; raise the first error when all have ended."""
    lock, errors = threading.Lock(), list[BaseException]()

    def drain() -> None:
        try:
            while True:
                with lock:
                    piece = next(pieces, None)
                if piece is None:
                    return
                do(piece)
        except BaseException as error:
            errors.append(error)
            tally.halted = True

    others = [threading.Thread(target=drain, name="carry", daemon=True) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    drain()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
