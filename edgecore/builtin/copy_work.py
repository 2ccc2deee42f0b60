"""Copy a planned tree file by file, in threads that one thread watches (`edgecore.carrying`).

The copying threads take batches of files: the disk gets to work on every file of a batch before the first
sync waits, and the files get their final names together.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from attrs import Factory, define, field, frozen

from edgecore.builtin.copy_file import Hand
from edgecore.carrying import Patience, Tally, carry, share
from edgecore.errors import TransferInterrupted
from edgecore.models import TransferProgress, TransferReport
from edgecore.parts import READ_FILE, Destination, give_name, open_part
from edgecore.trees import Directory, File, Parts, Plan, enter, explained, part_name, shown

__all__ = ["Copier", "Limits"]

_BATCH_FILES: Final = 64
_BATCH_BYTES: Final = 64 * 1024 * 1024
_CHANGED: Final = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO})
_GONE: Final = frozenset({errno.ENOENT})


@frozen(kw_only=True)
class Limits:
    """How a copy is made."""

    compare: bool
    no_progress_s: float
    streams: int


@define
class _Batch:
    """Some files of one directory, and those of them that wait for their final names."""

    source: int
    hand: Hand
    parts: Parts
    waiting: list[tuple[File, int]] = Factory(list)


@define
class Copier:
    """Copy from one directory, given as descriptor, to another; the names are for messages."""

    source: int
    target: int
    source_name: str
    target_name: str
    limits: Limits
    tally: Tally = Factory(Tally)
    there: Destination = field(init=False)

    def run(self, plan: Callable[[Copier], Plan], progress: TransferProgress) -> TransferReport:
        """Plan and copy; raise what `Transfer.fetch` says, and whatever *progress* raises."""
        # The copying threads own their descriptors: they may outlive this call when a read hangs.
        self.source, self.target = os.dup(self.source), os.dup(self.target)
        self.there = Destination(self.target, self.target_name, self.tally)

        def work() -> None:
            try:
                self._copy(plan(self))
            finally:
                os.close(self.source)
                os.close(self.target)

        between = f"from {self.source_name} to {self.target_name}"
        patience = Patience(self.limits.no_progress_s, between, "is a file system hanging?")
        carry(work, self.tally, progress, patience)
        return self.tally.report("bytes" if self.limits.compare else "size")

    # ------------------------------------------------------------------------- the whole

    def _copy(self, plan: Plan) -> None:
        self.tally.total_bytes = plan.size_bytes
        there = self.there
        for directory in plan.directories[1:]:
            there.make(directory)
        share(lambda batch: self._copy_batch(*batch), _batches(plan), self.tally, threads=self.limits.streams)
        there.finish(plan)

    def _here(self, parts: Iterable[str]) -> str:
        return "/".join((self.source_name, *map(shown, parts)))

    # ------------------------------------------------------------------------------ files

    def _copy_batch(self, directory: Directory, files: list[File]) -> None:
        parts = directory.parts
        with self.there.into(parts) as target:
            with explained(f"read {self._here(parts)}", transient=_CHANGED):
                source = enter(self.source, parts)
            batch = _Batch(source, Hand(target, self.limits.compare, self.tally.beat), parts)
            try:
                for file in files:
                    self._copy_file(batch, file)
                self._publish(batch)
            finally:
                for _, opened in batch.waiting:
                    os.close(opened)
                os.close(source)

    def _copy_file(self, batch: _Batch, file: File) -> None:
        here, there = self._here((*batch.parts, file.source)), self.there.name_of((*batch.parts, file.name))
        self.tally.current = shown("/".join((*batch.parts, file.name)))
        with explained(f"read {here}", transient=_CHANGED):
            source = os.open(file.source, READ_FILE, dir_fd=batch.source)
        try:
            before = os.fstat(source)
            if not stat.S_ISREG(before.st_mode):
                raise TransferInterrupted(f"{here} was a file when the copy began, and is none now")
            with explained(f"copy to {there}", transient=_CHANGED):
                if batch.hand.is_right(source, before, file.name, there):
                    self.tally.beat(before.st_size)
                    self.tally.arrived(skipped=True)
                    return
                part = open_part(part_name(file.name), batch.hand.holder, there)
                batch.waiting.append((file, part))
                batch.hand.fill(source, part, before, there)
            if _identity(before) != _identity(os.fstat(source)):
                raise TransferInterrupted(f"{here} changed while it was copied; try when it is complete")
        finally:
            os.close(source)

    def _publish(self, batch: _Batch) -> None:
        """Sync what was written, then give each file its final name."""
        for file, part in batch.waiting:
            with explained(f"sync {self.there.name_of((*batch.parts, file.name))}"):
                os.fsync(part)
            self.tally.beat()
        for file, part in batch.waiting:
            there = self.there.name_of((*batch.parts, file.name))
            with explained(f"rename to {there}", transient=_GONE):
                give_name(part, file.name, batch.hand.holder, there)
            self.tally.arrived(skipped=False)


# ---------------------------------------------------------------------------------- helpers


def _batches(plan: Plan) -> Iterator[tuple[Directory, list[File]]]:
    """Cut the files of each directory into batches of bounded number and size."""
    for directory in plan.directories:
        batch, size = list[File](), 0
        for file in directory.files:
            batch.append(file)
            size += file.size_bytes
            if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
                yield directory, batch
                batch, size = [], 0
        if batch:
            yield directory, batch


def _identity(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns
