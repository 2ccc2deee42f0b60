"""Look at a tree without following a link, and say what of it is to be carried; for drivers that move files.

The plan is made before anything moves, so that a tree that holds what cannot be carried (a link
that leaves it, a socket) is refused as a whole, by name. A plan may hold millions of files, so they are packed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, Self, TypeAlias

from attrs import Factory, define, field, frozen

from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.selection import EVERYTHING, Selection, Spot

__all__ = [
    "DEEPEST",
    "NAME_LIMIT_BYTES",
    "READ_DIRECTORY",
    "Directory",
    "File",
    "Files",
    "Link",
    "PackedFiles",
    "Parts",
    "Plan",
    "enter",
    "explained",
    "is_part",
    "links_that_leave",
    "part_name",
    "plan_file",
    "plan_tree",
    "refuse_all",
    "shown",
]

READ_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Parts: TypeAlias = tuple[str, ...]
"""The names on the way from the root of a tree."""
_Waiting: TypeAlias = tuple[Parts, os.stat_result, Spot]
"""A directory to be listed, and what is selected there."""

_PART_ENDING: Final = ".edgecore-part"
NAME_LIMIT_BYTES: Final = 255
_LINKS_LIMIT: Final = 40
DEEPEST: Final = 200
_NAMED_LIMIT: Final = 5
_LARGEST: Final = 2**63 - 1
_PERMANENT: Final = frozenset(
    {
        errno.EACCES,
        errno.EFBIG,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


@frozen
class File:
    """A file to copy; *source* is its name where it is read, *name* where it is written."""

    name: str
    source: str
    size_bytes: int
    changed_ns: tuple[int, int] = field(default=(0, 0), kw_only=True)
    """When its content changed and when anything about it did, where that is known."""

    @property
    def numbers(self) -> tuple[int, int, int]:
        """All that a listing says of it besides its name."""
        return (self.size_bytes, *self.changed_ns)

    @classmethod
    def listed(cls, name: str, numbers: tuple[int, int, int]) -> Self:
        """Return a file that has the same name where it is written; the opposite of `numbers`."""
        size_bytes, *changed_ns = numbers
        return cls(name, name, size_bytes, changed_ns=(changed_ns[0], changed_ns[1]))


class Files(Protocol):
    """Files of one directory: a list, or `PackedFiles`."""

    def __iter__(self) -> Iterator[File]:
        """Give one after the other."""

    def __len__(self) -> int:
        """Say how many there are."""

    def append(self, file: File, /) -> None:
        """Take one more."""


@define
class PackedFiles:
    """Files that have the same name on both sides, each in no more than its name and 25 bytes.

    Numbers of more than 64 bits, which only a damaged or lying file system gives, become the largest there is.
    """

    kind: type[File] = File
    _names: bytearray = Factory(bytearray)
    """Each ends with a NUL, which is in no name."""
    _numbers: array[int] = Factory(lambda: array("q"))

    def append(self, file: File, /) -> None:
        """Take one more."""
        self._names += os.fsencode(file.name) + b"\0"
        self._numbers.extend(min(max(number, -_LARGEST), _LARGEST) for number in file.numbers)

    def __len__(self) -> int:
        """Say how many there are."""
        return len(self._numbers) // 3

    def __iter__(self) -> Iterator[File]:
        """Unpack one after the other."""
        names, begin, numbers = bytes(self._names), 0, iter(self._numbers)
        for three in zip(numbers, numbers, numbers, strict=True):
            end = names.index(0, begin)
            yield self.kind.listed(os.fsdecode(names[begin:end]), three)
            begin = end + 1


@frozen
class Link:
    """A symbolic link whose target stays inside the tree."""

    name: str
    target: str
    changed_ns: int


@define
class Directory:
    """A directory with what it holds, except its own directories."""

    parts: Parts
    mode: int
    changed_ns: int
    files: Files = Factory(list[File])
    links: list[Link] = Factory(list)

    @property
    def entries(self) -> Iterator[File | Link]:
        """All that has a name here."""
        yield from self.files
        yield from self.links


@define
class Plan:
    """Everything to copy; a directory comes after the one that holds it, the root first.

    What `plan_tree` finds in a directory stands in the order of names, as bytes.
    """

    directories: list[Directory] = Factory(list)
    size_bytes: int = 0


def shown(name: str | Path) -> str:
    """Write a name for people: bytes that are no text, and control characters, become escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def part_name(name: str) -> str:
    """Return the temporary name for *name*: always the same, and never too long."""
    part = f".{name}{_PART_ENDING}"
    if len(os.fsencode(part)) <= NAME_LIMIT_BYTES:
        return part
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()}{_PART_ENDING}"


def is_part(name: str) -> bool:
    """Tell whether a name is one that `part_name` gives."""
    return name.startswith(".") and name.endswith(_PART_ENDING)


@contextmanager
def explained(asked: str, *, transient: frozenset[int] = frozenset()) -> Iterator[None]:
    """Turn an error of the system into TransferRefused or, for what may pass, TransferInterrupted."""
    try:
        yield
    except OSError as error:
        words = f"cannot {asked}: {os.strerror(error.errno or 0)}"
        if error.errno in _PERMANENT - transient:
            raise TransferRefused(words) from error
        raise TransferInterrupted(words) from error


