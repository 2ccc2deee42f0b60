"""Be one command of the fake batch system: understand, do, answer, and misbehave where a test asks for it.

The executables are small files that call `main`. Whatever a dialect prints goes through here, so that
every batch system gets the same faults.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

from edgecore.processes import process_start
from edgecore.testing.fake.dialect import Dialect
from edgecore.testing.fake.garbling import garbled
from edgecore.testing.fake.loading import load_dialect
from edgecore.testing.fake.processes import keep_output_open, lives
from edgecore.testing.fake.records import Act, Call, Look, Other, Printed, Request, Submit, Usage
from edgecore.testing.fake.state import State
from edgecore.testing.fake.world import World
from edgecore.testing.words import Command, SubmitFault

__all__ = ["main"]

_LOOK_S: Final = 1.0
_NOISE: Final = b"warning: the cluster is in maintenance from Monday 12345 to Tuesday\n" * 2_000
"""More than the 64 KiB that a pipe holds."""


def main(place: str, executable: str) -> NoReturn:
    """Run the command that this process was started as."""
    state = State(Path(place))
    dialect = load_dialect(state)
    call = Call(executable, tuple(sys.argv[1:]), os.getcwd(), dict(os.environ), _stdin())
    try:
        request = dialect.understand(call)
    except Usage as refused:
        _print(Printed(errors=f"{refused}\n".encode(), exit_code=refused.exit_code))
    _print(_Command(World(state, dialect), call, request).answer())


def _stdin() -> bytes:
    return b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()


def _print(printed: Printed) -> NoReturn:
    _write(1, printed.output)
    _write(2, printed.errors)
    os._exit(printed.exit_code)


def _write(descriptor: int, text: bytes) -> None:
    while text:
        text = text[os.write(descriptor, text) :]


class _Command:
    def __init__(self, world: World, call: Call, request: Request) -> None:
        self.world = world
        self.state: State = world.state
        self.dialect: Dialect = world.dialect
        self.call = call
        self.request = request
        self.kind: Command = request.command

    def answer(self) -> Printed:
        """Do what was asked, or what a test wants to happen instead."""
        with self.state.transaction():
            self.state.connection.execute(
                "INSERT INTO asked VALUES (?, 1) ON CONFLICT (command) DO UPDATE SET times = times + 1",
                (self.kind,),
            )
            failing = self.state.setting("closed") or self.state.use_up("failing", self.kind)
            hanging = not failing and self.kind in self.state.spoilers("hanging")
            noisy = bool(self.state.spoilers("noisy"))
        if noisy:
            _write(2, _NOISE)
        if failing:
            return self.dialect.down(self.call)
        if hanging:
            self._hang()
        if self.kind is Command.ACCOUNTING and self.state.spoilers("accounting off"):
            return self.dialect.accounting_off(self.call)
        if isinstance(self.request, Submit):
            return self._submit(self.request)
        return self._carry_out()

    def _carry_out(self) -> Printed:
        request = self.request
        with self.state.transaction():
            self.world.advance()
            if isinstance(request, Look):
                jobs, missing = self.world.look(request)
                listing = self.dialect.listing(request, jobs, missing)
                return garbled(listing, self.state.spoilers("garbling"), self.dialect)
            if isinstance(request, Act):
                answer = self.dialect.acted(request, self.world.act(request))
                self.world.advance()
                return answer
            assert isinstance(request, Other)
            return Printed(request.output.encode(), exit_code=request.exit_code)

    def _submit(self, request: Submit) -> Printed:
        faults = self.state.spoilers("submit")
        for kind in self.state.spoilers("refusing"):
            return self.dialect.refused(request, kind)
        with self.state.transaction():
            number = self.world.submit(request, never=SubmitFault.NEVER_RUNS in faults)
            self.world.advance()
            answer = self.dialect.accepted(request, number)
        if SubmitFault.DIES in faults:
            os.kill(os.getpid(), signal.SIGKILL)
        if SubmitFault.HANGS in faults:
            self._hang()
        if SubmitFault.FAILS_WITH_ID in faults:
            down = self.dialect.down(self.call)
            return answer._replace(errors=answer.errors + down.errors, exit_code=down.exit_code or 1)
        return answer

    def _hang(self) -> None:
        """Do not come back, and leave a child that keeps the output open."""
        with self.state.transaction():
            child, gate = keep_output_open()
            for pid in (child, os.getpid()):
                self.state.connection.execute("INSERT INTO hanging VALUES (?, ?)", (pid, process_start(pid)))
        os.write(gate, b"\n")
        while lives(*self.state.owner):
            time.sleep(_LOOK_S)
        os.kill(child, signal.SIGKILL)
        sys.exit("the test that this command hung for has ended")
