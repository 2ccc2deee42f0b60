"""Open the temporary file beside a final name, and make a link there; for drivers that move files.

Staged directories hold what strangers wrote. Everything works on names relative to the descriptor of
their directory, and follows no link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Final

from edgecore.errors import TransferInterrupted
from edgecore.trees import part_name

__all__ = ["READ_FILE", "is_only_ours", "make_link", "open_part", "same_time"]

READ_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_WRITE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LOCKS: Final = frozenset({errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


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
                if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
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


def is_only_ours(info: os.stat_result) -> bool:
    """Tell whether it is a file of our own under one name alone."""
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and info.st_uid == os.geteuid()


def same_time(found: os.stat_result, wanted: os.stat_result) -> bool:
    """Tell whether times agree, as far as a file system that keeps whole seconds can tell."""
    if found.st_mtime_ns % 1_000_000_000 == 0:
        return found.st_mtime_ns // 1_000_000_000 == wanted.st_mtime_ns // 1_000_000_000
    return found.st_mtime_ns == wanted.st_mtime_ns


def make_link(name: str, target: str, changed_ns: int, holder: int) -> bool:
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
