"""Plan what another host lists of a tree, and compare what stands here with it; for drivers that move files.

A listing is a stranger's text, and comes directory by directory. So what is found is gathered level by level, within limits, and
refused as a whole before anything moves. A listing tells less of a file than a file system does: size, mode, whole seconds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Self

from attrs import Factory, define, field, frozen

from edgecore.errors import TransferRefused
from edgecore.parts import is_only_ours
from edgecore.trees import (
    DEEPEST,
    Directory,
    File,
    PackedFiles,
    Parts,
    Plan,
    explained,
    is_part,
    links_that_leave,
    refuse_all,
    shown,
)

__all__ = ["RemoteFile", "Survey", "below", "has_size", "levels", "plan_remote_file"]

_NS: Final = 1_000_000_000


@frozen
class RemoteFile(File):
    """A file that another host has, with what it says of it."""

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

    def describe(self, opened: int) -> None:
        """Give an open local file the mode and the time of this one."""
        os.fchmod(opened, self.mode)
        os.utime(opened, ns=(self.changed_s * _NS, self.changed_s * _NS))

    def describe_again(self, opened: int) -> bool:
        """Correct mode and time of a local file that holds the same; tell whether that could be done."""
        found = os.fstat(opened)
        if (stat.S_IMODE(found.st_mode), int(found.st_mtime)) != (self.mode, self.changed_s):
            if not is_only_ours(found):
                return False
            self.describe(opened)
        return True


def below(base: bytes, parts: Sequence[str]) -> bytes:
    """Return the path of a place below *base* on another host."""
    return b"/".join((base.rstrip(b"/"), *map(os.fsencode, parts))) or b"/"


def levels(plan: Plan) -> Iterator[list[Directory]]:
    """Yield the directories of a plan by their depth, so that each level is asked for at once."""
    found: dict[int, list[Directory]] = {}
    for directory in plan.directories:
        found.setdefault(len(directory.parts), []).append(directory)
    for depth in sorted(found):
        yield found[depth]


def has_size(file: File, holder: int, here: str) -> bool:
    """Tell whether a file of the right size stands here under its final name. Raises TransferRefused for a directory."""
    with explained(f"look at {here}"):
        try:
            found = os.stat(file.name, dir_fd=holder, follow_symlinks=False)
        except FileNotFoundError:
            return False
    if stat.S_ISDIR(found.st_mode):
        raise TransferRefused(f"{here} is a directory, and a file must go there; remove it or rename it")
    return stat.S_ISREG(found.st_mode) and found.st_size == file.size_bytes


def plan_remote_file(name: bytes, numbers: tuple[int, int, int]) -> Plan:
    """Plan to fetch one file under its own name; *numbers* as in `RemoteFile`."""
    file = RemoteFile.listed(os.fsdecode(name), numbers)
    return Plan([Directory((), 0, 0, [file])], file.size_bytes)


@define
class Survey:
    """What is found of the tree at *base* on a host that is not trusted."""

    base: bytes
    beat: Callable[[], None]
    left: int
    """How many more names the tree may have."""
    plan: Plan = Factory(Plan)
    problems: list[str] = Factory(list)
    """What cannot be fetched, in words for people."""
    _below: list[Directory] = Factory(list)

    def levels(self, mode: int, changed_s: int) -> Iterator[tuple[list[Directory], list[bytes]]]:
        """Yield directories with their paths there: first the root, then those that were found in the ones before."""
        self.directory((), mode, changed_s)
        while level := self._below:
            if len(level[0].parts) > DEEPEST:
                raise TransferRefused(
                    f"{shown('/'.join(level[0].parts[:3]))}/... lies more than {DEEPEST} directories deep; nothing was copied"
                )
            self._below = []
            self.plan.directories += level
            yield level, [below(self.base, directory.parts) for directory in level]

    def seen(self, entries: int) -> None:
        """Take note that so many more names came. Raises TransferRefused when they are too many."""
        self.beat()
        self.left -= entries
        if self.left < 0:
            raise TransferRefused(
                f"{shown(os.fsdecode(self.base))} holds more names than a transfer may have (max_entries); pack them, or raise it"
            )

    def directory(self, parts: Parts, mode: int, changed_s: int) -> None:
        """Take a directory."""
        self._below.append(Directory(parts, mode, changed_s * _NS, PackedFiles(RemoteFile)))

    def file(self, directory: Directory, name: str, numbers: tuple[int, int, int]) -> None:
        """Take a file, unless it is the temporary one of a transfer; *numbers* as in `RemoteFile`."""
        if not is_part(name):
            directory.files.append(RemoteFile.listed(name, numbers))
            self.plan.size_bytes += numbers[0]

    def special(self, directory: Directory, name: str) -> None:
        """Take note of what is no file, directory or link."""
        path = shown("/".join((*directory.parts, name)))
        self.problems.append(f"{path} is a socket, FIFO or device; remove it, or move it out of the tree")

    def planned(self) -> Plan:
        """Return the plan. Raises TransferRefused, naming what cannot be fetched."""
        refuse_all(self.problems + links_that_leave(self.plan))
        return self.plan
