"""Believe a host only if known_hosts has its key, reading these files as OpenSSH does.

A host may have several keys, also of one kind: names that lead to one of several machines have them, and hosts whose
key is about to change. Names may be hashed, or patterns. Of the marks, ``@revoked`` is heeded; ``@cert-authority`` is not.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import paramiko
from attrs import Factory, define

from edgecore.errors import TransferRefused

__all__ = ["KnownKeys"]

_SIGNED_BY: Final = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")}
"""Kind of key -> the algorithms that prove it, where they are not called as it is."""


@define(eq=False)
class KnownKeys(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # paramiko has no types
    """The keys of one host; asked by paramiko, which is told of none itself, before anybody logs in."""

    name: str
    """As the host stands in known_hosts."""
    files: Sequence[str]
    keys: list[paramiko.PKey] = Factory(list)
    revoked: dict[str, str] = Factory(dict)
    """Key in base 64 -> the file that says so."""

    @classmethod
    def of(cls, name: str, files: Sequence[str]) -> KnownKeys:
        """Read what the files say of a host. Raises OSError."""
        known = cls(name, files)
        for file, line in _lines(files):
            if line.startswith("@revoked"):
                known.revoked |= dict.fromkeys(line.split(), file)
            elif line and line[0] not in "#@":
                with suppress(paramiko.hostkeys.InvalidHostKey):  # of another host, or of no use
                    entry = paramiko.hostkeys.HostKeyEntry.from_line(line)
                    if entry is not None and _fits(entry.hostnames, name):
                        known.keys.append(entry.key)
        return known

    def preferred(self, offered: Sequence[str]) -> tuple[str, ...]:
        """Return the algorithms with those first that prove a key which is known."""
        kinds = dict.fromkeys(key.get_name() for key in self.keys)
        wanted = [each for kind in kinds for each in _SIGNED_BY.get(kind, (kind,))]
        return tuple(dict.fromkeys([*(each for each in wanted if each in offered), *offered]))

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Judge the key of a host. Raises TransferRefused and paramiko's BadHostKeyException."""
        file = self.revoked.get(key.get_base64())
        if file is not None:
            raise TransferRefused(
                f"the host key of {self.name} is marked as revoked in {file}; ask its operators for "
                "their present key"
            )
        if all(key.asbytes() != each.asbytes() for each in self.keys):
            raise paramiko.BadHostKeyException(self.name, key, self.keys[0])


def _lines(files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (file, line) of all of them."""
    for file in files:
        with suppress(FileNotFoundError):
            for line in Path(file).read_text(errors="replace").splitlines():
                yield file, line.strip()


def _fits(names: Sequence[str], host: str) -> bool:
    """Tell whether a line is about a host: one of its names fits, and none that begins with ``!`` does."""
    if any(name.startswith("!") and _is(name[1:], host) for name in names):
        return False
    return any(_is(name, host) for name in names)


def _is(name: str, host: str) -> bool:
    if name.startswith("|1|"):
        salt, _, digest = name.removeprefix("|1|").partition("|")
        with suppress(ValueError):  # it is no base 64
            made = hmac.digest(base64.b64decode(salt), host.encode(), "sha1")
            return hmac.compare_digest(made, base64.b64decode(digest))
        return False
    if "*" not in name and "?" not in name:
        return name.lower() == host.lower()
    pattern = re.escape(name).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, host, re.IGNORECASE) is not None
