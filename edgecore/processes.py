"""Tell who a process is: its user, and its start time, which a later one with the same number has not.

Only the standard library is imported here: what watches over jobs must start fast.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

__all__ = ["process_start", "process_stat", "user_name"]


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it has ended."""
    stat = process_stat(pid)
    return None if stat is None or stat[0] in (b"Z", b"X") else int(stat[19])


def process_stat(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/<pid>/stat from the third (the state) on; see proc(5)."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return content.rpartition(b")")[2].split()


def user_name() -> str:
    """Return the name of the user that this process acts as, or the number of one without a name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without an entry
        return str(os.geteuid())
