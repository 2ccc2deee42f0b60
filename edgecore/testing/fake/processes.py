"""Start, recognise and kill the processes of the fake batch system: its runners and its jobs' scripts.

The only module here that starts processes. A script leads a session of its own behind a *gate*: a shell that
waits for one line before it becomes the script. The line is written when the start is on record.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edgecore.gates import NOT_INHERITED, spawn_gated
from edgecore.processes import process_start

__all__ = ["interpreter", "keep_output_open", "kill", "lives", "spawn_runner", "spawn_script"]

_GATE: Final = 'cd "$1" && shift && read -r FAKE_GATE && exec "$@" </dev/null'
_LAUNCH: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; from edgecore.testing.fake.runner import main; main(sys.argv[1])"
)


def spawn_runner(place: Path, paths: Sequence[str]) -> int:
    """Start a process that runs waiting jobs until none is left; returns its process id."""
    arguments = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(place), *sys.path, *paths]
    return os.posix_spawn(
        sys.executable,
        arguments,
        {"LC_ALL": "C", "PATH": os.defpath},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (
                os.POSIX_SPAWN_OPEN,
                1,
                str(place / "runner.log"),
                os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                0o600,
            ),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=NOT_INHERITED,
    )


def spawn_script(
    command: Sequence[str], directory: str, environment: Mapping[str, str], output: str
) -> tuple[int, int]:
    """Start a command behind its gate; returns its process id, and where to write the line that opens it."""
    return spawn_gated([_GATE, "sh", directory, *command], environment, output)


def keep_output_open() -> tuple[int, int]:
    """Start a child that holds this process's output open for an hour; returns process id and gate as above."""
    reading, writing = os.pipe()
    pid = os.posix_spawn(
        "/bin/sh",
        ["/bin/sh", "-c", "read -r FAKE_GATE && exec sleep 3600"],
        os.environ,  # as children do, so that a test knows whose it is
        file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)],
    )
    os.close(reading)
    return pid, writing


def interpreter(script: str) -> list[str]:
    """Return the command that runs *script*: by its own ``#!``, or /bin/sh. Raises OSError."""
    with open(script, "rb") as file:
        first = file.readline(1000)
    if not first.startswith(b"#!"):
        return ["/bin/sh", script]
    return [*os.fsdecode(first[2:].strip()).split(maxsplit=1), script]


def lives(pid: int | None, start: int | None) -> bool:
    """Tell whether a process that started at *start* has not ended; a later one with its number is not it."""
    return pid is not None and start is not None and process_start(pid) == start


def kill(pid: int | None, start: int | None, number: int = signal.SIGKILL) -> None:
    """Signal a process if it still is the one that was started, and with it the group that it leads."""
    if pid is None or not lives(pid, start):
        return
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
