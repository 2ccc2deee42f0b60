"""Keep servers for a test: whatever is started here, and whatever that starts, ends with the one who asked for it.

Batch systems start jobs in sessions of their own, and jobs outlive them. Linux hands such orphans to the nearest
ancestor that offered to reap them, which is this module, run as a program: it starts what it is told by a line on
its input, and when that closes, as it does when the asking process ends in whatever way, it kills all below it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["Keeper"]

_CHILD_SUBREAPER: Final = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
_ENDING_S: Final = 60.0


class Keeper:
    """A process that keeps others; see `start`. May be used by several threads."""

    def __init__(self) -> None:
        self._orders = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the one who asked
        )

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Start *command*, whose output is added to *log*; return its process id."""
        order = {"command": list(command), "environment": dict(environment), "log": str(log)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._orders:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        if isinstance(answer, str):
            raise OSError(answer)
        return int(answer)

    def close(self) -> None:
        """Kill all that was started here and whatever came of it; return when nothing is left."""
        with self._orders:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            left = self._process.wait(_ENDING_S + 10)
            self._process.stdout.close()
        assert left == 0, f"processes do not end, exit code {left}"


def _serve() -> int:
    """Start what is asked for until nobody asks any more; then end it all."""
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, lambda number, frame: _reap())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited: it ends no server that has not come so far
    for line in sys.stdin:
        try:
            answer: int | str = _start(**json.loads(line))
        except OSError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)
    return _end_all()


def _start(command: list[str], environment: dict[str, str], log: str) -> int:
    writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, writing, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGCHLD, signal.SIGPIPE],
    )


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):  # there is none
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _end_all() -> int:
    """Kill all below this process until there is none; return 1 if that takes too long."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    deadline = time.monotonic() + _ENDING_S
    while left := list(_descendants()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        if time.monotonic() > deadline:
            return 1
        time.sleep(0.005)  # for the kernel to end them
    return 0


def _descendants() -> Iterator[int]:
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            stat = Path(f"/proc/{name}/stat").read_bytes()
            parents[int(name)] = int(stat.rpartition(b")")[2].split()[1])
    level = {os.getpid()}
    while level := {child for child, parent in parents.items() if parent in level}:
        yield from level


if __name__ == "__main__":
    sys.exit(_serve())
