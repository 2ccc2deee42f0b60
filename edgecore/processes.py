"""Tell who a process is: its user, and its start time, which a later one with the same number has not.

Only the standard library is imported here: what watches over jobs must start fast.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

__all__ = ["carrying", "end_all", "group_names", "process_start", "process_stat", "user_name"]

_ENDING_S: Final = 5.0


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it has ended, to its last thread."""
    stat = process_stat(pid)
    return None if stat is None or _has_ended(stat) else int(stat[19])


def _has_ended(stat: Sequence[bytes]) -> bool:
    """Tell whether nothing of a process runs any more, by what the kernel tells of it.

    The state is that of the first thread only. Others may go on after it, for good or for the moment that a kill
    takes; each is counted until it is gone.
    """
    return stat[0] in (b"Z", b"X") and int(stat[17]) <= 1


def process_stat(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/<pid>/stat from the third (the state) on; see proc(5)."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return content.rpartition(b")")[2].split()


def carrying(marks: Collection[bytes]) -> Iterator[int]:
    """Yield each process of this account that was started with all *marks*, such as ``NAME=value``, in its environment."""
    us = os.geteuid()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is not ours to see
            if os.stat(f"/proc/{name}").st_uid != us:
                continue
            environment = _environment(name).split(b"\0")
            if all(mark in environment for mark in marks):
                yield int(name)


def _environment(pid: str) -> bytes:
    """Return what a process was started with; a first thread that has ended does not tell it, while others do."""
    for task in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if content := Path(f"/proc/{pid}/task/{task}/environ").read_bytes():
                return content
    return b""


def end_all(marks: Collection[bytes]) -> int:
    """Kill what carries *marks*, and what that starts meanwhile; tell how many there were."""
    ended: set[int] = set()
    deadline = time.monotonic() + _ENDING_S
    while (found := [pid for pid in carrying(marks) if process_start(pid) is not None]) and (
        time.monotonic() < deadline
    ):
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            ended.add(pid)
        time.sleep(0.01)  # for the kernel to end them
    return len(ended)


def group_names() -> frozenset[str]:
    """Return the names of the groups that this process is in; a number where one has no name."""
    return frozenset(map(_group_name, {os.getegid(), *os.getgroups()}))


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def user_name(uid: int | None = None) -> str:
    """Return the name of an account, by default of the one that this process acts as; its number where it has no name."""
    number = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # a container's user without an entry
        return str(number)
