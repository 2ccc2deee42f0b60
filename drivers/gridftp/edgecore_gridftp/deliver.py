"""Bring a tree to a server: plan, look there, have it written beside the final names, compare, rename.

Files go in batches. The client writes temporary files; what it says of its success is not believed: the server computes
checksums of what it holds. A file that a former call had brought whole is only compared; a long one that broke off is
continued, and written anew where that proves wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from attrs import Factory, define

from edgecore.carrying import share
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.trees import Directory, Parts, Plan, part_name, shown
from edgecore_gridftp.client import Load
from edgecore_gridftp.control import Control
from edgecore_gridftp.listing import list_directories
from edgecore_gridftp.place import below
from edgecore_gridftp.sources import Opened, Source
from edgecore_gridftp.text import Entry, is_missing, trouble
from edgecore_gridftp.work import Piece, Trip, together

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
        for level in _levels(plan):
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
        with self.source.opened(pieces) as opened:
            with self.trip.control() as control:
                todo = self._skip_right(control, opened, pieces)
            for fresh in (False, True):
                if not todo:
                    return
                with self.trip.control() as control:
                    self._write(control, opened, todo, fresh=fresh)
                    wrong = self._wrong(control, opened, todo)
                    opened.unchanged()
                    self._publish(control, opened, [piece for piece in todo if piece not in wrong])
                todo = wrong
            if todo:
                raise TransferInterrupted(
                    f"{self._name(todo[0])} does not hold what its source holds; does the source change, or the disk fail?"
                )

    def _name(self, piece: Piece) -> str:
        return self.trip.name_of((*piece.parts, piece.file.name))

    def _part(self, piece: Piece) -> bytes:
        return below(self.trip.base, (*piece.parts, part_name(piece.file.name)))

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
            held = self._digests(control, same, [piece.remote for piece in same])
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

    def _digests(self, control: Control, pieces: Sequence[Piece], paths: Sequence[bytes]) -> Iterator[str]:
        names = dict(zip(paths, pieces, strict=True))
        sizes = {path: piece.file.size_bytes for path, piece in names.items()}
        return control.digests(self.trip.algorithm, sizes, lambda path: self._name(names[path]))

    def _write(self, control: Control, opened: Opened, pieces: list[Piece], *, fresh: bool) -> None:
        """Have every file brought to its temporary name."""
        self.trip.tally.current = pieces[0].shown
        for piece in pieces:
            found = self._found(piece, part_name(piece.file.name))
            if found is not None and found.link:  # somebody put a link there
                control.do(f"remove {_shown(self._part(piece))}", b"DELE " + self._part(piece))
                found = None
            piece.start = 0 if found is None or fresh else self.trip.start(piece, found.size_bytes)
        todo = [piece for piece in pieces if not piece.whole]
        parts = [self._part(piece) for piece in todo]

        done = 0

        def watch() -> None:
            nonlocal done
            done = self._look(control, todo, parts, done)

        def carry() -> None:
            if todo:
                self.trip.client.carry(self._load(opened, todo), self.trip.tally, watch)
                for piece in todo:
                    self.trip.moved(piece, piece.file.size_bytes)

        def digest(check: Callable[[], None]) -> None:
            if self.trip.algorithm:
                opened.digest(pieces, self.trip.algorithm, check)

        together(digest, carry, self.trip.tally)

    def _look(self, control: Control, pieces: list[Piece], parts: list[bytes], done: int) -> int:
        """See how far the client is, which goes from file to file in their order; return how many files it has done.

        Few of many files are asked for: the first that is not whole is searched for by halves.
        """
        low, high = done, len(pieces)
        while low < high:
            middle = (low + high) // 2 if high - low < len(pieces) - done else low  # mostly it is the first
            (size,) = control.sizes([parts[middle]])
            self.trip.moved(pieces[middle], size)
            if size >= pieces[middle].file.size_bytes > 0:
                low = middle + 1
            else:
                high = middle
        for piece in pieces[done:low]:
            self.trip.moved(piece, piece.file.size_bytes)
        return low

    def _load(self, opened: Opened, pieces: Sequence[Piece]) -> Load:
        first = pieces[0]
        more = f" and {len(pieces) - 1} more files" if len(pieces) > 1 else ""
        return Load(
            pairs=[(opened.url(piece), self.trip.url_of(self._part(piece))) for piece in pieces],
            asked=f"write {self._name(first)}{more}",
            fast=True,
            parallel=self.trip.parallel(first),
            offset=first.start if first.alone else 0,
            subjects=(self.source.subject, self.trip.subject),
        )

    def _wrong(self, control: Control, opened: Opened, pieces: list[Piece]) -> list[Piece]:
        """Return the files whose temporary copy does not hold what the source holds."""
        parts = [self._part(piece) for piece in pieces]
        if not self.trip.algorithm:
            sizes = control.sizes(parts)
            return [piece for piece, size in zip(pieces, sizes, strict=True) if size != piece.file.size_bytes]
        digests = self._digests(control, pieces, parts)
        return [piece for piece, digest in zip(pieces, digests, strict=True) if digest != piece.digest]

    def _publish(self, control: Control, opened: Opened, pieces: Sequence[Piece]) -> None:
        """Give the files their times, their final names, and then their modes: a part must stay one that may be written."""

        def steps() -> Iterator[Step]:
            for piece in pieces:
                part, named, (mode, changed_s) = self._part(piece), self._name(piece), opened.described(piece)
                yield from _timing(control, part, named, changed_s)
                for command in (b"RNFR " + part, b"RNTO " + piece.remote):
                    yield lambda named=named: f"rename to {named}", command  # type: ignore[misc]
                yield _allowing(piece.remote, named, mode)

        control.do_all(steps())
        for piece in pieces:
            self.trip.arrived(piece, skipped=False)


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


def _levels(plan: Plan) -> Iterator[list[Directory]]:
    """Yield the directories of a plan by their depth."""
    levels: dict[int, list[Directory]] = {}
    for directory in plan.directories:
        levels.setdefault(len(directory.parts), []).append(directory)
    for depth in sorted(levels):
        yield levels[depth]


def _shown(path: bytes) -> str:
    return shown(os.fsdecode(path))
