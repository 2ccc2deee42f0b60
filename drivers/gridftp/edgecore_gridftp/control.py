"""Speak to a GridFTP server: list, make, compare, rename; many commands in flight, answers in their order.

``globus-url-copy`` carries content, and neither renames nor tells sizes; so that this is a control channel of our
own, beside the client's. No data connection is ever opened here: listings come by MLSC, on the same channel.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from attrs import define, evolve, field, frozen

from edgecore.carrying import Tally
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore_gridftp.gsi import Credential, Seal
from edgecore_gridftp.place import Place
from edgecore_gridftp.text import MISSING, Entry, Reply, parse_entry, trouble

__all__ = ["Control", "Server"]

_WINDOW: Final = 128
_TICK_S: Final = 0.5
_READ_BYTES: Final = 256 * 1024
_REPLY_LIMIT_BYTES: Final = 256 * 1024 * 1024
_LINE_COSTS_BYTES: Final = 16
_LINE_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""A part of a listing may come sealed in one line."""
_PARTS_LIMIT: Final = 100_000
"""Signs of life, and parts of a listing, before the final answer."""
_FINAL: Final = 200
_ERROR: Final = 400
_SEALED: Final = (b"631", b"632", b"633")
_DONE: Final = 230
_END: Final = b"\r\n"
_TRUSTED_S: Final = 2.0
"""A channel that rested no longer is not asked whether it lives: on a long way that costs as much as any command."""
_SIGN_OF_LIFE_S: Final = 5.0
_SLOWEST_BYTES_S: Final = 20e6
"""How fast a server computes checksums, at least."""
_ROUND_TRIP: Final = struct.Struct("148xI")
"""Where the kernel's `tcp_info` has the shortest round trip of a connection (tcpi_min_rtt, microseconds; Linux 4.6 and later)."""
_ALGORITHMS: Final = ("SHA256", "SHA512", "SHA1", "MD5", "ADLER32")


@frozen(kw_only=True)
class Server:
    """Where to log in, as whom, and how long to wait for an answer."""

    place: Place
    credential: Credential | None
    """None for anonymous ``ftp://``."""
    answer_s: float


