"""Bring a tree from a host that is not trusted into a local directory: list, read, compare, rename.

Files go in batches, and each step is done for a whole batch at once with its requests in flight together. No
more is written than the listing announced. Where the host computes checksums they are asked for before, and
compared with what was written.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from attrs import define, field

from edgecore.carrying import share
from edgecore.errors import TransferInterrupted
from edgecore.parts import READ_FILE, Destination, WriteOut, give_name, open_part
from edgecore.remote import RemoteFile, has_size
from edgecore.trees import Plan, explained, part_name
from edgecore_scp import wire
from edgecore_scp.checksums import local_digest
from edgecore_scp.session import Session, failing
from edgecore_scp.wire import Kind, Request, Status
from edgecore_scp.work import RESUME_BYTES, TAIL_BYTES, Piece, Trip, together

__all__ = ["Fetching"]

_NS = 1_000_000_000
_OPEN_FILES = 64
_CHANGED = frozenset({Status.NO_SUCH_FILE})


@define
class _Part:
    """A file that is being written here, under its temporary name."""

    piece: Piece
    file: RemoteFile
    opened: int


@define
class Fetching:
    """Bring what a plan says into one directory, given as descriptor."""

    target: int
    target_name: str
    trip: Trip
    there: Destination = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Write through one place that follows no link."""
        self.there = Destination(self.target, self.target_name, self.trip.tally)

    def run(self, planned: Callable[[Session], Plan]) -> None:
        """Do it all."""
        trip = self.trip
        with trip.session() as session:
            plan = planned(session)
        trip.tally.total_bytes = plan.size_bytes
        for directory in plan.directories[1:]:
            self.there.make(directory)
        share(self._carry_batch, trip.pieces(plan), trip.tally, threads=trip.ways.streams)
        self.there.finish(plan)

    # ------------------------------------------------------------------------------- files

    def _carry_batch(self, pieces: list[Piece]) -> None:
        """Bring some files; the other side is asked for all their checksums at once."""
        long = len(pieces) == 1 and self.trip.bulk_for(pieces[0], pieces[0].remote) is not None
        if self.trip.checked and not long:
            self._ask_digests(pieces)
        todo = [piece for piece in pieces if not self._is_right(piece)]
        for start in range(0, len(todo), _OPEN_FILES):
            self._carry_some(todo[start : start + _OPEN_FILES])

    def _carry_some(self, todo: list[Piece]) -> None:
        parts: list[_Part] = []
        try:
            for piece in todo:
                parts.append(self._open_part(piece))
            self._fill(parts)
            if wrong := self._wrong(parts):
                for part in wrong:
                    if not part.piece.start:
                        raise self._spoiled(part)
                    part.piece.start = 0
                    os.ftruncate(part.opened, 0)
                self._fill(wrong)
                for part in self._wrong(wrong):
                    raise self._spoiled(part)
            self._publish(parts)
        finally:
            for part in parts:
                os.close(part.opened)

    def _ask_digests(self, pieces: Sequence[Piece]) -> None:
        size = sum(piece.file.size_bytes for piece in pieces)
        digests = self.trip.checker.digests([piece.remote for piece in pieces], size)
        for piece in pieces:
            piece.digest = digests.get(piece.remote, "")

    def _here(self, piece: Piece) -> str:
        return self.there.name_of((*piece.parts, piece.file.name))

    def _is_right(self, piece: Piece) -> bool:
        """Tell whether the file already stands under its final name, correcting mode and time."""
        file = piece.file
        assert isinstance(file, RemoteFile)
        with self.there.into(piece.parts) as holder, explained(f"look at {self._here(piece)}"):
            if not has_size(file, holder, self._here(piece)):
                return False
            opened = os.open(file.name, READ_FILE, dir_fd=holder)
            try:
                if self.trip.checked and not piece.digest:
                    self._ask_digests([piece])
                if piece.digest:
                    if local_digest(opened, self.trip.tally.beat) != piece.digest:
                        return False
                elif int(os.fstat(opened).st_mtime) != file.changed_s:
                    return False
                if not file.describe_again(opened):
                    return False
            finally:
                os.close(opened)
        self._arrived(piece, skipped=True)
        return True

    def _arrived(self, piece: Piece, *, skipped: bool) -> None:
        self.trip.unchecked |= not piece.digest
        self.trip.moved(piece, piece.file.size_bytes)
        self.trip.tally.arrived(skipped=skipped)

    def _open_part(self, piece: Piece) -> _Part:
        file = piece.file
        assert isinstance(file, RemoteFile)
        with self.there.into(piece.parts) as holder, explained(f"write {self._here(piece)}"):
            opened = open_part(part_name(file.name), holder, self._here(piece))
            held = os.fstat(opened).st_size
            piece.start = held if RESUME_BYTES <= held <= file.size_bytes else 0
            if piece.start != held:
                os.ftruncate(opened, 0)
        return _Part(piece, file, opened)

    def _fill(self, parts: list[_Part]) -> None:
        """Read what is missing of every file into its temporary file."""
        first = parts[0]
        self.trip.tally.current = first.piece.shown
        long = len(parts) == 1 and self.trip.bulk_for(first.piece, first.piece.remote) is not None
        unknown = [part.piece for part in parts if not part.piece.digest]
        if unknown and self.trip.checked and not long:  # such as of a long file of which little is missing
            self._ask_digests(unknown)
        with self.trip.session() as session:
            self._open_there(session, parts)
            if long:
                self._read_long(first)
            else:
                gaps = [(part, part.piece.start, part.file.size_bytes) for part in parts]
                while gaps:
                    gaps = self._read(session, gaps)
            self._see_end(session, parts)
        for part in parts:
            with explained(f"describe {self._here(part.piece)}"):
                part.file.describe(part.opened)

    def _open_there(self, session: Session, parts: list[_Part]) -> None:
        requests = [wire.open_file(part.piece.remote, wire.READ) for part in parts]
        for part, answer in zip(parts, session.exchange(requests), strict=True):
            with failing(f"read {part.piece.shown}", transient=_CHANGED):
                part.piece.handle = answer.handle()
        for part in parts:
            if part.piece.start and not part.piece.digest and not self._tail_is_right(session, part):
                part.piece.start = 0
                os.ftruncate(part.opened, 0)

    def _tail_is_right(self, session: Session, part: _Part) -> bool:
        """Compare the end of a partial file where no checksum will tell."""
        end = part.piece.start
        begin = max(end - TAIL_BYTES, 0)
        steps = range(begin, end, session.read_bytes)
        requests = [wire.read_some(part.piece.handle, at, min(session.read_bytes, end - at)) for at in steps]
        with failing(f"read {part.piece.shown}"):
            found = b"".join(answer.data(session.read_bytes) for answer in session.exchange(requests))
        return found == os.pread(part.opened, end - begin, begin)

    def _read(self, session: Session, gaps: list[tuple[_Part, int, int]]) -> list[tuple[_Part, int, int]]:
        """Read ranges of files; return those that the server answered in part."""
        notes: deque[tuple[_Part, int, int]] = deque()
        left: list[tuple[_Part, int, int]] = []

        def requests() -> Iterator[Request]:
            for part, begin, end in gaps:
                for offset in range(begin, end, session.read_bytes):
                    size = min(session.read_bytes, end - offset)
                    notes.append((part, offset, size))
                    yield wire.read_some(part.piece.handle, offset, size)

        for answer in session.exchange(requests()):
            part, offset, size = notes.popleft()
            with failing(f"read {part.piece.shown}", transient=_CHANGED):
                content = answer.data(size)
            if not content:
                raise TransferInterrupted(
                    f"{part.piece.shown} ended after {offset} of {part.file.size_bytes} bytes; does it change?"
                )
            with explained(f"write {self._here(part.piece)}"):
                _write_all(part.opened, content, offset)
            end = offset + len(content)
            if len(content) < size:
                left.append((part, end, offset + size))
            self.trip.moved(part.piece, end)
        return left

    def _read_long(self, part: _Part) -> None:
        """Let OpenSSH read one file, while the other side computes its checksum."""
        bulk, watch = self.trip.bulk_for(part.piece, part.piece.remote), self.trip.watch(part.piece)
        assert bulk is not None
        write_out = WriteOut(part.opened, part.piece.start)

        def digest() -> str:
            if not self.trip.checked or part.piece.digest:
                return part.piece.digest
            size = part.file.size_bytes
            return self.trip.checker.digests([part.piece.remote], size).get(part.piece.remote, "")

        def moved() -> int:
            size = os.fstat(part.opened).st_size
            if size > part.file.size_bytes:
                raise self._grown(part)
            write_out.reached(size)
            return size

        with self.trip.connection.process(self.trip.tally.beat):
            part.piece.digest = together(
                digest,
                lambda: bulk.fetch(self.trip.connection.route, part.piece.remote, part.opened, moved, watch),
            )

    def _grown(self, part: _Part) -> TransferInterrupted:
        return TransferInterrupted(
            f"{part.piece.shown} has more than the {part.file.size_bytes} bytes that were announced; does it change?"
        )

    def _see_end(self, session: Session, parts: list[_Part]) -> None:
        """See that files end where they were to end, and that nobody wrote into them; close them."""
        requests = [wire.read_some(part.piece.handle, part.file.size_bytes, 1) for part in parts]
        for part, answer in zip(parts, session.exchange(requests), strict=True):
            with failing(f"read {part.piece.shown}"):
                if answer.data(1):
                    raise self._grown(part)
        requests = [wire.of_path(Kind.FSTAT, part.piece.handle) for part in parts]
        for part, answer in zip(parts, session.exchange(requests), strict=True):
            with failing(f"look at {part.piece.shown}"):
                found = answer.attributes()
            if (found.size_bytes, found.changed_s or 0) != (part.file.size_bytes, part.file.changed_s):
                raise TransferInterrupted(
                    f"{part.piece.shown} changed while it was copied; try when it is complete"
                )
        for _ in session.exchange([wire.close_file(part.piece.handle) for part in parts]):
            pass

    def _wrong(self, parts: Sequence[_Part]) -> list[_Part]:
        """Return the files whose temporary copy does not hold what the other side holds."""
        wrong = []
        for part in parts:
            right = os.fstat(part.opened).st_size == part.file.size_bytes
            if right and part.piece.digest:
                right = local_digest(part.opened, self.trip.tally.beat) == part.piece.digest
            if not right:
                wrong.append(part)
        return wrong

    def _spoiled(self, part: _Part) -> TransferInterrupted:
        return TransferInterrupted(
            f"{self._here(part.piece)} does not hold what its source holds; does the source change, or the disk fail?"
        )

    def _publish(self, parts: Sequence[_Part]) -> None:
        """Sync what was written, then give each file its final name."""
        for part in parts:
            with explained(f"sync {self._here(part.piece)}"):
                os.fsync(part.opened)
            self.trip.tally.beat()
        for part in parts:
            here = self._here(part.piece)
            with self.there.into(part.piece.parts) as holder, explained(f"rename to {here}"):
                give_name(part.opened, part.file.name, holder, here)
            self._arrived(part.piece, skipped=False)


def _write_all(opened: int, content: bytes, offset: int) -> None:
    done = os.pwrite(opened, content, offset)
    while done < len(content):
        done += os.pwrite(opened, memoryview(content)[done:], offset + done)