def enter(root: int, parts: Parts) -> int:
    """Open the directory *parts* below *root*, following no link; the caller closes it."""
    here = os.open(".", READ_DIRECTORY, dir_fd=root)
    for name in parts:
        try:
            here, above = os.open(name, READ_DIRECTORY, dir_fd=here), here
        except OSError:
            os.close(here)
            raise
        os.close(above)
    return here


def plan_file(source: str, name: str, directory: int) -> Plan:
    """Plan to copy one file of *directory* to *name*."""
    with explained(f"read {shown(source)}"):
        found = os.stat(source, dir_fd=directory, follow_symlinks=False)
    holder = Directory((), 0, 0, [File(name, source, found.st_size)])
    return Plan([holder], found.st_size)


def plan_tree(root: int, beat: Callable[[], None], selection: Selection = EVERYTHING) -> Plan:
    """Plan to copy what is selected of the tree at *root*; *beat* is called for each name that is looked at.

    Raises TransferRefused, naming what is selected and cannot be copied.
    """
    plan, problems = Plan(), list[str]()
    todo: list[_Waiting] = [((), os.fstat(root), selection.root)]
    wanted: set[Parts] = {()}
    while todo:
        parts, info, spot = todo.pop()
        mode = stat.S_IMODE(info.st_mode) & 0o777
        directory = Directory(parts, mode, info.st_mtime_ns, PackedFiles())
        plan.directories.append(directory)
        with explained(
            f"list {shown('/'.join(parts) or '.')}",
            transient=frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP}),
        ):
            opened = enter(root, parts)
            try:
                for name in _names(opened, beat):
                    beat()
                    _sort_in(name, directory, plan, todo, problems, opened, spot)
            finally:
                os.close(opened)
        if spot.whole:
            wanted.add(parts)
    _drop_unwanted(plan, wanted)
    refuse_all(problems + links_that_leave(plan))
    return plan


def refuse_all(problems: Sequence[str]) -> None:
    """Raise TransferRefused that names the first of the problems, if there are any."""
    if problems:
        more = len(problems) - _NAMED_LIMIT
        raise TransferRefused(
            "nothing was copied: "
            + "; ".join(problems[:_NAMED_LIMIT])
            + (f"; and {more} more" if more > 0 else "")
        )


def _names(directory: int, beat: Callable[[], None]) -> list[str]:
    found = set[str]()  # what is renamed while we list may come twice
    with os.scandir(directory) as entries:
        for entry in entries:
            beat()
            found.add(entry.name)
    return sorted(found, key=os.fsencode)


def _sort_in(
    name: str,
    directory: Directory,
    plan: Plan,
    todo: list[_Waiting],
    problems: list[str],
    opened: int,
    spot: Spot,
) -> None:
    info = os.stat(name, dir_fd=opened, follow_symlinks=False)
    if stat.S_ISDIR(info.st_mode):
        below = spot.below(name)
        if below is not None and len(directory.parts) >= DEEPEST:
            raise TransferRefused(
                f"{shown(name)} lies more than {DEEPEST} directories deep; nothing was copied"
            )
        if below is not None:
            todo.append(((*directory.parts, name), info, below))
    elif not spot.takes(name):
        return
    elif stat.S_ISLNK(info.st_mode):
        target = os.readlink(name, dir_fd=opened)
        directory.links.append(Link(name, target, info.st_mtime_ns))
    elif not stat.S_ISREG(info.st_mode):
        path = shown("/".join((*directory.parts, name)))
        problems.append(f"{path} is a socket, FIFO or device; remove it, or move it out of the tree")
    elif not is_part(name):  # ours, of a copy to here
        directory.files.append(
            File(name, name, info.st_size, changed_ns=(info.st_mtime_ns, info.st_ctime_ns))
        )
        plan.size_bytes += info.st_size


def _drop_unwanted(plan: Plan, wanted: set[Parts]) -> None:
    """Leave out the directories that hold nothing that is selected, and are not selected themselves."""
    for directory in reversed(plan.directories):
        if directory.files or directory.links or directory.parts in wanted:
            wanted.update(directory.parts[:depth] for depth in range(len(directory.parts) + 1))
    plan.directories = [directory for directory in plan.directories if directory.parts in wanted]


def links_that_leave(plan: Plan) -> list[str]:
    """Say of each link of a plan that leads out of its tree, or in circles, that it does."""
    targets = {
        (*directory.parts, link.name): link.target
        for directory in plan.directories
        for link in directory.links
    }
    return [
        f"the link {shown('/'.join(parts))} -> {shown(target)} leaves the tree or leads in circles; "
        "put there what it leads to"
        for parts, target in targets.items()
        if not _stays(parts[:-1], target, targets)
    ]


def _stays(here: Parts, target: str, targets: dict[Parts, str]) -> bool:
    """Tell whether a link's target, read in *here*, stays below the root at every step."""
    todo, place, followed = target.split("/")[::-1], list(here), 0
    if target.startswith("/"):
        return False
    while todo:
        name = todo.pop()
        if name == "..":
            if not place:
                return False
            place.pop()
        elif name not in ("", "."):
            place.append(name)
            further = targets.get(tuple(place))
            if further is not None:
                followed += 1
                if further.startswith("/") or followed > _LINKS_LIMIT:
                    return False
                place.pop()
                todo += further.split("/")[::-1]
    return True
