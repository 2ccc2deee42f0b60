"""Be what runs at a batch system in a campaign, and note it: the application, a stranger's job, and sbatch.

Each adds whole lines to a file of its own, so that what happened is known without asking anybody who might be
mistaken. That no two executions of a job overlap is not concluded from times alone: each holds a lock of its job,
which the kernel gives back when the process ends, in whatever way.
"""

from __future__ import annotations

import fcntl
import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import frozen

__all__ = [
    "AskedStranger",
    "Execution",
    "Programs",
    "Stranger",
    "Submission",
    "lay_out",
    "read_asked_strangers",
    "read_executions",
    "read_records",
    "read_strangers",
    "read_submissions",
]

_APPLICATION: Final = r"""#!/bin/sh
# $1: directory; $2: seconds; $3: exit code, up to attempt $4 and 0 afterwards.
array="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
who="$EDGECORE_JOB_ID $EDGECORE_ATTEMPT $array $SLURM_JOB_ID $$"
exec 9>>"$1/locks/$EDGECORE_JOB_ID"
alone=alone
flock -n 9 || alone=beside
printf 'start %s %s %s\n' "$(date +%s.%N)" "$who" "$alone" >>"$1/executions.log"
code=$3
[ "$EDGECORE_ATTEMPT" -le "$4" ] || code=0
sleep "$2" 9>&-
trap '' TERM  # what is noted to end with a code ends with it
printf 'end %s %s %s\n' "$(date +%s.%N)" "$who" "$code" >>"$1/executions.log"
exit "$code"
"""

_STRANGER: Final = r"""#!/bin/sh
# $1: directory; $2: name; $3: seconds. Somebody else's job, which nobody but Slurm may touch.
note() {
    printf '%s %s %s %s\n' "$1" "$(date +%s.%N)" "$2" "$SLURM_JOB_ID" >>"$3/strangers.log"
}
trap 'note told "$2" "$1"' TERM INT
note start "$2" "$1"
sleep "$3"
note end "$2" "$1"
"""

_SBATCH: Final = r"""#!/bin/sh
# The real one; it notes what it was given, and where a file says so, it submits and then says nothing any more.
base=@BASE@
[ "$1" != --version ] || exec @SBATCH@ --version
output=$(@SBATCH@ "$@")
code=$?
name=none
for each; do
    case $each in --job-name=*) name=${each#*=} ;; esac
done
printf '%s %s %s %s\n' "$(date +%s.%N)" "$name" "${output:-none}" "$code" >>"$base/submissions.log"
if [ -n "$output" ] && mv "$base/hang" "$base/hung.$name" 2>/dev/null; then
    while kill -0 "$PPID" 2>/dev/null; do sleep 0.2; done
    exit 1
fi
[ -z "$output" ] || printf '%s\n' "$output"
exit "$code"
"""


@frozen
class Programs:
    """Where they are, and where their notes go."""

    base: Path

    @property
    def application(self) -> Path:
        """What jobs run."""
        return self.base / "application.sh"

    @property
    def stranger(self) -> Path:
        """What jobs of somebody else run."""
        return self.base / "stranger.sh"

    @property
    def commands(self) -> Path:
        """The directory with an ``sbatch`` before the real one."""
        return self.base / "commands"

    def hang_once(self) -> None:
        """Let the next sbatch that submits something hang afterwards."""
        (self.base / "hang").touch()

    def hung(self) -> int:
        """Return how many have."""
        return len(list(self.base.glob("hung.*")))

    def is_running(self, job_id: int) -> bool:
        """Tell whether an execution of this job lives."""
        with suppress(FileNotFoundError), (self.base / "locks" / str(job_id)).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def lay_out(base: Path, sbatch: str) -> Programs:
    """Write the programs; *sbatch* is the real one."""
    programs = Programs(base)
    for directory in (base / "locks", programs.commands):
        directory.mkdir()
    wrapper = _SBATCH.replace("@BASE@", shlex.quote(str(base))).replace("@SBATCH@", shlex.quote(sbatch))
    for path, text in (
        (programs.application, _APPLICATION),
        (programs.stranger, _STRANGER),
        (programs.commands / "sbatch", wrapper),
    ):
        path.write_text(text)
        path.chmod(0o755)
    return programs


# ------------------------------------------------------------------------------ what they noted


@frozen(kw_only=True)
class Execution:
    """One start of the application; times in seconds since the epoch."""

    job: int
    attempt: int
    batch_id: str
    number: str
    """Slurm's own number of it, which for a member of an array is another than its batch id."""
    pid: str
    started: float
    alone: bool
    """Whether no other execution of its job lived when it started."""
    ended: float | None = None
    exit_code: int | None = None


@frozen(kw_only=True)
class Submission:
    """One answer of sbatch."""

    time: float
    name: str
    number: str | None
    """The id that it printed."""


@frozen(kw_only=True)
class AskedStranger:
    """A job of somebody else that Slurm acknowledged."""

    time: float
    """When Slurm had answered."""
    name: str
    number: str


@frozen(kw_only=True)
class Stranger:
    """One start of somebody else's job."""

    name: str
    number: str
    started: float
    ended: float | None = None
    told: bool = False
    """Whether it was told to stop."""


def read_executions(base: Path) -> Sequence[Execution]:
    """Return every start of the application with its end, in the order of the starts."""
    starts: list[tuple[Sequence[str], float, str]] = []
    ends: dict[tuple[str, ...], tuple[float, str]] = {}
    for word, time, *who, last in _lines(base / "executions.log"):
        if word == "start":
            starts.append((who, float(time), last))
        else:
            ends[tuple(who)] = (float(time), last)
    found = []
    for ours, started, alone in starts:
        job, attempt, batch_id, number, pid = ours
        ended, code = ends.get(tuple(ours), (None, None))
        found.append(
            Execution(
                job=int(job),
                attempt=int(attempt),
                batch_id=batch_id,
                number=number,
                pid=pid,
                started=started,
                alone=alone == "alone",
                ended=ended,
                exit_code=None if code is None else int(code),
            )
        )
    return found


def read_submissions(base: Path) -> Sequence[Submission]:
    """Return what sbatch answered to the service, in order."""
    return [
        Submission(time=float(time), name=name, number=None if number == "none" else number)
        for time, name, number, _ in _lines(base / "submissions.log")
    ]


def read_strangers(base: Path) -> Sequence[Stranger]:
    """Return every start of a stranger's job with its end."""
    notes: dict[tuple[str, str], dict[str, float]] = {}
    for word, time, name, number in _lines(base / "strangers.log"):
        notes.setdefault((name, number), {})[word] = float(time)
    return [
        Stranger(name=name, number=number, started=each["start"], ended=each.get("end"), told="told" in each)
        for (name, number), each in notes.items()
    ]


def read_asked_strangers(base: Path) -> Sequence[AskedStranger]:
    """Return the strangers' jobs that Slurm acknowledged."""
    return [AskedStranger(**each) for each in read_records(base / "asked-strangers.jsonl")]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file with one JSON document per line; none where it is missing."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _lines(path: Path) -> Sequence[Sequence[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
