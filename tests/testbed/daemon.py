"""Steer one server of a testbed: start it, shut it down, kill it, freeze it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import define, field

from edgecore.processes import process_start
from testbed.keeper import Keeper

__all__ = ["Daemon"]


@define(eq=False)
class Daemon:
    """One server."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], bool]
    keeper: Keeper
    deadline_s: float = 60.0
    """How long it may take to start or to end."""
    pid: int = field(default=0, init=False)
    """Its process id, or the last one that it had."""
    _born: int | None = field(default=None, init=False)

    @property
    def alive(self) -> bool:
        """Tell whether it runs, frozen or not."""
        return self._born is not None and process_start(self.pid) == self._born

    def launch(self) -> None:
        """Start it, unless it runs; do not wait for anything."""
        if not self.alive:
            self.pid = self.keeper.start(self.command, self.environment, self.log)
            self._born = process_start(self.pid)

    def start(self) -> None:
        """Start it, unless it runs; return when it answers."""
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + self.deadline_s
        while not self.ready():
            assert self.alive, f"it ended while starting: {' '.join(self.command)}: {self.said}"
            assert time.monotonic() < deadline, f"it does not start: {' '.join(self.command)}: {self.said}"
            time.sleep(0.02)

    def stop(self) -> None:
        """Shut it down in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power failure does."""
        self._end(signal.SIGKILL)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it answer nothing meanwhile, without closing anything."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        self.signal(number)
        deadline = time.monotonic() + self.deadline_s
        while self.alive:
            assert time.monotonic() < deadline, f"{number.name} does not end {' '.join(self.command)}"
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
