"""Read ``scp://`` and ``sftp://`` URLs: who, where, and which bytes of a path."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from attrs import frozen

from edgecore.errors import TransferRefused

__all__ = ["Place", "parse_url"]

_URL: Final = re.compile(
    r"(?:scp|sftp)://(?:(?P<user>[^/@]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^/@:\[\]]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/.*)?",
    re.DOTALL,
)
_HOST: Final = re.compile(r"[A-Za-z0-9_.:%][A-Za-z0-9_.:%-]*")
_USER: Final = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]*")


@frozen
class Place:
    """What a URL says. A path that begins with ``~/`` lies in the home directory there."""

    user: str
    """Empty where the URL names none."""
    host: str
    port: int | None
    path: bytes

    @property
    def name(self) -> bytes:
        """The last name of the path."""
        return self.path.rpartition(b"/")[2]


def parse_url(url: str) -> Place:
    """Return what a URL says. Raises TransferRefused."""
    found = _URL.fullmatch(url)
    if found is None:
        raise TransferRefused(f"{_hidden(url)} is not of the form scp://[user@]host[:port]/path")
    user, host, port = found["user"] or "", found["host"].strip("[]"), found["port"]
    if ":" in user:
        raise TransferRefused(
            f"{_hidden(url)} holds a password; remove it, and use a key: URLs are written into logs"
        )
    if not _HOST.fullmatch(host) or not (user == "" or _USER.fullmatch(user)):
        raise TransferRefused(f"{url} names no host or user that could exist")
    if port is not None and not 0 < int(port) < 65536:
        raise TransferRefused(f"{url} names port {port}; there are 1 to 65535")
    return Place(user, host, int(port) if port else None, _path(found["path"] or "/", url))


def _path(text: str, url: str) -> bytes:
    if bad := re.search(r"[?#]|%(?![0-9A-Fa-f]{2})|%00|%2[fF]", text):
        raise TransferRefused(
            f"{url} holds {bad[0]!r}, which cannot stand in a path; write ?, # and % that belong to a name "
            "as %3F, %23 and %25"
        )
    names = [unquote_to_bytes(part) for part in text.split("/") if part]
    if {b".", b".."} & set(names):
        raise TransferRefused(f"{url} must name a place without '.' and '..'")
    if names[:1] == [b"~"]:
        return b"/".join([b"~", *names[1:]])
    return b"/" + b"/".join(names)


def _hidden(url: str) -> str:
    """Return a URL without what may be a password in it."""
    return re.sub(r"(?<=//)[^/@]*@", "...@", url)
