"""Steer a real Slurm for the contract: by its administrator's commands, by signals to its servers, by their books.

What entered is what Slurm lists; what started is what its nodes wrote down when they launched it; how often it was
asked is what the controller counted. None of it is told by the driver. The driver has a slurm.conf of its own, so
that its commands can be made to give up early without hurrying the servers.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from testbed.slurm import Slurm

from edgecore.models import NativeState, Refusal
from edgecore.testing import BatchSystem, Command, Ending, NativeJob, SubmitFault
from edgecore.testing.site import DEADLINE_S, wait_for

__all__ = ["LiveSlurm"]

_STRANGER: Final = "analysis"
"""The name of another user's job."""
_FORMAT: Final = "%A|%i|%T|%r|%N|%j"
_STATES: Final = {
    "PENDING": NativeState.QUEUED,
    **dict.fromkeys(("RUNNING", "COMPLETING", "CONFIGURING"), NativeState.RUNNING),
}
"""All others have ended."""
_RPC: Final = {
    Command.SUBMIT: r"REQUEST_SUBMIT_BATCH_JOB",
    Command.QUERY: r"REQUEST_JOB_(?:USER_)?INFO(?:_SINGLE)?",
    Command.CANCEL: r"REQUEST_(?:KILL_JOB|CANCEL_JOB_STEP)",
    Command.HOLD: r"REQUEST_UPDATE_JOB",
    Command.RELEASE: r"(?!)",  # is an update, too, and counted there
    Command.ACCOUNTING: r"(?!)",  # there is none
}
_PATIENT_S: Final = 30
_IMPATIENT_S: Final = 2
_LONG_LISTING: Final = 100
"""So many ended jobs of other tests are forgotten before the next one."""
_REFUSALS: Final = {
    Refusal.TRANSIENT: ("State=DRAIN", "State=UP", "Required partition not available (inactive or drain)"),
    Refusal.PERMANENT: ("AllocNodes=elsewhere", "AllocNodes=ALL", "Access/permission denied"),
}
"""Kind -> what an administrator does to the partition, how it is undone, and Slurm's words."""


