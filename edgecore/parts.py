"""Write a tree below a directory of ours: temporary files, directories, links; for drivers that move files.

Staged directories hold what strangers wrote. Everything works on names relative to the descriptor of
their directory, and follows no link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from attrs import define

from edgecore.carrying import Tally
from edgecore.errors import TransferInterrupted
from edgecore.trees import READ_DIRECTORY, Directory, Parts, Plan, enter, explained, part_name, shown

__all__ = [
    "READ_FILE",
    "Destination",
    "WriteOut",
    "give_name",
    "is_only_ours",
    "new_file",
    "open_part",
    "own_directory",
    "same_time",
]

READ_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_WRITE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LOCKS: Final = frozenset({errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
_GONE: Final = frozenset({errno.ENOENT})
_WRITE_OUT_BYTES: Final = 8 * 1024 * 1024


def new_file(path: Path) -> BinaryIO:
    """Open a file that is new for writing.

    What a job has put in its place is removed: a link would lead us elsewhere, a FIFO would hold us up for ever.
    """
    path.unlink(missing_ok=True)
    return path.open("xb")


def open_part(part: str, holder: int, there: str) -> int:
    """Open the temporary file: a new one, or one that only we can have left behind.

    Somebody may have put a link, a hard link to another file, or a FIFO under its name: that is
    removed. It stays locked until it is closed, so that two copies to one place never mix.
    """
    for _ in range(3):
        try:
            opened = os.open(part, _WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=holder)
            usable = True
        except FileExistsError:
            try:
                opened = os.open(part, _WRITE, dir_fd=holder)
            except OSError as error:
                # EACCES: a copy was killed after it had set a mode that lets nobody write.
                if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES):
                    raise
                _remove(part, holder)
                continue
            usable = is_only_ours(os.fstat(opened))
        try:
            if usable and _lock(opened, part, holder, there):
                return opened
        except BaseException:
            os.close(opened)
            raise
        os.close(opened)
        if not usable:
            _remove(part, holder)
    raise TransferInterrupted(f"the temporary file for {there} keeps changing; who else writes there?")


def _lock(opened: int, part: str, holder: int, there: str) -> bool:
    """Lock a temporary file; tell whether it still has its name."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TransferInterrupted(
            f"another transfer is writing {there}; try again when it has ended"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # some network file systems have none
            raise
    try:
        now = os.stat(part, dir_fd=holder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(now, os.fstat(opened))


def _remove(name: str, holder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=holder)


def give_name(opened: int, name: str, holder: int, there: str) -> None:
    """Rename the temporary file that is held open to its final name. Raises TransferInterrupted when it was another one."""
    os.rename(part_name(name), name, src_dir_fd=holder, dst_dir_fd=holder)
    now = os.stat(name, dir_fd=holder, follow_symlinks=False)
    if not os.path.samestat(now, os.fstat(opened)):
        raise TransferInterrupted(f"{there} was exchanged while it was copied; who else writes there?")


def is_only_ours(info: os.stat_result) -> bool:
    """Tell whether it is a file of our own under one name alone."""
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and info.st_uid == os.geteuid()


@define
class WriteOut:
    """Have the kernel write a long file to the disk while it comes, without waiting for it.

    Else the disk rests until a file is synced, or closed, and all wait for it then. The kernel is told of each range once, soon
    after it came: what is on the disk already it forgets, and that would be read from there when it is compared.
    """

    opened: int
    _told: int
    """Up to where the kernel was told; at first, what a former call had brought."""

    def reached(self, size: int) -> None:
        """Take note that the file has come up to *size*."""
        if size - self._told >= _WRITE_OUT_BYTES:
            with suppress(OSError):  # a kernel or a file system that takes no hints
                os.posix_fadvise(self.opened, self._told, size - self._told, os.POSIX_FADV_DONTNEED)
            self._told = size


def same_time(found: os.stat_result, wanted: os.stat_result) -> bool:
    """Tell whether times agree, as far as a file system that keeps whole seconds can tell."""
    if found.st_mtime_ns % 1_000_000_000 == 0:
        return found.st_mtime_ns // 1_000_000_000 == wanted.st_mtime_ns // 1_000_000_000
    return found.st_mtime_ns == wanted.st_mtime_ns


def _make_link(name: str, target: str, changed_ns: int, holder: int) -> bool:
    """Make a symbolic link, replacing what is no directory; tell whether it was already there."""
    try:
        if os.readlink(name, dir_fd=holder) == target:
            return True
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is something else, which the rename replaces or refuses
            raise
    part = part_name(name)
    _remove(part, holder)
    os.symlink(target, part, dir_fd=holder)
    os.utime(part, ns=(changed_ns, changed_ns), dir_fd=holder, follow_symlinks=False)
    os.rename(part, name, src_dir_fd=holder, dst_dir_fd=holder)
    return False


@define
class Destination:
    """The local directory that a tree is brought into, with a name for messages."""

    root: int
    name: str
    tally: Tally

    def name_of(self, parts: Iterable[str]) -> str:
        """Return how people are told of a place below."""
        return "/".join((self.name, *map(shown, parts)))

    @contextmanager
    def into(self, parts: Parts) -> Iterator[int]:
        """Open a directory, following no link, and explain errors by its name."""
        with explained(f"write to {self.name_of(parts)}", transient=_GONE):
            opened = enter(self.root, parts)
            try:
                yield opened
            finally:
                os.close(opened)

    def make(self, directory: Directory) -> None:
        """Make a directory, or make sure that we may write into one that is there."""
        self.tally.beat()
        *above, name = directory.parts
        with self.into(tuple(above)) as holder, suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=holder)
            return
        with self.into(directory.parts) as opened:  # refused here when it is a link or a file
            mode = stat.S_IMODE(os.fstat(opened).st_mode)
            if mode & 0o700 != 0o700:  # a former call had already given it its final mode
                os.fchmod(opened, mode | 0o700)

    def finish(self, plan: Plan) -> None:
        """Make the links, then give directories their modes and times, and make all names durable."""
        for directory in plan.directories:
            self._link(directory)
        for directory in reversed(plan.directories[1:]):  # what is inside first: it changes times
            with self.into(directory.parts) as opened:
                os.fchmod(opened, directory.mode)
                os.utime(opened, ns=(directory.changed_ns, directory.changed_ns))
        for directory in reversed(plan.directories):
            self.tally.beat()
            with self.into(directory.parts) as opened:
                os.fsync(opened)

    def _link(self, directory: Directory) -> None:
        if not directory.links:
            return
        with self.into(directory.parts) as holder:
            for link in directory.links:
                there = self.name_of((*directory.parts, link.name))
                with explained(f"make the link {there}", transient=_GONE):
                    self.tally.arrived(skipped=_make_link(link.name, link.target, link.changed_ns, holder))


@contextmanager
def own_directory(directory: Path, *, make: bool) -> Iterator[int]:
    """Open a directory of the service; its last name must not be a link."""
    with explained(f"open {shown(directory)}"):
        if make:
            directory.mkdir(parents=True, exist_ok=True)
        opened = os.open(directory, READ_DIRECTORY)
    try:
        yield opened
    finally:
        os.close(opened)
