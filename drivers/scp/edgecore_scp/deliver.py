"""Bring a local tree to a host: plan here, look there, write beside the final names, compare, rename.

Files go in batches, and each step is done for a whole batch at once with its requests in flight together. A
partial file of a former call is continued; whether it was right shows in its checksum at the end, and what
was wrong is written anew from its beginning.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from attrs import Factory, define

from edgecore.carrying import share
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.parts import READ_FILE
from edgecore.remote import below, levels
from edgecore.selection import Selection
from edgecore.trees import Directory, Parts, Plan, enter, explained, part_name, plan_tree, shown
from edgecore_scp import wire
from edgecore_scp.checksums import local_digest
from edgecore_scp.listing import list_directories
from edgecore_scp.session import Session, failing
from edgecore_scp.wire import Attributes, Failure, Kind, Request, Status
from edgecore_scp.work import RESUME_BYTES, TAIL_BYTES, Piece, Trip, Unwritten, identity, together, writing

__all__ = ["Delivery"]

_NS = 1_000_000_000
_CHANGED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR})


@define
class Delivery:
    """Bring the content of one directory, given as descriptor, to another host."""

    source: int
    source_name: str
    trip: Trip
    selection: Selection
    there: dict[Parts, dict[bytes, Attributes]] = Factory(dict)
    """What stood in each directory there at the start."""
    seen: int = 0
    """How many names these are."""

    def run(self) -> None:
        """Do it all."""
        trip, tally = self.trip, self.trip.tally
        plan = plan_tree(self.source, tally.beat, self.selection)
        tally.total_bytes = plan.size_bytes
        with trip.session() as session:
            self._prepare(session, plan)
        share(self._carry_batch, trip.pieces(plan), tally, threads=trip.ways.streams)
        with trip.session() as session:
            for directory in plan.directories:
                self._link(session, directory)
            self._finish(session, plan)

    # ------------------------------------------------------------------------- directories

    def _prepare(self, session: Session, plan: Plan) -> None:
        """Make the directories, and refuse at once what cannot work."""
        self._make_base(session, self.trip.base)
        for level in levels(plan):
            if level[0].parts:
                self._make_level(session, level)
            old = [directory for directory in level if directory.parts not in self.there]
            paths = [below(self.trip.base, directory.parts) for directory in old]
            for directory, found in zip(old, list_directories(session, paths, self._seen), strict=True):
                self.there[directory.parts] = found
        for directory in plan.directories:
            for file in directory.files:
                found_there = self.there[directory.parts].get(os.fsencode(file.name))
                if found_there is not None and found_there.is_directory:
                    name = self.trip.name_of((*directory.parts, file.name))
                    raise TransferRefused(
                        f"{name} is a directory, and a file must go there; remove it or rename it"
                    )

    def _seen(self, entries: int) -> None:
        self.trip.tally.beat()
        self.seen += entries
        if self.seen > self.trip.ways.max_entries:
            raise TransferRefused(
                f"{self.trip.peer_name} holds more names than a transfer may look at (max_entries); choose another "
                "place, or raise it"
            )

    def _make_base(self, session: Session, path: bytes) -> None:
        """Make the directory of the URL and those above it; links on the way are the other side's."""
        missing = []
        while not self._is_directory(session, path):
            missing.append(path)
            path = path.rpartition(b"/")[0] or b"/"
        for each in reversed(missing):
            try:
                session.ask(wire.make_directory(each, 0o755)).ok()
            except Failure as failure:
                if not self._is_directory(session, each):
                    raise Unwritten(f"make {shown(os.fsdecode(each))}", failure, 1) from failure

    def _is_directory(self, session: Session, path: bytes) -> bool:
        try:
            found = session.ask(wire.of_path(Kind.STAT, path)).attributes()
        except Failure as failure:
            if failure.code == Status.NO_SUCH_FILE and path != b"/":
                return False
            with failing(f"look at {shown(os.fsdecode(path))}"):
                raise
        if not found.is_directory:
            raise TransferRefused(f"{shown(os.fsdecode(path))} is no directory, and must be one")
        return True

    def _make_level(self, session: Session, level: Sequence[Directory]) -> None:
        requests, made = [], []
        for directory in level:
            *above, name = directory.parts
            path = below(self.trip.base, directory.parts)
            found = self.there[tuple(above)].get(os.fsencode(name))
            if found is None:
                made.append(directory)
                requests.append(wire.make_directory(path, 0o700))
            elif not found.is_directory:
                raise TransferRefused(
                    f"{self.trip.name_of(directory.parts)} is no directory, and one must go there; remove it or rename it"
                )
            elif (found.mode or 0) & 0o700 != 0o700:  # a former call had already given it its final mode
                mode = stat.S_IMODE(found.mode or 0) | 0o700
                made.append(directory)
                requests.append(wire.set_attributes(Kind.SETSTAT, path, mode, found.changed_s or 0))
        for directory, answer in zip(made, list(session.exchange(requests)), strict=True):
            try:
                answer.ok()
            except Failure as failure:
                path = below(self.trip.base, directory.parts)  # another transfer may have made it meanwhile
                if failure.code != Status.FAILURE or not self._is_directory(session, path):
                    raise Unwritten(f"make {self.trip.name_of(directory.parts)}", failure, 1) from failure
            *above, name = directory.parts
            if os.fsencode(name) not in self.there[tuple(above)]:
                self.there[directory.parts] = {}

    def _link(self, session: Session, directory: Directory) -> None:
        for link in directory.links:
            raw = os.fsencode(link.name)
            path, found = (
                below(self.trip.base, (*directory.parts, link.name)),
                self.there[directory.parts].get(raw),
            )
            asked = f"make the link {self.trip.name_of((*directory.parts, link.name))}"
            with writing(asked):
                target = os.fsencode(link.target)
                if found is not None and found.is_link:
                    if session.ask(wire.of_path(Kind.READLINK, path)).path() == target:
                        self.trip.tally.arrived(skipped=True)
                        continue
                elif found is not None and found.is_directory:
                    raise TransferRefused(f"cannot {asked}: a directory stands there; remove it or rename it")
                part = below(self.trip.base, (*directory.parts, part_name(link.name)))
                if os.fsencode(part_name(link.name)) in self.there[directory.parts]:
                    session.ask(wire.of_path(Kind.REMOVE, part)).ok()
                session.ask(wire.symlink(target, part)).ok()
                if found is not None and not session.replaces:
                    session.ask(wire.of_path(Kind.REMOVE, path)).ok()
                session.ask(session.rename(part, path)).ok()
            self.trip.tally.arrived(skipped=False)

    def _finish(self, session: Session, plan: Plan) -> None:
        """Give directories their modes and times: what is inside first, since it changes times."""
        directories = plan.directories[:0:-1]
        requests = [
            wire.set_attributes(
                Kind.SETSTAT, below(self.trip.base, each.parts), each.mode, each.changed_ns // _NS
            )
            for each in directories
        ]
        for directory, answer in zip(directories, session.exchange(requests), strict=True):
            with failing(f"set mode and time of {self.trip.name_of(directory.parts)}"):
                answer.ok()
            self.trip.tally.beat()

    # ------------------------------------------------------------------------------- files

    def _carry_batch(self, pieces: list[Piece]) -> None:
        todo = self._skip_right(pieces)
        with self.trip.connection.claims.on([piece.remote for piece in todo]):
            self._bring(todo)

    def _bring(self, todo: list[Piece]) -> None:
        if not todo:
            return
        for fresh in (False, True):
            self._write(todo, fresh=fresh)
            wrong = self._wrong(todo)
            again = {piece.remote for piece in wrong}
            self._publish([piece for piece in todo if piece.remote not in again])
            todo = wrong
            if not todo:
                return
        raise TransferInterrupted(
            f"{self._name(todo[0])} does not hold what its source holds; does the source change, or the disk fail?"
        )

    def _name(self, piece: Piece) -> str:
        return self.trip.name_of((*piece.parts, piece.file.name))

    def _found(self, piece: Piece, name: str) -> Attributes | None:
        return self.there[piece.parts].get(os.fsencode(name))

    def _skip_right(self, pieces: list[Piece]) -> list[Piece]:
        """Return the files that are not yet right there; correct mode and time of the others."""
        same = []
        for piece in pieces:
            found = self._found(piece, piece.file.name)
            if found is not None and found.is_file and found.size_bytes == piece.file.size_bytes:
                same.append(piece)
        if not same:
            return pieces
        checked = self.trip.checked
        paths = [piece.remote for piece in same]
        size = sum(piece.file.size_bytes for piece in same)
        digests = self.trip.checker.digests(paths, size) if checked else {}
        right, requests = [], []
        for piece in same:
            found = self._found(piece, piece.file.name)
            assert found is not None
            with self._opened(piece) as opened:
                info = os.fstat(opened)
                changed_s, mode = info.st_mtime_ns // _NS, stat.S_IMODE(info.st_mode) & 0o777
                if checked:
                    piece.digest = local_digest(opened, self.trip.tally.beat)
                    if digests.get(piece.remote) != piece.digest:
                        continue
                elif found.changed_s != changed_s:
                    continue
            right.append(piece)
            if (found.changed_s, stat.S_IMODE(found.mode or 0)) != (changed_s, mode):
                requests.append(wire.set_attributes(Kind.SETSTAT, piece.remote, mode, changed_s))
        with self.trip.session() as session:
            for answer in session.exchange(requests):
                with failing("correct modes and times of what is there"):
                    answer.ok()
        for piece in right:
            self._arrived(piece, skipped=True)
        done = {piece.remote for piece in right}
        return [piece for piece in pieces if piece.remote not in done]

    def _arrived(self, piece: Piece, *, skipped: bool) -> None:
        self.trip.unchecked |= not self.trip.checked
        self.trip.moved(piece, piece.file.size_bytes)
        if self.trip.checked and piece.digest:
            self.trip.tally.checksums["/".join((*piece.parts, piece.file.name))] = f"sha256:{piece.digest}"
        self.trip.tally.arrived(skipped=skipped)

    @contextmanager
    def _opened(self, piece: Piece) -> Iterator[int]:
        """Open a file of the source, which may be anything by now."""
        here = f"{self.source_name}/{piece.shown}"
        with explained(f"read {here}", transient=_CHANGED):
            holder = enter(self.source, piece.parts)
            try:
                opened = os.open(piece.file.source, READ_FILE, dir_fd=holder)
            finally:
                os.close(holder)
        try:
            before = os.fstat(opened)
            if not stat.S_ISREG(before.st_mode) or before.st_size != piece.file.size_bytes:
                raise TransferInterrupted(f"{here} changed when it was to be copied; try when it is complete")
            yield opened
            if identity(before) != identity(os.fstat(opened)):
                raise TransferInterrupted(f"{here} changed while it was copied; try when it is complete")
        finally:
            os.close(opened)

    def _part(self, piece: Piece) -> bytes:
        return below(self.trip.base, (*piece.parts, part_name(piece.file.name)))

    def _write(self, pieces: list[Piece], *, fresh: bool) -> None:
        """Bring every file to its temporary name."""
        self.trip.tally.current = pieces[0].shown
        with self.trip.session() as session:
            self._open_parts(session, pieces, fresh=fresh)
            long = pieces[0] if len(pieces) == 1 else None
            if long is not None and self.trip.bulk_for(long, self._part(long)):
                self._write_long(session, long)
                return
            notes: deque[tuple[Piece, int]] = deque()
            for answer in session.exchange(self._writes(session, pieces, notes)):
                piece, offset = notes.popleft()
                try:
                    answer.ok()
                except Failure as failure:
                    left = sum(each.file.size_bytes - each.counted for each in pieces)
                    raise Unwritten(f"write {self._name(piece)}", failure, left) from failure
                self.trip.moved(piece, offset)

    def _open_parts(self, session: Session, pieces: list[Piece], *, fresh: bool) -> None:
        requests = []
        for piece in pieces:
            path, found = self._part(piece), self._found(piece, part_name(piece.file.name))
            # Somebody put a link there, or we were killed after we had set a mode that lets nobody write.
            if found is not None and not (found.is_file and (found.mode or 0) & 0o600 == 0o600):
                with failing(f"remove {shown(os.fsdecode(path))}"):
                    session.ask(wire.of_path(Kind.REMOVE, path)).ok()
                found = None
                del self.there[piece.parts][os.fsencode(part_name(piece.file.name))]
            size = 0 if found is None or fresh else found.size_bytes or 0
            piece.start = size if RESUME_BYTES <= size <= piece.file.size_bytes else 0
            flags = wire.WRITE | wire.CREATE | (wire.READ if piece.start else wire.TRUNCATE)
            requests.append(wire.open_file(path, flags))
        for piece, answer in zip(pieces, session.exchange(requests), strict=True):
            with writing(f"write {self._name(piece)}"):
                piece.handle = answer.handle()
        for piece in pieces:
            if piece.start and not self.trip.checked and not self._tail_is_right(session, piece):
                piece.start = 0

    def _tail_is_right(self, session: Session, piece: Piece) -> bool:
        """Compare the end of a partial file where no checksum will tell."""
        begin = max(piece.start - TAIL_BYTES, 0)
        steps = range(begin, piece.start, session.read_bytes)
        requests = [
            wire.read_some(piece.handle, at, min(session.read_bytes, piece.start - at)) for at in steps
        ]
        with failing(f"read {self._name(piece)}"), self._opened(piece) as opened:
            found = b"".join(answer.data(session.read_bytes) for answer in session.exchange(requests))
            return found == os.pread(opened, piece.start - begin, begin)

    def _writes(
        self, session: Session, pieces: Iterable[Piece], notes: deque[tuple[Piece, int]]
    ) -> Iterator[Request]:
        """Yield the requests that fill, describe and close the temporary files; note what each is about."""
        checked = self.trip.checked
        for piece in pieces:
            with self._opened(piece) as opened:
                info, offset = os.fstat(opened), 0 if checked else piece.start
                digest = hashlib.sha256()
                while block := os.pread(opened, session.write_bytes, offset):
                    if checked:
                        digest.update(block)
                    end = offset + len(block)
                    if end > piece.start:
                        notes.append((piece, end))
                        yield wire.write_some(piece.handle, offset, block)
                    else:
                        self.trip.tally.beat()
                    offset = end
                if offset != piece.file.size_bytes:
                    raise TransferInterrupted(f"{piece.shown} became shorter while it was copied")
            piece.digest = digest.hexdigest()
            mode, changed_s = stat.S_IMODE(info.st_mode) & 0o777, info.st_mtime_ns // _NS
            final = [wire.set_attributes(Kind.FSETSTAT, piece.handle, mode, changed_s)]
            if b"fsync@openssh.com" in session.extensions:
                final.append(wire.extended(b"fsync@openssh.com", piece.handle))
            for request in (*final, wire.close_file(piece.handle)):
                notes.append((piece, offset))
                yield request

    def _write_long(self, session: Session, piece: Piece) -> None:
        """Let OpenSSH write one file."""
        bulk, part = self.trip.bulk_for(piece, self._part(piece)), self._part(piece)
        assert bulk is not None
        watch, asked = self.trip.watch(piece), f"write {self._name(piece)}"

        def moved() -> int:
            found = session.look(part)
            return 0 if found is None else found.size_bytes or 0

        turn = self.trip.connection.process(self.trip.tally.beat)
        with self._opened(piece) as opened, turn:
            info = os.fstat(opened)
            try:
                piece.digest = together(
                    lambda: local_digest(opened, self.trip.tally.check) if self.trip.checked else "",
                    lambda: bulk.deliver(
                        self.trip.connection.route, opened, part, moved, watch, resume=piece.start > 0
                    ),
                )
            except TransferInterrupted as error:  # OpenSSH knows no more than that it failed
                raise Unwritten(asked, error, piece.file.size_bytes - piece.counted) from error
        mode, changed_s = stat.S_IMODE(info.st_mode) & 0o777, info.st_mtime_ns // _NS
        final = [wire.set_attributes(Kind.FSETSTAT, piece.handle, mode, changed_s)]
        if b"fsync@openssh.com" in session.extensions:
            final.append(wire.extended(b"fsync@openssh.com", piece.handle))
        for answer in session.exchange([*final, wire.close_file(piece.handle)]):
            with writing(asked):
                answer.ok()

    def _wrong(self, pieces: list[Piece]) -> list[Piece]:
        """Return the files whose temporary copy does not hold what the source holds."""
        parts = [self._part(piece) for piece in pieces]
        if self.trip.checked:
            size = sum(piece.file.size_bytes for piece in pieces)
            digests, complaint = self.trip.checker.told(parts, size)
            if untold := [piece for piece, part in zip(pieces, parts, strict=True) if part not in digests]:
                raise TransferInterrupted(
                    f"{self.trip.connection.route} told no checksum of {self._name(untold[0])}: {complaint or 'no message'}; "
                    "does anybody else write there? Where its shell sees other places than SFTP does, set checksums = false"
                )
            return [
                piece for piece, part in zip(pieces, parts, strict=True) if digests.get(part) != piece.digest
            ]
        with self.trip.session() as session:
            wrong = []
            for piece, answer in zip(
                pieces, session.exchange([wire.of_path(Kind.LSTAT, part) for part in parts]), strict=True
            ):
                with failing(f"look at {self._name(piece)}", transient=frozenset({Status.NO_SUCH_FILE})):
                    if answer.attributes().size_bytes != piece.file.size_bytes:
                        wrong.append(piece)
            return wrong

    def _publish(self, pieces: list[Piece]) -> None:
        """Give the files their final names."""
        with self.trip.session() as session:
            requests: list[Request] = []
            if not session.replaces:
                there = [piece for piece in pieces if self._found(piece, piece.file.name) is not None]
                for answer in session.exchange([wire.of_path(Kind.REMOVE, piece.remote) for piece in there]):
                    with failing("remove what is to be replaced"):
                        answer.ok()
            requests = [session.rename(self._part(piece), piece.remote) for piece in pieces]
            for piece, answer in zip(pieces, session.exchange(requests), strict=True):
                with failing(f"rename to {self._name(piece)}", transient=frozenset({Status.NO_SUCH_FILE})):
                    answer.ok()
        for piece in pieces:
            self._arrived(piece, skipped=False)