class LiveSlurm(BatchSystem):
    """One test's view of a cluster that others have used before."""

    def __init__(self, slurm: Slurm, *, timeout_s: float = 6.0) -> None:
        self.slurm = slurm
        slurm.clear()
        self._partition("State=UP", "MaxTime=2880", "AllocNodes=ALL")
        if len(listed := self._listed()) > _LONG_LISTING:
            slurm.crash_controller(max(int(line[0]) for line in listed) + 1)
            listed = self._listed()
        self._first = max((int(line[0]) for line in listed), default=0) + 1
        self._gone: list[NativeJob] = []
        """What the cluster knows no more."""
        self._from = self._log_sizes()
        self._conf = slurm.directory / "client.conf"
        self.settings: Mapping[str, Any] = {"timeout_s": timeout_s, "poll_interval_s": 0.1}
        self.environment: Mapping[str, str] = {**slurm.environment, "SLURM_CONF": str(self._conf)}
        self._clients_wait(_PATIENT_S)

    def _clients_wait(self, seconds: int) -> None:
        """Let the driver's commands wait so long for the controller."""
        fresh = self._conf.with_suffix(".new")
        fresh.write_text(f"{self.slurm.conf.read_text()}MessageTimeout={seconds}\n")
        fresh.rename(self._conf)

    def _control(self, *arguments: str, check: bool = True) -> str:
        return self.slurm.run("scontrol", *arguments, check=check)

    def _partition(self, *changes: str) -> None:
        self._control("update", "PartitionName=batch", *changes)

    # ------------------------------------------------------------------------------- looking

    def jobs(self) -> Sequence[NativeJob]:
        """Return what Slurm lists, and what it listed before it lost it."""
        requests = self._requests()
        launched = self._launched()
        return [
            *self._gone,
            *(
                NativeJob(
                    batch_id=batch_id,
                    name=name,
                    state=_state(word, reason),
                    executions=0 if "_" in batch_id and word == "PENDING" else launched[number],
                    request=requests.get(batch_id),
                )
                for number, batch_id, word, reason, _, name in self._ours()
            ),
        ]

    def _listed(self) -> list[list[str]]:
        lines = self.slurm.run("squeue", "-a", "-r", "-h", "-t", "all", "-o", _FORMAT).splitlines()
        return [line.split("|", 5) for line in lines]

    def _ours(self) -> list[list[str]]:
        ours = [
            line
            for line in self._listed()
            if int(line[1].partition("_")[0]) >= self._first and line[5] != _STRANGER
        ]
        return sorted(ours, key=lambda line: [int(part) for part in line[1].split("_")])

    def _launched(self) -> Counter[str]:
        """Return how often the nodes say that they launched each job."""
        found: Counter[str] = Counter()
        for file, start in self._from.items():
            text = file.read_bytes()[start:].decode()
            found.update(re.findall(r"Launching batch job (\d+) for", text))
        return found

    def _log_sizes(self) -> dict[Path, int]:
        files = [self.slurm.directory / "log" / name for name in self.slurm.slurmd]
        return {file: file.stat().st_size for file in files}

    def _requests(self) -> dict[str, Mapping[str, Any]]:
        """Return what was asked for each job that is no member of an array."""
        lines = self._control("-o", "show", "job", check=False).splitlines()
        records = [
            dict(re.findall(r"(?:^| )([A-Z][\w:/]*)=(.*?)(?= [A-Z][\w:/]*=|$)", line)) for line in lines
        ]
        return {
            each["JobId"]: _request(each) for each in records if "JobId" in each and "ArrayJobId" not in each
        }

    def asked(self, command: Command) -> int:
        """Return what the controller has counted; how a command asks for it does not matter."""
        text = self.slurm.run("sdiag")
        return sum(map(int, re.findall(rf"^\t{_RPC[command]}\s+\(\s*\d+\) count:(\d+)", text, re.MULTILINE)))

    # ------------------------------------------------------------------------------ steering

    def pause(self) -> None:
        """Let the partition be down: it takes jobs and starts none."""
        self._partition("State=DOWN")

    def resume(self) -> None:
        """Let the partition be up."""
        self._partition("State=UP")

    def interrupt(self, batch_id: str, ending: Ending) -> None:
        """Cancel it, let its time be over, or let the node fail that it runs on."""
        if ending is Ending.CANCELLED:
            self.slurm.run("scancel", batch_id)
        elif ending is Ending.TIME_LIMIT:
            self._control("update", f"JobId={batch_id}", "EndTime=now")
            self._wait_word(batch_id, "TIMEOUT")
        elif ending is Ending.NODE_FAILURE:
            self._fail_node_of(batch_id)
        else:
            raise NotImplementedError(ending)

    def _fail_node_of(self, batch_id: str) -> str:
        """End a job's node with all that runs on it; return its name."""
        node = self.slurm.run("squeue", "-h", "-j", batch_id, "-o", "%N")
        self.slurm.slurmd[node].kill()
        self.slurm.kill_job(batch_id)
        # Which the controller would find out by itself after SlurmdTimeout.
        self._control("update", f"NodeName={node}", "State=DOWN", "Reason=failed")
        return node

    def _word(self, batch_id: str) -> str:
        return self.slurm.run("squeue", "-a", "-h", "-t", "all", "-j", batch_id, "-o", "%T", check=False)

    def _wait_word(self, batch_id: str, word: str) -> None:
        wait_for(lambda: self._word(batch_id) == word, 2 * DEADLINE_S, lambda: self._word(batch_id))

    def requeue(self, batch_id: str) -> None:
        """Let the node of a running job fail, after which Slurm queues it again; do so by hand for an ended one."""
        if self._word(batch_id) == "RUNNING":
            self._control("update", f"JobId={batch_id}", "Requeue=1")
            node = self._fail_node_of(batch_id)
            self._wait_word(batch_id, "PENDING")
            self.slurm.slurmd[node].start()
            self._control(
                "update", f"NodeName={node}", "State=RESUME", check=False
            )  # it may be back by itself
        else:
            self._control("requeue", batch_id)

    def preempt(self, batch_id: str) -> None:
        """Queue a running job again as an administrator does: Slurm tells it to stop, and kills it after KillWait."""
        self._control("update", f"JobId={batch_id}", "Requeue=1")
        self._control("requeue", batch_id)
        self._wait_word(batch_id, "PENDING")

    def hold(self, batch_id: str) -> None:
        """Hold it."""
        self._control("hold", batch_id)

    def release(self, batch_id: str) -> None:
        """Release it."""
        self._control("release", batch_id)

    def forget(self, batch_id: str) -> None:
        """Let the controller crash, and first the node of a job that runs, which else would be told to end it."""
        for _, known, word, _, node, _ in self._ours():
            if known == batch_id and word == "RUNNING":
                self.slurm.slurmd[node].kill()
        self._crash(batch_id)

    def lose(self, batch_id: str) -> None:
        """Let the controller crash before it has written down that it took the job."""
        self._crash(batch_id)

    def _crash(self, batch_id: str) -> None:
        paused = "State=DOWN" in self._control("show", "partition", "batch")
        self._gone = [*map(_forgotten, self.jobs())]
        self._from = self._log_sizes()
        self.slurm.crash_controller(int(batch_id))
        if paused:
            self.pause()

    def give_away(self, batch_id: str) -> None:
        """Let the next job be another user's, where this account may act for one, else our own under another name."""
        other = ["--uid=nobody"] if os.geteuid() == 0 else []
        command = [
            "sbatch",
            "--parsable",
            "-J",
            _STRANGER,
            "-p",
            "short",
            "-D",
            "/",
            "-o",
            "/dev/null",
            *other,
        ]
        assert batch_id == self.slurm.run(*command, "--wrap", "exec sleep 600")

    def stranger_is_alive(self, batch_id: str) -> bool:
        """Tell whether the other user's job waits or runs."""
        line = self.slurm.run("squeue", "-a", "-h", "-t", "all", "-j", batch_id, "-o", "%T|%j")
        return line in (f"PENDING|{_STRANGER}", f"RUNNING|{_STRANGER}")

    # ------------------------------------------------------------------------------ spoiling

    @contextlib.contextmanager
    def failing(self, *commands: Command, times: int | None = None) -> Iterator[None]:
        """Shut the controller down, whatever is asked; jobs go on."""
        if times is not None:
            raise NotImplementedError("a server is down as long as it is")
        self._clients_wait(_IMPATIENT_S)
        self.slurm.stop_controller()
        try:
            yield
        finally:
            self.slurm.start_controller()
            self._clients_wait(_PATIENT_S)

    @contextlib.contextmanager
    def hanging(self, *commands: Command) -> Iterator[None]:
        """Let the controller answer nothing, whatever is asked; what is asked, it does afterwards."""
        with self.slurm.frozen_controller():
            yield
        wait_for(lambda: "UP" in self._control("ping", check=False), DEADLINE_S)

    def without_accounting(self) -> AbstractContextManager[None]:
        """Do nothing: there is none."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def unlisted(self, batch_id: str) -> Iterator[None]:
        """Let it go by another name meanwhile, under which nobody looks for it."""
        (name,) = (line[-1] for line in self._ours() if line[1] == batch_id)
        self._control("update", f"JobId={batch_id}", f"JobName=not-{name}")
        try:
            yield
        finally:
            self._control("update", f"JobId={batch_id}", f"JobName={name}", check=False)  # it may have ended

    @contextlib.contextmanager
    def spoil_submit(self, fault: SubmitFault) -> Iterator[None]:
        """Let what is submitted ask for too much time, or sbatch end before it has an answer."""
        if fault is SubmitFault.NEVER_RUNS:
            self._partition("MaxTime=1")
            try:
                yield
            finally:
                self._partition("MaxTime=2880")
        elif fault in (SubmitFault.DIES, SubmitFault.HANGS):
            with self._submission_without_an_answer(gives_up=fault is SubmitFault.DIES):
                yield
        else:
            raise NotImplementedError(fault)

    @contextlib.contextmanager
    def _submission_without_an_answer(self, *, gives_up: bool) -> Iterator[None]:
        """Freeze the controller until one sbatch has asked it and ended, killed or because it *gives_up*."""
        stopped = threading.Event()
        with contextlib.ExitStack() as frozen:
            self._clients_wait(_IMPATIENT_S if gives_up else _PATIENT_S)
            frozen.enter_context(self.slurm.frozen_controller())

            def watch() -> None:
                came = False
                while not stopped.is_set():
                    there = self._sbatch_runs()
                    if came and not there:
                        frozen.close()
                        self._clients_wait(_PATIENT_S)
                        return
                    came = came or there
                    time.sleep(0.05)

            thread = threading.Thread(target=watch)
            thread.start()
            try:
                yield
            finally:
                stopped.set()
                thread.join()

    def _sbatch_runs(self) -> bool:
        mark = f"SLURM_CONF={self._conf}".encode()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                process = Path("/proc", pid)
                named = (process / "comm").read_bytes() == b"sbatch\n"
                if named and mark in (process / "environ").read_bytes().split(b"\0"):
                    return True
        return False

    @contextlib.contextmanager
    def refusing(self, kind: Refusal) -> Iterator[str]:
        """Let an administrator close the partition, or forbid this host to use it."""
        change, undo, words = _REFUSALS[kind]
        self._partition(change)
        try:
            yield words
        finally:
            self._partition(undo)


def _state(word: str, reason: str) -> NativeState:
    if word == "PENDING" and reason.startswith("JobHeld"):
        return NativeState.HELD
    return _STATES.get(word, NativeState.ENDED)


def _forgotten(job: NativeJob) -> NativeJob:
    return NativeJob(
        batch_id=job.batch_id, name=job.name, state=NativeState.UNKNOWN, executions=job.executions
    )


def _request(record: Mapping[str, str]) -> Mapping[str, Any]:
    """Return what ``scontrol show job`` says of a request, in the words of a `Group`."""
    days, _, clock = record["TimeLimit"].rpartition("-")
    hours, minutes, _ = map(int, clock.split(":"))
    return {
        "num_nodes": int(record["NumNodes"].partition("-")[0]),
        "processes_per_node": int(record["NtasksPerN:B:S:C"].partition(":")[0]),
        "wall_time_minutes": int(days or 0) * 1440 + hours * 60 + minutes,
        "queue": record["Partition"],
        "project": record["Account"],
        "comment": record.get("Comment", "").rstrip(),
        "restartable": record["Requeue"] == "1",
        "options": {"nice": record["Nice"]},
    }
