"""Be Slurm 22.05 for a test, as its commands showed themselves on a real one: arguments, headings, words, exit codes.

Its whims are kept: `squeue` folds waiting members of an array together without ``-r`` and predicts starts; `scontrol hold`
accepts what runs; times are in the cluster's own zone where TZ says nothing else.
"""

from __future__ import annotations

import calendar
import getopt
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from edgecore.testing.fake.dialect import Dialect
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
    Why,
)
from edgecore.testing.words import Command

__all__ = ["SlurmDialect", "SlurmWithoutMemory"]

_SBATCH_LONG: Final = (
    *(
        "job-name=",
        "chdir=",
        "output=",
        "error=",
        "nodes=",
        "ntasks-per-node=",
        "time=",
        "comment=",
        "export=",
    ),
    *(
        "partition=",
        "account=",
        "qos=",
        "array=",
        "constraint=",
        "begin=",
        "dependency=",
        "licenses=",
        "mem=",
    ),
    *("parsable", "requeue", "no-requeue", "hold", "test-only", "wrap=", "version"),
)
_SHORT: Final = {
    "J": "job-name",
    "D": "chdir",
    "o": "output",
    "N": "nodes",
    "t": "time",
    "p": "partition",
} | {
    "A": "account",
    "H": "hold",
    "a": "array",
    "C": "constraint",
}
_SITE_ZONE: Final = "CST6"
"""The cluster's local time, in which Slurm prints where TZ says nothing else."""
_NOT_BY_ITSELF: Final = "0:0"
_CONFIGURATION: Final = """\
Configuration data as of 2026-11-22T10:30:00
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = lab
MaxArraySize            = 1001
MinJobAge               = 300 sec
SLURM_VERSION           = 22.05.8
"""


class _Form(NamedTuple):
    """What a listing looks like: by which command, with which options, in which zone."""

    command: str
    options: Mapping[str, str]
    zone: str


