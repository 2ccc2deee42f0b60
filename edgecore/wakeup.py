"""Let one process of a machine wake another at once, without a socket and without polling.

Who waits makes a FIFO of its own in a directory that both know; who has news writes a byte to
every FIFO there. A FIFO whose reader has died is removed by the next writer. A wake-up is
a hint and can be lost (another machine, a full disk), so a waiter also looks by itself
now and then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import uuid
from pathlib import Path

__all__ = ["Bell", "ring"]


class Bell:
    """Wait for `ring` on the same directory, by any process, or on this object, by any thread."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        self._path = directory / name
        unseen = directory / f".{name}"  # until it has a reader, `ring` would take it for a dead one
        os.mkfifo(unseen, 0o600)
        # Open for both directions: then there is always a writer, and a read never sees an end.
        self._fd = os.open(unseen, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        unseen.rename(self._path)
        self._lock = threading.Lock()
        self._open = True

    def wait(self, timeout_s: float) -> bool:
        """Sleep until the bell rings or *timeout_s* seconds have passed; tell whether it rang."""
        if not self._open:
            return False
        poll = select.poll()  # select() cannot wait for a descriptor above 1023
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(max(0.0, timeout_s) * 1000):
            return False
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 65536)
        return True

    def ring(self) -> None:
        """Wake the thread that waits on this bell, or spare it its next wait."""
        with self._lock:
            if self._open:
                _write(self._fd)

    def close(self) -> None:
        """Take the bell down; only after the last `wait` has returned."""
        with self._lock:
            if self._open:
                self._open = False
                self._path.unlink(missing_ok=True)
                os.close(self._fd)


def ring(directory: Path) -> None:
    """Wake every process that waits on a bell in *directory*."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith("."):
            continue
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nobody reads it any more
                with contextlib.suppress(OSError):
                    os.unlink(path)
            continue
        try:
            _write(fd)
        finally:
            os.close(fd)


def _write(fd: int) -> None:
    # A full FIFO means that a wake-up is already waiting; a reader may die while we write.
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(fd, b"!")
