"""Be a plain batch system that nobody has: the dialect of the example driver.

::

    fsub --name N --directory D --nodes N --processes N --minutes N [--queue Q] [--account A] [--comment C]
         [--array INDEX,INDEX...] [--option KEY=VALUE]... [--no-requeue] [--hold] SCRIPT
    fstat [--user U]                  what waits and runs
    facct [--user U] [--since TIME]   the accounting of everything
    fdel|fhold|frls ID[/NAME]...      a job that has another name is left alone

A listing begins with a line that names its columns; fields are parted by ``|``, times are seconds since the epoch.
"""

from __future__ import annotations

import getopt
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from edgecore.testing.fake import (
    Act,
    Call,
    Command,
    Condition,
    Dialect,
    Job,
    Listing,
    Look,
    Outcome,
    Printed,
    Request,
    Submit,
    Usage,
    Why,
)

__all__ = ["PlainDialect"]

_SUBMIT_OPTIONS: Final = (
    *("name=", "directory=", "nodes=", "processes=", "minutes=", "queue=", "account=", "comment=", "array="),
    *("option=", "no-requeue", "hold"),
)
_ACTS: Final = {"fdel": Command.CANCEL, "fhold": Command.HOLD, "frls": Command.RELEASE}

_COLUMNS: Final[Mapping[str, Callable[[Job], object]]] = {
    "ID": lambda job: job.batch_id,
    "NAME": lambda job: job.name,
    "OWNER": lambda job: job.owner,
    "STATE": lambda job: f"{job.word} by {job.ended_by}" if job.ended_by else job.word,
    "QUEUED": lambda job: int(job.queued),
    "STARTED": lambda job: "" if job.started is None else int(job.started),
    "ENDED": lambda job: "" if job.ended is None else int(job.ended),
    "EXIT": lambda job: "" if job.exit_code is None else job.exit_code,
    "SIGNAL": lambda job: "" if job.signal is None else job.signal,
    "NODES": lambda job: "" if job.started is None else "node1",
    "REASON": lambda job: job.reason,
}
_LISTED: Final = ("ID", "NAME", "OWNER", "STATE", "QUEUED", "STARTED", "NODES", "REASON")
_ACCOUNTED: Final = ("ID", "NAME", "OWNER", "STATE", "QUEUED", "STARTED", "ENDED", "EXIT", "SIGNAL", "NODES")


