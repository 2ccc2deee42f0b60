"""Bring one file to its place: find what is right already, resume what is partial, compare.

The kernel copies by itself where it can (a file system may then share blocks, a file server need not
send them), and both sides are read back. Every function works on descriptors and on names relative to
the descriptor of their directory, and follows no link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from queue import SimpleQueue
from typing import Final

from attrs import Factory, define

from edgecore.builtin.copy_plan import part_name
from edgecore.errors import TransferInterrupted, TransferRefused

__all__ = ["READ_FILE", "Hand", "make_link", "open_part"]

READ_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_WRITE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_RANGES: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV})
"""The file systems, the kernel or a container's rules do not let the kernel copy by itself."""
_NO_LOCKS: Final = frozenset({errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
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
            or (not self.compare and not _same_time(found, wanted))
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
            usable = _is_only_ours(os.fstat(opened))
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


def _is_only_ours(info: os.stat_result) -> bool:
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and info.st_uid == os.geteuid()


def _same_time(found: os.stat_result, wanted: os.stat_result) -> bool:
    """Tell whether times agree, as far as a file system that keeps whole seconds can tell."""
    if found.st_mtime_ns % 1_000_000_000 == 0:
        return found.st_mtime_ns // 1_000_000_000 == wanted.st_mtime_ns // 1_000_000_000
    return found.st_mtime_ns == wanted.st_mtime_ns


def _same_mode_and_time(found: os.stat_result, wanted: os.stat_result) -> bool:
    return stat.S_IMODE(found.st_mode) == wanted.st_mode & 0o777 and _same_time(found, wanted)


def _correct(opened: int, found: os.stat_result, wanted: os.stat_result) -> bool:
    """Give a file with the right content the right mode and times, if it is only ours."""
    if not _is_only_ours(found):
        return False
    os.fchmod(opened, wanted.st_mode & 0o777)
    os.utime(opened, ns=(wanted.st_mtime_ns, wanted.st_mtime_ns))
    return True


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
