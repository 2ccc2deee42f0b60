"""Hold what a transfer needs in either direction: the host, how far it is, how content is compared, batches."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from attrs import Factory, define, field, frozen

from edgecore.carrying import Tally
from edgecore.errors import TransferInterrupted
from edgecore.remote import below
from edgecore.trees import Directory, File, Parts, Plan, shown
from edgecore_scp.bulk import Bulk, Watch, can_carry
from edgecore_scp.checksums import Checker
from edgecore_scp.connection import Connection
from edgecore_scp.session import Session, failing
from edgecore_scp.wire import Failure, Status

__all__ = ["RESUME_BYTES", "Piece", "Trip", "Unwritten", "Ways", "writing"]

RESUME_BYTES: Final = 256 * 1024
"""A shorter beginning of a file is not worth a look."""
TAIL_BYTES: Final = 1024 * 1024
_BATCH_FILES: Final = 256
_BATCH_BYTES: Final = 64 * 1024 * 1024
_ALONE_BYTES: Final = 8 * 1024 * 1024


@frozen(kw_only=True)
class Ways:
    """How files are carried; the driver's keys."""

    checksums: bool
    streams: int
    bulk: Bulk | None
    bulk_from_bytes: int
    max_entries: int


class Unwritten(Exception):
    """The other side did not write something; whether for lack of room is asked once the session is given back."""

    def __init__(self, asked: str, reason: Failure | TransferInterrupted, needed_bytes: int) -> None:
        super().__init__(asked)
        self.asked, self.reason, self.needed_bytes = asked, reason, needed_bytes


@contextmanager
def writing(asked: str, needed_bytes: int = 1) -> Iterator[None]:
    """Turn what a server says to a request to write into Unwritten, which is for a trip's session."""
    try:
        yield
    except Failure as failure:
        raise Unwritten(asked, failure, needed_bytes) from failure


@define
class Piece:
    """One file on its way."""

    parts: Parts
    file: File
    remote: bytes
    """Its path there, under its final name."""
    start: int = 0
    """Up to where a former transfer had brought it, as far as we know."""
    handle: bytes = b""
    digest: str = ""
    """SHA-256 of the source, where it is known."""
    counted: int = 0
    """How many of its bytes were told as moved, so that none is told twice."""

    @property
    def shown(self) -> str:
        """Its place in the tree, for people."""
        return shown("/".join((*self.parts, self.file.name)))


@define
class Trip:
    """One transfer to or from one host."""

    connection: Connection
    base: bytes
    """The directory there."""
    peer_name: str
    """That directory for people: a URL."""
    ways: Ways
    tally: Tally = Factory(Tally)
    unchecked: bool = False
    """Whether a file was compared by its size alone."""
    _lock: threading.Lock = field(factory=threading.Lock)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Borrow a session; whoever has one must not ask for another. Explains what is Unwritten."""
        try:
            with self.connection.session(self.tally.beat, self.tally.check) as session:
                yield session
        except Unwritten as error:
            raise self._explained(error) from error

    @property
    def checker(self) -> Checker:
        """Whom to ask for checksums of files there."""
        return Checker(self.connection, self.tally.beat, self.tally.check)

    @property
    def checked(self) -> bool:
        """Tell whether checksums are compared."""
        return self.ways.checksums and self.checker.available

    @property
    def verified(self) -> str:
        """Say how content was compared."""
        return "size" if self.unchecked or not self.checked else "sha256"

    def name_of(self, parts: Iterable[str]) -> str:
        """Name a place there for people."""
        return "/".join((self.peer_name.rstrip("/"), *map(shown, parts)))

    def moved(self, piece: Piece, offset: int) -> None:
        """Note that a file is right up to *offset*."""
        self.tally.beat(max(offset - piece.counted, 0))
        piece.counted = max(offset, piece.counted)

    def pieces(self, plan: Plan) -> Iterator[list[Piece]]:
        """Cut the files of a plan into batches of bounded number and size; a long file is one of its own."""
        batch, size = list[Piece](), 0
        for directory, file in _files(plan):
            remote = below(self.base, (*directory.parts, file.source))
            piece = Piece(directory.parts, file, remote)
            if file.size_bytes >= _ALONE_BYTES:
                yield [piece]
                continue
            batch.append(piece)
            size += file.size_bytes
            if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def bulk_for(self, piece: Piece, remote: bytes) -> Bulk | None:
        """Return OpenSSH, where it is there and this file is long enough for it."""
        if piece.file.size_bytes - piece.start < self.ways.bulk_from_bytes or not can_carry(remote):
            return None
        return None if self.connection.route.jumps else self.ways.bulk

    def watch(self, piece: Piece) -> Watch:
        """Return how OpenSSH reports on one file."""
        done = piece.start

        def beat(more: int) -> None:
            nonlocal done
            done += more
            if more:
                self.moved(piece, min(done, piece.file.size_bytes))
            else:
                self.tally.check()

        return Watch(beat, lambda: self.tally.halted)

    def _explained(self, error: Unwritten) -> Exception:
        """Say why the other side failed to write; only the room that is left tells a full disk from others."""
        asked, reason = error.asked, error.reason
        if not isinstance(reason, Failure) or reason.code == Status.FAILURE:
            with suppress(TransferInterrupted):  # the host has gone, too
                if full := self._full(error.needed_bytes):
                    return TransferInterrupted(f"cannot {asked}: {full}; make room")
        if not isinstance(reason, Failure):
            return reason
        try:
            with failing(asked):
                raise reason
        except Exception as explained:
            return explained

    def _full(self, needed_bytes: int) -> str:
        """Say what there is no room for; empty where there is, or nobody knows."""
        path = self.base
        with self.session() as session:
            room, files = session.room(path)
            while room is None and path.strip(b"/"):  # it may not be there yet
                path = path.rpartition(b"/")[0] or b"/"
                room, files = session.room(path)
        if room is not None and room < needed_bytes:
            return f"no space left there ({room} bytes are free)"
        return "no space left there for one more file (no inodes are free)" if files == 0 else ""


def together(first: Callable[[], str], second: Callable[[], object]) -> str:
    """Do *first* in a thread beside *second*; return what it returned."""
    found: list[str] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            found.append(first())
        except BaseException as error:  # raised below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work, name="scp checksum", daemon=True)
    thread.start()
    try:
        second()
    finally:
        thread.join()
    if errors:
        raise errors[0]
    return found[0]


def identity(info: os.stat_result) -> tuple[int, int, int]:
    """Return what changes when a file does."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _files(plan: Plan) -> Iterator[tuple[Directory, File]]:
    return ((directory, file) for directory in plan.directories for file in directory.files)
