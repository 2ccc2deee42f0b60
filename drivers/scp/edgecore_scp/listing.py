"""List trees of a server that is not trusted, many directories at once, and plan what is to be fetched.

A listing is a stranger's text: names that could lead elsewhere are refused, and so is a tree without an end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

from attrs import define, frozen

from edgecore.errors import TransferRefused
from edgecore.trees import (
    DEEPEST,
    NAME_LIMIT_BYTES,
    Directory,
    File,
    Link,
    PackedFiles,
    Parts,
    Plan,
    is_part,
    links_that_leave,
    refuse_all,
    shown,
)
from edgecore_scp import wire
from edgecore_scp.session import Session, failing
from edgecore_scp.wire import Attributes, Entry, Kind

__all__ = ["RemoteFile", "below", "list_directories", "plan_remote_file", "plan_remote_tree"]

_AT_ONCE = 32
_AHEAD = 4
_NS = 1_000_000_000


@frozen
class RemoteFile(File):
    """A file to fetch, with what the server says of it."""

    mode: int
    changed_s: int

    @property
    def numbers(self) -> tuple[int, int, int]:
        """All that a listing says of it besides its name."""
        return self.size_bytes, self.mode, self.changed_s

    @classmethod
    def listed(cls, name: str, numbers: tuple[int, int, int]) -> Self:
        """Return the file that a listing has so."""
        return cls(name, name, *numbers)


def below(base: bytes, parts: Sequence[str]) -> bytes:
    """Return the path of a place below *base*."""
    return b"/".join((base.rstrip(b"/"), *map(os.fsencode, parts))) or b"/"


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


def plan_remote_file(name: bytes, found: Attributes) -> Plan:
    """Plan to fetch one file under its own name."""
    file = _file(os.fsdecode(name), found)
    return Plan([Directory((), 0, 0, [file])], file.size_bytes)


def plan_remote_tree(
    session: Session, base: bytes, root: Attributes, beat: Callable[[], None], entries_limit: int
) -> Plan:
    """Plan to fetch the tree at *base*. Raises TransferRefused, naming what cannot be fetched."""
    return _Planner(session, base, beat, entries_limit).plan(root)


@define
class _Planner:
    session: Session
    base: bytes
    beat: Callable[[], None]
    left: int

    def plan(self, root: Attributes) -> Plan:
        plan, problems = Plan(), list[str]()
        level = [_directory((), root)]
        while level:
            if len(level[0].parts) > DEEPEST:
                raise TransferRefused(
                    f"{shown('/'.join(level[0].parts[:3]))}/... lies more than {DEEPEST} directories deep; nothing was copied"
                )
            plan.directories += level
            paths = [below(self.base, directory.parts) for directory in level]
            below_level: list[Directory] = []
            for directory, found in zip(
                level, list_directories(self.session, paths, self._seen), strict=True
            ):
                links = _sort_in(directory, found, plan, below_level, problems)
                self._read_links(directory, links)
            level = below_level
        refuse_all(problems + links_that_leave(plan))
        return plan

    def _seen(self, entries: int) -> None:
        self.beat()
        self.left -= entries
        if self.left < 0:
            raise TransferRefused(
                f"{shown(os.fsdecode(self.base))} holds more names than a transfer may have (max_entries); pack them, or raise it"
            )

    def _read_links(self, directory: Directory, links: Mapping[bytes, Attributes]) -> None:
        requests = [
            wire.of_path(Kind.READLINK, below(self.base, (*directory.parts, os.fsdecode(name))))
            for name in links
        ]
        for (name, found), answer in zip(links.items(), self.session.exchange(requests), strict=True):
            with failing(f"read the link {shown(os.fsdecode(name))}"):
                target = answer.path()
            if not target or b"\0" in target:
                raise TransferRefused(
                    f"the link {shown(os.fsdecode(name))} leads nowhere; nothing was copied"
                )
            directory.links.append(Link(os.fsdecode(name), os.fsdecode(target), (found.changed_s or 0) * _NS))


def _sort_in(
    directory: Directory,
    found: Mapping[bytes, Attributes],
    plan: Plan,
    level: list[Directory],
    problems: list[str],
) -> Mapping[bytes, Attributes]:
    """Put what a directory holds where it belongs; return its links, whose targets are not known yet."""
    links = {}
    for raw, attributes in found.items():
        name = os.fsdecode(raw)
        if attributes.is_directory:
            level.append(_directory((*directory.parts, name), attributes))
        elif attributes.is_link:
            links[raw] = attributes
        elif not attributes.is_file:
            path = shown("/".join((*directory.parts, name)))
            problems.append(f"{path} is a socket, FIFO or device; remove it, or move it out of the tree")
        elif not is_part(name):
            file = _file(name, attributes)
            directory.files.append(file)
            plan.size_bytes += file.size_bytes
    return links


def _directory(parts: Parts, found: Attributes) -> Directory:
    mode = stat.S_IMODE(found.mode or 0o755) & 0o777
    return Directory(parts, mode, (found.changed_s or 0) * _NS, PackedFiles(RemoteFile))


def _file(name: str, found: Attributes) -> RemoteFile:
    assert found.size_bytes is not None
    mode = stat.S_IMODE(found.mode or 0o644) & 0o777
    return RemoteFile(name, name, found.size_bytes, mode, found.changed_s or 0)
