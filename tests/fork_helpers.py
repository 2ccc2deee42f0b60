"""Open spools of the fork batch system, submit to them, look behind their scenes, and leave no process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgecore.builtin.fork import ForkScheduling
from edgecore.builtin.fork_spool import lock_file, supervised
from edgecore.models import (
    Group,
    NativeState,
    Observation,
    Reference,
    SiteContext,
    Submission,
    Submitted,
)
from edgecore.processes import process_start, process_stat

__all__ = ["DEADLINE_S", "Spool", "group_members", "submitter", "wait_for"]

DEADLINE_S = 30.0

SUBMITTER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from fork_helpers import Spool
spool = Spool(Path({root!r}), {settings!r})
for number in range({count}):
    spool.submit({text!r}, prefix={prefix!r} + str(number) + "x", wall_time_minutes={minutes})
print("submitted", flush=True)
time.sleep({stay_s})
"""


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Come back when *condition* holds; fail when it does not within the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


class Spool:
    """One site with one fork batch system, and what a test does with it."""

    def __init__(self, root: Path, settings: dict[str, Any] | None = None) -> None:
        self.root = root
        self.place = root / ".fork"
        self.driver = self.open(**(settings or {}))

    def open(self, **settings: Any) -> ForkScheduling:
        """Open a driver on the spool, as a service that starts does."""
        self.driver = ForkScheduling(**{"slots": 2, "kill_grace_s": 0.3, "idle_s": 5.0, **settings})
        environment = {"SITE": "one"}
        self.profile = self.driver.open(
            site=SiteContext(site="here", work_directory=self.root, environment=environment)
        )
        return self.driver

    def submission(self, tag: str, text: str, index: int | None = None) -> Submission:
        """Make a run directory with a batch script."""
        directory = self.root / "run" / tag
        directory.mkdir(parents=True)
        (directory / "batch.sh").write_text(text)
        return Submission(
            tag=tag,
            index=index,
            script=directory / "batch.sh",
            directory=directory,
            comment=f"about {tag}",
        )

    def submit(self, text: str, *, count: int = 1, prefix: str = "job", **wishes: Any) -> list[Reference]:
        """Submit *count* like jobs as one group; ``@DIR@`` in the script stands for its directory."""
        where = str(self.root / "run")
        submissions = []
        for number in range(count):
            tag = f"{prefix}{number}"
            index = number if count > 1 else None
            submissions.append(self.submission(tag, text.replace("@DIR@", f"{where}/{tag}"), index))
        group = Group(
            tag=submissions[0].tag,
            submissions=tuple(submissions),
            **{"num_nodes": 1, "processes_per_node": 1, "wall_time_minutes": 10, **wishes},
        )
        answers = self.driver.submit(group=group)
        references = []
        for submission in submissions:
            answer = answers[submission.tag]
            assert isinstance(answer, Submitted), answer
            references.append(
                Reference(
                    tag=submission.tag,
                    group_tag=group.tag,
                    index=submission.index,
                    batch_id=answer.batch_id,
                    directory=submission.directory,
                    submitted=0,
                )
            )
        return references

    def look(self, reference: Reference) -> Observation:
        """Observe one job."""
        return self.driver.observe(references=[reference])[reference.tag]

    def wait_state(self, state: NativeState, references: Sequence[Reference]) -> list[Observation]:
        """Wait until all jobs are seen in *state*."""
        seen: dict[str, Observation] = {}

        def reached() -> bool:
            seen.update(self.driver.observe(references=references))
            return all(seen[reference.tag].state is state for reference in references)

        wait_for(reached, f"{state} of {len(references)} jobs, seen {seen}")
        return [seen[reference.tag] for reference in references]

    def wait_ended(self, references: Sequence[Reference]) -> list[Observation]:
        """Wait until all jobs have ended."""
        return self.wait_state(NativeState.ENDED, references)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask or change the database behind everybody's back."""
        with contextlib.closing(sqlite3.connect(self.place / "jobs.sqlite", timeout=10)) as database:
            rows = database.execute(query, values).fetchall()
            database.commit()
        return rows

    def pid(self, reference: Reference) -> int:
        """Return the process id of a job that runs."""
        ((pid,),) = self.rows("SELECT pid FROM jobs WHERE id = ?", reference.batch_id)
        return int(pid)

    def supervisor(self) -> int | None:
        """Return the process id of the supervisor that lives, by what the lock file says."""
        words = lock_file(self.place).read_text().split() if lock_file(self.place).exists() else []
        return int(words[0]) if words and str(process_start(int(words[0]))) == words[1] else None

    def kill_supervisor(self) -> None:
        """Kill the supervisor as a machine does that is short of memory."""
        pid = self.supervisor()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not supervised(self.place), "the lock to be free")

    @contextlib.contextmanager
    def unattended(self) -> Iterator[None]:
        """Keep supervisors away, as if one lived that does nothing."""
        with open(lock_file(self.place), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def stop(self) -> None:
        """Leave no process behind."""
        self.driver.close()
        while (pid := self.supervisor()) is not None:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: process_start(pid) is None, "the supervisor's end")  # type: ignore[misc]
        for pid, start in self.rows("SELECT pid, pid_start FROM jobs WHERE state = 'RUNNING'"):
            if process_start(pid) == start:
                os.killpg(pid, signal.SIGKILL)


def group_members(leader: int) -> list[int]:
    """Return the processes of a process group that are not dead."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        stat = process_stat(int(name))
        if stat is not None and int(stat[2]) == leader and stat[0] not in (b"Z", b"X"):
            found.append(int(name))
    return found


@contextlib.contextmanager
def submitter(spool: Spool, text: str, **wishes: Any) -> Iterator[subprocess.Popen[str]]:
    """Run another process that submits to the spool; it has submitted when this returns."""
    values = {"count": 1, "prefix": "other", "minutes": 10, "stay_s": 0, "settings": {}, **wishes}
    program = SUBMITTER.format(tests=str(Path(__file__).parent), root=str(spool.root), text=text, **values)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        try:
            yield process
        finally:
            process.kill()
