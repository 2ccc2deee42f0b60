"""Say how the commands of one batch system look: what an author of a driver writes for its fake.

A dialect turns arguments into requests, and jobs into text, and decides nothing. Queue, processes, time and
all faults are the fake's own, so that they are the same for every batch system. Its module is imported by
every command: it should import the standard library alone, and of edgecore only `edgecore.testing.fake`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from edgecore.testing.fake.records import (
    Act,
    Call,
    Condition,
    Job,
    Listing,
    Look,
    Outcome,
    Printed,
    Request,
    Submit,
    Why,
)

__all__ = ["Dialect"]


class Dialect:
    """Describe one batch system; a subclass fills in what is its own."""

    executables: ClassVar[Sequence[str]] = ()
    """The commands, by the names under which they stand in a bin directory."""
    words: ClassVar[Mapping[Condition, str]] = {}
    """The word of a listing for each condition."""
    unknown_word: ClassVar[str] = "QUANTUM_FLUX"
    """A word of the right shape that no manual has."""
    reasons: ClassVar[Mapping[Why, str]] = {}
    """The words of a listing for why a job waits."""
    refusals: ClassVar[Mapping[str, str]] = {}
    """``permanent`` and ``transient`` -> the words with which a submission is refused: one line or several, of
    which the first must come back in `Refused.reason`."""
    keeps_ended: ClassVar[bool] = False
    """Whether the listing itself shows what has ended, until it is forgotten."""
    stuck: ClassVar[Condition] = Condition.WAITING
    """How a job that can never run waits: HELD in HTCondor, WAITING in most others."""
    enforces_walltime: ClassVar[bool] = True

    # ------------------------------------------------------------------------ understanding

    def understand(self, call: Call) -> Request:
        """Read the arguments of a command; what it is for may depend on them. Raises Usage."""
        raise NotImplementedError

    def batch_id(self, number: int, index: int | None) -> str:
        """Return the id under which users know a job, or a member of an array."""
        return str(number) if index is None else f"{number}_{index}"

    def variables(self, job: Job) -> Mapping[str, str]:
        """Return the variables by which a script knows its own job."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------- printing

    def accepted(self, request: Submit, number: int) -> Printed:
        """Answer a submission that got *number*."""
        raise NotImplementedError

    def refused(self, request: Submit, kind: str) -> Printed:
        """Refuse a submission: *kind* is ``permanent`` or ``transient``. Prints `refusals` of it."""
        return Printed(errors=f"{self.refusals[kind]}\n".encode(), exit_code=1)

    def listing(self, request: Look, jobs: Sequence[Job], missing: Sequence[str]) -> Listing:
        """Print *jobs*; *missing* are the ids that were asked for and are not known.

        Serves QUERY and ACCOUNTING. The state of a job is its `word`, in which spoilers have had their say.
        """
        raise NotImplementedError

    def acted(self, request: Act, outcomes: Sequence[Outcome]) -> Printed:
        """Answer a request to cancel, hold or release."""
        raise NotImplementedError

    def down(self, call: Call) -> Printed:
        """Print what a command says when the server is down."""
        raise NotImplementedError

    def accounting_off(self, call: Call) -> Printed:
        """Print what the command of accounting says where there is none."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------ spoiling

    def decorated(self, job: Job) -> str:
        """Return the right word for the state of *job* and more, as this batch system has it."""
        return f"{self.words[job.condition]}*"

    def broken(self, record: bytes) -> bytes:
        """Return the record of a job without most of its fields, lines and brackets left whole."""
        return record[: max(1, len(record) // 3)].rstrip(b"\n") + b"\n"