class SlurmDialect(Dialect):
    """Speak as Slurm; squeue shows what has ended for a while (MinJobAge) with ``-t all``."""

    executables: ClassVar = ("sbatch", "squeue", "sacct", "scancel", "scontrol")
    words: ClassVar = {
        Condition.WAITING: "PENDING",
        Condition.HELD: "PENDING",
        Condition.RUNNING: "RUNNING",
        Condition.COMPLETED: "COMPLETED",
        Condition.FAILED: "FAILED",
        Condition.CANCELLED: "CANCELLED",
        Condition.NODE_FAILURE: "NODE_FAIL",
        Condition.OUT_OF_MEMORY: "OUT_OF_MEMORY",
        Condition.TIME_LIMIT: "TIMEOUT",
    }
    reasons: ClassVar = {
        Why.RESOURCES: "Resources",
        Why.HELD_BY_USER: "JobHeldUser",
        Why.HELD_BY_ADMINISTRATOR: "JobHeldAdmin",
        Why.NEVER: "PartitionNodeLimit",
    }
    refusals: ClassVar = {
        "permanent": "sbatch: error: invalid partition specified: nosuch\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "transient": "sbatch: error: QOSMaxSubmitJobPerUserLimit\n"
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
        "(job submit limit, user's size and/or time limits)",
    }
    keeps_ended: ClassVar = True

    # ------------------------------------------------------------------------ understanding

    def understand(self, call: Call) -> Request:
        """Read the arguments of one of the five commands."""
        reader: Callable[[Call], Request] = getattr(self, f"_{call.executable}")
        return reader(call)

    def _sbatch(self, call: Call) -> Submit | Other:
        options, rest = _options(call, "J:D:o:N:t:p:A:Ha:C:", _SBATCH_LONG)
        if "version" in options:
            return Other("slurm-wlm 22.05.8\n")
        options = {_SHORT.get(key, key): value for key, value in options.items()}
        if not rest:
            raise Usage("sbatch: error: no script on standard input", 1)
        script = Path(call.directory, rest[0])
        try:
            content = script.read_bytes()
        except OSError as error:
            raise Usage(f"sbatch: error: Unable to open file {rest[0]}", 1) from error
        if not content.startswith(b"#!"):
            raise Usage("sbatch: error: This does not look like a batch script.  The first", 1)
        kept = dict(call.environment) if options.get("export", "ALL") == "ALL" else {}
        return Submit(
            script=str(script),
            content=content,
            name=options.get("job-name", script.name),
            directory=options.get("chdir", call.directory),
            indexes=_indexes(options["array"]) if "array" in options else None,
            nodes=int(options.get("nodes", "1")),
            processes=int(options.get("ntasks-per-node", "1")),
            walltime_s=60.0 * int(options["time"]) if "time" in options else None,
            queue=options.get("partition", ""),
            account=options.get("account", ""),
            comment=options.get("comment", ""),
            options=(("constraint", options["constraint"]),) if "constraint" in options else (),
            requeue="no-requeue" not in options,
            hold="hold" in options,
            environment=tuple(kept.items()),
            output=re.sub(r"%[jA](_%a)?", "{id}", options.get("output", "slurm-%j.out")),
        )

    def _squeue(self, call: Call) -> Look:
        options, _ = _options(
            call,
            "ahrt:u:j:n:o:O:",
            ("noheader", "array", "all", "states=", "user=", "jobs=", "name=", "format="),
        )
        short = {
            "t": "states",
            "u": "user",
            "j": "jobs",
            "n": "name",
            "o": "format",
            "h": "noheader",
            "r": "array",
        }
        options = {short.get(key, key): value for key, value in options.items()}
        return Look(
            ids=_split(options.get("jobs")),
            names=_split(options.get("name")),
            owner=options.get("user"),
            form=_Form("squeue", options, _zone(call)),
        )

    def _sacct(self, call: Call) -> Look:
        options, _ = _options(
            call, "XPnau:S:E:j:o:D", ("name=", "parsable2", "noheader", "starttime=", "format=")
        )
        zone = _zone(call)
        start = options.get("S") or options.get("starttime")
        midnight = time.time()  # sacct(1): without a start, today's jobs; and it has just been midnight
        return Look(
            Command.ACCOUNTING,
            ids=_split(options.get("j")),
            names=_split(options.get("name")),
            owner=options.get("u"),
            since=_seconds(start, zone) if start else None if "j" in options else midnight,
            form=_Form("sacct", {"format": options.get("o") or options.get("format", ""), **options}, zone),
        )

    def _scancel(self, call: Call) -> Act:
        options, rest = _options(call, "n:u:v", ("name=", "user=", "jobname="))
        name = options.get("n") or options.get("name") or options.get("jobname")
        for each in rest:
            if not re.fullmatch(r"\d+(_\d+)?", each):
                raise Usage(f"scancel: error: Invalid job id {each}", 1)
        return Act(
            Command.CANCEL,
            ids=tuple(rest) or None,
            names=((name,) * max(1, len(rest))) if name else None,
            owner=options.get("u") or options.get("user"),
            form="scancel",
        )

    def _scontrol(self, call: Call) -> Request:
        options, rest = _options(call, "o", ())
        if rest[:2] == ["show", "config"]:
            return Other(_CONFIGURATION)
        if rest[:1] in (["hold"], ["release"]):
            ids = tuple(each for word in rest[1:] for each in word.split(","))
            return Act(Command(rest[0]), ids, form=rest[0])
        if rest[:2] == ["show", "job"]:
            return Look(ids=tuple(rest[2:]) or None, form=_Form("show", options, _zone(call)))
        raise Usage(f"scontrol: invalid keyword: {rest[0] if rest else ''}", 1)

    def variables(self, job: Job) -> Mapping[str, str]:
        """Give a script its ids; a member of an array has a number of its own, too."""
        if job.member is None:
            return {"SLURM_JOB_ID": str(job.number), "SLURM_JOBID": str(job.number)}
        return {
            "SLURM_JOB_ID": str(job.number + job.member),
            "SLURM_ARRAY_JOB_ID": str(job.number),
            "SLURM_ARRAY_TASK_ID": str(job.member),
        }

    # ----------------------------------------------------------------------------- printing

    def accepted(self, request: Submit, number: int) -> Printed:
        """Print the id as ``--parsable`` does."""
        return Printed(f"{number}\n".encode())

    def decorated(self, job: Job) -> str:
        """Add who cancelled a job, or the mark of a word that was cut."""
        word = self.words[job.condition]
        return f"{word} by 1234" if job.condition.ended else f"{word}+"

    def listing(self, request: Look, jobs: Sequence[Job], missing: Sequence[str]) -> Listing:
        """Print as squeue, sacct or ``scontrol show job``."""
        assert isinstance(request.form, _Form)
        command, options, zone = request.form
        if command == "show":
            records = tuple((job, _show(job, zone)) for job in jobs)
            errors = b"slurm_load_jobs error: Invalid job id specified\n" if missing else b""
            return Listing(records=records, errors=errors, exit_code=1 if missing else 0)
        if command == "sacct":
            names = options["format"].split(",")
            lines = [(job, "|".join(_ACCOUNTED[name](job, zone) for name in names)) for job in jobs]
            header = "" if "n" in options or "noheader" in options else "|".join(names) + "\n"
            return Listing(tuple((job, f"{line}\n".encode()) for job, line in lines), header.encode())
        if missing and len(missing) == len(request.ids or ()) == 1:
            return Listing((), errors=b"slurm_load_jobs error: Invalid job id specified\n", exit_code=1)
        if options.get("states") != "all":
            jobs = [job for job in jobs if not job.condition.ended]
        fields = re.findall(r"%([a-zA-Z])", options["format"])
        header = "" if "noheader" in options else "|".join(_QUEUED[f][0] for f in fields) + "\n"
        text = ((job, "|".join(_QUEUED[f][1](job, zone) for f in fields)) for job in jobs)
        records = tuple((job, f"{line}\n".encode()) for job, line in text)
        return Listing(records if "array" in options else _collapsed(records), header.encode())

    def acted(self, request: Act, outcomes: Sequence[Outcome]) -> Printed:
        """Say nothing where scancel says nothing, and complain as scontrol does."""
        if request.form == "scancel":
            return Printed()
        said = ""
        for each in outcomes:
            if not each.done and each.job is None:
                said += f"Invalid job id specified for job {each.batch_id}\n"
            elif not each.done and each.job is not None:
                said += f"Job is no longer pending execution for job {each.batch_id}\n"
        if said:
            said += f"slurm_suspend error: {said.splitlines()[-1].partition(' for job')[0]}\n"
        return Printed(errors=said.encode(), exit_code=1 if said else 0)

    def down(self, call: Call) -> Printed:
        """Say that the controller, or the database, does not answer."""
        away = "Unable to contact slurm controller (connect failure)"
        if call.executable == "sacct":
            words = "sacct: error: Problem talking to the database: Connection refused"
            return Printed(errors=f"{words}\n".encode(), exit_code=1)
        words, code = {
            "sbatch": (f"sbatch: error: Batch job submission failed: {away}", 1),
            "squeue": (f"slurm_load_jobs error: {away}", 1),
            "scancel": (f"scancel: error: Kill job error on job id 2: {away}", 8),
            "scontrol": (f"slurm_suspend error: {away}", 1),
        }[call.executable]
        return Printed(errors=f"{words}\n".encode(), exit_code=code)

    def accounting_off(self, call: Call) -> Printed:
        """Say that there is no accounting."""
        return Printed(errors=b"Slurm accounting storage is disabled\n", exit_code=1)


