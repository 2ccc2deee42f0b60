"""A program whose first thread ends while another goes on, as some MPI and Java launchers are."""

from __future__ import annotations

import sys
from pathlib import Path

from edgecore.processes import process_stat

__all__ = ["OUTLIVED", "first_thread_has_ended", "outlived"]

OUTLIVED = """
import ctypes, os, platform, sys, threading, time
def work():
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.02)
    os._exit(7)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # ends this thread only
"""


def outlived(until: Path) -> list[str]:
    """Return a command that works, without its first thread, until there is that file; then it exits with 7."""
    return [sys.executable, "-c", OUTLIVED, str(until)]


def first_thread_has_ended(pid: int) -> bool:
    """Tell whether the first thread of a process is gone, whatever its others do."""
    stat = process_stat(pid)
    return stat is None or stat[0] in (b"Z", b"X")
