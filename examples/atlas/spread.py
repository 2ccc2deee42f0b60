#!/usr/bin/env python3
"""Start a program several times in parallel on this host: a launcher for sites without MPI.

``spread.py N PROGRAM ARGUMENT...`` runs N processes, each with its own number 0 to N-1 in the
environment as EDGECORE_PROCESS, and waits for all of them. SIGTERM and SIGINT are passed on. The exit code
is that of the first process, in the order of numbers, that did not end with 0; a process that a
signal ended counts as 128 + signal, and a program that cannot be started as 127.

In a site's configuration::

    [launchers.spread]
    arguments = ["/opt/edgecore/bin/python", "/opt/edgecore/examples/atlas/spread.py", "{processes}"]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import Final

__all__ = ["main"]

_EXIT_USAGE: Final = 2
_EXIT_NOT_STARTED: Final = 127


class _Spread:
    """Hold the processes and pass signals on to them, also to those that start after the signal."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._received: int | None = None

    def forward(self, number: int, _frame: FrameType | None = None) -> None:
        self._received = number
        for process in self._processes:
            process.send_signal(number)

    def start(self, count: int, command: list[str]) -> None:
        for number in range(count):
            environment = {**os.environ, "EDGECORE_PROCESS": str(number)}
            self._processes.append(subprocess.Popen(command, env=environment))
            if self._received is not None:  # it may have come before the process was in the list
                self._processes[-1].send_signal(self._received)
                return

    def wait(self) -> int:
        codes = [process.wait() for process in self._processes]
        if self._received is not None and not any(codes):
            return 128 + self._received  # perhaps not all were started
        return next((code if code > 0 else 128 - code for code in codes if code), 0)


def main(arguments: list[str]) -> int:
    """Run the command line's program as often as it says; return the exit code."""
    if (
        len(arguments) < 2
        or not arguments[0].isascii()
        or not arguments[0].isdigit()
        or int(arguments[0]) < 1
    ):
        print("usage: spread.py N PROGRAM [ARGUMENT...], with N processes, 1 or more", file=sys.stderr)
        return _EXIT_USAGE
    spread = _Spread()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, spread.forward)
    try:
        spread.start(int(arguments[0]), arguments[1:])
    except OSError as error:
        print(f"spread.py: cannot start {arguments[1]}: {error.strerror}", file=sys.stderr)
        spread.forward(signal.SIGTERM)
        spread.wait()
        return _EXIT_NOT_STARTED
    return spread.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
