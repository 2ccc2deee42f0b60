"""Hand a long file to OpenSSH's own ``sftp``, which moves it several times as fast as Python can.

It gets the same keys, the same known_hosts and never asks. Our side of the file is given to it as a descriptor
that is already open (``/proc/<pid>/fd/<n>``), so that no name is looked up again; a path on the other side that
would need quoting is left to the slower way.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Final

from attrs import define, frozen

from edgecore.commands import CommandNotFound, run
from edgecore.errors import ActionStopped, TransferInterrupted
from edgecore_scp.hosts import Login, Route

__all__ = ["Bulk", "can_carry", "sftp_command"]

_PLAIN: Final = re.compile(rb"/[A-Za-z0-9_.,:+@%=/ -]*")
_LONGEST_S: Final = 30 * 86_400.0
_DOWN: Final = 255


@frozen(kw_only=True)
class Bulk:
    """The system's OpenSSH client."""

    program: str
    environment: Mapping[str, str]
    login: Login

    @classmethod
    def found(cls, login: Login, environment: Mapping[str, str]) -> Bulk | None:
        """Look for the programs; None where there are none."""
        path = environment.get("PATH", os.defpath)
        sftp, ssh = shutil.which("sftp", path=path), shutil.which("ssh", path=path)
        if sftp is None or ssh is None:
            return None
        passed = {name: os.environ[name] for name in ("HOME", "SSH_AUTH_SOCK") if name in os.environ}
        return cls(program=sftp, environment={**passed, **environment}, login=login)

    def fetch(self, route: Route, path: bytes, opened: int, moved: Callable[[], int], watch: Watch) -> None:
        """Append what is missing of *path* to an open local file. Raises TransferInterrupted."""
        verb = b"reget" if os.fstat(opened).st_size else b"get"
        self._run(route, b'%s "%s" %s\n' % (verb, path, _ours(opened)), moved, watch)

    def deliver(
        self, route: Route, opened: int, path: bytes, moved: Callable[[], int], watch: Watch, *, resume: bool
    ) -> None:
        """Append what is missing there of an open local file to *path*. Raises TransferInterrupted."""
        verb = b"reput" if resume else b"put"
        self._run(route, b'%s %s "%s"\n' % (verb, _ours(opened), path), moved, watch)

    def _run(self, route: Route, batch: bytes, moved: Callable[[], int], watch: Watch) -> None:
        before, told = moved(), 0

        def unwanted() -> bool:
            nonlocal told
            now = moved() - before
            watch.beat(max(now - told, 0))
            told = max(told, now)
            return watch.halted()

        try:
            result = run(
                sftp_command(self.program, route, self.login),
                timeout_s=_LONGEST_S,
                environment=self.environment,
                stdin=batch,
                unwanted=unwanted,
            )
        except ActionStopped:
            watch.beat(0)  # raises: nobody else stops it
            raise
        except CommandNotFound as error:
            raise TransferInterrupted(f"OpenSSH has gone: {error}") from error
        if result.exit_code != 0:
            raise TransferInterrupted(f"{result.complaint()} ({route})")
        watch.beat(max(moved() - before - told, 0))


@define
class Watch:
    """How a transfer by OpenSSH reports and is stopped."""

    beat: Callable[[int], None]
    halted: Callable[[], bool]


def can_carry(path: bytes) -> bool:
    """Tell whether a path there can be given to ``sftp`` as it is."""
    return _PLAIN.fullmatch(path) is not None


def sftp_command(program: str, route: Route, login: Login) -> list[str]:
    """Return the command that reads a batch from its standard input."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": " ".join(f'"{file}"' for file in route.known_hosts),
        "ConnectTimeout": str(max(int(login.connect_s), 1)),
        "ServerAliveInterval": str(int(login.keepalive_s)),
        "Port": str(route.port),
        "User": route.user,
        "HostName": route.address,
        "UpdateHostKeys": "no",
        "ControlPath": "none",
    }
    if login.ciphers:
        options["Ciphers"] = "^" + ",".join(login.ciphers)
    if not login.agent:
        options["IdentityAgent"] = "none"
    if login.key_file:
        options |= {"IdentityFile": f'"{route.key_files[0]}"', "IdentitiesOnly": "yes"}
    config = "none" if login.ssh_config == "none" else os.path.expanduser(login.ssh_config)
    if config != "none" and not os.path.exists(config):
        config = "none"
    pairs = [text for key, value in options.items() for text in ("-o", f"{key}={value}")]
    return [program, "-q", "-b", "-", "-F", config, *pairs, "--", route.host]


def _ours(opened: int) -> bytes:
    return b"/proc/%d/fd/%d" % (os.getpid(), opened)
