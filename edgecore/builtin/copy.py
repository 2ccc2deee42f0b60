"""Copy files and trees between directories of one machine: the driver for ``file://``.

Each file is written to a temporary name beside its final one, read back and compared with the
source byte by byte, synced and renamed; a file is therefore either absent, as it was, or right.
The comparison costs less than a checksum and says more, and it also makes resuming safe: a
partial file is taken up at the first place where it differs from the source.

Staged directories hold what strangers wrote. Every operation goes through a descriptor of the
directory that it concerns and follows no link, so exchanging a directory for a link, at any
moment, cannot lead a copy elsewhere. What is read back comes from the kernel's cache where the
file system has one; that the data reached the disk is what the sync confirms.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

from attrs import define

from edgecore.builtin.copy_work import Copier, Limits
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.hookspecs import Transfer, hookimpl
from edgecore.models import (
    Between,
    Closed,
    ProbeReport,
    SiteContext,
    TransferProfile,
    TransferProgress,
    TransferReport,
)
from edgecore.parts import own_directory
from edgecore.selection import EVERYTHING, Selection
from edgecore.trees import READ_DIRECTORY, Plan, explained, plan_file, plan_tree, shown

__all__ = ["FileTransfer"]

_URL: Final = re.compile(r"file://(?P<host>[^/]*)(?P<path>/.*)?", re.DOTALL)
_LINKS_LIMIT: Final = 40
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@define(eq=False, kw_only=True)
class FileTransfer(Transfer):
    """Copy between this machine's directories.

    A symbolic link on the way to a URL is followed when root or the service's own user made it, and nobody
    else can have put it there: no directory above it belongs to another user or is open for
    others to write.
    """

    compare: bool = True
    """Whether what was written is read back and compared byte by byte; if not, sizes only, and a
    file with the source's size and time of change counts as already right."""
    no_progress_s: Annotated[float, Between(0.1, 86_400)] = 300.0
    """Give up when no byte moved for so many seconds."""
    streams: Annotated[int, Between(1, 16)] = 2
    """How many files of a tree are copied at the same time."""

    @hookimpl
    def open(self, site: SiteContext) -> TransferProfile:
        """Say what is kept; a local copy needs no preparation."""
        return TransferProfile()

    @hookimpl
    def fetch(self, url: str, directory: Path, progress: TransferProgress) -> TransferReport:
        """Copy the file at *url*, or the content of the tree there, into *directory*."""
        with _source(_names(url), url) as found, own_directory(directory, make=True) as target:
            return self._bring(url, found, target, shown(directory), progress)

    @hookimpl
    def deliver(
        self, directory: Path, url: str, progress: TransferProgress, selection: Selection
    ) -> TransferReport:
        """Copy what is selected of *directory* to the directory at *url*, making parents."""
        with (
            own_directory(directory, make=False) as source,
            _target(_names(url), source, shown(directory), url) as target,
        ):
            copier = self._copier(source, target, shown(directory), url)
            return copier.run(lambda copier: _plan_tree(copier, selection), progress)

    @hookimpl
    def copy(self, source: str, target: str, progress: TransferProgress) -> TransferReport:
        """Copy the file at one URL, or the content of the tree there, to the directory at another, making parents."""
        with _source(_names(source), source) as found:
            tree = found[0] if found[1] is None else None
            with _target(_names(target), tree, source, target) as there:
                return self._bring(source, found, there, target, progress)

    @hookimpl
    def probe(self, url: str) -> ProbeReport:
        """Tell whether *url* exists and may be read, moving nothing."""
        try:
            with _source(_names(url, top=True), url) as (source, file):
                if file is None:
                    with explained(f"list {url}"), os.scandir(source) as entries:
                        next(entries, None)
                    return ProbeReport(ok=True, message=f"{url} is a directory that may be read")
                with explained(f"read {url}"):
                    os.close(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source))
                return ProbeReport(ok=True, message=f"{url} is a file that may be read")
        except (TransferRefused, TransferInterrupted) as error:
            return ProbeReport(ok=False, message=str(error))

    @hookimpl
    def close(self) -> Closed:
        """Do nothing: a local copy keeps nothing open."""
        return Closed()

    def _bring(
        self,
        url: str,
        found: tuple[int, str | None],
        target: int,
        target_name: str,
        progress: TransferProgress,
    ) -> TransferReport:
        """Copy what was found at *url*, in the form of `_source`, into the directory *target*."""
        source, file = found
        if file is None:
            _refuse_inside(source, target, url, target_name)
            return self._copier(source, target, url, target_name).run(_plan_tree, progress)
        name = _names(url)[-1]
        if file == name and os.path.samestat(os.fstat(source), os.fstat(target)):
            raise TransferRefused(f"{url} already is the file in {target_name}; name another place")
        copier = self._copier(source, target, url.rpartition("/")[0], target_name)
        return copier.run(lambda copier: plan_file(file, name, copier.source), progress)

    def _copier(self, source: int, target: int, source_name: str, target_name: str) -> Copier:
        limits = Limits(compare=self.compare, no_progress_s=self.no_progress_s, streams=self.streams)
        return Copier(source, target, source_name.rstrip("/"), target_name.rstrip("/"), limits)


def _plan_tree(copier: Copier, selection: Selection = EVERYTHING) -> Plan:
    return plan_tree(copier.source, copier.tally.beat, selection)


