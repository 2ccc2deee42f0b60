"""Bring a tree from a server that is not trusted into a local directory: list, have it written, compare, rename.

Files go in batches. The client writes into temporary files that we hold open, and is stopped when one grows beyond
what the listing announced. Meanwhile the server computes checksums of what it holds, and files that are complete are
compared, synced and renamed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from attrs import Factory, define, field

from edgecore.carrying import share
from edgecore.errors import TransferInterrupted
from edgecore.parts import READ_FILE, Destination, WriteOut, give_name, open_part
from edgecore.remote import RemoteFile, has_size
from edgecore.trees import explained, part_name, shown
from edgecore_gridftp.client import Load, goes_alone, local_url
from edgecore_gridftp.settling import carry_and_settle
from edgecore_gridftp.sources import RemoteFiles, RemoteSource
from edgecore_gridftp.work import Piece, Trip, local_digest

__all__ = ["Fetching"]

_NS = 1_000_000_000
_SYNCS = 4
"""How many files are synced at the same time: file systems write their journal once for all of them."""


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
    _syncing: ThreadPoolExecutor = field(init=False, factory=lambda: ThreadPoolExecutor(_SYNCS))

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
        with self._syncing:
            share(self._carry_batch, self.trip.pieces(plan), self.trip.tally, threads=self.trip.ways.streams)
        self.there.finish(plan)

    # ------------------------------------------------------------------------------- files

    def _carry_batch(self, pieces: list[Piece]) -> None:
        todo = self._skip_right(pieces)
        parts: dict[Piece, _Part] = {}
        try:
            for piece, holder, here in self._places(todo):
                with explained(f"write {here}"):
                    parts[piece] = self._open_part(piece, holder, here)
            for _ in range(2):
                if not todo:
                    return
                filling = _Filling(self, parts, todo)
                carry_and_settle(filling, self.trip.tally)
                todo = filling.wrong
                for piece in todo:
                    piece.start = 0
                    os.ftruncate(parts[piece].opened, 0)
            if todo:
                raise TransferInterrupted(
                    f"{self.here(todo[0])} does not hold what its source holds; does the source change, or the disk fail?"
                )
        finally:
            for part in parts.values():
                os.close(part.opened)

    def here(self, piece: Piece) -> str:
        """Return how people are told of a file."""
        return self.there.name_of((*piece.parts, piece.file.name))

    def _places(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, int, str]]:
        """Yield files with their directory, open as long as it is the same, and with how people are told of them."""
        for parts, group in groupby(pieces, key=lambda piece: piece.parts):
            above = self.there.name_of(parts)
            with self.there.into(parts) as holder:
                for piece in group:
                    yield piece, holder, f"{above}/{shown(piece.file.name)}"

    def _skip_right(self, pieces: list[Piece]) -> list[Piece]:
        """Return the files that are not yet right here; correct mode and time of the others."""
        same = [piece for piece, holder, here in self._places(pieces) if has_size(piece.file, holder, here)]
        if same and self.trip.algorithm:
            self.files.digest(same, self.trip.algorithm, self.trip.tally.check)
        right = {piece for piece in same if self._is_right(piece)}
        for piece in right:
            self.trip.arrived(piece, skipped=True)
        return [piece for piece in pieces if piece not in right]

    def _is_right(self, piece: Piece) -> bool:
        """Tell whether a file of the right size is right, correcting mode and time."""
        file = piece.file
        assert isinstance(file, RemoteFile)
        with self.there.into(piece.parts) as holder, explained(f"look at {self.here(piece)}"):
            opened = os.open(file.name, READ_FILE, dir_fd=holder)
            try:
                if self.trip.algorithm:
                    if local_digest(opened, self.trip.algorithm, self.trip.tally.beat) != piece.digest:
                        return False
                elif int(os.fstat(opened).st_mtime) != file.changed_s:
                    return False
                return file.describe_again(opened)
            finally:
                os.close(opened)

    def _open_part(self, piece: Piece, holder: int, here: str) -> _Part:
        file = piece.file
        assert isinstance(file, RemoteFile)
        opened = open_part(part_name(file.name), holder, here)
        held = os.fstat(opened).st_size
        piece.start = self.trip.start(piece, held)
        if piece.start != held:
            os.ftruncate(opened, piece.start)
        return _Part(piece, file, opened)

    def _sync(self, parts: Iterable[_Part]) -> None:
        for part in parts:
            with explained(f"sync {self.here(part.piece)}"):
                os.utime(part.opened, ns=(part.file.changed_s * _NS, part.file.changed_s * _NS))
                os.fsync(part.opened)
            self.trip.tally.beat()

    def publish(self, parts: Mapping[Piece, _Part]) -> None:
        """Sync what was written, then give each file its final name."""
        whole = list(parts.values())
        list(self._syncing.map(self._sync, (whole[number::_SYNCS] for number in range(_SYNCS))))
        for piece, holder, here in self._places(parts):
            opened, file = parts[piece].opened, parts[piece].file
            with explained(f"rename to {here}"):
                give_name(opened, file.name, holder, here)
            os.fchmod(opened, file.mode)  # not before: a part must stay one that may be written
            self.trip.arrived(piece, skipped=False)


@define(eq=False)
class _Filling:
    """A batch on its way."""

    fetching: Fetching
    parts: Mapping[Piece, _Part]
    todo: list[Piece]
    wrong: list[Piece] = Factory(list)
    """Whose temporary copy does not hold what the other side holds."""
    pieces: list[Piece] = field(init=False)
    trip: Trip = field(init=False)
    _pairs: dict[Piece, tuple[str, str]] = field(init=False)
    """From where to where the client brings each file."""
    _carried: list[Piece] = field(init=False)
    """These files, in its order."""
    _write_out: WriteOut = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Put the files in the order in which the client goes."""
        self.trip = self.fetching.trip
        self._write_out = WriteOut(self.parts[self.todo[0]].opened, self.todo[0].start)
        self._pairs = {piece: self._pair(piece) for piece in self.todo if not piece.whole}
        self._carried = sorted(self._pairs, key=lambda piece: goes_alone(self._pairs[piece]))
        self.pieces = [*(piece for piece in self.todo if piece.whole), *self._carried]

    def _pair(self, piece: Piece) -> tuple[str, str]:
        return self.fetching.files.url(piece), local_url(self.parts[piece].opened)

    # ----------------------------------------------------------------------------- carrying

    def carry(self, check: Callable[[], None]) -> None:
        """Have what is missing of every file written into its temporary file."""
        self.trip.tally.current = self.pieces[0].shown

        def watch() -> None:
            check()
            self._look()

        if self._carried:
            self.trip.client.carry(self._load(), self.trip.tally, watch)
            self._look()

    def _look(self) -> None:
        for piece in self._carried:
            size = self._size(piece)
            if size > piece.file.size_bytes:
                raise TransferInterrupted(
                    f"{piece.shown} has more than the {piece.file.size_bytes} bytes that were announced; does it change?"
                )
            self.trip.moved(piece, size)

    def _size(self, piece: Piece) -> int:
        return os.fstat(self.parts[piece].opened).st_size

    def _load(self) -> Load:
        first, count = self._carried[0], len(self._carried)
        parallel = self.trip.parallel(first) if self.trip.ways.listen else 1
        named = self.trip.name_of((*first.parts, first.file.name))
        return Load(
            pairs=[self._pairs[piece] for piece in self._carried],
            asked=f"read {named}" + (f" and {count - 1} more files" if count > 1 else ""),
            fast=self.trip.ways.listen and (count > 1 or parallel > 1),
            parallel=parallel,
            offset=first.start if first.alone else 0,
            subjects=(self.trip.subject, ""),
        )

    # ----------------------------------------------------------------------------- settling

    def meanwhile(self) -> None:
        """Let the disk work on a long file while it comes, so that little is left to be synced."""
        if self.pieces[0].alone:
            self._write_out.reached(self._size(self.pieces[0]))

    def digest(self, pieces: Sequence[Piece], check: Callable[[], None]) -> None:
        """Ask the server for checksums."""
        if self.trip.algorithm:
            self.fetching.files.digest(pieces, self.trip.algorithm, check)

    def has_begun(self, pieces: Sequence[Piece]) -> bool:
        """Look whether anything is in one of these, which were empty at the start."""
        if pieces[0].whole or not self.trip.client.goes_in_turn:
            return False
        return any(map(self._size, pieces))

    def settle(self, pieces: Sequence[Piece]) -> None:
        """Compare files, and publish those that are right."""
        right = {piece: self.parts[piece] for piece in pieces if self._is_right(piece)}
        self.fetching.publish(right)
        self.wrong += [piece for piece in pieces if piece not in right]

    def _is_right(self, piece: Piece) -> bool:
        if self._size(piece) != piece.file.size_bytes:
            return False
        if not self.trip.algorithm:
            return True
        found = local_digest(self.parts[piece].opened, self.trip.algorithm, self.trip.tally.beat)
        return found == piece.digest
