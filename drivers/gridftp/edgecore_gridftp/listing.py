"""List trees of a server that is not trusted, many directories at once, and plan what is to be carried.

A listing is a stranger's text: names that could lead elsewhere are refused, and so is a tree without an end. GridFTP
servers show a link as what it leads to, and do not show one that leads to nothing; but they count it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from attrs import define

from edgecore.errors import TransferRefused
from edgecore.remote import Survey
from edgecore.trees import NAME_LIMIT_BYTES, Directory, Plan, shown
from edgecore_gridftp.control import Control
from edgecore_gridftp.text import Entry, Reply, parse_entry, trouble

__all__ = ["Listing", "list_directories", "plan_remote_tree"]

_ERROR = 400
_BESIDES = 2
"""A directory itself and the one above count as names of it."""


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


def plan_remote_tree(
    control: Control, base: bytes, root: Entry, beat: Callable[[], None], entries_limit: int
) -> Plan:
    """Plan to fetch the tree at *base*. Raises TransferRefused, naming what cannot be fetched."""
    survey = Survey(base, beat, entries_limit)
    for level, paths in survey.levels(root.mode & 0o777, root.changed_s):
        for directory, listing in zip(level, list_directories(control, paths, survey.seen), strict=True):
            _sort_in(directory, listing, survey)
    return survey.planned()


def _sort_in(directory: Directory, listing: Listing, survey: Survey) -> None:
    if listing.hidden:
        number = "a name" if listing.hidden == 1 else f"{listing.hidden} names"
        survey.problems.append(
            f"{shown('/'.join(directory.parts) or '.')} holds {number} that the server does not show, such as a link that "
            "leads to nothing; remove it, or pack the tree"
        )
    for raw, entry in listing.entries.items():
        name = os.fsdecode(raw)
        if entry.link:
            path = shown("/".join((*directory.parts, name)))
            survey.problems.append(
                f"{path} is a link, and GridFTP carries none; put there what it leads to, or pack the tree"
            )
        elif entry.is_directory:
            survey.directory((*directory.parts, name), entry.mode & 0o777, entry.changed_s)
        elif entry.is_file:
            survey.file(directory, name, entry.numbers)
        else:
            survey.special(directory, name)