# --------------------------------------------------------------------------- from URL to path


def _names(url: str, *, top: bool = False) -> list[str]:
    """Return the names on the way to a URL, none for / itself, which only *top* allows.

    Raises TransferRefused when it is not a local path.
    """
    found = _URL.fullmatch(url)
    if found is None or found["path"] is None:
        raise TransferRefused(f"{url} is not of the form file:///path/of/a/file")
    if found["host"] not in ("", "localhost"):
        raise TransferRefused(
            f"{url} names the host {found['host']}, and file:// reaches only this machine; "
            "write file:///path, or use a scheme that goes to that host"
        )
    path = found["path"]
    if bad := re.search(r"[?#]|%(?![0-9A-Fa-f]{2})|%00|%2[fF]", path):
        raise TransferRefused(
            f"{url} holds {bad[0]!r}, which cannot stand in a path; write ?, # and % that belong to a name "
            "as %3F, %23 and %25"
        )
    names = [os.fsdecode(unquote_to_bytes(part)) for part in path.split("/") if part]
    if not (names or top) or {".", ".."} & set(names):
        raise TransferRefused(f"{url} must name a place below /, without '.' and '..'")
    return names


def _walk(names: list[str]) -> tuple[int, list[str]]:
    """Go as far as there are directories; return a descriptor of the last one and the names left.

    The first name left does not exist or is no directory. Raises OSError and TransferRefused.
    """
    todo, links, here, ours = names[::-1], 0, os.open("/", _LOOK), True
    try:
        while todo:
            name = todo.pop()
            try:
                found = os.open(name, _LOOK, dir_fd=here)
            except FileNotFoundError:
                return here, [name, *todo[::-1]]
            kind = os.fstat(found)
            if stat.S_ISDIR(kind.st_mode):
                here, found = found, here
                ours = ours and _is_ours(kind)
            os.close(found)
            if stat.S_ISLNK(kind.st_mode):
                links += 1
                target = _follow(name, here, kind, links, ours)
                if target.startswith("/"):
                    os.close(here)
                    here = os.open("/", _LOOK)
                todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
            elif not stat.S_ISDIR(kind.st_mode):
                return here, [name, *todo[::-1]]
    except BaseException:
        os.close(here)
        raise
    return here, []


def _is_ours(directory: os.stat_result) -> bool:
    """Tell whether only root and the service's user can put a link into a directory, or move one there."""
    shared = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not directory.st_mode & stat.S_ISVTX
    return directory.st_uid in (0, os.geteuid()) and not shared


def _follow(name: str, directory: int, kind: os.stat_result, links: int, ours: bool) -> str:
    """Return the target of a link that may be followed."""
    if links > _LINKS_LIMIT:
        raise TransferRefused(f"the link {shown(name)} leads in circles")
    if kind.st_uid not in (0, os.geteuid()) or not ours:
        raise TransferRefused(
            f"{shown(name)} is a symbolic link of user {kind.st_uid}; only links of root or of the service's "
            "own user, in directories that nobody else can write, are followed: write the path that it leads to"
        )
    return os.readlink(name, dir_fd=directory)


@contextmanager
def _source(names: list[str], url: str) -> Iterator[tuple[int, str | None]]:
    """Open what is to be read: a tree, or the directory of one file and the file's name there."""
    with explained(f"find {url}"):
        place, left = _walk(names)
    try:
        with explained(f"read {url}"):
            if not left:
                place, looked = os.open(".", READ_DIRECTORY, dir_fd=place), place
                os.close(looked)
            else:
                kind = os.stat(left[0], dir_fd=place, follow_symlinks=False)
                if len(left) > 1 or not stat.S_ISREG(kind.st_mode):
                    raise TransferRefused(f"{url} is neither a file nor a directory")
        yield place, left[0] if left else None
    finally:
        os.close(place)


@contextmanager
def _target(names: list[str], source: int | None, source_name: str, url: str) -> Iterator[int]:
    """Open the directory at *url*, making what is missing, unless it lies inside the tree that is the source, if any."""
    with explained(f"find {url}"):
        place, left = _walk(names)
    try:
        if source is not None:
            _refuse_inside(source, place, source_name, url)
        if ".." in left:
            raise TransferRefused(f"{url} leads through a link to a place that does not exist")
        with explained(f"make {url}"):
            for name in left:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=place)
                    _sync(place)
                place, parent = os.open(name, READ_DIRECTORY, dir_fd=place), place
                os.close(parent)
            if not left:
                place, looked = os.open(".", READ_DIRECTORY, dir_fd=place), place
                os.close(looked)
        yield place
    finally:
        os.close(place)


def _sync(place: int) -> None:
    """Make a new name in a directory durable; the descriptor may be one that only looks."""
    opened = os.open(".", READ_DIRECTORY, dir_fd=place)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _refuse_inside(source: int, target: int, source_name: str, target_name: str) -> None:
    """Raise TransferRefused when the target directory is the source or lies below it."""
    wanted, here = os.fstat(source), os.open(".", _LOOK, dir_fd=target)
    try:
        while not os.path.samestat(now := os.fstat(here), wanted):
            here, below = os.open("..", _LOOK, dir_fd=here), here
            os.close(below)
            if os.path.samestat(now, os.fstat(here)):
                return
    finally:
        os.close(here)
    raise TransferRefused(f"{target_name} lies inside {source_name}, which is to be copied there")
