"""Bring a tree from a server that is not trusted into a local directory: list, have it written, compare, rename.

Files go in batches. The client writes into temporary files that we hold open, and is stopped when one grows beyond
what the listing announced. The server computes checksums of what it holds meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence

from attrs import define, field

from edgecore.carrying import share
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.parts import READ_FILE, Destination, is_only_ours, open_part
from edgecore.trees import explained, part_name
from edgecore_gridftp.client import Load, local_url
from edgecore_gridftp.listing import RemoteFile
from edgecore_gridftp.sources import RemoteFiles, RemoteSource
from edgecore_gridftp.work import Piece, Trip, local_digest, together

__all__ = ["Fetching"]

_NS = 1_000_000_000


@define
class _Part:
    """A file that is being written here, under its temporary name."""

    piece: Piece
    file: RemoteFile
    opened: int


@define
class Fetching:
    """Bring what a server holds into one directory, given as descriptor."""

    source: RemoteSource
    target: int
    target_name: str
    trip: Trip
    there: Destination = field(init=False)
    files: RemoteFiles = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Write through one place that follows no link."""
        self.there = Destination(self.target, self.target_name, self.trip.tally)
        self.files = RemoteFiles(self.source)

    def run(self) -> None:
        """Do it all."""
        plan = self.source.plan()
        self.trip.tally.total_bytes = plan.size_bytes
        for directory in plan.directories[1:]:
            self.there.make(directory)
        share(self._carry_batch, self.trip.pieces(plan), self.trip.tally, threads=self.trip.ways.streams)
        self.there.finish(plan)

    # ------------------------------------------------------------------------------- files

    def _carry_batch(self, pieces: list[Piece]) -> None:
        todo = self._skip_right(pieces)
        parts: list[_Part] = []
        try:
            for piece in todo:
                parts.append(self._open_part(piece))
            for _ in range(2):
                if not parts:
                    return
                self._fill(parts)
                wrong = self._wrong(parts)
                self._publish([part for part in parts if part not in wrong])
                for part in wrong:
                    part.piece.start = 0
                    os.ftruncate(part.opened, 0)
                for part in parts:
                    if part not in wrong:
                        os.close(part.opened)
                parts = wrong
            for part in parts:
                raise TransferInterrupted(
                    f"{self._here(part.piece)} does not hold what its source holds; does the source change, or the disk fail?"
                )
        finally:
            for part in parts:
                os.close(part.opened)

    def _here(self, piece: Piece) -> str:
        return self.there.name_of((*piece.parts, piece.file.name))

    def _skip_right(self, pieces: list[Piece]) -> list[Piece]:
        """Return the files that are not yet right here; correct mode and time of the others."""
        same = [piece for piece in pieces if self._has_size(piece)]
        if same and self.trip.algorithm:
            self.files.digest(same, self.trip.algorithm, self.trip.tally.check)
        right = {piece for piece in same if self._is_right(piece)}
        for piece in right:
            self.trip.arrived(piece, skipped=True)
        return [piece for piece in pieces if piece not in right]

    def _has_size(self, piece: Piece) -> bool:
        """Tell whether a file of the right size stands under its final name."""
        with self.there.into(piece.parts) as holder, explained(f"look at {self._here(piece)}"):
            try:
                found = os.stat(piece.file.name, dir_fd=holder, follow_symlinks=False)
            except FileNotFoundError:
                return False
        if stat.S_ISDIR(found.st_mode):
            raise TransferRefused(
                f"{self._here(piece)} is a directory, and a file must go there; remove it or rename it"
            )
        return stat.S_ISREG(found.st_mode) and found.st_size == piece.file.size_bytes

    def _is_right(self, piece: Piece) -> bool:
        """Tell whether a file of the right size is right, correcting mode and time."""
        file = piece.file
        assert isinstance(file, RemoteFile)
        with self.there.into(piece.parts) as holder, explained(f"look at {self._here(piece)}"):
            opened = os.open(file.name, READ_FILE, dir_fd=holder)
            try:
                found = os.fstat(opened)
                if self.trip.algorithm:
                    if local_digest(opened, self.trip.algorithm, self.trip.tally.beat) != piece.digest:
                        return False
                elif int(found.st_mtime) != file.changed_s:
                    return False
                if (stat.S_IMODE(found.st_mode), int(found.st_mtime)) != (file.mode, file.changed_s):
                    if not is_only_ours(found):
                        return False
                    _describe(opened, file)
            finally:
                os.close(opened)
        return True

    def _open_part(self, piece: Piece) -> _Part:
        file = piece.file
        assert isinstance(file, RemoteFile)
        with self.there.into(piece.parts) as holder, explained(f"write {self._here(piece)}"):
            opened = open_part(part_name(file.name), holder, self._here(piece))
            held = os.fstat(opened).st_size
            piece.start = self.trip.start(piece, held)
            if piece.start != held:
                os.ftruncate(opened, piece.start)
        return _Part(piece, file, opened)

    def _fill(self, parts: list[_Part]) -> None:
        """Have what is missing of every file written into its temporary file."""
        self.trip.tally.current = parts[0].piece.shown
        todo = [part for part in parts if not part.piece.whole]

        def watch() -> None:
            for part in todo:
                size = os.fstat(part.opened).st_size
                if size > part.file.size_bytes:
                    raise TransferInterrupted(
                        f"{part.piece.shown} has more than the {part.file.size_bytes} bytes that were announced; does it change?"
                    )
                self.trip.moved(part.piece, size)

        def carry() -> None:
            if todo:
                self.trip.client.carry(self._load(todo), self.trip.tally, watch)
                watch()

        def digest(check: Callable[[], None]) -> None:
            if self.trip.algorithm:
                self.files.digest([part.piece for part in parts], self.trip.algorithm, check)

        together(digest, carry, self.trip.tally)

    def _load(self, parts: Sequence[_Part]) -> Load:
        first = parts[0].piece
        more = f" and {len(parts) - 1} more files" if len(parts) > 1 else ""
        parallel = self.trip.parallel(first) if self.trip.ways.listen else 1
        return Load(
            pairs=[(self.files.url(part.piece), local_url(part.opened)) for part in parts],
            asked=f"read {self.trip.name_of((*first.parts, first.file.name))}{more}",
            fast=self.trip.ways.listen and (len(parts) > 1 or parallel > 1),
            parallel=parallel,
            offset=first.start if first.alone else 0,
            subjects=(self.trip.subject, ""),
        )

    def _wrong(self, parts: Sequence[_Part]) -> list[_Part]:
        """Return the files whose temporary copy does not hold what the other side holds."""
        wrong = []
        for part in parts:
            right = os.fstat(part.opened).st_size == part.file.size_bytes
            if right and self.trip.algorithm:
                found = local_digest(part.opened, self.trip.algorithm, self.trip.tally.beat)
                right = found == part.piece.digest
            if not right:
                wrong.append(part)
        return wrong

    def _publish(self, parts: Sequence[_Part]) -> None:
        """Sync what was written, then give each file its final name."""
        for part in parts:
            with explained(f"sync {self._here(part.piece)}"):
                os.utime(part.opened, ns=(part.file.changed_s * _NS, part.file.changed_s * _NS))
                os.fsync(part.opened)
            self.trip.tally.beat()
        for part in parts:
            here = self._here(part.piece)
            with self.there.into(part.piece.parts) as holder, explained(f"rename to {here}"):
                os.rename(part_name(part.file.name), part.file.name, src_dir_fd=holder, dst_dir_fd=holder)
                now = os.stat(part.file.name, dir_fd=holder, follow_symlinks=False)
            if not os.path.samestat(now, os.fstat(part.opened)):
                raise TransferInterrupted(f"{here} was exchanged while it was copied; who else writes there?")
            os.fchmod(part.opened, part.file.mode)  # not before: a part must stay one that may be written
            self.trip.arrived(part.piece, skipped=False)


def _describe(opened: int, file: RemoteFile) -> None:
    os.fchmod(opened, file.mode)
    os.utime(opened, ns=(file.changed_s * _NS, file.changed_s * _NS))
