"""An SFTP server that lies: it lists names that nobody has, sends more than it announced, and never comes to an end.

It lets everybody in, runs no commands, and shows the files of this machine, but for what it is told to lie about.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import paramiko
from attrs import define, field
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

__all__ = ["HostileSftp", "Lies"]

_END_S: Final = 20.0
_LOGS: Final = "testbed.hostile"
logging.getLogger(_LOGS).setLevel(logging.CRITICAL)  # clients that hang up are what is tested


@define
class Lies:
    """What to lie about; paths are those that the client asks for."""

    listings: Mapping[str, Sequence[str]] = field(factory=dict)
    """Directory -> the names to list in it instead of those that are there; each is shown as a small file."""
    endless_files: frozenset[str] = frozenset()
    """Files of which every read answers with more than was asked for, also after their end."""
    closed: frozenset[str] = frozenset()
    """Places at and below which nothing may be done: what a server says to an account without the right."""
    endless_directories: frozenset[str] = frozenset()
    """Directories that go on for ever."""


class _Server(paramiko.ServerInterface):  # type: ignore[misc]
    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return int(AUTH_SUCCESSFUL)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return int(OPEN_SUCCEEDED)


class _Handle(paramiko.SFTPHandle):  # type: ignore[misc]
    def __init__(self, path: str, *, endless: bool) -> None:
        super().__init__(os.O_RDONLY)
        self.path, self.endless = path, endless
        self.readfile = open(path, "rb")  # noqa: SIM115 - closed by paramiko

    def read(self, offset: int, length: int) -> bytes | int:
        return b"x" * length * 2 if self.endless else super().read(offset, length)

    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.stat(self.path))


class _Files(paramiko.SFTPServerInterface):  # type: ignore[misc]
    def __init__(self, server: paramiko.ServerInterface, lies: Lies) -> None:
        super().__init__(server)
        self.lies = lies

    def _is_closed(self, path: str) -> bool:
        return any(f"{path}/".startswith(f"{each}/") for each in self.lies.closed)

    def list_folder(self, path: str) -> Any:
        if self._is_closed(path):
            return paramiko.SFTP_PERMISSION_DENIED
        if path in self.lies.endless_directories:
            return _Endless()
        names = self.lies.listings.get(path)
        if names is None:
            names = os.listdir(path)
        return [self._entry(path, name) for name in names]

    def _entry(self, path: str, name: str) -> Any:
        try:
            found = os.lstat(os.path.join(path, name))
        except (OSError, ValueError):
            found = os.lstat(__file__)
        return paramiko.SFTPAttributes.from_stat(found, name)

    def stat(self, path: str) -> Any:
        if self._is_closed(path):
            return paramiko.SFTP_PERMISSION_DENIED
        try:
            return paramiko.SFTPAttributes.from_stat(os.stat(path))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    def lstat(self, path: str) -> Any:
        return self.stat(path)

    def open(self, path: str, flags: int, attr: Any) -> Any:
        if self._is_closed(path):
            return paramiko.SFTP_PERMISSION_DENIED
        try:
            return _Handle(path, endless=path in self.lies.endless_files)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)


class _Endless(list[Any]):
    """What paramiko takes a listing from: some from the beginning, and the rest the next time."""

    number = 0

    def __getitem__(self, part: Any) -> Any:
        if part.start is not None:
            return self
        self.number += 1
        found = os.lstat(__file__)
        return [paramiko.SFTPAttributes.from_stat(found, f"{self.number}-{n}") for n in range(16)]


@define(eq=False)
class HostileSftp:
    """The server, on a port of loopback."""

    host_key: Path
    lies: Lies = field(factory=Lies)
    port: int = 0
    _transports: list[paramiko.Transport] = field(factory=list)
    _listener: socket.socket = field(factory=socket.socket)
    _thread: threading.Thread | None = None

    @contextmanager
    def running(self) -> Iterator[HostileSftp]:
        """Serve as long as the context lasts."""
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="hostile", daemon=True)
        self._thread.start()
        try:
            yield self
        finally:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._thread.join(_END_S)
            for transport in self._transports:
                transport.close()
                transport.join(_END_S)

    def _serve(self) -> None:
        key = paramiko.PKey.from_path(self.host_key)
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(client)
            transport.set_log_channel(_LOGS)
            transport.add_server_key(key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files, self.lies)
            self._transports.append(transport)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(server=_Server(), event=threading.Event())
