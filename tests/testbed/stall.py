"""Stand between a client and a server on loopback: slow, silent, cut, or leading to another server.

One thread moves all bytes, so that a test which counts threads sees the same number however many connections
there are.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field

__all__ = ["Proxy"]

_BUFFER_BYTES: Final = 256 * 1024
_TICK_S: Final = 0.02
_END_S: Final = 20.0


@define(eq=False)
class _Flow:
    """One direction of one connection."""

    source: socket.socket
    target: socket.socket
    held: bytearray = field(factory=bytearray)
    ended: bool = False


@define(eq=False)
class Proxy:
    """Listen on a port of loopback and pass everything on to another port of it."""

    target_port: int
    port: int = 0
    rate_bytes_s: float | None = None
    stalled: bool = False
    passed_bytes: int = 0
    """How much it has passed on so far, in both directions."""
    _listener: socket.socket | None = None
    _flows: list[_Flow] = field(factory=list)
    _lock: threading.RLock = field(factory=threading.RLock)
    _ended: threading.Event = field(factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> Proxy:
        """Begin to listen."""
        self._listen()
        self._thread = threading.Thread(target=self._work, name="proxy", daemon=True)
        self._thread.start()
        return self

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        with self._lock:
            return len(self._flows) // 2

    def close(self) -> None:
        """Cut every connection and end."""
        self._ended.set()
        assert self._thread is not None
        self._thread.join(_END_S)
        self.cut()

    def cut(self) -> None:
        """Cut every connection; new ones are taken as before."""
        with self._lock:
            for flow in self._flows:
                flow.source.close()
            self._flows.clear()

    @contextmanager
    def slow(self, rate_bytes_s: float) -> Iterator[None]:
        """Pass on so many bytes a second, in both directions together."""
        self.rate_bytes_s = rate_bytes_s
        try:
            yield
        finally:
            self.rate_bytes_s = None

    @contextmanager
    def stall(self) -> Iterator[None]:
        """Keep connections, take new ones, and pass on nothing."""
        self.stalled = True
        try:
            yield
        finally:
            self.stalled = False

    @contextmanager
    def away(self) -> Iterator[None]:
        """Cut every connection, and refuse new ones."""
        with self._lock:
            assert self._listener is not None
            self._listener.shutdown(socket.SHUT_RDWR)  # at once, also where select waits for it
            self._listener.close()
            self._listener = None
            self.cut()
        try:
            yield
        finally:
            self._listen()

    @contextmanager
    def leading_to(self, port: int) -> Iterator[None]:
        """Cut every connection, and lead new ones to another server; afterwards the same again."""
        before = self.target_port
        with self._lock:
            self.target_port = port
            self.cut()
        try:
            yield
        finally:
            with self._lock:
                self.target_port = before
                self.cut()

    # --------------------------------------------------------------------------------- inside

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        listener.setblocking(False)
        with self._lock:
            self._listener, self.port = listener, listener.getsockname()[1]

    def _work(self) -> None:
        allowance, last = 0.0, time.monotonic()
        while not self._ended.is_set():
            now = time.monotonic()
            rate = self.rate_bytes_s
            allowance = min(allowance + (now - last) * rate, _BUFFER_BYTES) if rate else float("inf")
            last = now
            with self._lock:
                self._accept()
                moved = 0 if self.stalled else self._move(allowance)
            allowance -= moved
            self.passed_bytes += moved
            if not moved:
                self._wait()
        with self._lock:
            if self._listener is not None:
                self._listener.close()

    def _wait(self) -> None:
        """Wait until something may be read; with a limit of rate, or in silence, just for a moment."""
        with self._lock:
            busy = self.stalled or self.rate_bytes_s is not None or any(flow.held for flow in self._flows)
            sources = [flow.source for flow in self._flows if not flow.ended]
            watched = [] if busy else [*sources, *([self._listener] if self._listener else [])]
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            select.select(watched, [], [], _TICK_S)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port), timeout=_END_S)
        except OSError:
            client.close()
            return
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setblocking(False)
        self._flows += [_Flow(client, server), _Flow(server, client)]

    def _move(self, allowance: float) -> int:
        moved, gone = 0, set[socket.socket]()
        for flow in self._flows:
            try:
                moved += self._move_one(flow, allowance - moved)
            except BlockingIOError:
                continue
            except OSError:
                gone |= {flow.source, flow.target}
            if flow.ended and not flow.held:
                gone |= {flow.source, flow.target}
        for each in gone:
            each.close()
        self._flows = [flow for flow in self._flows if flow.source not in gone]
        return moved

    def _move_one(self, flow: _Flow, allowance: float) -> int:
        room = _BUFFER_BYTES - len(flow.held)
        if not flow.ended and room > 0 and allowance >= 1:
            with contextlib.suppress(BlockingIOError):
                came = flow.source.recv(int(min(room, allowance)))
                flow.held += came
                flow.ended = not came
        if not flow.held:
            return 0
        sent = flow.target.send(flow.held[: int(min(len(flow.held), _BUFFER_BYTES))])
        del flow.held[:sent]
        return sent
