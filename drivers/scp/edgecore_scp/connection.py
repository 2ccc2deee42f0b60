"""Keep one connection per host, for all jobs and threads, and close it when nobody uses it.

A host sees one log-in however many transfers there are: sessions of SFTP and commands are channels of
the same connection, and their number stays below what sshd allows by default (MaxSessions 10).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

import paramiko
from attrs import define, field, frozen

from edgecore.errors import TransferInterrupted
from edgecore.trees import shown
from edgecore_scp.hosts import Login, Route, connected, route_to
from edgecore_scp.place import Place
from edgecore_scp.session import Session
from edgecore_scp.transport import said, why_closed

__all__ = ["Connection", "Output", "Pool"]

_SESSIONS: Final = 5
_COMMANDS: Final = 3
_PROCESSES: Final = 2
"""How many OpenSSH processes, each with a connection of its own, may carry long files for one host."""
_WINDOW_BYTES: Final = 16 * 1024 * 1024
_TICK_S: Final = 0.25
_OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024


@frozen
class Output:
    """What a command there answered."""

    exit_code: int
    output: bytes
    errors: bytes


@define(eq=False)
class Claims:
    """Keep two transfers of ours from writing one file at the same time: they would share its temporary name."""

    _held: set[bytes] = field(factory=set)
    _lock: threading.Lock = field(factory=threading.Lock)

    @contextmanager
    def on(self, paths: Sequence[bytes]) -> Iterator[None]:
        """Hold those paths of the host. Raises TransferInterrupted when another transfer holds one of them."""
        with self._lock:
            taken = next((path for path in paths if path in self._held), None)
            if taken is not None:
                name = shown(os.fsdecode(taken))
                raise TransferInterrupted(
                    f"another transfer is writing {name}; give every job an output_url of its own, or wait"
                )
            self._held.update(paths)
        try:
            yield
        finally:
            with self._lock:
                self._held.difference_update(paths)


@define(eq=False)
class Connection:
    """One host that we are logged in to."""

    route: Route
    clients: list[paramiko.SSHClient]
    users: int = 0
    last_used: float = field(factory=time.monotonic)
    tired: bool = False
    """Whether something broke off on it: whoever comes next gets a new one."""
    facts: dict[str, object] = field(factory=dict)
    """What was found out about the host, such as which programs it has."""
    claims: Claims = field(factory=Claims)
    """What our transfers are writing there."""
    _idle: list[Session] = field(factory=list)
    _sessions: threading.Semaphore = field(factory=lambda: threading.Semaphore(_SESSIONS))
    _commands: threading.Semaphore = field(factory=lambda: threading.Semaphore(_COMMANDS))
    _processes: threading.Semaphore = field(factory=lambda: threading.Semaphore(_PROCESSES))

    @property
    def alive(self) -> bool:
        """Tell whether it can be used, as far as we know."""
        transport = self.clients[-1].get_transport()
        return transport is not None and transport.is_active()

    @contextmanager
    def session(self, beat: Callable[[], None], check: Callable[[], None]) -> Iterator[Session]:
        """Lend a session; *beat* is called while one waits for its turn, *check* while nothing comes.

        A session whose user failed is thrown away, since answers may still be on their way.
        """
        with _turn(self._sessions, beat):
            session = self._idle.pop() if self._idle else self._opened(check)
            session.check = check
            try:
                yield session
            except BaseException:
                with suppress(Exception):
                    session.close()
                raise
            self._idle.append(session)

    def process(self, beat: Callable[[], None]) -> AbstractContextManager[None]:
        """Wait for the turn to start an OpenSSH process."""
        return _turn(self._processes, beat)

    def run(
        self,
        command: str,
        stdin: bytes,
        *,
        beat: Callable[[], None],
        check: Callable[[], None],
        quiet_s: float,
    ) -> Output:
        """Run a fixed *command* there; it counts as alive for *quiet_s* seconds without a word.

        Never put a name into *command*: which shell reads it is not known. Raises TransferInterrupted.
        """
        with _turn(self._commands, beat), self._channel() as channel:
            try:
                channel.exec_command(command)
                return _conversation(channel, stdin, beat, check, quiet_s)
            except (OSError, EOFError, paramiko.SSHException) as error:
                raise TransferInterrupted(
                    f"cannot run a command on {self.route}: {why_closed(channel, error)}"
                ) from error

    def close(self) -> None:
        """Log out."""
        for client in reversed(self.clients):
            with suppress(Exception):
                client.close()
            transport = client.get_transport()
            if transport is not None:
                transport.join(5)

    def _opened(self, check: Callable[[], None]) -> Session:
        channel = self._new_channel()
        try:
            channel.invoke_subsystem("sftp")
            session = Session(channel, str(self.route), check)
            session.begin()
        except (OSError, EOFError, paramiko.SSHException) as error:
            channel.close()
            raise TransferInterrupted(f"{self.route} offers no SFTP: {why_closed(channel, error)}") from error
        except BaseException:
            channel.close()
            raise
        return session

    @contextmanager
    def _channel(self) -> Iterator[paramiko.Channel]:
        channel = self._new_channel()
        try:
            yield channel
        finally:
            channel.close()

    def _new_channel(self) -> paramiko.Channel:
        transport = self.clients[-1].get_transport()
        try:
            if transport is None:
                raise EOFError("it was closed")
            channel = transport.open_session(window_size=_WINDOW_BYTES)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise TransferInterrupted(f"cannot open a channel to {self.route}: {said(error)}") from error
        channel.settimeout(_TICK_S)
        return channel


@contextmanager
def _turn(places: threading.Semaphore, beat: Callable[[], None]) -> Iterator[None]:
    while not places.acquire(timeout=_TICK_S):
        beat()  # others of this host move meanwhile, and are watched themselves
    try:
        yield
    finally:
        places.release()


def _conversation(
    channel: paramiko.Channel,
    stdin: bytes,
    beat: Callable[[], None],
    check: Callable[[], None],
    quiet_s: float,
) -> Output:
    left, out, errors = memoryview(stdin), bytearray(), bytearray()
    deadline = time.monotonic() + quiet_s
    while left:
        with suppress(TimeoutError):
            left = left[channel.send(bytes(left[:65536])) :]
        check()
    channel.shutdown_write()
    while True:
        (beat if time.monotonic() < deadline else check)()
        with suppress(TimeoutError):
            came = channel.recv(65536)
            out += came
            while channel.recv_stderr_ready():
                errors += channel.recv_stderr(65536)
            if not came:
                break
        if len(out) + len(errors) > _OUTPUT_LIMIT_BYTES:
            raise paramiko.SSHException("it says more than anybody asked for")
    while not channel.exit_status_ready():
        check()
        if channel.status_event.wait(_TICK_S):
            break
    return Output(channel.recv_exit_status(), bytes(out), bytes(errors))


@define(eq=False)
class Pool:
    """The connections of one driver."""

    login: Login
    idle_s: float
    _connections: dict[Route, Connection] = field(factory=dict)
    _making: dict[Route, threading.Lock] = field(factory=dict)
    _claims: dict[Route, Claims] = field(factory=dict)
    _lock: threading.Condition = field(factory=threading.Condition)
    _janitor: threading.Thread | None = None
    _closed: bool = False

    @contextmanager
    def connection(self, place: Place) -> Iterator[Connection]:
        """Lend the connection to a host. Raises TransferInterrupted and TransferRefused."""
        route = route_to(place, self.login)
        connection = self._taken(route)
        try:
            yield connection
        except TransferInterrupted:
            connection.tired = True
            raise
        finally:
            with self._lock:
                connection.users -= 1
                connection.last_used = time.monotonic()
                over = connection.users == 0 and self._connections.get(route) is not connection
            if over:
                connection.close()

    def close(self) -> None:
        """Log out everywhere."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            connections, self._connections = list(self._connections.values()), {}
        for connection in connections:
            connection.close()
        if self._janitor is not None:
            self._janitor.join(5)

    def _taken(self, route: Route) -> Connection:
        with self._lock:
            if self._closed:
                raise TransferInterrupted("the driver is closed; open it again")
            making = self._making.setdefault(route, threading.Lock())
            claims = self._claims.setdefault(route, Claims())
        with making:  # one log-in at a time; whoever waits gets the same connection
            with self._lock:
                found = self._connections.get(route)
                if found is not None and found.alive and not found.tired:
                    found.users += 1
                    return found
            made = Connection(route, connected(route, self.login), users=1, claims=claims)
            with self._lock:
                self._connections[route] = made
                if self._janitor is None:
                    self._janitor = threading.Thread(target=self._tidy, name="scp idle", daemon=True)
                    self._janitor.start()
        if found is not None and found.users == 0:
            found.close()
        return made

    def _tidy(self) -> None:
        """Close what nobody used for a while."""
        while True:
            with self._lock:
                if self._lock.wait_for(lambda: self._closed, timeout=max(self.idle_s / 4, 0.05)):
                    return
                now = time.monotonic()
                old = [
                    route
                    for route, each in self._connections.items()
                    if each.users == 0 and now - each.last_used >= self.idle_s
                ]
                closing = [self._connections.pop(route) for route in old]
            for connection in closing:
                connection.close()
