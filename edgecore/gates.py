"""Start a job behind a gate, so that whoever starts it can first put on record that it did.

A gate is a shell that waits for one line on its standard input before it becomes the job. One that starts jobs and is
killed at any instruction leaves a gate that hears the end of file and goes away, or a job that is on record: never
one that runs unknown. Only the standard library is imported here: what watches over jobs must start fast.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["NOT_INHERITED", "spawn_gated"]

NOT_INHERITED: Final = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM)
"""Signals that Python, or whoever started it, ignores or blocks, and that a job hears as it would by itself."""


def spawn_gated(gate: Sequence[str], environment: Mapping[str, str], output: str) -> tuple[int, int]:
    """Start a *gate*, given as a script of the shell with its arguments, as the leader of a session of its own.

    What it says is added to the file *output*. Returns its process id, and where to write the line that opens it.
    Raises OSError.
    """
    reading, writing = os.pipe()
    try:
        pid = os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", *gate],
            dict(environment),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reading, 0),
                (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=NOT_INHERITED,
        )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return pid, writing
