"""Have the other side compute SHA-256 of its files, where it lets us run a command.

The command line is fixed and holds no name: names go to ``xargs`` on standard input, separated by NUL, so that
no shell there reads them, whichever it is.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import frozen

from edgecore.errors import TransferInterrupted
from edgecore.trees import shown
from edgecore_scp.connection import Connection

__all__ = ["Checker", "local_digest", "parse_digests"]

_PROGRAMS: Final = {"openssl": "openssl dgst -sha256 -r", "sha256sum": "sha256sum"}
"""The first is several times as fast on processors that can do it; its lines are not made for odd names."""
_QUESTION: Final = b"/dev/null"
_COMPLAINT_CHARACTERS: Final = 200
_LINE: Final = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
_ESCAPES: Final = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
_ODD: Final = re.compile(rb"[\\\r\n]")
_PATIENCE_S: Final = 20.0
_SLOWEST_BYTES_S: Final = 20e6
_LONG_BYTES: Final = 4 * 1024 * 1024
_CHUNK_BYTES: Final = 1024 * 1024


@frozen
class Checker:
    """Ask one host for checksums, for one transfer."""

    connection: Connection
    beat: Callable[[], None]
    check: Callable[[], None]

    def digests(self, paths: Sequence[bytes], size_bytes: int) -> Mapping[bytes, str]:
        """Return path -> SHA-256 in hexadecimal, for those absolute *paths*, *size_bytes* in all, that it tells."""
        return self.told(paths, size_bytes)[0]

    def told(self, paths: Sequence[bytes], size_bytes: int) -> tuple[Mapping[bytes, str], str]:
        """Return the same, and what the host complained about."""
        if not paths:
            return {}, ""
        program = self._program(fast=size_bytes >= _LONG_BYTES and not any(map(_ODD.search, paths)))
        if program is None:
            return {}, ""
        quiet_s = _PATIENCE_S + size_bytes / _SLOWEST_BYTES_S
        answer = self.connection.run(
            f"xargs -0 {program}", b"\0".join(paths), beat=self.beat, check=self.check, quiet_s=quiet_s
        )
        complaint = shown(os.fsdecode(answer.errors.strip()))[:_COMPLAINT_CHARACTERS]
        return parse_digests(answer.output), complaint

    @property
    def available(self) -> bool:
        """Tell whether the host computes checksums for us."""
        return self._program(fast=False) is not None

    def _program(self, *, fast: bool) -> str | None:
        names = ("openssl", "sha256sum") if fast else ("sha256sum", "openssl")
        return next((_PROGRAMS[name] for name in names if self._has(name)), None)

    def _has(self, name: str) -> bool:
        """Ask once per connection. An account that may only use SFTP answers something else, or nothing."""
        facts = self.connection.facts
        if name not in facts:
            try:
                answer = self.connection.run(
                    f"xargs -0 {_PROGRAMS[name]}",
                    _QUESTION,
                    beat=self.beat,
                    check=self.check,
                    quiet_s=_PATIENCE_S,
                )
                facts[name] = _QUESTION in parse_digests(answer.output)
            except TransferInterrupted:
                if not self.connection.alive:
                    raise
                facts[name] = False  # the account may not run commands
        return bool(facts[name])


def parse_digests(output: bytes) -> Mapping[bytes, str]:
    """Return what ``sha256sum`` printed; odd names are escaped in lines that begin with a backslash."""
    found = {}
    for line in output.split(b"\n"):
        if (match := _LINE.fullmatch(line)) is None:
            continue
        name = match[3]
        if match[1]:
            name = re.sub(rb"\\[\\nr]", lambda escape: _ESCAPES[escape[0]], name)
        found[name] = match[2].decode()
    return found


def local_digest(opened: int, beat: Callable[[], None], size: int | None = None) -> str:
    """Return SHA-256 of an open local file, or of its first *size* bytes."""
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(
        opened, _CHUNK_BYTES if size is None else min(_CHUNK_BYTES, size - offset), offset
    ):
        digest.update(block)
        offset += len(block)
        beat()
    return digest.hexdigest()
