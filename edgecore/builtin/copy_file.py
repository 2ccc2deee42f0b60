"""Bring one file to its place: find what is right already, resume what is partial, compare.

The kernel copies by itself where it can (a file system may then share blocks, a file server need not
send them), and both sides are read back. Every function works on descriptors and on names relative to
the descriptor of their directory, and follows no link.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Final

from attrs import Factory, define

from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.parts import READ_FILE, is_only_ours, same_time

__all__ = ["Hand"]

_NO_RANGES: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV})
"""The file systems, the kernel or a container's rules do not let the kernel copy by itself."""
_MEBIBYTE: Final = 1024 * 1024
_CHUNK_BYTES: Final = 256 * 1024
"""Two of them stay in a core's cache while they are compared."""
_STEP_BYTES: Final = _MEBIBYTE
_STEPS_AHEAD: Final = 64
_ALONE_BYTES: Final = 8 * _MEBIBYTE
"""A longer file is compared in one thread while another writes it."""
_ZEROS: Final = bytes(_CHUNK_BYTES)
_WRITE_BACK_BYTES: Final = 32 * _MEBIBYTE
"""After so much of one file the disk is told to begin writing."""
_SYNC_BYTES: Final = 1024 * _MEBIBYTE
"""After so much of one file we wait for the disk, so that the last sync is never a long silence."""