class SlurmWithoutMemory(SlurmDialect):
    """MinJobAge is so short that squeue never shows what has ended."""

    keeps_ended: ClassVar = False


# ------------------------------------------------------------------------------------ fields


def _zone(call: Call) -> str:
    return call.environment.get("TZ", _SITE_ZONE)


def _when(moment: float | None, zone: str, none: str = "N/A") -> str:
    if moment is None:
        return none
    os.environ["TZ"] = zone
    time.tzset()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))


def _seconds(text: str, zone: str) -> float:
    os.environ["TZ"] = zone
    time.tzset()
    parsed = time.strptime(text, "%Y-%m-%dT%H:%M:%S")
    return float(calendar.timegm(parsed)) if zone == "UTC" else time.mktime(parsed)


def _start(job: Job, zone: str) -> str:
    """Return when it started, or, as squeue does for what waits, when it is expected to."""
    if job.condition is Condition.WAITING:
        return _when(job.queued + 86_400, zone)
    return _when(job.started, zone)


def _end(job: Job, zone: str) -> str:
    if job.condition is Condition.RUNNING and job.started is not None and job.walltime_s:
        return _when(job.started + job.walltime_s, zone)
    return _when(job.ended, zone)


_QUEUED: Final[Mapping[str, tuple[str, Callable[[Job, str], str]]]] = {
    "i": ("JOBID", lambda job, zone: job.batch_id),
    "j": ("NAME", lambda job, zone: job.name),
    "u": ("USER", lambda job, zone: job.owner),
    "T": ("STATE", lambda job, zone: job.word),
    "V": ("SUBMIT_TIME", lambda job, zone: _when(job.queued, zone)),
    "S": ("START_TIME", _start),
    "e": ("END_TIME", _end),
    "N": ("NODELIST", lambda job, zone: "" if job.started is None else "n1"),
    "r": ("REASON", lambda job, zone: job.reason or "None"),
    "k": ("COMMENT", lambda job, zone: job.comment or "(null)"),
}


