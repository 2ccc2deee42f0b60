"""Read what GridFTP servers and ``globus-url-copy`` say: replies, listings, errors; write the client's command.

Pure functions. The client ends with 0 or 1 and nothing else, and servers differ in their codes, so that only the
words tell what happened. The tables below were recorded from globus-gridftp-server 13.24 and globus-url-copy 10.12.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from attrs import frozen

from edgecore.errors import TransferInterrupted, TransferRefused

__all__ = [
    "MISSING",
    "Entry",
    "Reply",
    "complaint",
    "copy_command",
    "fact_time",
    "is_missing",
    "last_marker",
    "pair_list",
    "parse_entry",
    "trouble",
]

_WORDS_LIMIT: Final = 700

_EXPIRED: Final = (
    "make a new proxy (grid-proxy-init, voms-proxy-init or myproxy-logon) at the place that the site names"
)
_REVOCATIONS: Final = "have the lists of revoked certificates fetched anew, here or there (fetch-crl)"
_TRUST: Final = (
    "compare the directory of authorities here (authorities), and there, with who signed the certificates"
)

_TRANSIENT: Final = (
    (r"No space left on device|NO_SPACE_LEFT|Disk quota exceeded|QUOTA_EXCEEDED", "make room there"),
    (r"CRL has expired", _REVOCATIONS),
    (r"has expired|certificate expired|expired \d+ minutes ago", _EXPIRED),
    (r"not yet valid", "compare the clocks of both machines"),
    (
        r"Connection refused|No route to host|Network is unreachable",
        "is the server down, or a firewall between?",
    ),
    (r"Name or service not known|Temporary failure in name resolution", "is the name of the host right?"),
    (r"Address already in use", "the range of ports is used up for now: widen it (port_range)"),
    (r"Connection reset|EOF has been reached|end-of-file was reached|Broken pipe|timed out|was aborted", ""),
    (r"checksum verification failure", "does the source change, or a disk fail?"),
)
"""What may pass by itself, or when somebody does what stands beside; looked at first."""

_PERMANENT: Final = (
    (
        r"Gridmap lookup failure|Could not map|Login incorrect",
        "ask the operators of the server to map this name",
    ),
    (r"has been revoked", "ask who issued the certificate"),
    (
        r"trusted CA certificate|Untrusted self-signed|signing.policy|not consistent with|certificate verify failed|Authentication Error",
        _TRUST,
    ),
    (
        r"name of the remote entity|UNAUTHORIZED_SERVER",
        "name the server's subject (subject), if it is the right server",
    ),
    (
        r"Valid credentials could not be found|Server side credential failure",
        "a server without GSI has ftp:// URLs",
    ),
    (r"Must perform GSSAPI authentication", "write gsiftp:// instead of ftp://"),
    (
        r"Path not allowed|Permission denied|PERMISSION_DENIED|Operation not permitted|Read-only file system",
        "",
    ),
    (r"No such file or directory|PATH_NOT_FOUND", ""),
    (
        r"Not a directory|Is a directory|NOT_A_DIRECTORY|IS_A_DIRECTORY|PATH_EXISTS|File exists|Directory not empty",
        "",
    ),
    (r"File name too long|File too large|Too many levels of symbolic links", ""),
    (r"Unknown checksum algorithm|Command not supported|Invalid command", ""),
)
"""What stays as it is until somebody changes something."""

_MARKER: Final = re.compile(rb"(\d+) bytes +[\d.]+ MB/sec avg")
_MISSING: Final = re.compile(r"No such file or directory|PATH_NOT_FOUND")
MISSING: Final = frozenset({"missing"})
"""For `trouble`: what is missing now had been there, and may come back."""


@frozen
class Reply:
    """One answer of a server."""

    code: int
    lines: tuple[bytes, ...]
    """Without codes and ends of lines."""
    earlier: tuple[Reply, ...] = ()
    """What was said before the final answer: signs of life, or the first thousands of names of a long listing."""

    @property
    def words(self) -> str:
        """The answer in one line."""
        return complaint(b"\n".join(self.lines))


def complaint(said: bytes) -> str:
    """Return what a server or the client said, in one line for people."""
    lines = [
        re.sub(r"^(error: |\d{3}[ -](\d{3}[ -])?)", "", line.strip())
        for line in said.decode("utf-8", "backslashreplace").splitlines()
    ]
    kept = list(dict.fromkeys(line for line in lines if line and line not in ("End.", "End")))
    text = "; ".join(kept)
    text = "".join(c if c.isprintable() else " " for c in text)
    return (
        text if len(text) <= _WORDS_LIMIT else f"{text[: _WORDS_LIMIT // 2]} ... {text[-_WORDS_LIMIT // 2 :]}"
    )


def is_missing(words: str) -> bool:
    """Tell whether words say that something does not exist."""
    return _MISSING.search(words) is not None


def trouble(
    asked: str, words: str, *, transient: frozenset[str] = frozenset()
) -> TransferRefused | TransferInterrupted:
    """Return the error for what was *asked* and answered with *words*; what nobody knows may pass."""
    said = f"cannot {asked}: {words or 'no message'}"
    if "missing" in transient and is_missing(words):
        return TransferInterrupted(f"{said}; it was there before")
    for table, error in ((_TRANSIENT, TransferInterrupted), (_PERMANENT, TransferRefused)):
        for pattern, advice in table:
            if re.search(pattern, words):
                return error(f"{said}; {advice}" if advice else said)
    return TransferInterrupted(said)


# ---------------------------------------------------------------------------------- listings


@frozen
class Entry:
    """What a server says of one name; see RFC 3659, section 7."""

    name: bytes
    kind: str
    """``file``, ``dir``, ``cdir``, ``pdir``, or of another kind."""
    size_bytes: int
    changed_s: int
    mode: int
    may: str
    """What we may do there, one letter each; see RFC 3659, section 7.5.5."""
    link: bool = False
    count: int | None = None
    """How many names a directory holds, where the server tells."""

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Size, mode and time of change."""
        return self.size_bytes, self.mode, self.changed_s

    @property
    def is_file(self) -> bool:
        """Tell whether it is a file."""
        return self.kind == "file"

    @property
    def is_directory(self) -> bool:
        """Tell whether it is a directory."""
        return self.kind in ("dir", "cdir", "pdir")