@define(eq=False)
class Control:
    """One connection; used by one thread at a time, and by one transfer after the other."""

    server: Server
    tally: Tally
    features: dict[str, str] = field(factory=dict, init=False)
    """FEAT: the first word of each line -> the rest."""
    broken: bool = field(default=False, init=False)
    _socket: socket.socket | None = field(default=None, init=False)
    _seal: Seal | None = field(default=None, init=False)
    _markers: bool = field(default=False, init=False)
    """Whether it gives signs of life while it reads a long file."""
    _more_s: float = field(default=0.0, init=False)
    """How much longer than usual it may take for an answer."""
    _flying: int = field(default=0, init=False)
    """How many answers are still to come."""
    _heard: float = field(default=0.0, init=False)
    """When the last one came."""
    _raw: bytearray = field(factory=bytearray, init=False)
    _plain: bytearray = field(factory=bytearray, init=False)

    @property
    def name(self) -> str:
        """The server, for people."""
        return self.server.place.server

    @property
    def round_trip_s(self) -> float:
        """How long a packet takes there and back: the shortest that the kernel saw on this connection; inf if it does not tell."""
        assert self._socket is not None
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ROUND_TRIP.size)
        return _ROUND_TRIP.unpack(info)[0] / 1e6 if len(info) == _ROUND_TRIP.size else math.inf

    # -------------------------------------------------------------------------------- log in

    def connect(self) -> Control:
        """Connect and log in, with a credential that was checked. Raises TransferRefused, TransferInterrupted."""
        place = self.server.place
        try:
            self._socket = socket.create_connection((place.host, place.port), timeout=self.server.answer_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise trouble(f"reach {self.name}", _said(error)) from error
        try:
            self._log_in(self.server.credential)
        except BaseException:
            self.close()
            raise
        return self

    def _log_in(self, credential: Credential | None) -> None:
        asked = f"log in to {self.name}"
        self._expect(asked, self._final(), below=300)
        user = b"anonymous"
        if credential is not None:
            self._expect(asked, self.ask(b"AUTH GSSAPI"), below=_ERROR)
            seal = Seal.made(credential, self.server.place.host)
            seal.shake_hands(self.ask, credential, self.name)
            self._seal, user = seal, b":globus-mapping:"
        reply = self.ask(b"USER " + user)
        if reply.code != _DONE:
            self._expect(asked, reply, below=_ERROR)
            self._expect(asked, self.ask(b"PASS edgecore@"), below=300)
        for line in self._expect(asked, self.ask(b"FEAT"), below=300).lines:
            word, _, rest = line.strip().decode("utf-8", "replace").partition(" ")
            self.features[word.upper()] = rest
        if "MLSC" not in self.features:
            raise TransferRefused(
                f"{self.name} does not know the command MLSC, by which trees are listed; it is no GridFTP server that "
                "this driver can use"
            )
        self._markers = self.ask(b"OPTS CKSM markers=1;").code < _ERROR

    def _expect(self, asked: str, reply: Reply, *, below: int) -> Reply:
        if reply.code >= below:
            raise trouble(asked, reply.words)
        return reply

    def close(self) -> None:
        """Hang up."""
        self.broken = True
        if self._socket is not None:
            self._socket.close()

    # ----------------------------------------------------------------- from transfer to transfer

    @property
    def answered(self) -> bool:
        """Tell whether nothing is still to come, so that the next one who asks gets the answer to what it asked."""
        return not (self.broken or self._flying or self._raw or self._plain)

    def resumed(self, tally: Tally) -> bool:
        """Go on for another transfer; tell whether it still lives, and hang up if not."""
        self.tally, self._more_s = tally, 0.0
        alive = self.answered and not self._speaks_unasked()
        if alive and time.monotonic() - self._heard > _TRUSTED_S:
            alive = self._answers_soon()
        if not alive:
            self.close()
        return alive

    def _speaks_unasked(self) -> bool:
        """Tell whether there is something to read: a farewell, or the end."""
        waiting = select.poll()
        assert self._socket is not None
        waiting.register(self._socket, select.POLLIN)
        return bool(waiting.poll(0))

    def _answers_soon(self) -> bool:
        self._more_s = min(_SIGN_OF_LIFE_S - self.server.answer_s, 0.0)
        try:
            return self.ask(b"NOOP").code < _ERROR
        except (TransferInterrupted, TransferRefused):
            return False
        finally:
            self._more_s = 0.0

    # ------------------------------------------------------------------------------- commands

    def ask(self, command: bytes) -> Reply:
        """Send one command; return its answer."""
        (reply,) = self.exchange([command])
        return reply

    def exchange(self, commands: Iterable[bytes]) -> Iterator[Reply]:
        """Send commands, many in flight; yield their final answers in order. Raises TransferInterrupted."""
        todo, more, flying = iter(commands), True, 0
        try:
            while more or flying:
                fresh = list[bytes]()
                while more and flying < _WINDOW and (fresh or flying <= _WINDOW // 2):  # few, large packets
                    command = next(todo, None)
                    if command is None:
                        more = False
                        break
                    fresh.append(command)
                    flying += 1
                self._flying = flying
                if fresh:
                    self._send(fresh)
                if flying:
                    reply = self._final()
                    self._heard = time.monotonic()
                    self._flying = flying = flying - 1
                    yield reply
        finally:
            if flying:
                self.close()  # what is answered later must not be taken for the answer to something else

    def do(self, asked: str, command: bytes, *, transient: frozenset[str] = frozenset()) -> Reply:
        """Send one command that must succeed. Raises TransferRefused, TransferInterrupted."""
        reply = self.ask(command)
        if reply.code >= _ERROR:
            raise trouble(asked, reply.words, transient=transient)
        return reply

    def do_all(self, commands: Iterable[tuple[Callable[[], str], bytes]]) -> None:
        """Send commands that must succeed; each comes with what it is for."""
        notes: list[Callable[[], str]] = []

        def lines() -> Iterator[bytes]:
            for asked, command in commands:
                notes.append(asked)
                yield command

        for number, reply in enumerate(self.exchange(lines())):
            self.tally.beat()
            if reply.code >= _ERROR:
                raise trouble(notes[number](), reply.words)

    def look(self, asked: str, path: bytes) -> Entry:
        """Return what stands at a path; links are followed there. Raises TransferRefused."""
        reply = self.do(asked, b"MLST " + path)
        for line in reply.lines:
            if (found := parse_entry(line)) is not None:
                return found
        raise trouble(asked, f"{self.name} says nothing of it: {reply.words}")

    def entries(self, paths: Iterable[bytes]) -> Iterator[Entry | None]:
        """Yield what stands at each path, as far as the server tells."""
        for reply in self.exchange(b"MLST " + path for path in paths):
            found = map(parse_entry, reply.lines if reply.code < _ERROR else ())
            yield next((entry for entry in found if entry is not None), None)

    @property
    def tells_modes(self) -> bool:
        """Tell whether modes stand in what the server says of files."""
        return "unix.mode" in self.features.get("MLST", "").lower()

    def algorithms(self, preferred: str) -> list[str]:
        """Return the checksums that the server computes: the preferred one first, then the others, the best first."""
        known = {each.partition(":")[0].upper() for each in self.features.get("CKSM", "").split(";")} - {""}
        if "CKSM" in self.features and not known:
            known = {preferred}
        return [each for each in dict.fromkeys((preferred, *_ALGORITHMS)) if each in known]

    def digests(
        self, algorithm: str, files: Mapping[bytes, int], names: Callable[[bytes], str]
    ) -> Iterator[str]:
        """Yield the checksums of files, given with their sizes. Raises TransferRefused, TransferInterrupted."""
        wanted = list(files)
        self._more_s = 0.0 if self._markers else max(files.values(), default=0) / _SLOWEST_BYTES_S
        commands = (b"CKSM %s 0 -1 %s" % (algorithm.encode(), path) for path in wanted)
        for path, reply in zip(wanted, self.exchange(commands), strict=True):
            self.tally.beat()
            if reply.code >= _ERROR:
                self._more_s = 0.0
                raise trouble(f"compute the checksum of {names(path)}", reply.words, transient=MISSING)
            yield reply.lines[0].strip().decode("ascii", "replace").lower()
        self._more_s = 0.0

    # --------------------------------------------------------------------------------- inside

    def _send(self, commands: Iterable[bytes]) -> None:
        wire = b"".join(
            line + _END
            for command in commands
            for line in [command if self._seal is None else self._seal.close(command + _END)]
        )
        assert self._socket is not None
        try:
            self._socket.settimeout(self.server.answer_s)
            self._socket.sendall(wire)
        except OSError as error:
            self.close()
            raise trouble(f"speak to {self.name}", _said(error)) from error

    def _final(self) -> Reply:
        """Return the next final answer, with what came before it."""
        earlier, size = list[Reply](), 0
        for _ in range(_PARTS_LIMIT):
            reply = self._reply()
            if reply.code >= _FINAL:
                return evolve(reply, earlier=tuple(earlier)) if earlier else reply
            self.tally.beat()
            if len(reply.lines) > 1:  # else it is no more than a sign of life
                earlier.append(reply)
                size += _size(reply.lines)
            if size > _REPLY_LIMIT_BYTES:
                break
        raise self._endless()

    def _endless(self) -> TransferRefused:
        self.close()
        return TransferRefused(f"{self.name} answers without an end")

    def _reply(self) -> Reply:
        first = self._line()
        code = first[:3]
        if not code.isdigit():
            self.close()
            raise TransferInterrupted(f"{self.name} says {first[:80]!r}, which is no answer of an FTP server")
        lines, size = [first[4:]], 0
        if first[3:4] == b"-":
            while (line := self._line())[:4] != code + b" ":
                lines.append(line[4:] if line[:4] == code + b"-" else line)
                size += _size([line])
                if size > _REPLY_LIMIT_BYTES:
                    raise self._endless()
            lines.append(line[4:])
        return Reply(int(code), tuple(lines))

    def _line(self) -> bytes:
        """Return the next line, which has as long as an answer to come whole."""
        deadline = time.monotonic() + self.server.answer_s + self._more_s
        if self._seal is None:
            return self._wire_line(deadline)
        while (end := self._plain.find(_END)) < 0:
            if len(self._plain) > _LINE_LIMIT_BYTES:
                raise self._endless()
            self._plain += self._unsealed(self._wire_line(deadline), self._seal)
        return _taken(self._plain, end)

    def _wire_line(self, deadline: float) -> bytes:
        """Return the next line as the server sent it."""
        looked = 0
        while (end := self._raw.find(_END, looked)) < 0:
            if len(self._raw) > _LINE_LIMIT_BYTES:
                raise self._endless()
            looked = max(len(self._raw) - 1, 0)
            self._raw += self._receive(deadline)
        return _taken(self._raw, end)

    def _unsealed(self, line: bytes, seal: Seal) -> bytes:
        if line[:3] not in _SEALED:
            self.close()
            raise TransferInterrupted(
                f"{self.name} says {line[:80]!r}, which is not sealed as all must be after the log-in; does somebody stand "
                "between?"
            )
        try:
            return seal.open(line[4:])
        except (ssl.SSLError, ValueError) as error:
            self.close()
            raise TransferInterrupted(f"{self.name} says what cannot be unsealed: {error}") from error

    def _receive(self, deadline: float) -> bytes:
        assert self._socket is not None
        self._socket.settimeout(min(_TICK_S, self.server.answer_s))
        while True:
            self.tally.check()
            if time.monotonic() > deadline:
                self.close()
                raise TransferInterrupted(
                    f"{self.name} gave no answer for {self.server.answer_s:g} s; is it, or the network to it, hanging?"
                )
            try:
                came = self._socket.recv(_READ_BYTES)
            except TimeoutError:
                if self._more_s > 0:
                    self.tally.beat()
                continue
            except OSError as error:
                self.close()
                raise trouble(f"hear from {self.name}", _said(error)) from error
            if not came:
                self.close()
                raise TransferInterrupted(
                    f"{self.name} closed the connection; did it end, or a firewall cut it?"
                )
            return came


def _size(lines: Sequence[bytes]) -> int:
    """Return how much lines weigh; empty ones are something, too."""
    return sum(map(len, lines)) + len(lines) * _LINE_COSTS_BYTES


def _taken(buffer: bytearray, end: int) -> bytes:
    """Take the line up to *end* out of what came."""
    line = bytes(buffer[:end])
    del buffer[: end + len(_END)]
    return line


def _said(error: OSError) -> str:
    return "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
