"""Write requests and read answers of the SFTP protocol, version 3, as OpenSSH speaks it: bytes only, no connection.

The protocol is that of draft-ietf-secsh-filexfer-02 with the extensions of OpenSSH's ``PROTOCOL`` file. Names
are bytes everywhere. What a server sends is a stranger's: every length is checked against what is there.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from attrs import frozen

from edgecore.errors import TransferInterrupted

__all__ = [
    "CREATE",
    "EXCLUSIVE",
    "PACKET_LIMIT_BYTES",
    "READ",
    "TRUNCATE",
    "VERSION",
    "WRITE",
    "Answer",
    "Attributes",
    "Entry",
    "Failure",
    "Garbled",
    "Kind",
    "Request",
    "Status",
    "close_file",
    "extended",
    "init",
    "list_some",
    "make_directory",
    "of_path",
    "open_file",
    "packet",
    "read_some",
    "rename",
    "set_attributes",
    "symlink",
    "write_some",
]

VERSION: Final = 3
PACKET_LIMIT_BYTES: Final = 1024 * 1024
"""No server has a reason to send more at once: OpenSSH's limit is 256 KiB."""

READ, WRITE, CREATE, TRUNCATE, EXCLUSIVE = 0x1, 0x2, 0x8, 0x10, 0x20

_SIZE, _OWNER, _MODE, _TIMES, _EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000
_LATEST: Final = 2**32 - 1


class Kind(IntEnum):
    """Types of packets; section 3 of the draft."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status(IntEnum):
    """Codes of a STATUS packet; section 7 of the draft."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8


class Failure(Exception):
    """The server refused a request, in its own words."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


class Garbled(TransferInterrupted):
    """The server sent what is no answer to the request."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the server does not keep to the protocol: {what}")


@frozen
class Request:
    """One request; the session gives it its number."""

    kind: Kind
    body: bytes


@frozen
class Attributes:
    """What a server says of a file; None for what it does not say."""

    size_bytes: int | None = None
    mode: int | None = None
    changed_s: int | None = None

    @property
    def is_directory(self) -> bool:
        """Tell whether it is a directory."""
        return self.mode is not None and stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Tell whether it is a regular file of a known size."""
        return self.size_bytes is not None and self.mode is not None and stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Tell whether it is a symbolic link."""
        return self.mode is not None and stat.S_ISLNK(self.mode)


@frozen
class Entry:
    """One line of a listing."""

    name: bytes
    attributes: Attributes


# ------------------------------------------------------------------------------------ requests


def _number(value: int) -> bytes:
    return struct.pack(">I", value)


def _text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def packet(request: Request, number: int) -> bytes:
    """Return the bytes of a request on the wire."""
    return struct.pack(">IBI", len(request.body) + 5, request.kind, number) + request.body


def init() -> bytes:
    """Return the first packet of a session."""
    return struct.pack(">IBI", 5, Kind.INIT, VERSION)


def of_path(kind: Kind, path: bytes) -> Request:
    """Ask for what takes a path, or a handle, and nothing else: LSTAT, OPENDIR, READLINK, REMOVE, STAT, FSTAT."""
    return Request(kind, _text(path))


def open_file(path: bytes, flags: int, mode: int = 0o600) -> Request:
    """Open a file; *mode* is for one that is made."""
    return Request(Kind.OPEN, _text(path) + _number(flags) + _number(_MODE) + _number(mode))


def make_directory(path: bytes, mode: int) -> Request:
    """Make a directory."""
    return Request(Kind.MKDIR, _text(path) + _number(_MODE) + _number(mode))


def close_file(handle: bytes) -> Request:
    """Close a file or a directory."""
    return Request(Kind.CLOSE, _text(handle))


def read_some(handle: bytes, offset: int, size: int) -> Request:
    """Read at most *size* bytes."""
    return Request(Kind.READ, _text(handle) + struct.pack(">QI", offset, size))


def write_some(handle: bytes, offset: int, content: bytes) -> Request:
    """Write all of *content*."""
    return Request(Kind.WRITE, b"".join((_text(handle), struct.pack(">Q", offset), _text(content))))


def list_some(handle: bytes) -> Request:
    """Read some entries of a directory."""
    return Request(Kind.READDIR, _text(handle))


def set_attributes(kind: Kind, what: bytes, mode: int, changed_s: int) -> Request:
    """Set mode and time of a path (SETSTAT) or an open file (FSETSTAT)."""
    time = min(max(changed_s, 0), _LATEST)
    return Request(kind, _text(what) + struct.pack(">IIII", _MODE | _TIMES, mode, time, time))


