"""Hold a file for one process at a time, with a note in it for people: who holds it, and since when.

The kernel drops the lock when the process ends, however it ends; the note stays and proves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from pathlib import Path
from typing import Final

from edgecore.clock import Clock, iso

__all__ = [
    "NO_LOCKS",
    "Taken",
    "beat",
    "hold",
    "host_in",
    "is_held",
    "is_ours",
    "last_beat",
    "note_in",
    "this_process",
]

NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""What a file system answers that has no locks."""

_LOOKS: Final = 5
_LOOK_S: Final = 0.02
_LONGEST_NOTE: Final = 1_000


class Taken(Exception):
    """Another process holds the file; `note` is what it wrote there."""

    def __init__(self, note: str) -> None:
        self.note = note or "unknown"
        super().__init__(self.note)


def this_process() -> str:
    """Return who this process is, for a note: its number, its host, the time."""
    return f"{_ourselves()} since {iso(Clock().now())[:19]}Z"


def is_ours(note: str) -> bool:
    """Tell whether this process wrote a note; one that ended may have had its number."""
    return note.startswith(f"{_ourselves()} ")


def host_in(note: str) -> str:
    """Return the host of who wrote a note; empty where none is named."""
    found = re.search(r"\bon (\S+)", note)
    return found[1] if found else ""


def _ourselves() -> str:
    return f"pid {os.getpid()} on {os.uname().nodename}"


def hold(file: Path, note: str) -> int:
    """Take *file*, made where it is not there, until the answered descriptor is closed. Raises Taken, OSError."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(descriptor)
    except BlockingIOError:
        found = os.read(descriptor, _LONGEST_NOTE).decode(errors="replace").strip()
        os.close(descriptor)
        raise Taken(found) from None
    except BaseException:
        os.close(descriptor)
        raise
    with contextlib.suppress(OSError):  # on a full disk the lock counts, only its holder's name is missing
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{note}\n".encode())
    return descriptor


def _take(descriptor: int) -> None:
    """Take the lock, or raise BlockingIOError when it stays taken: `is_held` has it for a moment."""
    for _ in range(_LOOKS - 1):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(file: Path) -> bool:
    """Tell whether a process of this machine holds *file* at this moment. Raises OSError where that cannot be told."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody ever held it, or it is not ours to see
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def beat(descriptor: int) -> None:
    """Show by the time of a file that is held that its holder moves; where that cannot be written, it is left."""
    with contextlib.suppress(OSError):
        os.utime(descriptor)


def last_beat(file: Path) -> float | None:
    """Return when the holder of *file* last moved, seconds since the epoch; None where there is no file to be seen."""
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def note_in(file: Path) -> str:
    """Return what the last holder of *file* wrote about itself; empty where nothing can be read."""
    try:
        return file.read_bytes()[:_LONGEST_NOTE].decode(errors="replace").strip()
    except OSError:
        return ""
