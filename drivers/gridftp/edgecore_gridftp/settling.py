"""Settle files while the client goes on with others: compare them, and give them their final names.

The client carries the files of a batch one after the other. Once it has begun a later one, the earlier ones are as they will
stay. So what is left to do after the last of a thousand files is the work for a few of them, and not for all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from edgecore.carrying import Halted, Tally
from edgecore_gridftp.work import Piece

__all__ = ["Batch", "carry_and_settle"]

_GROUP_FILES: Final = 100
_TICK_S: Final = 0.05


class Batch(Protocol):
    """Files that one process of the client carries."""

    @property
    def pieces(self) -> Sequence[Piece]:
        """All files: those that the client does not carry first, the others in its order."""

    def carry(self, check: Callable[[], None]) -> None:
        """Let the client carry them; *check*, called twice a second, ends it early."""

    def meanwhile(self) -> None:
        """Do what can be done at any time while the client goes on."""

    def digest(self, pieces: Sequence[Piece], check: Callable[[], None]) -> None:
        """Compute the source's checksums, where they are compared; *check* ends it early."""

    def has_begun(self, pieces: Sequence[Piece]) -> bool:
        """Tell whether the client certainly has begun one of these, and so left all before them behind."""

    def settle(self, pieces: Sequence[Piece]) -> None:
        """Compare what arrived, and publish what is right."""


def carry_and_settle(batch: Batch, tally: Tally) -> None:
    """Carry a batch, and settle its files in a thread beside; raise what either raises."""
    errors, ended, unwanted = list[BaseException](), threading.Event(), threading.Event()

    def check_carrying() -> None:
        if errors:
            raise Halted
        tally.check()

    def check_settling() -> None:
        if unwanted.is_set():
            raise Halted
        tally.check()

    def work() -> None:
        try:
            _settle(batch, check_settling, ended)
        except BaseException as error:  # raised below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work, name="gridftp settling", daemon=True)
    thread.start()
    try:
        batch.carry(check_carrying)
        ended.set()
    except Halted:
        if not errors:
            raise
    finally:
        if not ended.is_set():
            unwanted.set()
        thread.join()
    if errors:
        raise errors[0]


def _settle(batch: Batch, check: Callable[[], None], ended: threading.Event) -> None:
    pieces = batch.pieces
    for start in range(0, len(pieces), _GROUP_FILES):
        middle = start + _GROUP_FILES
        group, later = pieces[start:middle], pieces[middle : middle + _GROUP_FILES]
        batch.digest(group, check)
        while not ended.is_set() and not (later and batch.has_begun(later)):
            check()
            batch.meanwhile()
            ended.wait(_TICK_S)
        check()
        batch.settle(group)
