"""Let ``globus-url-copy`` carry content: one process for many files, with one log-in for all of them.

Its exit code says little and an interrupted copy can end with 0, so that whoever calls this compares what arrived. It
gets the one credential that the site names, an environment that holds no other, and our files as descriptors that
are already open (``/proc/<pid>/fd/<n>``), so that no local name is looked up again.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from attrs import define, field, frozen

from edgecore.carrying import Tally
from edgecore.commands import CommandNotFound, run
from edgecore.errors import ActionStopped, TransferInterrupted
from edgecore_gridftp.text import MISSING, complaint, copy_command, last_marker, pair_list, trouble

__all__ = ["PROGRAM", "Client", "Load", "goes_alone", "local_url"]

PROGRAM: Final = "globus-url-copy"
INSTALL: Final = "install globus-gass-copy-progs, or set PATH in [environment] set"
_LONGEST_S: Final = 30 * 86_400.0
_TICK_S: Final = 0.2
_LINE_LIMIT: Final = 400
"""A longer URL is cut off in the list that the client reads (at about 512 bytes), and not on its command line."""
_OUT_OF_TURN: Final = frozenset({"-cc", "-concurrency", "-pp", "-pipeline"})


@frozen(kw_only=True)
class Load:
    """What one process carries."""

    pairs: Sequence[tuple[str, str]]
    """URLs, from and to."""
    asked: str
    """What it is for, for errors."""
    fast: bool = False
    """Keep data connections for the next file (MODE E). Who receives listens then, which may be us."""
    parallel: int = 1
    offset: int = 0
    carried: Callable[[int], None] | None = None
    """Hears how many bytes of the one file were carried, by the servers' performance markers: every few seconds."""
    subjects: tuple[str, str] = ("", "")
    """The names that the servers' certificates must have, from and to; empty: those of their hosts."""


@define(eq=False)
class Client:
    """The installed program, with what is common to all its processes."""

    environment: Mapping[str, str]
    credential: str
    """The file of the proxy; empty for anonymous transfers."""
    options: Sequence[str]
    turns: threading.BoundedSemaphore
    """How many may run at the same time."""
    program: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Look for the program now, so that its absence is known before the first job."""
        path = self.environment.get("PATH", os.defpath)
        self.program = shutil.which(PROGRAM, path=path) or ""

    @property
    def goes_in_turn(self) -> bool:
        """Tell whether a file is always done before the next one is begun; the site's options may say otherwise."""
        return _OUT_OF_TURN.isdisjoint(self.options)

    def carry(self, load: Load, tally: Tally, watch: Callable[[], None]) -> None:
        """Carry it, and last what `goes_alone`; *watch* is called about twice a second, and may raise.

        Raises TransferInterrupted, TransferRefused.
        """
        if not self.program:
            raise TransferInterrupted(f"cannot {load.asked}: {PROGRAM} is not installed; {INSTALL}")
        command = copy_command(
            self.program,
            credential=self.credential,
            fast=load.fast,
            markers=load.carried is not None,
            parallel=load.parallel,
            offset=load.offset,
            source_subject=load.subjects[0],
            target_subject=load.subjects[1],
            options=self.options,
        )
        listed = [pair for pair in load.pairs if not goes_alone(pair)]
        with self._turn(tally):
            if listed:
                self._run([*command, "-f", "/dev/stdin"], pair_list(listed), load, tally, watch)
            for pair in filter(goes_alone, load.pairs):
                self._run([*command, *pair], b"", load, tally, watch)

    def _run(
        self, command: Sequence[str], stdin: bytes, load: Load, tally: Tally, watch: Callable[[], None]
    ) -> None:
        def told(said: bytes) -> None:
            if load.carried is not None:
                load.carried(last_marker(said))

        def unwanted() -> bool:
            watch()
            return tally.halted

        try:
            result = run(
                command,
                timeout_s=_LONGEST_S,
                environment=self.environment,
                stdin=stdin,
                unwanted=unwanted,
                told=told,
            )
        except ActionStopped:
            tally.check()  # raises: nobody else stops it
            raise
        except CommandNotFound as error:
            raise TransferInterrupted(f"cannot {load.asked}: {error}; {INSTALL}") from error
        if result.exit_code != 0:
            besides = b"" if load.carried else result.output  # markers are no complaint
            said = complaint(result.errors) or complaint(besides) or f"exit code {result.exit_code}"
            raise trouble(load.asked, f"{PROGRAM}: {said}", transient=MISSING)

    @contextmanager
    def _turn(self, tally: Tally) -> Iterator[None]:
        while not self.turns.acquire(timeout=_TICK_S):
            tally.beat()  # others move
        try:
            yield
        finally:
            self.turns.release()


def goes_alone(pair: tuple[str, str]) -> bool:
    """Tell whether two URLs do not fit into a list, and are carried by a process of their own."""
    return max(map(len, pair)) > _LINE_LIMIT


def local_url(opened: int) -> str:
    """Return the URL of a file that this process holds open."""
    return f"file:///proc/{os.getpid()}/fd/{opened}"