@define
class Hand:
    """Write files into one directory; *beat* is told how many bytes more are right."""

    holder: int
    compare: bool
    beat: Callable[[int], None]
    buffers: tuple[bytearray, bytearray] = Factory(lambda: (bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)))

    def is_right(self, source: int, wanted: os.stat_result, name: str, there: str) -> bool:
        """Tell whether the file already stands under its final name, correcting mode and times."""
        try:
            found = os.stat(name, dir_fd=self.holder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(found.st_mode):
            raise TransferRefused(f"{there} is a directory, and a file must go there; remove it or rename it")
        if (
            not stat.S_ISREG(found.st_mode)
            or found.st_size != wanted.st_size
            or os.path.samestat(found, wanted)  # a hard link would change when the source does
            or (not self.compare and not same_time(found, wanted))
        ):
            return False
        opened = os.open(name, READ_FILE, dir_fd=self.holder)
        try:
            if not os.path.samestat(found, os.fstat(opened)):
                return False
            if self.compare and self._agreement(source, opened, wanted.st_size) < wanted.st_size:
                return False
            return _same_mode_and_time(found, wanted) or _correct(opened, found, wanted)
        finally:
            os.close(opened)

    def _agreement(self, source: int, target: int, limit: int, offset: int = 0) -> int:
        """Return up to where, in whole chunks from *offset*, both hold the same bytes."""
        while offset < limit:
            ours, theirs = _sized(self.buffers, min(_CHUNK_BYTES, limit - offset))
            if _read(source, ours, offset) < len(ours) or _read(target, theirs, offset) < len(theirs):
                break
            if ours != theirs:
                break
            offset += len(ours)
            self.beat(0)
        return offset

    def fill(self, source: int, part: int, wanted: os.stat_result, there: str) -> None:
        """Bring the temporary file to the content, mode and times of the source."""
        size, sparse = wanted.st_size, wanted.st_blocks * 512 < wanted.st_size
        held = os.fstat(part).st_size
        start = self._agreement(source, part, min(held, size)) if held else 0
        if held > start:
            os.ftruncate(part, start)
        if sparse:
            os.ftruncate(part, size)
        self.beat(start)
        steps = self._write(source, part, start, size, sparse)
        if self.compare and size - start > _ALONE_BYTES:
            steps = _ahead(steps)
        offset = begun = synced = start
        with closing(steps):
            for end in steps:
                if self.compare and self._agreement(source, part, end, offset) < end:
                    raise TransferInterrupted(
                        f"{there} does not hold what its source holds; does the source change, or the disk fail?"
                    )
                self.beat(end - offset)
                offset = end
                if offset - begun >= _WRITE_BACK_BYTES:
                    begun = _begin_write_back(part, begun, offset)
                if offset - synced >= _SYNC_BYTES:
                    os.fdatasync(part)
                    synced = offset
        os.fchmod(part, stat.S_IMODE(wanted.st_mode) & 0o777)
        os.utime(part, ns=(wanted.st_mtime_ns, wanted.st_mtime_ns))
        _begin_write_back(part, begun, offset)

    def _write(self, source: int, part: int, start: int, size: int, sparse: bool) -> Generator[int]:
        """Write the file step by step; yield how far it is. Ends early where the source does."""
        by_kernel = not sparse
        while start < size:
            done = 0
            if by_kernel:
                try:
                    done = os.copy_file_range(source, part, min(_STEP_BYTES, size - start), start, start)
                except OSError as error:
                    if error.errno not in _NO_RANGES:
                        raise
                by_kernel = done > 0
            if not done:
                done = _write_chunk(source, part, start, min(_CHUNK_BYTES, size - start), sparse)
            if not done:
                return
            start += done
            yield start


def _write_chunk(source: int, part: int, offset: int, size: int, sparse: bool) -> int:
    """Write one chunk through memory, leaving a hole where a sparse source is empty; return its size."""
    content = bytearray(size)
    if _read(source, content, offset) < size:
        return 0  # it became shorter, which the caller notices
    if not (sparse and content == _ZEROS[:size]):
        done = os.pwrite(part, content, offset)
        while done < size:
            done += os.pwrite(part, memoryview(content)[done:], offset + done)
    return size


def _ahead(steps: Iterator[int]) -> Generator[int]:
    """Take the steps in another thread, a bounded number of them before they are asked for."""
    ready: SimpleQueue[int | BaseException | None] = SimpleQueue()
    room, stopped = threading.Semaphore(_STEPS_AHEAD), threading.Event()

    def work() -> None:
        try:
            for step in steps:
                ready.put(step)
                room.acquire()
                if stopped.is_set():
                    return
            ready.put(None)
        except BaseException as error:  # raised where the steps are wanted
            ready.put(error)

    thread = threading.Thread(target=work, name="copy ahead", daemon=True)
    thread.start()
    try:
        while (step := ready.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield step
            room.release()
    finally:
        stopped.set()
        room.release()
        thread.join()


def _same_mode_and_time(found: os.stat_result, wanted: os.stat_result) -> bool:
    return stat.S_IMODE(found.st_mode) == wanted.st_mode & 0o777 and same_time(found, wanted)


def _correct(opened: int, found: os.stat_result, wanted: os.stat_result) -> bool:
    """Give a file with the right content the right mode and times, if it is only ours."""
    if not is_only_ours(found):
        return False
    os.fchmod(opened, wanted.st_mode & 0o777)
    os.utime(opened, ns=(wanted.st_mtime_ns, wanted.st_mtime_ns))
    return True


def _sized(buffers: tuple[bytearray, bytearray], size: int) -> tuple[bytearray, bytearray]:
    """Return two buffers of exactly *size* bytes, so that they compare as a whole."""
    return buffers if size == _CHUNK_BYTES else (bytearray(size), bytearray(size))


def _read(opened: int, buffer: bytearray, offset: int) -> int:
    """Fill the buffer from *offset* as far as the file goes; return how many bytes were read."""
    done = os.preadv(opened, [buffer], offset)
    while 0 < done < len(buffer):
        more = os.preadv(opened, [memoryview(buffer)[done:]], offset + done)
        if more == 0:
            break
        done += more
    return done


def _begin_write_back(opened: int, start: int, end: int) -> int:
    """Have the disk begin with a range that is not needed in memory any more; return its end."""
    os.posix_fadvise(opened, start, end - start, os.POSIX_FADV_DONTNEED)
    return end
