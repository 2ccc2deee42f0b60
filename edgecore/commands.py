"""Run one command of a batch system or an operator, and always come back.

A command gets an argument list, a built environment with ``LC_ALL=C``, no standard input unless
given, and a time limit after which its whole process group is killed. Output goes to
temporary files, so that neither 64 kB in a pipe nor a child that keeps a pipe open can
hold us up; who floods them is killed, since half an answer is none.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from attrs import frozen

from edgecore.errors import ActionStopped, EdgeError

__all__ = ["CommandNotFound", "CommandResult", "run"]

_OUTPUT_LIMIT_BYTES: Final = 256 * 1024 * 1024
_END_BYTES: Final = 1024
_SAID_BYTES: Final = 65_536
"""Of so much a complaint is made."""
_FLOODED: Final = b"it wrote more than 256 MiB, which nobody reads\n"
_DYING_S: Final = 5.0
_ASK_EVERY_S: Final = 0.5
_NOT_RUNNABLE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOEXEC}
)


class CommandNotFound(EdgeError):
    """There is no such program, it may not be executed, or not with such arguments; nothing was run."""


@frozen(kw_only=True)
class CommandResult:
    """What a command answered."""

    arguments: tuple[str, ...]
    exit_code: int | None
    """None when it was killed because its time was up; negative: the signal that ended it."""
    output: bytes
    errors: bytes
    duration_s: float

    @property
    def timed_out(self) -> bool:
        """Tell whether the command was killed because its time was up."""
        return self.exit_code is None

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become replacement characters."""
        return self.output.decode("utf-8", "replace")

    def complaint(self) -> str:
        """Say in one line how the command ended and what it complained about."""
        name = Path(self.arguments[0]).name
        if self.timed_out:
            return f"{name} gave no answer within {self.duration_s:.0f} s"
        said = (self.errors or self.output)[:_SAID_BYTES].decode("utf-8", "replace").split("\n")
        words = "; ".join(line.strip() for line in said if line.strip())[:500]
        return f"{name} ended with exit code {self.exit_code}: {words or 'no message'}"


def run(
    arguments: Sequence[str],
    *,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    stdin: bytes = b"",
    unwanted: Callable[[], bool] = lambda: False,
    ending_s: float = 0.0,
    told: Callable[[bytes], None] | None = None,
) -> CommandResult:
    """Run a command to its end or its time limit; the environment is built, never inherited.

    Raises CommandNotFound, and ActionStopped once *unwanted*, which is asked now and then, says so; the
    command is killed then. Before a command is killed it is asked to end, by SIGTERM, where it is given
    *ending_s* seconds for that. A non-zero exit code is an answer, not an error; one that writes more than 256 MiB is
    killed, or counts as if it had been. *told* hears the end of what it has said so far, whenever *unwanted* is asked.
    """
    begun = time.monotonic()

    def ask() -> bool:
        if told is not None:
            told(_end_of(out))
        return unwanted()

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _stdin(stdin) as given:
        process = _start(arguments, environment, directory, given, out, err)

        def floods() -> bool:
            return max(os.fstat(each.fileno()).st_size for each in (out, err)) > _OUTPUT_LIMIT_BYTES

        try:
            exit_code = _wait(process, timeout_s, ask, floods)
        finally:
            if process.returncode is None:
                _kill_group(process, ending_s)
        flooded = floods()
        limit = _SAID_BYTES if flooded else _OUTPUT_LIMIT_BYTES
        return CommandResult(
            arguments=tuple(arguments),
            exit_code=-signal.SIGKILL if flooded and exit_code == 0 else exit_code,
            output=_content(out, limit),
            errors=(_FLOODED if flooded else b"") + _content(err, limit),
            duration_s=time.monotonic() - begun,
        )


def _wait(
    process: subprocess.Popen[bytes],
    timeout_s: float,
    unwanted: Callable[[], bool],
    floods: Callable[[], bool],
) -> int | None:
    """Return the exit code, that of a killed one when it floods us, or None when the time is up. Raises ActionStopped."""
    deadline = time.monotonic() + timeout_s
    with _watched(process) as ends_within:
        while (left_s := deadline - time.monotonic()) > 0:
            if ends_within(min(left_s, _ASK_EVERY_S)):
                return process.wait()
            if unwanted():
                raise ActionStopped(f"{process.args[0]!s} was stopped on the way")  # type: ignore[index]
            if floods():
                return -signal.SIGKILL
    return None


@contextlib.contextmanager
def _watched(process: subprocess.Popen[bytes]) -> Iterator[Callable[[float], bool]]:
    """Give what waits so many seconds for a process to end, and tells whether it has.

    The kernel says so at once; `Popen.wait` with a time-out looks now and then, as much later as it took so far.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # a kernel before 5.3, or no descriptor is left

        def looks(seconds: float) -> bool:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            return process.returncode is not None

        yield looks
        return
    try:
        watch = select.poll()
        watch.register(descriptor, select.POLLIN)
        yield lambda seconds: bool(watch.poll(math.ceil(seconds * 1000)))
    finally:
        os.close(descriptor)


def _start(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None,
    directory: Path | None,
    stdin: IO[bytes] | int,
    out: IO[bytes],
    err: IO[bytes],
) -> subprocess.Popen[bytes]:
    built = {"PATH": os.defpath, **(environment or {}), "LC_ALL": "C"}
    try:
        return subprocess.Popen(
            list(arguments),
            stdin=stdin,
            stdout=out,
            stderr=err,
            env=built,
            cwd=directory,
            start_new_session=True,
        )
    except ValueError as error:  # a NUL, or what the locale's encoding has no bytes for
        raise CommandNotFound(
            f"cannot run {arguments[0]!a} with these arguments or this environment: {error}; correct them where they are configured"
        ) from error
    except OSError as error:
        if error.errno not in _NOT_RUNNABLE:
            raise
        raise CommandNotFound(
            f"cannot run {arguments[0]}: {error.strerror} ({error.filename}); "
            f"is it installed, executable (a script begins with #!), and on PATH={built['PATH']}?"
        ) from error


@contextlib.contextmanager
def _stdin(content: bytes) -> Iterator[IO[bytes] | int]:
    if not content:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as given:
        given.write(content)
        given.seek(0)
        yield given


def _content(file: IO[bytes], limit: int) -> bytes:
    size = min(os.fstat(file.fileno()).st_size, limit)  # what is asked for is made room for
    return os.pread(file.fileno(), size, 0) if size else b""


def _end_of(file: IO[bytes]) -> bytes:
    return os.pread(file.fileno(), _END_BYTES, max(os.fstat(file.fileno()).st_size - _END_BYTES, 0))


def _kill_group(process: subprocess.Popen[bytes], ending_s: float) -> None:
    """End a command; one that has become another account's, as by sudo, is left behind like one stuck in the kernel."""
    try:
        if ending_s:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
            with _watched(process) as ends_within:
                ends_within(ending_s)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: leave it behind
        process.wait(_DYING_S)
