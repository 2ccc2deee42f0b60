"""Give the files of a tree to whoever brings them to a server: from a directory here, or from another server.

Both say what there is, hand out URLs for the client, and compute checksums.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from typing import Protocol

from attrs import Factory, define

from edgecore.carrying import Tally
from edgecore.errors import TransferInterrupted
from edgecore.parts import READ_FILE
from edgecore.remote import RemoteFile, below, plan_remote_file
from edgecore.selection import Selection
from edgecore.trees import Plan, enter, explained, plan_tree, refuse_all, shown
from edgecore_gridftp.client import local_url
from edgecore_gridftp.listing import plan_remote_tree
from edgecore_gridftp.text import Entry
from edgecore_gridftp.work import Piece, Trip, identity, local_digest

__all__ = ["LocalSource", "RemoteSource", "Source"]

_NS = 1_000_000_000


class Source(Protocol):
    """Where a tree comes from."""

    @property
    def subject(self) -> str:
        """The name that the certificate of its server must have; empty: that of the host, or it is here."""

    def plan(self) -> Plan:
        """Say what there is. Raises TransferRefused when something cannot be carried."""

    def opened(self, pieces: Sequence[Piece]) -> Opened:
        """Hold files open, so that they are not exchanged meanwhile. Raises TransferInterrupted."""


class Opened(Protocol):
    """Files that are being carried."""

    def __enter__(self) -> Opened:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """Give them back."""

    def url(self, piece: Piece) -> str:
        """Return the URL of one, for the client."""

    def described(self, piece: Piece) -> tuple[int, int]:
        """Return mode and time of change of one, in seconds."""

    def digest(self, pieces: Sequence[Piece], algorithm: str, check: Callable[[], None]) -> None:
        """Compute the checksums that are not known yet; *check* ends it early."""

    def unchanged(self, pieces: Sequence[Piece]) -> None:
        """Raise TransferInterrupted if one is not as it was when it was opened."""


# ------------------------------------------------------------------------------------- here


@define
class LocalSource:
    """A directory here, given as descriptor."""

    root: int
    name: str
    tally: Tally
    selection: Selection

    @property
    def subject(self) -> str:
        """There is no server."""
        return ""

    def plan(self) -> Plan:
        """Look at the tree; links cannot be made on a server as they are here."""
        plan = plan_tree(self.root, self.tally.beat, self.selection)
        refuse_all(
            [
                f"{shown('/'.join((*directory.parts, link.name)))} is a link, and GridFTP carries none; "
                "put there what it leads to, or pack the tree"
                for directory in plan.directories
                for link in directory.links
            ]
            + [
                f"{shown('/'.join((*directory.parts, name)))} has a carriage return in its name, which FTP cannot carry; rename it"
                for directory in plan.directories
                for name in (*directory.parts[-1:], *(file.name for file in directory.files))
                if "\r" in name
            ]
        )
        return plan

    def opened(self, pieces: Sequence[Piece]) -> LocalFiles:
        """Open files, following no link."""
        files = LocalFiles(self)
        try:
            for piece in pieces:
                files.open(piece)
        except BaseException:
            files.close()
            raise
        return files


@define
class LocalFiles:
    """Files here that are open."""

    source: LocalSource
    files: dict[Piece, tuple[int, os.stat_result]] = Factory(dict)

    def open(self, piece: Piece) -> None:
        """Open one, which may be anything by now."""
        here = self._name(piece)
        with explained(f"read {here}", transient=frozenset(range(1, 200))):
            holder = enter(self.source.root, piece.parts)
            try:
                opened = os.open(piece.file.source, READ_FILE, dir_fd=holder)
            finally:
                os.close(holder)
            info = os.fstat(opened)
        self.files[piece] = opened, info
        if not stat.S_ISREG(info.st_mode) or info.st_size != piece.file.size_bytes:
            raise TransferInterrupted(f"{here} changed when it was to be copied; try when it is complete")

    def close(self) -> None:
        """Close all."""
        for opened, _ in self.files.values():
            os.close(opened)
        self.files.clear()

    def __enter__(self) -> LocalFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, piece: Piece) -> str:
        """Return where the client finds it."""
        return local_url(self.files[piece][0])

    def described(self, piece: Piece) -> tuple[int, int]:
        """Return mode and time of change."""
        info = self.files[piece][1]
        return stat.S_IMODE(info.st_mode) & 0o777, info.st_mtime_ns // _NS

    def digest(self, pieces: Sequence[Piece], algorithm: str, check: Callable[[], None]) -> None:
        """Read them."""
        for piece in pieces:
            if not piece.digest:
                with explained(f"read {self._name(piece)}"):
                    piece.digest = local_digest(self.files[piece][0], algorithm, check)

    def unchanged(self, pieces: Sequence[Piece]) -> None:
        """Look at them again."""
        for piece in pieces:
            opened, before = self.files[piece]
            if identity(before) != identity(os.fstat(opened)):
                raise TransferInterrupted(
                    f"{self._name(piece)} changed while it was copied; try when it is complete"
                )

    def _name(self, piece: Piece) -> str:
        return f"{self.source.name}/{piece.shown}"


# ---------------------------------------------------------------------------------- a server


@define
class RemoteSource:
    """A directory, or one file, on another server."""

    trip: Trip
    root: Entry
    file: bytes
    """The name of the one file in the trip's directory; empty for a tree."""
    entries_limit: int

    @property
    def subject(self) -> str:
        """The name of its server."""
        return self.trip.subject

    def plan(self) -> Plan:
        """List it."""
        if self.file:
            return plan_remote_file(self.file, self.root.numbers)
        with self.trip.control() as control:
            return plan_remote_tree(
                control, self.trip.base, self.root, self.trip.tally.beat, self.entries_limit
            )

    def opened(self, pieces: Sequence[Piece]) -> RemoteFiles:
        """Hold nothing: a server keeps its files as it likes."""
        return RemoteFiles(self)


@define
class RemoteFiles:
    """Files there. Whether one changed meanwhile shows in its checksum."""

    source: RemoteSource

    def __enter__(self) -> RemoteFiles:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave them as they are."""

    def _path(self, piece: Piece) -> bytes:
        return below(self.source.trip.base, (*piece.parts, piece.file.source))

    def url(self, piece: Piece) -> str:
        """Return where it is."""
        return self.source.trip.url_of(self._path(piece))

    def described(self, piece: Piece) -> tuple[int, int]:
        """Return what the listing said."""
        assert isinstance(piece.file, RemoteFile)
        return piece.file.mode, piece.file.changed_s

    def digest(self, pieces: Sequence[Piece], algorithm: str, check: Callable[[], None]) -> None:
        """Ask the server."""
        unknown = {self._path(piece): piece for piece in pieces if not piece.digest}
        names = lambda path: self.source.trip.name_of((*unknown[path].parts, unknown[path].file.name))  # noqa: E731
        with self.source.trip.control() as control:
            sizes = {path: piece.file.size_bytes for path, piece in unknown.items()}
            found = control.digests(algorithm, sizes, names)
            for piece, digest in zip(unknown.values(), found, strict=True):
                check()
                piece.digest = digest

    def unchanged(self, pieces: Sequence[Piece]) -> None:
        """Leave it to the checksums."""
