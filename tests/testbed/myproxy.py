"""A private MyProxy server on loopback, with credentials of its users in it, beside whatever the machine has.

What it hands out lives five minutes at least, whatever is asked for. A service that is to see credentials which live for
seconds runs with a clock that goes ahead.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field

from edgecore.processes import process_start
from edgecore.testing.site import DEADLINE_S, wait_for
from testbed.grid import Grid, Owner
from testbed.keeper import Keeper

__all__ = ["LEAST_S", "PASSPHRASE", "RENEWER", "MyProxy", "missing_myproxy", "running_myproxy"]

LEAST_S: Final = 300.0
"""No proxy is given for less."""
PASSPHRASE: Final = "open sesame 1"
RENEWER: Final = "Renewal Service"

_SERVER: Final = "/usr/sbin/myproxy-server"
_PROGRAMS: Final = (_SERVER, "myproxy-logon", "myproxy-init", "grid-proxy-init", "openssl")
_CONFIG: Final = """\
accepted_credentials "*"
authorized_retrievers "*"
default_retrievers "*"
authorized_renewers "*"
default_renewers "none"
trusted_retrievers "*"
default_trusted_retrievers "none"
request_timeout 30
"""


@define(eq=False)
class MyProxy:
    """One server."""

    directory: Path
    grid: Grid
    keeper: Keeper = field(factory=Keeper)
    user: Owner = field(init=False)
    """Whose credentials it keeps, as ``alice``."""
    port: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        """Make who works with it."""
        self.user = self.grid.user("Alice of the tests")
        self.user.write(self.directory / "alice.pem", self.directory / "alice.key")
        self.grid.user(RENEWER).write(self.certificate, self.directory / "renewer.key")
        self.grid.user("Mallory").write(self.directory / "mallory.pem", self.directory / "mallory.key")
        self.grid.host().write(self.directory / "host.pem", self.directory / "host.key")
        (self.directory / "store").mkdir(mode=0o700)
        (self.directory / "config").write_text(_CONFIG)

    @property
    def certificate(self) -> Path:
        """Of the service that may renew; its key is in ``renewer.key`` beside it."""
        return self.directory / "renewer.pem"

    @property
    def address(self) -> str:
        """Host and port."""
        return f"localhost:{self.port}"

    # -------------------------------------------------------------------------- life and death

    def start(self) -> MyProxy:
        """Start it, under its port if it had one; returns when it listens."""
        port, pid = self.directory / "port", self.directory / "pid"
        for each in (port, pid):
            each.unlink(missing_ok=True)
        command = [
            _SERVER, "-v", "-l", "127.0.0.1", "-p", str(self.port), "-z", str(port), "-P", str(pid),
            "-c", str(self.directory / "config"), "-s", str(self.directory / "store"),
        ]  # fmt: skip
        # It goes into the background by itself: what the keeper started has ended when it works.
        self.keeper.start(command, self._identity("host"), self.directory / "log")
        wait_for(
            lambda: _number(port) and _number(pid), DEADLINE_S, lambda: (self.directory / "log").read_text()
        )
        self.port = _number(port)
        return self

    def stop(self) -> None:
        """End it, and whoever it serves."""
        pid = _number(self.directory / "pid")
        born = process_start(pid)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: process_start(pid) != born, DEADLINE_S)

    # ------------------------------------------------------------------------------- deposits

    def deposit(self, name: str = "", *, renewers: str = "", trusted: str = "", hours: int = 24) -> None:
        """Have its user store a credential: with the passphrase, or for those who renew or are trusted by name."""
        command = ["myproxy-init", "-l", "alice", "-c", str(hours), "-t", "12", *self._where]
        command += ["-k", name] if name else []
        command += ["-n"] if renewers or trusted else ["-S"]
        command += ["-R", renewers] if renewers else []
        command += ["-Z", trusted] if trusted else []
        asked = subprocess.run(
            command,
            env=self._identity("alice"),
            input=f"{PASSPHRASE}\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert asked.returncode == 0, asked.stderr

    def shorten(self, name: str = "") -> None:
        """Let it give what it keeps under this name for no longer than it must: five minutes."""
        file = self.directory / "store" / (f"alice-{name}.data" if name else "alice.data")
        file.write_text(re.sub(r"(?m)^LIFETIME=\d+$", "LIFETIME=60", file.read_text()))

    @property
    def _where(self) -> list[str]:
        return ["-s", "localhost", "-p", str(self.port)]

    def _identity(self, name: str) -> Mapping[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "X509_CERT_DIR": str(self.grid.authorities),
            "X509_USER_CERT": str(self.directory / f"{name}.pem"),
            "X509_USER_KEY": str(self.directory / f"{name}.key"),
            "X509_USER_PROXY": "/nonexistent",
        }


def _number(file: Path) -> int:
    text = file.read_text().strip() if file.exists() else ""
    return int(text) if text.isdecimal() else 0


def missing_myproxy() -> str:
    """Say what is missing for a server; empty when it can be started."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if not missing:
        return ""
    return (
        f"there is no {missing[0]}; as root `make packages` installs it "
        "(apt-get install myproxy myproxy-server globus-proxy-utils)"
    )


@contextlib.contextmanager
def running_myproxy(directory: Path, grid: Grid | None = None) -> Iterator[MyProxy]:
    """Run a server; skip where there is none, fail where `CI` is set."""
    if words := missing_myproxy():
        if "CI" in os.environ:
            pytest.fail(words)
        pytest.skip(words)
    server = MyProxy(directory, grid or Grid(directory / "grid"))
    try:
        yield server.start()
    finally:
        server.keeper.close()
