"""Be a batch system whose jobs are printed on several lines each, and one of whose commands does everything.

It stands in for Torque's ``qstat -f`` and Slurm's ``scontrol`` where the fake batch system itself is tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from edgecore.testing.fake import Dialect
from edgecore.testing.fake.records import (
    Act,
    Call,
    Condition,
    Job,
    Listing,
    Look,
    Other,
    Outcome,
    Printed,
    Request,
    Submit,
    Usage,
)
from edgecore.testing.words import Command


class RecordDialect(Dialect):
    """Print ``Job Id: 12.host`` and an indented line per attribute, as Torque does."""

    executables: ClassVar = ("control",)
    words: ClassVar = {condition: condition.name[0] for condition in Condition}
    refusals: ClassVar = {"permanent": "\nUnknown queue\nTry --help", "transient": "Maximum number of jobs"}
    keeps_ended: ClassVar = True
    stuck: ClassVar = Condition.HELD

    def understand(self, call: Call) -> Request:
        """Read ``control submit|show|hold|version``."""
        word, *rest = call.arguments
        if word == "submit":
            indexes = tuple(range(int(rest[0]))) if rest else None
            return Submit("-", "job", call.directory, content=call.stdin, indexes=indexes)
        if word == "show":
            return Look(ids=tuple(rest) or None)
        if word == "hold":
            return Act(Command.HOLD, tuple(rest))
        if word == "version":
            return Other("control 1.0\n")
        raise Usage(f"control: what is {word}?", 3)

    def batch_id(self, number: int, index: int | None) -> str:
        """Return ``12.host``, or ``12[3].host``."""
        return f"{number}.host" if index is None else f"{number}[{index}].host"

    def variables(self, job: Job) -> Mapping[str, str]:
        """Give the id."""
        return {"RECORD_ID": job.batch_id}

    def accepted(self, request: Submit, number: int) -> Printed:
        """Print the id."""
        return Printed(f"{self.batch_id(number, None)}\n".encode())

    def listing(self, request: Look, jobs: Sequence[Job], missing: Sequence[str]) -> Listing:
        """Print a record per job; complain of ids that are not known, as qstat does."""
        lines = (
            (job, f"Job Id: {job.batch_id}\n    Name = {job.name}\n    state = {job.word}\n") for job in jobs
        )
        return Listing(
            records=tuple((job, text.encode()) for job, text in lines),
            between=b"\n",
            footer=b"\n",
            errors="".join(f"Unknown Job Id {batch_id}\n" for batch_id in missing).encode(),
            exit_code=153 if missing else 0,
        )

    def acted(self, request: Act, outcomes: Sequence[Outcome]) -> Printed:
        """Say how many were done."""
        return Printed(f"{sum(outcome.done for outcome in outcomes)}\n".encode())

    def down(self, call: Call) -> Printed:
        """Say that nobody answers."""
        return Printed(errors=b"Connection refused\n", exit_code=1)