def rename(old: bytes, new: bytes) -> Request:
    """Rename as the protocol has it: refused where the new name exists."""
    return Request(Kind.RENAME, _text(old) + _text(new))


def symlink(target: bytes, name: bytes) -> Request:
    """Make a symbolic link; the order of the two is OpenSSH's, which every server follows."""
    return Request(Kind.SYMLINK, _text(target) + _text(name))


def extended(name: bytes, *fields: bytes) -> Request:
    """Ask for an extension that the server announced, with fields that are texts."""
    return Request(Kind.EXTENDED, _text(name) + b"".join(map(_text, fields)))


# ------------------------------------------------------------------------------------- answers


class _Reader:
    def __init__(self, content: bytes, at: int = 0) -> None:
        self.content, self.at = content, at

    def number(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def long(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def text(self) -> bytes:
        return self._take(self.number())

    def attributes(self) -> Attributes:
        flags = self.number()
        size = self.long() if flags & _SIZE else None
        if flags & _OWNER:
            self._take(8)
        mode = self.number() if flags & _MODE else None
        changed = None
        if flags & _TIMES:
            self._take(4)
            changed = self.number()
        if flags & _EXTENDED:
            for _ in range(self.number()):
                self.text(), self.text()
        return Attributes(size, mode, changed)

    @property
    def ended(self) -> bool:
        return self.at >= len(self.content)

    def _take(self, size: int) -> bytes:
        found = self.content[self.at : self.at + size]
        if len(found) < size:
            raise Garbled(f"an answer ends {size - len(found)} bytes too early")
        self.at += size
        return found


@frozen
class Answer:
    """One answer; each method reads it as what it should be. Raises Failure and Garbled."""

    kind: int
    body: bytes

    def ok(self) -> None:
        """Read that it was done."""
        self._expect(Kind.STATUS)

    def handle(self) -> bytes:
        """Read the handle of what was opened."""
        return self._expect(Kind.HANDLE).text()

    def data(self, limit: int) -> bytes:
        """Read at most *limit* bytes of a file; empty at its end."""
        reader = self._expect_or_end(Kind.DATA)
        found = b"" if reader is None else reader.text()
        if len(found) > limit:
            raise Garbled(f"{len(found)} bytes came where {limit} were asked for")
        return found

    def attributes(self) -> Attributes:
        """Read what a file is like."""
        return self._expect(Kind.ATTRS).attributes()

    def entries(self) -> list[Entry]:
        """Read some lines of a listing; none at its end."""
        reader = self._expect_or_end(Kind.NAME)
        if reader is None:
            return []
        entries = []
        for _ in range(reader.number()):
            name = reader.text()
            reader.text()  # as ``ls -l`` shows it, for people
            entries.append(Entry(name, reader.attributes()))
        return entries

    def path(self) -> bytes:
        """Read the one path that REALPATH and READLINK answer."""
        entries = self.entries()
        if len(entries) != 1:
            raise Garbled(f"{len(entries)} names came where one was asked for")
        return entries[0].name

    def room(self) -> tuple[int, int | None]:
        """Read what the statvfs extension says of the room for us: bytes, and files where their number has a limit."""
        reader = self._expect(Kind.EXTENDED_REPLY)
        numbers = [reader.long() for _ in range(8)]
        return (numbers[1] or numbers[0]) * numbers[4], numbers[7] if numbers[5] else None

    def limits(self) -> tuple[int, int]:
        """Read what the limits extension says: the longest read and the longest write; 0 for no limit."""
        reader = self._expect(Kind.EXTENDED_REPLY)
        numbers = [reader.long() for _ in range(3)]
        return numbers[1], numbers[2]

    def extensions(self) -> Iterator[bytes]:
        """Read the names of the extensions in a VERSION packet."""
        reader = _Reader(self.body)
        while not reader.ended:
            yield reader.text()
            reader.text()

    def _expect(self, kind: Kind) -> _Reader:
        if self.kind == kind:
            reader = _Reader(self.body)
            if kind is not Kind.STATUS:
                return reader
            code = reader.number()
            if code == Status.OK:
                return reader
            text = "" if reader.ended else reader.text().decode("utf-8", "replace")
            raise Failure(code, text or f"the server answered with code {code}")
        if self.kind == Kind.STATUS:
            self._expect(Kind.STATUS)
        raise Garbled(f"a packet of type {self.kind} came where type {kind.value} was expected")

    def _expect_or_end(self, kind: Kind) -> _Reader | None:
        """Return None where the file or the directory has ended."""
        try:
            return self._expect(kind)
        except Failure as failure:
            if failure.code == Status.EOF:
                return None
            raise