_FACTS: Final = re.compile(rb" ?((?:[A-Za-z][^=;]*=[^;]*;)+) (.+)", re.DOTALL)


def parse_entry(line: bytes) -> Entry | None:
    """Return what one line of MLST or MLSC says; None when it says nothing of the kind."""
    found = _FACTS.fullmatch(line)
    if found is None:
        return None
    facts = {}
    for fact in found[1].decode("utf-8", "replace").split(";"):
        key, _, value = fact.partition("=")
        facts[key.lower()] = value
    directory = facts.get("type", "").lower() in ("dir", "cdir", "pdir")
    return Entry(
        name=found[2],
        kind=facts.get("type", "").lower(),
        size_bytes=int(size) if (size := facts.get("size", "")).isdecimal() else 0,
        changed_s=fact_time(facts.get("modify", "")),
        mode=_octal(facts.get("unix.mode", ""), 0o755 if directory else 0o644),
        may=facts.get("perm", "elr"),
        link="unix.slink" in facts,
        count=int(count) if (count := facts.get("x.count", "")).isdecimal() else None,
    )


def fact_time(text: str) -> int:
    """Return seconds since the epoch for ``YYYYMMDDHHMMSS[.fraction]`` in UTC; 0 for what is no time."""
    try:
        return int(datetime.fromisoformat(f"{text[:8]}T{text[8:14]}+00:00").timestamp())
    except ValueError:
        return 0


def _octal(text: str, otherwise: int) -> int:
    return int(text, 8) & 0o777 if re.fullmatch(r"[0-7]{1,6}", text) else otherwise


# --------------------------------------------------------------------------------- the client


def copy_command(
    program: str,
    *,
    credential: str = "",
    fast: bool,
    markers: bool = False,
    parallel: int = 1,
    offset: int = 0,
    source_subject: str = "",
    target_subject: str = "",
    options: Sequence[str] = (),
) -> list[str]:
    """Return the command without its URLs; see ``globus-url-copy -help``."""
    command = [program, "-vb" if markers else "-q"]
    if credential:
        command += ["-cred", credential]
    if fast:
        command += ["-fast"]
    if parallel > 1:
        command += ["-p", str(parallel)]
    if offset:
        command += ["-off", str(offset)]
    if source_subject:
        command += ["-ss", source_subject]
    if target_subject:
        command += ["-ds", target_subject]
    return [*command, *options]


def last_marker(said: bytes) -> int:
    """Return how many bytes of the present file were carried, as the client last said (``-vb``); 0 where it did not yet."""
    found = _MARKER.findall(said)
    return int(found[-1]) if found else 0


def pair_list(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Return what the client reads; URLs hold neither spaces nor quotes."""
    return "".join(f"{source} {target}\n" for source, target in pairs).encode("ascii")