def _code(job: Job) -> str:
    if job.exit_code is None and job.signal is None:
        return _NOT_BY_ITSELF
    if job.condition not in (Condition.COMPLETED, Condition.FAILED):
        return _NOT_BY_ITSELF
    return f"{job.exit_code or 0}:{job.signal or 0}"


def _accounted_state(job: Job) -> str:
    return f"{job.word} by 0" if job.ended_by and " by " not in job.word else job.word


_ACCOUNTED: Final[Mapping[str, Callable[[Job, str], str]]] = {
    "JobID": lambda job, zone: job.batch_id,
    "JobName": lambda job, zone: job.name,
    "User": lambda job, zone: job.owner,
    "State": lambda job, zone: _accounted_state(job),
    "ExitCode": lambda job, zone: _code(job),
    "Submit": lambda job, zone: _when(job.queued, zone, "Unknown"),
    "Start": lambda job, zone: _when(job.started, zone, "Unknown"),
    "End": lambda job, zone: _when(job.ended, zone, "Unknown"),
    "NodeList": lambda job, zone: "None assigned" if job.started is None else "n1",
    "Reason": lambda job, zone: job.reason or "None",
}


def _show(job: Job, zone: str) -> bytes:
    fields = {
        "JobId": job.number,
        "JobName": job.name,
        "UserId": f"{job.owner}(1001)",
        "JobState": job.word,
        "Reason": job.reason or "None",
        "Restarts": max(0, job.executions - 1),
        "ExitCode": _code(job),
        "SubmitTime": _when(job.queued, zone),
    }
    return (" ".join(f"{key}={value}" for key, value in fields.items()) + "\n").encode()


def _collapsed(records: tuple[tuple[Job, bytes], ...]) -> tuple[tuple[Job, bytes], ...]:
    """Print what waits of an array in one line, as squeue does without -r."""
    waiting: dict[int, list[str]] = {}
    for job, _ in records:
        if job.member is not None and job.condition is Condition.WAITING:
            waiting.setdefault(job.number, []).append(str(job.member))
    shown, seen = [], set()
    for job, line in records:
        if job.member is None or job.condition is not Condition.WAITING:
            shown.append((job, line))
        elif job.number not in seen:
            seen.add(job.number)
            one = f"{job.number}_[{','.join(waiting[job.number])}]"
            shown.append((job, line.replace(job.batch_id.encode(), one.encode(), 1)))
    return tuple(shown)


def _indexes(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


def _split(text: str | None) -> tuple[str, ...] | None:
    return tuple(text.split(",")) if text else None


def _options(call: Call, short: str, known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    try:
        pairs, rest = getopt.gnu_getopt(list(call.arguments), short, list(known))
    except getopt.GetoptError as error:
        words = f'{call.executable}: {error.msg}\nTry "{call.executable} --help" for more information'
        raise Usage(words, 255 if call.executable == "sbatch" else 1) from error
    return {key.lstrip("-"): value for key, value in pairs}, rest
