"""Start batch scripts as a batch system would, under every shell that is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, field, frozen

from edgecore.batch import RunDirectory, ScriptValues, TokenState, render_script

__all__ = ["DEADLINE_S", "SHELLS", "Bench", "application", "eventually", "make_bench", "ran", "started"]

SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}
DEADLINE_S = 20.0
TOKEN_WORDS = tuple(TokenState)


@frozen
class Bench:
    """One attempt with its directories, ready to be started as a batch system would."""

    values: ScriptValues
    shell: list[str]
    environment: dict[str, str] = field(factory=lambda: {"PATH": os.environ["PATH"], "ID": "7"})

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.values.run)

    def with_values(self, **changes: Any) -> Bench:
        return evolve(self, values=evolve(self.values, **changes))

    def with_tools(self, **tools: str) -> Bench:
        """Put shell scripts of these names before everything else on the PATH."""
        if self.shell[0] == "busybox":
            pytest.skip("busybox runs its own mv, date and sleep, not those on the PATH")
        folder = self.values.run.parent / "tools"
        folder.mkdir()
        for name, text in tools.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return evolve(self, environment={**self.environment, "PATH": f"{folder}:{self.environment['PATH']}"})

    def start(self, batch_id: str = "7") -> subprocess.Popen[bytes]:
        if not self.run.script.exists():
            self.run.prepare(render_script(self.values))
        return subprocess.Popen(
            [*self.shell, str(self.run.script)],
            env={**self.environment, "ID": batch_id},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def finish(self, batch_id: str = "7") -> int:
        return self.start(batch_id).wait(DEADLINE_S)

    def put(self, name: str) -> Bench:
        """Prepare the attempt with another token than ready."""
        self.run.prepare(render_script(self.values))
        (self.run.path / "ready").rename(self.run.path / name)
        return self

    def tokens(self) -> list[str]:
        return sorted(name for name in os.listdir(self.run.path) if name.partition(".")[0] in TOKEN_WORDS)

    def output(self) -> str:
        return (self.values.data / "stdout.1.txt").read_text()

    def note(self) -> str:
        return (self.run.path / "note.txt").read_text()


def make_bench(folder: Path, shell: str) -> Bench:
    """Lay out an attempt in *folder* for one of `SHELLS`; skip where that is not installed."""
    if shutil.which(SHELLS[shell][0]) is None:
        pytest.skip(f"{shell} is not installed")
    run, data = folder / "it's a run", folder / "data $HOME"
    data.mkdir()
    values = ScriptValues(
        title="site theta, job 1, attempt 1",
        run=run,
        data=data,
        attempt=1,
        batch_id_text="$ID",
        restartable=False,
        command=["true"],
        environment={},
    )
    return Bench(values, SHELLS[shell])


def application(text: str) -> list[str]:
    """Return the command of an application that is a small shell script."""
    return ["/bin/sh", "-c", text]


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.002)


@contextmanager
def started(bench: Bench, batch_id: str = "7") -> Iterator[subprocess.Popen[bytes]]:
    """Start the script, and leave no process of its session behind."""
    process = bench.start(batch_id)
    try:
        yield process
    finally:
        end_session(process)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the script and its application."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)


def ran(bench: Bench) -> bool:
    """Tell whether the application ran at all."""
    return (bench.values.data / "stdout.1.txt").exists()
