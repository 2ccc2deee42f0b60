"""A private OpenSSH server on loopback, with keys and a directory of its own, beside whatever the machine has.

It lets in only who runs the tests, only by the key that was made for it. It can be stopped, started again under
the same name, and killed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field

from edgecore.processes import process_stat

__all__ = ["Sshd", "missing_openssh", "running_sshd", "sshd"]

_SSHD: Final = Path("/usr/sbin/sshd")
_SEPARATION: Final = Path("/run/sshd")
_START_S: Final = 20.0
_CONFIG: Final = """\
ListenAddress 127.0.0.1
Port {port}
HostKey "{directory}/host_key"
PidFile none
AuthorizedKeysFile "{directory}/authorized_keys"
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers {user}
UseDNS no
PrintMotd no
MaxStartups 100:30:200
Subsystem sftp internal-sftp
LogLevel VERBOSE
{more}
"""


@define(eq=False)
class Sshd:
    """One server."""

    directory: Path
    more: Sequence[str] = ()
    """Lines for its configuration besides."""
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def user(self) -> str:
        """Who may log in: whoever runs the tests."""
        return pwd.getpwuid(os.geteuid()).pw_name

    @property
    def key(self) -> Path:
        """The private key that is let in."""
        return self.directory / "key"

    @property
    def host_key(self) -> Path:
        """The server's own private key."""
        return self.directory / "host_key"

    def known_as(self, port: int) -> str:
        """Return the line of known_hosts for whatever leads to this server on *port*."""
        kind, content = self.host_key.with_suffix(".pub").read_text().split()[:2]
        return f"[127.0.0.1]:{port} {kind} {content}\n"

    def make(self) -> Sshd:
        """Make keys and configuration."""
        for name in ("key", "host_key"):
            make_key(self.directory / name)
        (self.directory / "authorized_keys").write_text((self.directory / "key.pub").read_text())
        return self

    def start(self) -> Sshd:
        """Start it, under its port if it had one; returns when it greets."""
        if os.geteuid() == 0:
            _SEPARATION.mkdir(mode=0o755, exist_ok=True)  # which an init system would make
        wanted, deadline = self.port, time.monotonic() + _START_S
        while time.monotonic() < deadline:
            self.port = wanted or _free_port()
            config = self.directory / "sshd_config"
            more = "\n".join(self.more)
            config.write_text(
                _CONFIG.format(port=self.port, directory=self.directory, user=self.user, more=more)
            )
            with (self.directory / "log").open("ab") as log:
                self.process = subprocess.Popen(
                    [_SSHD, "-D", "-e", "-f", config],
                    stdin=subprocess.DEVNULL,
                    stderr=log,
                )
            if self._greets(deadline):
                return self
        raise RuntimeError(f"sshd did not start: {(self.directory / 'log').read_text()[-2000:]}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and whoever it serves."""
        if self.process is None:
            return
        for pid in [
            self.process.pid,
            *_descendants(self.process.pid),
        ]:  # who is served has a session of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        self.process.wait(_START_S)
        self.process = None

    def kill(self) -> None:
        """End it without a word."""
        self.stop(signal.SIGKILL)

    def _greets(self, deadline: float) -> bool:
        assert self.process is not None
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=_START_S) as made:
                    if made.recv(4) == b"SSH-":
                        return True
            except OSError:
                time.sleep(0.02)  # it is not listening yet
        return False


def make_key(path: Path, *more: str) -> Path:
    """Make a key pair."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path), *more]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def _descendants(pid: int) -> Iterator[int]:
    """Yield the processes below one, from the nearest on."""
    parents = {
        int(name): int(stat[1])
        for name in os.listdir("/proc")
        if name.isdigit() and (stat := process_stat(int(name))) is not None
    }
    level = {pid}
    while level := {child for child, parent in parents.items() if parent in level}:
        yield from level


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing_openssh() -> str:
    """Say what is missing for a server; empty when it can be started."""
    if _SSHD.exists():
        return ""
    return "there is no /usr/sbin/sshd; as root `make packages` installs it (apt-get install openssh-server)"


@contextlib.contextmanager
def running_sshd(directory: Path, *more: str) -> Iterator[Sshd]:
    """Run a server with lines of configuration besides; skip where there is none, fail where `CI` is set."""
    if words := missing_openssh():
        if "CI" in os.environ:
            pytest.fail(words)
        pytest.skip(words)
    server = Sshd(directory, more).make().start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server that runs commands, too."""
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server
