"""List trees of a server that is not trusted, many directories at once, and plan what is to be carried.

A listing is a stranger's text: names that could lead elsewhere are refused, and so is a tree without an end. GridFTP
servers show a link as what it leads to, and do not show one that leads to nothing; but they count it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from attrs import define, field, frozen

from edgecore.errors import TransferRefused
from edgecore.trees import (
    DEEPEST,
    NAME_LIMIT_BYTES,
    Directory,
    File,
    PackedFiles,
    Parts,
    Plan,
    is_part,
    refuse_all,
    shown,
)
from edgecore_gridftp.control import Control
from edgecore_gridftp.place import below
from edgecore_gridftp.text import Entry, Reply, parse_entry, trouble

__all__ = ["Listing", "RemoteFile", "list_directories", "plan_remote_file", "plan_remote_tree"]

_NS = 1_000_000_000
_ERROR = 400
_BESIDES = 2
"""A directory itself and the one above count as names of it."""


@frozen
class RemoteFile(File):
    """A file that a server has, with what it says of it."""

    mode: int = field(kw_only=True)
    changed_s: int = field(kw_only=True)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """All that a listing says of it besides its name."""
        return self.size_bytes, self.mode, self.changed_s

    @classmethod
    def listed(cls, name: str, numbers: tuple[int, int, int]) -> Self:
        """Return the file that a listing has so."""
        size_bytes, mode, changed_s = numbers
        return cls(name, name, size_bytes, mode=mode, changed_s=changed_s)


@define
class Listing:
    """What one directory holds."""

    entries: dict[bytes, Entry]
    hidden: int
    """How many names there are that the server does not show."""


def list_directories(
    control: Control, paths: Sequence[bytes], seen: Callable[[int], None]
) -> Iterator[Listing]:
    """Yield what each directory holds; *seen* is told how many names came, and may raise."""
    replies = control.exchange(b"MLSC " + path for path in paths)
    for path, reply in zip(paths, replies, strict=True):
        if reply.code >= _ERROR:
            raise trouble(f"list {_shown(path)}", reply.words)
        seen(sum(1 for _ in _lines(reply)))
        yield _listing(path, reply)


def _lines(reply: Reply) -> Iterator[bytes]:
    """Yield the lines between the first and the last of each part: a listing of many names comes in several."""
    for part in (*reply.earlier, reply):
        yield from part.lines[1:-1]


def _listing(path: bytes, reply: Reply) -> Listing:
    entries, count = dict[bytes, Entry](), None
    for line in _lines(reply):
        entry = parse_entry(line)
        if entry is None:
            raise TransferRefused(
                f"the server lists {_shown(line[:300])!r} in {_shown(path)}, which is no name of a file that can be "
                "carried; nothing was copied"
            )
        if entry.kind in ("cdir", "pdir") or entry.name in (b".", b".."):
            count = entry.count if entry.kind == "cdir" else count
            continue
        if (
            b"/" in entry.name
            or b"\0" in entry.name
            or b"\r" in entry.name
            or len(entry.name) > NAME_LIMIT_BYTES
        ):
            raise TransferRefused(
                f"the server lists {_shown(entry.name[:300])!r} in {_shown(path)}, which is no name of a file; nothing was copied"
            )
        entries[entry.name] = entry
    return Listing(entries, 0 if count is None else max(count - _BESIDES - len(entries), 0))


def _shown(raw: bytes) -> str:
    return shown(os.fsdecode(raw))


# --------------------------------------------------------------------------------------- plans


def plan_remote_file(name: bytes, found: Entry) -> Plan:
    """Plan to fetch one file under its own name."""
    file = _file(os.fsdecode(name), found)
    return Plan([Directory((), 0, 0, [file])], file.size_bytes)


def plan_remote_tree(
    control: Control, base: bytes, root: Entry, beat: Callable[[], None], entries_limit: int
) -> Plan:
    """Plan to fetch the tree at *base*. Raises TransferRefused, naming what cannot be fetched."""
    plan, problems, left = Plan(), list[str](), entries_limit

    def seen(entries: int) -> None:
        nonlocal left
        beat()
        left -= entries
        if left < 0:
            raise TransferRefused(
                f"{_shown(base)} holds more names than a transfer may have (max_entries); pack them, or raise it"
            )

    level = [_directory((), root)]
    while level:
        if len(level[0].parts) > DEEPEST:
            raise TransferRefused(
                f"{shown('/'.join(level[0].parts[:3]))}/... lies more than {DEEPEST} directories deep; nothing was copied"
            )
        plan.directories += level
        paths = [below(base, directory.parts) for directory in level]
        below_level = list[Directory]()
        for directory, listing in zip(level, list_directories(control, paths, seen), strict=True):
            _sort_in(directory, listing, plan, below_level, problems)
        level = below_level
    refuse_all(problems)
    return plan


def _sort_in(
    directory: Directory, listing: Listing, plan: Plan, level: list[Directory], problems: list[str]
) -> None:
    if listing.hidden:
        number = "a name" if listing.hidden == 1 else f"{listing.hidden} names"
        problems.append(
            f"{shown('/'.join(directory.parts) or '.')} holds {number} that the server does not show, such as a link that "
            "leads to nothing; remove it, or pack the tree"
        )
    for raw, entry in listing.entries.items():
        name = os.fsdecode(raw)
        path = shown("/".join((*directory.parts, name)))
        if entry.link:
            problems.append(
                f"{path} is a link, and GridFTP carries none; put there what it leads to, or pack the tree"
            )
        elif entry.is_directory:
            level.append(_directory((*directory.parts, name), entry))
        elif not entry.is_file:
            problems.append(f"{path} is a socket, FIFO or device; remove it, or move it out of the tree")
        elif not is_part(name):
            file = _file(name, entry)
            directory.files.append(file)
            plan.size_bytes += file.size_bytes


def _directory(parts: Parts, found: Entry) -> Directory:
    return Directory(parts, found.mode & 0o777, found.changed_s * _NS, PackedFiles(RemoteFile))


def _file(name: str, found: Entry) -> RemoteFile:
    return RemoteFile(name, name, found.size_bytes, mode=found.mode, changed_s=found.changed_s)
