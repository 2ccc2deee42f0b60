"""Bring a tree to a server: plan, look there, have it written beside the final names, compare, rename.

Files go in batches. The client writes temporary files; what it says of its success is not believed: the server computes
checksums of what it holds. A file that a former call had brought whole is only compared; a long one that broke off is
continued, and written anew where that proves wrong. Files are compared and renamed while the client goes on with others.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from attrs import Factory, define, field

from edgecore.carrying import share
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.remote import below, levels
from edgecore.trees import Directory, Parts, Plan, part_name, shown
from edgecore_gridftp.client import Load, goes_alone
from edgecore_gridftp.control import Control
from edgecore_gridftp.listing import list_directories
from edgecore_gridftp.settling import carry_and_settle
from edgecore_gridftp.sources import Opened, Source
from edgecore_gridftp.text import Entry, is_missing, trouble
from edgecore_gridftp.work import Piece, Trip

__all__ = ["Delivery"]

_NS = 1_000_000_000
_ERROR = 400

Step = tuple[Callable[[], str], bytes]
"""What a command is for, and the command."""


@define
class Delivery:
    """Bring what a source holds to a directory on a server."""

    source: Source
    trip: Trip
    there: dict[Parts, dict[bytes, Entry]] = Factory(dict)
    """What stood in each directory there at the start."""

    def run(self) -> None:
        """Do it all."""
        trip = self.trip
        plan = self.source.plan()
        trip.tally.total_bytes = plan.size_bytes
        with trip.control() as control:
            self._prepare(control, plan)
        share(self._carry_batch, trip.pieces(plan), trip.tally, threads=trip.ways.streams)
        with trip.control() as control:
            control.do_all(self._finishing(control, plan))

    # ------------------------------------------------------------------------- directories

    def _prepare(self, control: Control, plan: Plan) -> None:
        """Make the directories, and refuse at once what cannot work."""
        self._make_base(control, self.trip.base)
        for level in levels(plan):
            if level[0].parts:
                control.do_all(self._making(level))
            old = [directory for directory in level if directory.parts not in self.there]
            paths = [below(self.trip.base, directory.parts) for directory in old]
            for directory, listing in zip(old, list_directories(control, paths, self._seen), strict=True):
                self.there[directory.parts] = listing.entries
        for directory in plan.directories:
            for file in directory.files:
                found = self.there[directory.parts].get(os.fsencode(file.name))
                if found is not None and found.is_directory:
                    name = self.trip.name_of((*directory.parts, file.name))
                    raise TransferRefused(
                        f"{name} is a directory, and a file must go there; remove it or rename it"
                    )

    def _seen(self, entries: int) -> None:
        self.trip.tally.beat()

    def _make_base(self, control: Control, path: bytes) -> None:
        """Make the directory of the URL and those above it; links on the way are the other side's."""
        missing = []
        while not self._is_directory(control, path):
            missing.append(path)
            path = path.rpartition(b"/")[0] or b"/"
        for each in reversed(missing):
            reply = control.ask(b"MKD " + each)
            if reply.code >= _ERROR and not self._is_directory(control, each):
                raise trouble(f"make {_shown(each)} on {control.name}", reply.words)

    def _is_directory(self, control: Control, path: bytes) -> bool:
        asked = f"look at {_shown(path)} on {control.name}"
        reply = control.ask(b"MLST " + path)
        if reply.code >= _ERROR and is_missing(reply.words) and path != b"/":
            return False
        if not control.look(asked, path).is_directory:
            raise TransferRefused(f"{_shown(path)} on {control.name} is no directory, and must be one")
        return True

    def _making(self, level: Sequence[Directory]) -> Iterator[Step]:
        for directory in level:
            *above, name = directory.parts
            path, named = below(self.trip.base, directory.parts), self.trip.name_of(directory.parts)
            found = self.there[tuple(above)].get(os.fsencode(name))
            if found is None:
                self.there[directory.parts] = {}
                yield lambda named=named: f"make {named}", b"MKD " + path  # type: ignore[misc]
            elif not found.is_directory:
                raise TransferRefused(
                    f"{named} is no directory, and one must go there; remove it or rename it"
                )
            elif found.mode & 0o700 != 0o700:  # a former call had already given it its final mode
                yield (
                    lambda named=named: f"write into {named}",  # type: ignore[misc]
                    b"SITE CHMOD %o %s" % (found.mode | 0o700, path),
                )

    def _finishing(self, control: Control, plan: Plan) -> Iterator[Step]:
        """Give directories their modes and times: what is inside first, since it changes times."""
        for directory in plan.directories[:0:-1]:
            path, named = below(self.trip.base, directory.parts), self.trip.name_of(directory.parts)
            yield from _describing(control, path, named, directory.mode, directory.changed_ns // _NS)

    # ------------------------------------------------------------------------------- files

    def _carry_batch(self, pieces: list[Piece]) -> None:
        with self.source.opened(pieces) as opened, self.trip.control() as control:
            todo = self._skip_right(control, opened, pieces)
            for fresh in (False, True):
                if not todo:
                    return
                self._make_ready(control, todo, fresh=fresh)
                writing = _Writing(self.trip, control, opened, self.source.subject, todo)
                carry_and_settle(writing, self.trip.tally)
                todo = writing.wrong
            if todo:
                raise TransferInterrupted(
                    f"{self._name(todo[0])} does not hold what its source holds; does the source change, or the disk fail?"
                )

    def _name(self, piece: Piece) -> str:
        return self.trip.name_of((*piece.parts, piece.file.name))

    def _found(self, piece: Piece, name: str) -> Entry | None:
        return self.there[piece.parts].get(os.fsencode(name))

    def _skip_right(self, control: Control, opened: Opened, pieces: list[Piece]) -> list[Piece]:
        """Return the files that are not yet right there; correct mode and time of the others."""
        same = [
            piece
            for piece in pieces
            if (found := self._found(piece, piece.file.name)) is not None
            and found.is_file
            and not found.link
            and found.size_bytes == piece.file.size_bytes
        ]
        right, steps = list[Piece](), list[Step]()
        if self.trip.algorithm and same:
            opened.digest(same, self.trip.algorithm, self.trip.tally.beat)
            held = _digests(self.trip, control, same, [piece.remote for piece in same])
            right = [piece for piece, digest in zip(same, held, strict=True) if digest == piece.digest]
        else:
            right = [piece for piece in same if self._has_time(piece, opened)]
        for piece in right:
            found = self._found(piece, piece.file.name)
            mode, changed_s = opened.described(piece)
            if found is not None and (found.mode, found.changed_s) != (mode, changed_s):
                steps += _describing(control, piece.remote, self._name(piece), mode, changed_s)
        control.do_all(steps)
        for piece in right:
            self.trip.arrived(piece, skipped=True)
        done = set(right)
        return [piece for piece in pieces if piece not in done]

    def _has_time(self, piece: Piece, opened: Opened) -> bool:
        found = self._found(piece, piece.file.name)
        return found is not None and found.changed_s == opened.described(piece)[1]

    def _make_ready(self, control: Control, pieces: list[Piece], *, fresh: bool) -> None:
        """See from where each file is continued; remove the temporary files that are begun anew, and links there."""
        old = list[Piece]()
        for piece in pieces:
            found = self._found(piece, part_name(piece.file.name))
            held = 0 if found is None or found.link or fresh else found.size_bytes
            piece.start = self.trip.start(piece, held)
            if (found is not None or fresh) and not piece.start:
                old.append(piece)
        paths = [_part(self.trip, piece) for piece in old]
        for path, reply in zip(paths, control.exchange(b"DELE " + path for path in paths), strict=True):
            if reply.code >= _ERROR and not is_missing(reply.words):
                raise trouble(f"remove {_shown(path)}", reply.words)


@define(eq=False)
class _Writing:
    """A batch on its way. Two threads look through one channel at what is there: who waits for the client, and who settles."""

    trip: Trip
    control: Control
    opened: Opened
    subject: str
    """The name that the certificate of the source's server must have."""
    todo: list[Piece]
    wrong: list[Piece] = Factory(list)
    """Whose temporary copy does not hold what the source holds."""
    pieces: list[Piece] = field(init=False)
    parts: dict[Piece, bytes] = field(init=False)
    _pairs: dict[Piece, tuple[str, str]] = field(init=False)
    """From where to where the client brings each file."""
    _carried: list[Piece] = field(init=False)
    """These files, in its order."""
    _begun: int = 0
    """Which of these the client has begun, at least."""
    _settled: int = 0
    _lock: threading.Lock = field(factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        """Put the files in the order in which the client goes."""
        self.parts = {piece: _part(self.trip, piece) for piece in self.todo}
        self._pairs = {piece: self._pair(piece) for piece in self.todo if not piece.whole}
        self._carried = sorted(self._pairs, key=lambda piece: goes_alone(self._pairs[piece]))
        self.pieces = [*(piece for piece in self.todo if piece.whole), *self._carried]

    def _pair(self, piece: Piece) -> tuple[str, str]:
        return self.opened.url(piece), self.trip.url_of(self.parts[piece])

    def _name(self, piece: Piece) -> str:
        return self.trip.name_of((*piece.parts, piece.file.name))

    # ----------------------------------------------------------------------------- carrying

    def carry(self, check: Callable[[], None]) -> None:
        """Have every file brought to its temporary name."""
        self.trip.tally.current = self.pieces[0].shown

        def watch() -> None:
            check()
            if self._lock.acquire(blocking=False):  # else there is progress anyway
                try:
                    self._look()
                finally:
                    self._lock.release()

        if self._carried:
            self.trip.client.carry(self._load(), self.trip.tally, watch)

    def _load(self) -> Load:
        first, count = self._carried[0], len(self._carried)
        return Load(
            pairs=[self._pairs[piece] for piece in self._carried],
            asked=f"write {self._name(first)}" + (f" and {count - 1} more files" if count > 1 else ""),
            fast=True,
            parallel=self.trip.parallel(first),
            offset=first.start if first.alone else 0,
            # How long a part is tells more, and sooner; but some servers show a file only when it is complete.
            carried=(lambda count: self.trip.moved(first, first.start + count)) if first.alone else None,
            subjects=(self.subject, self.trip.subject),
        )

    def _look(self) -> None:
        """See how far the client is: the last file that is there is searched for by halves."""
        low, high = self._begun, len(self._carried) - 1
        middle = low + 1  # mostly it is still the same
        while low < high:
            if self._entry(self._carried[middle]) is None:
                high = middle - 1
            else:
                low = middle
            middle = (low + high + 1) // 2
        for piece in self._carried[self._begun : low]:
            self.trip.moved(piece, piece.file.size_bytes)
        self._begun = low
        if (found := self._entry(self._carried[low])) is not None:
            self.trip.moved(self._carried[low], found.size_bytes)

    def _entry(self, piece: Piece) -> Entry | None:
        (found,) = self.control.entries([self.parts[piece]])
        return found

    # ----------------------------------------------------------------------------- settling

    def meanwhile(self) -> None:
        """Leave it to the server when it writes to its disk."""

    def digest(self, pieces: Sequence[Piece], check: Callable[[], None]) -> None:
        """Compute the source's checksums."""
        if self.trip.algorithm:
            self.opened.digest(pieces, self.trip.algorithm, check)

    def has_begun(self, pieces: Sequence[Piece]) -> bool:
        """Look whether the first of these is there: what was left of it before had been removed."""
        if pieces[0].whole or not self.trip.client.goes_in_turn:
            return False
        with self._lock:
            return self._entry(pieces[0]) is not None

    def settle(self, pieces: Sequence[Piece]) -> None:
        """Compare files, and publish those that are right."""
        with self._lock:
            modes = self._right(pieces)
            self.opened.unchanged(pieces)
            self.control.do_all(self._publishing(modes))
            self._settled += len(pieces)
            gone = self._settled - (len(self.pieces) - len(self._carried))  # their parts are no more
            self._begun = max(self._begun, min(gone, len(self._carried) - 1))
        for piece in modes:
            self.trip.arrived(piece, skipped=False)
        self.wrong += [piece for piece in pieces if piece not in modes]

    def _right(self, pieces: Sequence[Piece]) -> dict[Piece, int | None]:
        """Return the files whose temporary copy holds what the source holds, with their modes where these are known."""
        parts = [self.parts[piece] for piece in pieces]
        if self.trip.algorithm:
            digests = _digests(self.trip, self.control, pieces, parts)
            return {
                piece: None for piece, digest in zip(pieces, digests, strict=True) if digest == piece.digest
            }
        tells = self.control.tells_modes
        return {
            piece: found.mode if tells else None
            for piece, found in zip(pieces, self.control.entries(parts), strict=True)
            if found is not None and found.is_file and found.size_bytes == piece.file.size_bytes
        }

    def _publishing(self, modes: Mapping[Piece, int | None]) -> Iterator[Step]:
        """Yield what gives files their times, their final names, and then their modes: a part must stay one that may be
        written.
        """
        for piece, found in modes.items():
            part, named, (mode, changed_s) = (
                self.parts[piece],
                self._name(piece),
                self.opened.described(piece),
            )
            yield from _timing(self.control, part, named, changed_s)
            for command in (b"RNFR " + part, b"RNTO " + piece.remote):
                yield lambda named=named: f"rename to {named}", command  # type: ignore[misc]
            if found != mode:
                yield _allowing(piece.remote, named, mode)


def _part(trip: Trip, piece: Piece) -> bytes:
    return below(trip.base, (*piece.parts, part_name(piece.file.name)))


def _digests(trip: Trip, control: Control, pieces: Sequence[Piece], paths: Sequence[bytes]) -> Iterator[str]:
    names = dict(zip(paths, pieces, strict=True))
    sizes = {path: piece.file.size_bytes for path, piece in names.items()}
    return control.digests(
        trip.algorithm, sizes, lambda path: trip.name_of((*names[path].parts, names[path].file.name))
    )


def _describing(control: Control, path: bytes, named: str, mode: int, changed_s: int) -> Iterator[Step]:
    """Yield the commands that set mode and time."""
    yield _allowing(path, named, mode)
    yield from _timing(control, path, named, changed_s)


def _allowing(path: bytes, named: str, mode: int) -> Step:
    return lambda: f"set the mode of {named}", b"SITE CHMOD %o %s" % (mode, path)


def _timing(control: Control, path: bytes, named: str, changed_s: int) -> Iterator[Step]:
    """Yield the command that sets the time; a server that cannot keep times is not asked to."""
    if "MFMT" in control.features:
        when = time.strftime("%Y%m%d%H%M%S", time.gmtime(changed_s)).encode()
        yield lambda: f"set the time of {named}", b"MFMT %s %s" % (when, path)


def _shown(path: bytes) -> str:
    return shown(os.fsdecode(path))
