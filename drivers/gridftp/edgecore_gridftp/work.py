"""Hold what a transfer needs in either direction: the server, how far it is, how content is compared, batches."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from attrs import Factory, define, evolve, field, frozen

from edgecore.carrying import Tally
from edgecore.remote import below
from edgecore.trees import File, Parts, Plan, shown
from edgecore_gridftp.channels import Channels
from edgecore_gridftp.client import Client
from edgecore_gridftp.control import Control, Server

__all__ = ["RESUME_BYTES", "Piece", "Trip", "Ways", "identity", "local_digest"]

RESUME_BYTES: Final = 1024 * 1024
"""A shorter beginning of a file is not worth a look."""
_BATCH_FILES: Final = 1000
_FILES_SHARE: Final = 4
"""Each file of a batch is open while it is carried: batches have this part of the files that a process may open."""
_BATCH_BYTES: Final = 512 * 1024 * 1024
_ALONE_BYTES: Final = 64 * 1024 * 1024
_HOLES_BYTES: Final = 16 * 1024 * 1024
_CHUNK_BYTES: Final = 1024 * 1024
_NEAR_S: Final = 0.002
"""Up to this round trip one connection fills what there is: the 4 MiB that Linux sends unanswered are 2 GB/s then."""
_FAR_PARALLEL: Final = 4


@frozen(kw_only=True)
class Ways:
    """How files are carried; the driver's keys."""

    checksum: str
    """The algorithm to prefer, in capitals; empty: sizes only."""
    streams: int
    parallel: int
    """Data connections for one long file; 0: as the way asks."""
    parallel_from_bytes: int
    listen: bool


@define(eq=False)
class Piece:
    """One file on its way."""

    parts: Parts
    file: File
    remote: bytes
    """Its path there, under its final name."""
    alone: bool
    """Whether it is carried by a process of its own, and continued where it broke off."""
    start: int = 0
    """Up to where a former transfer had brought it, as far as we know."""
    digest: str = ""
    """The source's checksum, where it is known."""
    counted: int = 0
    """How many of its bytes were told as moved, so that none is told twice."""

    @property
    def shown(self) -> str:
        """Its place in the tree, for people."""
        return shown("/".join((*self.parts, self.file.name)))

    @property
    def whole(self) -> bool:
        """Tell whether a former transfer had brought all of it, as far as we know."""
        return self.start > 0 and self.start == self.file.size_bytes


@define
class Trip:
    """One transfer, seen from one server."""

    server: Server
    channels: Channels
    client: Client
    base: bytes
    """The directory there."""
    peer_name: str
    """That directory for people: a URL."""
    ways: Ways
    tally: Tally = Factory(Tally)
    algorithm: str = ""
    """The checksum that is compared; empty: sizes only."""
    beyond_s: float = 0.0
    """The round trip to the other server, if content comes from one."""
    _round_trip_s: float = 0.0
    _lock: threading.Lock = field(factory=threading.Lock)

    @contextmanager
    def control(self) -> Iterator[Control]:
        """Borrow a channel, which tells what the server can do."""
        with self.channels.channel(self.server, self.tally) as borrowed:
            self.algorithm = next(iter(self._algorithms(borrowed)), "")
            self._round_trip_s = borrowed.round_trip_s
            yield borrowed

    def _algorithms(self, control: Control) -> Sequence[str]:
        return control.algorithms(self.ways.checksum) if self.ways.checksum else ()

    def agree_with(self, other: Trip) -> None:
        """Compare by the best checksum that the other trip's server computes, too; by sizes where there is none.

        Its server is taken to be as far from ours as the way over here is long, which it is at most.
        """
        with other.control() as control:
            theirs, self.beyond_s = self._algorithms(control), control.round_trip_s
        with self.control() as control:
            common = [each for each in self._algorithms(control) if each in theirs]
        self.ways = evolve(self.ways, checksum=common[0] if common else "")

    @property
    def verified(self) -> str:
        """Say how content was compared."""
        return self.algorithm.lower() or "size"

    def name_of(self, parts: Iterable[str]) -> str:
        """Name a place there for people."""
        return "/".join((self.peer_name.rstrip("/"), *map(shown, parts)))

    def url_of(self, path: bytes) -> str:
        """Return the URL of a path there, for the client."""
        return self.server.place.url_of(path)

    @property
    def subject(self) -> str:
        """The name that the server's certificate must have; empty: that of its host."""
        return self.server.credential.subject if self.server.credential else ""

    def moved(self, piece: Piece, offset: int) -> None:
        """Note that a file arrived up to *offset*."""
        offset = min(offset, piece.file.size_bytes)
        with self._lock:  # who watches the client may look at a file that has just been settled
            more = max(offset - piece.counted, 0)
            piece.counted += more
        if more:
            self.tally.beat(more)

    def arrived(self, piece: Piece, *, skipped: bool) -> None:
        """Note that a file stands under its final name."""
        self.moved(piece, piece.file.size_bytes)
        if self.algorithm:
            path = "/".join((*piece.parts, piece.file.name))
            self.tally.checksums[path] = f"{self.algorithm.lower()}:{piece.digest}"
        self.tally.arrived(skipped=skipped)

    def pieces(self, plan: Plan) -> Iterator[list[Piece]]:
        """Cut the files of a plan into batches of bounded number and size; a long file is one of its own."""
        limit = min(_BATCH_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _FILES_SHARE)
        batch, size = list[Piece](), 0
        for directory in plan.directories:
            above = below(self.base, directory.parts)
            for file in directory.files:
                remote = below(above, (file.source,))
                if file.size_bytes >= _ALONE_BYTES:
                    yield [Piece(directory.parts, file, remote, alone=True)]
                    continue
                batch.append(Piece(directory.parts, file, remote, alone=False))
                size += file.size_bytes
                if len(batch) >= limit or size >= _BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    def parallel(self, piece: Piece) -> int:
        """Return how many data connections carry one file."""
        if not piece.alone or piece.file.size_bytes < self.ways.parallel_from_bytes:
            return 1
        return self.ways.parallel or (1 if self._round_trip_s + self.beyond_s <= _NEAR_S else _FAR_PARALLEL)

    def start(self, piece: Piece, held: int) -> int:
        """Return from where to go on with a file of which *held* bytes seem to be there.

        Only a checksum tells in the end whether they are right: parallel streams leave holes, mostly near the end.
        """
        size = piece.file.size_bytes
        if not self.algorithm or held > size or (held < size and not piece.alone):
            return 0
        if held == size:
            return held
        if (parallel := self.ways.parallel or _FAR_PARALLEL) > 1:
            held -= parallel * _HOLES_BYTES
        return held if held >= RESUME_BYTES else 0


def local_digest(opened: int, algorithm: str, beat: Callable[[], None]) -> str:
    """Return the checksum of an open local file, as servers write it."""
    offset, adler = 0, 1
    digest = None if algorithm == "ADLER32" else hashlib.new(algorithm.lower(), usedforsecurity=False)
    while block := os.pread(opened, _CHUNK_BYTES, offset):
        if digest is None:
            adler = zlib.adler32(block, adler)
        else:
            digest.update(block)
        offset += len(block)
        beat()
    return f"{adler:08x}" if digest is None else digest.hexdigest()


def identity(info: os.stat_result) -> tuple[int, int, int]:
    """Return what changes when a file does."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns
