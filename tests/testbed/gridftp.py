"""Private GridFTP servers on loopback, with a grid of their own or anonymous, beside whatever the machine has.

A server can be stopped, killed, started again under its port, made slow, and made silent. It serves as whoever runs
the tests, who may be root.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field

from edgecore.processes import process_start
from testbed.grid import Grid
from testbed.keeper import Keeper

__all__ = [
    "GridFtp",
    "grid",
    "gridftp",
    "gridftp_anonymous",
    "gridftp_needed",
    "gridftp_second",
    "missing_gridftp",
    "running_gridftp",
]

_SERVER: Final = "/usr/sbin/globus-gridftp-server"
_PROGRAMS: Final = (_SERVER, "globus-url-copy", "openssl")
_START_S: Final = 20.0
_PORTS: Final = (20_000, 32_000)
"""Below those that Linux hands out by itself."""
_TICK_S: Final = 0.002
_SLICE_S: Final = 0.001
_BURST_BYTES: Final = 256 * 1024
_MAPPED: Final = "Alice of the tests"


@define(eq=False)
class GridFtp:
    """One server."""

    directory: Path
    grid: Grid | None = None
    """Who signed for it; None for an anonymous server."""
    more: Sequence[str] = ()
    """Options besides."""
    port: int = 0
    pid: int | None = field(default=None, init=False)
    keeper: Keeper = field(factory=Keeper, init=False)
    proxy: Path = field(init=False)
    """The proxy of a user whom the server lets in."""

    def __attrs_post_init__(self) -> None:
        """Make what a server of a grid needs."""
        self.directory.mkdir(exist_ok=True)
        self.proxy = self.directory / "proxy"
        if self.grid is not None:
            user = self.grid.user(_MAPPED)
            user.write_proxy(self.proxy)
            self.grid.host().write(self.directory / "host.pem", self.directory / "host.key")
            account = pwd.getpwuid(os.geteuid()).pw_name
            (self.directory / "map").write_text(f'"{user.name}" {account}\n')

    @property
    def url(self) -> str:
        """The URL of its root, without a slash at its end."""
        return f"{'gsiftp' if self.grid else 'ftp'}://127.0.0.1:{self.port}"

    @property
    def stack(self) -> str:
        """What data connections are made of; they listen on loopback only."""
        return "tcp:iface=127.0.0.1,gsi" if self.grid else "tcp:iface=127.0.0.1"

    # -------------------------------------------------------------------------- life and death

    def start(self, *more: str) -> GridFtp:
        """Start it, under its port if it had one; returns when it greets."""
        wanted, deadline = self.port, time.monotonic() + _START_S
        while time.monotonic() < deadline:
            self.port = wanted or _lasting_port()
            self.pid = self.keeper.start(self._command(more), self._environment, self.directory / "output")
            if self._greets(deadline):
                return self
        raise RuntimeError(f"the server did not start: {(self.directory / 'output').read_text()[-2000:]}")

    def _command(self, more: Sequence[str]) -> list[str]:
        command = [
            _SERVER, "-c", "/dev/null", "-p", str(self.port), "-control-interface", "127.0.0.1",
            "-data-interface", "127.0.0.1", "-dc-default", self.stack, "-dc-whitelist", "tcp,gsi",
            "-l", str(self.directory / "log"), "-d", "ERROR,WARN", "-no-detach", *self.more, *more,
        ]  # fmt: skip
        if self.grid is not None:
            return [*command, "-allow-root"]
        root = ["-anonymous-user", "root", "-allow-root"] if os.geteuid() == 0 else []
        return [*command, "-aa", *root]

    @property
    def _environment(self) -> dict[str, str]:
        environment = {"PATH": os.environ["PATH"]}
        if self.grid is not None:
            environment |= {
                "X509_CERT_DIR": str(self.grid.authorities),
                "X509_USER_CERT": str(self.directory / "host.pem"),
                "X509_USER_KEY": str(self.directory / "host.key"),
                "GRIDMAP": str(self.directory / "map"),
            }
        return environment

    def _greets(self, deadline: float) -> bool:
        while self._lives() and time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=_START_S) as made:
                    if made.recv(4) == b"220 ":
                        return True
            except OSError:
                time.sleep(0.02)  # it is not listening yet
        return False

    def _serving(self) -> list[int]:
        """Return who serves a connection now."""
        serving = list[int]()
        with contextlib.suppress(OSError):  # it has just been killed
            for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
                serving += map(int, task.read_text().split())
        return serving

    def kill(self) -> None:
        """End it, and all connections with it, without a word."""
        self._signal(signal.SIGSTOP)  # so that none is born meanwhile
        self._signal(signal.SIGSTOP)
        self._signal(signal.SIGKILL)
        deadline = time.monotonic() + _START_S
        while self._lives() and time.monotonic() < deadline:
            time.sleep(0.005)  # for the kernel to end it
        self.pid = None

    def _lives(self) -> bool:
        return self.pid is not None and process_start(self.pid) is not None

    def _signal(self, number: signal.Signals, *, master: bool = True) -> None:
        own = [self.pid] if self.pid is not None and master else []
        for pid in [*own, *self._serving()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # ---------------------------------------------------------------------------------- moods

    @contextmanager
    def away(self, *more: str) -> Iterator[None]:
        """Cut every connection, and be gone; afterwards be there again."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def restarted(self, *more: str) -> Iterator[None]:
        """Be a server with more options; afterwards the same again."""
        self.kill()
        self.start(*more)
        try:
            yield
        finally:
            self.kill()
            self.start()

    @contextmanager
    def stall(self) -> Iterator[None]:
        """Keep connections, take new ones, and say nothing on them."""
        ended = threading.Event()

        def hold() -> None:
            while not ended.wait(_TICK_S):
                self._signal(signal.SIGSTOP)

        with _doing(hold, ended):
            yield
        self._signal(signal.SIGCONT)

    @contextmanager
    def slow(self, rate_bytes_s: float) -> Iterator[None]:
        """Move so many bytes a second: whoever serves is halted when it has moved more, and let go on later."""
        ended = threading.Event()

        def brake() -> None:
            last, allowed, seen = time.monotonic(), 0.0, dict[int, int]()
            while not ended.wait(_TICK_S):
                now = time.monotonic()
                allowed, last = min(allowed + (now - last) * rate_bytes_s, _BURST_BYTES), now
                if allowed > 0:
                    self._signal(signal.SIGCONT, master=False)
                    time.sleep(_SLICE_S)  # how long it may run before it is looked at again
                    self._signal(signal.SIGSTOP, master=False)
                for pid in self._serving():
                    moved = _moved(pid)
                    allowed -= max(moved - seen.get(pid, 0), 0)
                    seen[pid] = moved

        with _doing(brake, ended):
            yield
        self._signal(signal.SIGCONT)


@contextmanager
def _doing(work: Callable[[], None], ended: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work, name="mood of a server", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _moved(pid: int) -> int:
    """Return how many bytes a process has read or written, whichever is more."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return 0
    facts = dict(line.split(": ") for line in lines)
    return max(int(facts["rchar"]), int(facts["wchar"]))


def _lasting_port() -> int:
    """Return a free port that is given to nobody else while the server is away: one that no data connection gets."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(*_PORTS)))
            return int(probe.getsockname()[1])


# --------------------------------------------------------------------------------- fixtures


def missing_gridftp() -> str:
    """Say what is missing for a server; empty when it can be started."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if not missing:
        return ""
    return (
        f"there is no {missing[0]}; as root `make packages` installs it "
        "(apt-get install globus-gridftp-server-progs globus-gass-copy-progs)"
    )


@contextmanager
def running_gridftp(directory: Path, grid: Grid | None, *more: str) -> Iterator[GridFtp]:
    """Run a server."""
    server = GridFtp(directory, grid, more)
    try:
        yield server.start()
    finally:
        server.keeper.close()


@pytest.fixture(scope="session")
def gridftp_needed() -> None:
    """Skip where it is not installed, fail where `CI` is set."""
    if words := missing_gridftp():
        if "CI" in os.environ:
            pytest.fail(words)
        pytest.skip(words)


@pytest.fixture(scope="session")
def grid(gridftp_needed: None, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    """An authority for all servers of a run."""
    return Grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="session")
def gridftp(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridFtp]:
    """A server of the grid."""
    with running_gridftp(tmp_path_factory.mktemp("gridftp"), grid) as server:
        yield server


@pytest.fixture(scope="session")
def gridftp_second(
    grid: Grid, gridftp: GridFtp, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GridFtp]:
    """Another server of the grid, which shows the same files and lets the same person in."""
    with running_gridftp(tmp_path_factory.mktemp("second gridftp"), grid) as server:
        shutil.copy(gridftp.directory / "map", server.directory / "map")
        yield server


@pytest.fixture(scope="session")
def gridftp_anonymous(gridftp_needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridFtp]:
    """A server that asks nobody for a name."""
    with running_gridftp(tmp_path_factory.mktemp("gridftp anonymous"), None) as server:
        yield server
