"""List trees of a server that is not trusted, many directories at once, and plan what is to be fetched.

A listing is a stranger's text: names that could lead elsewhere are refused, and so is a tree without an end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence

from edgecore.errors import TransferRefused
from edgecore.remote import Survey, below
from edgecore.trees import NAME_LIMIT_BYTES, Directory, Link, Plan, shown
from edgecore_scp import wire
from edgecore_scp.session import Session, failing
from edgecore_scp.wire import Attributes, Entry, Kind

__all__ = ["file_numbers", "list_directories", "plan_remote_tree"]

_AT_ONCE = 32
_AHEAD = 4
_NS = 1_000_000_000


# --------------------------------------------------------------------------------------- lists


def list_directories(
    session: Session, paths: Sequence[bytes], seen: Callable[[int], None]
) -> Iterator[dict[bytes, Attributes]]:
    """Yield what each of the directories holds; *seen* is told how many names came, and may raise."""
    for start in range(0, len(paths), _AT_ONCE):
        yield from _listed(session, paths[start : start + _AT_ONCE], seen)


def _listed(
    session: Session, paths: Sequence[bytes], seen: Callable[[int], None]
) -> list[dict[bytes, Attributes]]:
    found: list[dict[bytes, Attributes]] = [{} for _ in paths]
    handles: dict[int, bytes] = {}
    for number, answer in enumerate(session.exchange([wire.of_path(Kind.OPENDIR, path) for path in paths])):
        with failing(f"list {shown(os.fsdecode(paths[number]))}"):
            handles[number] = answer.handle()
    todo = set(handles)
    while todo:
        asked = [number for number in sorted(todo) for _ in range(_AHEAD)]
        requests = [wire.list_some(handles[number]) for number in asked]
        for number, answer in zip(asked, session.exchange(requests), strict=True):
            with failing(f"list {shown(os.fsdecode(paths[number]))}"):
                entries = answer.entries()
            if not entries:
                todo.discard(number)
            seen(len(entries))
            _take(entries, found[number], paths[number])
    for _ in session.exchange([wire.close_file(handle) for handle in handles.values()]):
        pass
    return found


def _take(entries: Sequence[Entry], into: dict[bytes, Attributes], path: bytes) -> None:
    for entry in entries:
        if entry.name in (b".", b".."):
            continue
        if not entry.name or b"/" in entry.name or b"\0" in entry.name or len(entry.name) > NAME_LIMIT_BYTES:
            raise TransferRefused(
                f"the server lists {shown(os.fsdecode(entry.name[:300]))!r} in {shown(os.fsdecode(path))}, which is no "
                "name of a file; nothing was copied"
            )
        into[entry.name] = entry.attributes


# --------------------------------------------------------------------------------------- plans


def plan_remote_tree(
    session: Session, base: bytes, root: Attributes, beat: Callable[[], None], entries_limit: int
) -> Plan:
    """Plan to fetch the tree at *base*. Raises TransferRefused, naming what cannot be fetched."""
    survey = Survey(base, beat, entries_limit)
    for level, paths in survey.levels(_mode(root, 0o755), root.changed_s or 0):
        for directory, found in zip(level, list_directories(session, paths, survey.seen), strict=True):
            _read_links(session, base, directory, _sort_in(directory, found, survey))
    return survey.planned()


def _read_links(
    session: Session, base: bytes, directory: Directory, links: Mapping[bytes, Attributes]
) -> None:
    requests = [
        wire.of_path(Kind.READLINK, below(base, (*directory.parts, os.fsdecode(name)))) for name in links
    ]
    for (name, found), answer in zip(links.items(), session.exchange(requests), strict=True):
        with failing(f"read the link {shown(os.fsdecode(name))}"):
            target = answer.path()
        if not target or b"\0" in target:
            raise TransferRefused(f"the link {shown(os.fsdecode(name))} leads nowhere; nothing was copied")
        directory.links.append(Link(os.fsdecode(name), os.fsdecode(target), (found.changed_s or 0) * _NS))


def _sort_in(
    directory: Directory, found: Mapping[bytes, Attributes], survey: Survey
) -> Mapping[bytes, Attributes]:
    """Put what a directory holds where it belongs; return its links, whose targets are not known yet."""
    links = {}
    for raw, attributes in found.items():
        name = os.fsdecode(raw)
        if attributes.is_directory:
            survey.directory((*directory.parts, name), _mode(attributes, 0o755), attributes.changed_s or 0)
        elif attributes.is_link:
            links[raw] = attributes
        elif attributes.is_file:
            survey.file(directory, name, file_numbers(attributes))
        else:
            survey.special(directory, name)
    return links


def file_numbers(found: Attributes) -> tuple[int, int, int]:
    """Return size, mode and time of change of a file."""
    assert found.size_bytes is not None
    return found.size_bytes, _mode(found, 0o644), found.changed_s or 0


def _mode(found: Attributes, otherwise: int) -> int:
    return stat.S_IMODE(found.mode or otherwise) & 0o777
