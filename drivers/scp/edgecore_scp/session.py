"""Speak SFTP over one channel, with many requests in flight.

`Session.exchange` is all there is to it: it takes requests as fast as the server takes them and gives their
answers in the order of the requests, so that one file's blocks and a hundred files' names are pipelined alike.
A session is used by one thread at a time. A wait is cut into short ones, between which *check* may end it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field
from paramiko import Channel, SSHException

from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.trees import shown
from edgecore_scp import wire
from edgecore_scp.transport import why_closed
from edgecore_scp.wire import Answer, Failure, Kind, Request, Status

__all__ = ["Session", "failing"]

_IN_FLIGHT: Final = 256
_IN_FLIGHT_BYTES: Final = 4 * 1024 * 1024
"""So much is asked for, or sent, before an answer is awaited; a channel's window holds several times as much."""
_SEND_BYTES: Final = 32 * 1024
_WORDS_BYTES: Final = 80
_RECEIVE_BYTES: Final = 1024 * 1024
_BLOCK_BYTES: Final = 32 * 1024
"""What every server reads and writes at once."""
_LONGEST_BLOCK_BYTES: Final = 255 * 1024
_REFUSALS: Final = frozenset({Status.NO_SUCH_FILE, Status.PERMISSION_DENIED, Status.OP_UNSUPPORTED})


@contextmanager
def failing(asked: str, *, transient: frozenset[int] = frozenset()) -> Iterator[None]:
    """Turn a refusal of the server into TransferRefused or, for what may pass, TransferInterrupted."""
    try:
        yield
    except Failure as failure:
        words = f"cannot {asked}: {failure}"
        if failure.code in _REFUSALS - transient:
            raise TransferRefused(words) from failure
        raise TransferInterrupted(words) from failure


@define(eq=False)
class Session:
    """One SFTP session; *peer* is for messages."""

    channel: Channel
    peer: str
    check: Callable[[], None] = lambda: None
    """Called while nothing comes; what it raises ends the wait."""
    extensions: frozenset[bytes] = frozenset()
    read_bytes: int = _BLOCK_BYTES
    write_bytes: int = _BLOCK_BYTES
    _number: int = 0
    _came: bytearray = field(factory=bytearray)

    def begin(self) -> None:
        """Agree on the version, and learn what the server can do. Raises TransferInterrupted."""
        self._send(wire.init())
        kind, body = self._packet()
        if kind != Kind.VERSION or int.from_bytes(body[:4], "big") < wire.VERSION:
            raise self._broke("it does not speak version 3 of SFTP")
        self.extensions = frozenset(Answer(kind, body[4:]).extensions())
        if b"limits@openssh.com" in self.extensions:
            read, write = self.ask(wire.extended(b"limits@openssh.com")).limits()
            self.read_bytes = min(read or _LONGEST_BLOCK_BYTES, _LONGEST_BLOCK_BYTES)
            self.write_bytes = min(write or _LONGEST_BLOCK_BYTES, _LONGEST_BLOCK_BYTES)

    def ask(self, request: Request) -> Answer:
        """Send one request and wait for its answer."""
        (answer,) = self.exchange([request])
        return answer

    def exchange(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yield the answers to the requests, in their order; requests are taken as answers come.

        Raises TransferInterrupted when the connection breaks. To be used to its end.
        """
        wanted = iter(requests)
        waiting: deque[tuple[int, int]] = deque()
        answered: dict[int, Answer] = {}
        flying_bytes, more = 0, True
        while more or waiting:
            if more and len(waiting) <= _IN_FLIGHT // 2 and flying_bytes <= _IN_FLIGHT_BYTES // 2:
                out = bytearray()
                while len(waiting) < _IN_FLIGHT and flying_bytes < _IN_FLIGHT_BYTES:
                    request = next(wanted, None)
                    if request is None:
                        more = False
                        break
                    self._number = (self._number + 1) & 0xFFFFFFFF
                    cost = self.read_bytes if request.kind is Kind.READ else len(request.body)
                    waiting.append((self._number, cost))
                    flying_bytes += cost
                    out += wire.packet(request, self._number)
                    if len(out) >= _SEND_BYTES:
                        self._send(out)
                        out = bytearray()
                self._send(out)
            if not waiting:
                return
            number, cost = waiting.popleft()
            while number not in answered:
                kind, body = self._packet()
                answered[int.from_bytes(body[:4], "big")] = Answer(kind, body[4:])
                if len(answered) > _IN_FLIGHT:
                    raise self._broke("it answers what nobody asked")
            flying_bytes -= cost
            yield answered.pop(number)

    # ---------------------------------------------------------------------------- operations

    def rename(self, old: bytes, new: bytes) -> Request:
        """Give the request that renames and replaces, where the server has it; else one that never replaces."""
        if b"posix-rename@openssh.com" in self.extensions:
            return wire.extended(b"posix-rename@openssh.com", old, new)
        return wire.rename(old, new)

    @property
    def replaces(self) -> bool:
        """Tell whether `rename` replaces what is there."""
        return b"posix-rename@openssh.com" in self.extensions

    def room(self, path: bytes) -> tuple[int | None, int | None]:
        """Return how many bytes and files the file system of a path has room for; None for what is not told."""
        if b"statvfs@openssh.com" not in self.extensions:
            return None, None
        try:
            return self.ask(wire.extended(b"statvfs@openssh.com", path)).room()
        except Failure:
            return None, None

    def look(self, path: bytes) -> wire.Attributes | None:
        """Return what stands at *path*, not following a link there; None when there is nothing. Raises Failure."""
        try:
            return self.ask(wire.of_path(Kind.LSTAT, path)).attributes()
        except Failure as failure:
            if failure.code == Status.NO_SUCH_FILE:
                return None
            raise

    def close(self) -> None:
        """Give the channel back."""
        self.channel.close()

    # ------------------------------------------------------------------------------- channel

    def _broke(self, why: str) -> TransferInterrupted:
        return TransferInterrupted(f"the connection to {self.peer} is of no use any more: {why}")

    def _send(self, content: bytes | bytearray) -> None:
        left = memoryview(content)
        while left:
            try:
                left = left[self.channel.send(bytes(left[:_RECEIVE_BYTES])) :]
            except TimeoutError:
                self.check()
            except (OSError, SSHException, EOFError) as error:
                raise self._broke(why_closed(self.channel, error)) from error

    def _packet(self) -> tuple[int, bytes]:
        head = self._take(5)
        size, kind = struct.unpack(">IB", head)
        if not 1 <= size <= wire.PACKET_LIMIT_BYTES:
            words = (head + self._came[:_WORDS_BYTES]).decode("utf-8", "replace")
            if head.isascii() and words[:5].isprintable():
                raise self._broke(
                    f"it sent text ({shown(words.strip())}); do start-up files of the account's shell there print something?"
                )
            raise self._broke(f"it announced a packet of {size} bytes")
        body = self._take(size - 1)
        if len(body) < 4:
            raise self._broke("it sent a packet without a number")
        return kind, body

    def _take(self, size: int) -> bytes:
        while len(self._came) < size:
            try:
                came = self.channel.recv(_RECEIVE_BYTES)
            except TimeoutError:
                self.check()
                continue
            except (OSError, SSHException, EOFError) as error:
                raise self._broke(why_closed(self.channel, error)) from error
            if not came:
                raise self._broke(why_closed(self.channel))
            self._came += came
        found = bytes(self._came[:size])
        del self._came[:size]
        return found
