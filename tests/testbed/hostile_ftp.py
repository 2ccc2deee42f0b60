"""Play a server that lies, anonymous or of a grid: it lists what is not there, and sends more than it announced.

It knows only what a client of GridFTP asks for when it fetches in the simplest way, without GSI on data connections.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, cast

from attrs import field, frozen

from testbed.gsi_acceptor import Acceptor

__all__ = ["HostileFtp", "Lies"]

_WAIT_S: Final = 20.0
_BLOCK: Final = b"x" * 65536
_FORGED: Final = b"633 " + base64.b64encode(bytes.fromhex("1703030020") + bytes(32))
"""A TLS record of no key."""


@frozen(kw_only=True)
class Lies:
    """Where the server does not tell the truth."""

    listings: Mapping[str, Sequence[str]] = field(factory=dict)
    """Path -> lines of the listing in place of the true ones."""
    endless_files: frozenset[str] = frozenset()
    """Files that are sent without an end."""
    features: str = "MLST;MLSC;SIZE;CKSM SHA256"
    """What it says that it knows."""
    bottomless: bool = False
    """Whether every directory holds another one."""
    log_in: str = ""
    """``hasty``: welcome who has been shown nothing; ``unsealed``: answer in the clear after the log-in, as somebody
    between could; ``mixed up``: seal with what nobody agreed on; ``slipped in``: say something in the clear together with the
    last word of the handshake; ``endless``: always ask for more; ``garbled``: send what is no token."""
    flood: bytes = b""
    """What is sent in place of the answer to MLST, again and again."""
    pause_s: float = 0.0
    """Between one and the next of these."""


class HostileFtp(socketserver.ThreadingTCPServer):
    """One server on loopback."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, lies: Lies, context: ssl.SSLContext | None = None) -> None:
        """Prove with *context* who it is, where that is given."""
        super().__init__(("127.0.0.1", 0), _Session)
        self.lies, self.context = lies, context

    @property
    def url(self) -> str:
        """The URL of its root, without a slash at its end."""
        return f"{'gsiftp' if self.context else 'ftp'}://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[HostileFtp]:
        """Serve meanwhile."""
        thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Session(socketserver.StreamRequestHandler):
    """One client."""

    def setup(self) -> None:
        super().setup()
        server = cast(HostileFtp, self.server)
        self.lies = server.lies
        self.seal = Acceptor(server.context) if server.context else None
        self.data: socket.socket | None = None

    def finish(self) -> None:
        if self.data is not None:
            self.data.close()
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        """Answer until the client hangs up."""
        self._say("220 ready")
        with suppress(OSError):
            for line in self.rfile:
                verb, _, rest = os.fsdecode(self._opened(line).rstrip(b"\r\n")).partition(" ")
                if verb == "RETR":
                    self._send(rest)
                elif verb == "ADAT" and self.seal is not None and self.lies.log_in == "hasty":
                    self._say("235 welcome")
                elif verb == "ADAT" and self.seal is not None:
                    self.wfile.write(self._token(self.seal, os.fsencode(rest)) + b"\r\n")
                elif verb == "MLST" and self.lies.flood:
                    while True:
                        self.wfile.write(self.lies.flood)
                        time.sleep(self.lies.pause_s)
                else:
                    self._say(self._answer(verb, rest))

    def _token(self, seal: Acceptor, token: bytes) -> bytes:
        """Answer a part of the handshake."""
        true = seal.shake_hands(token)
        match self.lies.log_in:
            case "garbled":
                return b"335 ADAT=A"
            case "endless":
                seal.ready = False
                return b"335" + true[3:]
            case "slipped in" if seal.ready:
                return true + b"\r\n230 welcome\r\n211-Features\r\n MLST\r\n MLSC\r\n211 End"
        return true

    def _opened(self, line: bytes) -> bytes:
        sealed = self.seal is not None and self.seal.ready
        return self.seal.open(line.partition(b" ")[2]) if self.seal is not None and sealed else line

    def _say(self, text: str) -> None:
        reply = os.fsencode(text) + b"\r\n"
        if self.seal is not None and self.seal.ready and self.lies.log_in != "unsealed":
            sealed = self.seal.close(reply)
            reply = (_FORGED if self.lies.log_in == "mixed up" else sealed) + b"\r\n"
        self.wfile.write(reply)

    def _answer(self, verb: str, rest: str) -> str:
        match verb:
            case "AUTH":
                return "334 go on" if self.seal else "500 Command not supported"
            case "USER":
                return "331 a password, please"
            case "PASS":
                return "230 welcome"
            case "FEAT":
                return "\r\n ".join(["211-Features", *self.lies.features.split(";")]) + "\r\n211 End"
            case "SITE" | "TYPE" | "MODE" | "OPTS" | "PBSZ" | "ALLO" | "NOOP" | "DCAU":
                return "200 as you like"
            case "SIZE":
                return f"213 {os.path.getsize(rest)}"
            case "MLST":
                return (
                    f"250-\r\n {_facts(rest)} {rest}\r\n250 End"
                    if os.path.exists(rest)
                    else "550 No such file or directory"
                )
            case "MLSC":
                if self.lies.bottomless:
                    return "250-Contents\r\n Type=dir;Size=4; deeper\r\n250 End"
                entries = self.lies.listings.get(rest) or [
                    f"{_facts(os.path.join(rest, name))} {name}" for name in sorted(os.listdir(rest))
                ]
                return "\r\n ".join(["250-Contents", *entries]) + "\r\n250 End"
            case "CKSM":
                return f"213 {hashlib.sha256(Path(rest.split(' ', 3)[3]).read_bytes()).hexdigest()}"
            case "PASV":
                return self._listen()
        return "500 Command not supported"

    def _listen(self) -> str:
        if self.data is not None:
            self.data.close()
        self.data = socket.create_server(("127.0.0.1", 0))
        port = self.data.getsockname()[1]
        return f"227 Entering Passive Mode (127,0,0,1,{port // 256},{port % 256})"

    def _send(self, path: str) -> None:
        assert self.data is not None
        self.data.settimeout(_WAIT_S)
        self._say("150 here it comes")
        connection, _ = self.data.accept()
        with connection, suppress(OSError):
            connection.sendall(Path(path).read_bytes())
            while path in self.lies.endless_files:
                connection.sendall(_BLOCK)
        self._say("226 done")


def _facts(path: str) -> str:
    kind = "dir" if os.path.isdir(path) else "file"
    return f"Type={kind};Size={os.path.getsize(path)};Modify=20200101000000;"