class PlainDialect(Dialect):
    """Speak as the module says."""

    executables: ClassVar = ("fsub", "fstat", "facct", "fdel", "fhold", "frls")
    words: ClassVar = {
        Condition.WAITING: "WAIT",
        Condition.HELD: "HOLD",
        Condition.RUNNING: "RUN",
        Condition.COMPLETED: "DONE",
        Condition.FAILED: "FAIL",
        Condition.CANCELLED: "CANCELLED",
        Condition.NODE_FAILURE: "NODE_FAIL",
        Condition.OUT_OF_MEMORY: "NO_MEMORY",
        Condition.TIME_LIMIT: "TIME_LIMIT",
    }
    reasons: ClassVar = {
        Why.RESOURCES: "waits for nodes",
        Why.HELD_BY_USER: "held by its user",
        Why.HELD_BY_ADMINISTRATOR: "held by an administrator",
        Why.NEVER: "never: asks for more than there is",
    }
    refusals: ClassVar = {
        "permanent": "fsub: refused: no such queue or account",
        "transient": "fsub: refused: too many jobs in the queue at present",
    }

    def understand(self, call: Call) -> Request:
        """Read the arguments of one of the six commands."""
        if call.executable == "fsub":
            return self._submit(call)
        options, rest = _options(call, ("user=", "since="))
        since = options.get("since")
        if call.executable in _ACTS:
            named = [text.partition("/") for text in rest]
            return Act(
                _ACTS[call.executable],
                tuple(batch_id for batch_id, _, _ in named),
                tuple(name or None for _, _, name in named),
                form=call.executable,
            )
        command = Command.QUERY if call.executable == "fstat" else Command.ACCOUNTING
        return Look(command, owner=options.get("user"), since=float(since) if since else None)

    def _submit(self, call: Call) -> Submit:
        options, rest = _options(call, _SUBMIT_OPTIONS)
        if len(rest) != 1:
            raise Usage(f"fsub: wants one script, got {len(rest)}")
        script = Path(call.directory, rest[0])
        try:
            content = script.read_bytes()
        except OSError as error:
            raise Usage(f"fsub: refused: cannot read {script}: {error.strerror}", 1) from error
        indexes = options.get("array")
        pairs = (text.partition("=") for text in options.get("option", "").split("\n") if text)
        return Submit(
            script=str(script),
            content=content,
            name=options.get("name", script.name),
            directory=options.get("directory", call.directory),
            indexes=tuple(map(int, indexes.split(","))) if indexes else None,
            nodes=int(options.get("nodes", "1")),
            processes=int(options.get("processes", "1")),
            walltime_s=60.0 * int(options["minutes"]) if "minutes" in options else None,
            queue=options.get("queue", ""),
            account=options.get("account", ""),
            comment=options.get("comment", ""),
            options=tuple((key, value) for key, _, value in pairs),
            requeue="no-requeue" not in options,
            hold="hold" in options,
            output="batch.{id}.out",
        )

    def variables(self, job: Job) -> Mapping[str, str]:
        """Give a script its id, and its index in an array."""
        index = {} if job.member is None else {"FAKE_INDEX": str(job.member)}
        return {"FAKE_JOB_ID": job.batch_id, **index}

    def decorated(self, job: Job) -> str:
        """Add what the plain batch system may add: who ended a job, or that something is going on."""
        word = self.words[job.condition]
        return f"{word} by 1234" if job.condition.ended else f"{word}*"

    def accepted(self, request: Submit, number: int) -> Printed:
        """Print the id."""
        return Printed(f"submitted {number}\n".encode())

    def listing(self, request: Look, jobs: Sequence[Job], missing: Sequence[str]) -> Listing:
        """Print a line per job."""
        names = _LISTED if request.command is Command.QUERY else _ACCOUNTED
        columns = [_COLUMNS[name] for name in names]
        records = ((job, "|".join([str(column(job)) for column in columns])) for job in jobs)
        return Listing(
            records=tuple((job, f"{line}\n".encode()) for job, line in records),
            header=f"{'|'.join(names)}\n".encode(),
        )

    def acted(self, request: Act, outcomes: Sequence[Outcome]) -> Printed:
        """Complain about each job for which it was not done."""
        lines = [
            f"{request.form}: {outcome.batch_id}: "
            + ("no such job" if outcome.job is None else f"its state is {self.words[outcome.job.condition]}")
            for outcome in outcomes
            if not outcome.done
        ]
        return Printed(errors="".join(f"{line}\n" for line in lines).encode(), exit_code=1 if lines else 0)

    def down(self, call: Call) -> Printed:
        """Say that nobody answers."""
        return Printed(errors=f"{call.executable}: the server does not answer\n".encode(), exit_code=111)

    def accounting_off(self, call: Call) -> Printed:
        """Say that there is no accounting."""
        return Printed(errors=f"{call.executable}: accounting is switched off\n".encode(), exit_code=1)


def _options(call: Call, known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options of a command, those given more than once joined by line ends, and the rest."""
    try:
        pairs, rest = getopt.getopt(list(call.arguments), "", list(known))
    except getopt.GetoptError as error:
        raise Usage(f"{call.executable}: {error.msg}") from error
    options: dict[str, str] = {}
    for key, value in pairs:
        name = key.removeprefix("--")
        options[name] = f"{options[name]}\n{value}" if name in options else value
    return options, rest
