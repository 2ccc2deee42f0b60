"""Say what contract tests need of a batch system: to look into it, to steer it, and to spoil it.

The tests of `SchedulingContract` know no batch system. What they do to one goes through this class: a
`FakeBatchSystem` whose commands a driver author describes, or a real server of the author's own.
A method that is left out is a thing that cannot be done there; the contract class declares which
faults cannot be shown for that reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from attrs import frozen

from edgecore.models import NativeState, Refusal
from edgecore.testing.words import Command, Ending, Garbling, SubmitFault, Word

__all__ = ["BatchSystem", "Command", "Ending", "Garbling", "NativeJob", "SubmitFault", "Word"]


@frozen(kw_only=True)
class NativeJob:
    """One job as the batch system itself knows it, whatever its commands show."""

    batch_id: str
    name: str
    state: NativeState
    executions: int = 0
    """How often its script was started."""
    request: Mapping[str, Any] | None = None
    """What was asked for it, as the batch system understood it, as far as that is known here: any of ``num_nodes``,
    ``processes_per_node``, ``wall_time_minutes``, ``queue``, ``project``, ``comment``, ``restartable`` and
    ``options``, which is a mapping of texts; None where nothing is known."""


class BatchSystem:
    """One batch system with its commands; a fresh one for each test."""

    settings: Mapping[str, Any]
    """The driver's own keys in ``[scheduling]``."""
    environment: Mapping[str, str]
    """``[environment] set``: what the driver's commands need, such as a PATH."""

    # ------------------------------------------------------------------------------- looking

    def jobs(self) -> Sequence[NativeJob]:
        """Return every job of ours that ever entered, in order; also those that no command shows."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------ steering

    def pause(self) -> None:
        """Start nothing more until `resume`; what runs goes on."""
        raise NotImplementedError

    def resume(self) -> None:
        """Start what waits."""
        raise NotImplementedError

    def interrupt(self, batch_id: str, ending: Ending) -> None:
        """End a waiting or running job natively; its processes are killed without a word."""
        raise NotImplementedError

    def requeue(self, batch_id: str) -> None:
        """Queue a running job, whose processes are killed, or an ended one again under the same id."""
        raise NotImplementedError

    def preempt(self, batch_id: str) -> None:
        """Tell a running job to stop (TERM to all of it), give it a moment to end, and requeue it."""
        raise NotImplementedError

    def hold(self, batch_id: str) -> None:
        """Hold a waiting job, as an administrator does."""
        raise NotImplementedError

    def release(self, batch_id: str) -> None:
        """Release what `hold` held."""
        raise NotImplementedError

    def forget(self, batch_id: str) -> None:
        """Purge a job from every list and from accounting; what runs of it goes on unlisted."""
        raise NotImplementedError

    def lose(self, batch_id: str) -> None:
        """Be a batch system that crashed: a waiting job never was, and its id is free again."""
        raise NotImplementedError

    def give_away(self, batch_id: str) -> None:
        """Let a later job of another user have *batch_id*; it runs, under another name."""
        raise NotImplementedError

    def stranger_is_alive(self, batch_id: str) -> bool:
        """Tell whether the job of another user that got *batch_id* still waits or runs."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------ spoiling

    def failing(self, *commands: Command, times: int | None = None) -> AbstractContextManager[None]:
        """Let *commands* fail as with a server that is down, so many times or all the while."""
        raise NotImplementedError

    def hanging(self, *commands: Command) -> AbstractContextManager[None]:
        """Let *commands* not come back; a child of theirs keeps their output open, too."""
        raise NotImplementedError

    def asked(self, command: Command) -> int:
        """Tell how often a command was run so far."""
        raise NotImplementedError

    def without_accounting(self) -> AbstractContextManager[None]:
        """Let accounting be switched off: its command says so and fails."""
        raise NotImplementedError

    def accounting_behind(self) -> AbstractContextManager[None]:
        """Let accounting know of nothing that happens from now on."""
        raise NotImplementedError

    def unlisted(self, batch_id: str) -> AbstractContextManager[None]:
        """Leave one job out of every answer."""
        raise NotImplementedError

    def showing(self, batch_id: str, word: Word) -> AbstractContextManager[None]:
        """Write the state of one job in another way."""
        raise NotImplementedError

    def garbling(self, batch_id: str, how: Garbling) -> AbstractContextManager[None]:
        """Spoil what listings say about one job."""
        raise NotImplementedError

    def noisy(self) -> AbstractContextManager[None]:
        """Let every command write to its standard error, before its answer, more than a pipe holds."""
        raise NotImplementedError

    def spoil_submit(self, fault: SubmitFault) -> AbstractContextManager[None]:
        """Accept every submission meanwhile, and let the answer go wrong."""
        raise NotImplementedError

    def refusing(self, kind: Refusal) -> AbstractContextManager[str]:
        """Refuse every submission meanwhile; gives a part of the words that it is refused with."""
        raise NotImplementedError
