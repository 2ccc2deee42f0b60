"""Gather what a campaign left in its directory: what was asked, what happened, and what was told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from campaigns.cluster import ClusterLog, read_cluster_log
from campaigns.programs import (
    AskedStranger,
    Execution,
    Stranger,
    Submission,
    read_asked_strangers,
    read_executions,
    read_records,
    read_strangers,
    read_submissions,
)
from edgecore.batch import RunDirectory, Token, run_directory
from edgecore.config import read_site
from edgecore.models import Attempt, Job, JobState
from edgecore.reader import HistoryEntry, Reader

__all__ = ["Evidence", "Kept", "Status", "gather"]


@frozen(kw_only=True)
class Kept:
    """What the site keeps of one job."""

    job: Job
    history: Sequence[HistoryEntry]
    attempts: Sequence[Attempt]
    tokens: Mapping[int, Token | None]
    """Attempt -> its token."""
    notes: Mapping[int, str]
    """Attempt -> what its batch scripts left there when they did not run."""


@frozen(kw_only=True)
class Status:
    """One status message, as its consumer got it."""

    name: str
    sequence: int
    state: JobState
    sender: str | None


@frozen(kw_only=True)
class Evidence:
    """All of it, in the order in which it happened."""

    asked: Mapping[str, Mapping[str, Any]]
    """Name -> definition, of those that the broker took responsibility for."""
    cancelled: frozenset[str]
    """Names of the jobs that their sender wanted cancelled."""
    kept: Sequence[Kept]
    executions: Sequence[Execution]
    submissions: Sequence[Submission]
    strangers: Sequence[Stranger]
    asked_strangers: Sequence[AskedStranger]
    statuses: Sequence[Status]
    cluster: ClusterLog
    faults: Mapping[str, int]
    """What was done to the servers -> how often."""


def gather(base: Path) -> Evidence:
    """Read the directory of a campaign that is over."""
    asked = read_records(base / "asked.jsonl")
    faults = [each["what"] for each in read_records(base / "faults.jsonl")]
    return Evidence(
        asked={each["name"]: each for each in asked if "command" not in each},
        cancelled=frozenset(each["job_id"] for each in asked if each.get("command") == "cancel"),
        kept=_kept(base / "site" / "site.toml"),
        executions=read_executions(base),
        submissions=read_submissions(base),
        strangers=read_strangers(base),
        asked_strangers=read_asked_strangers(base),
        statuses=[
            Status(
                name=each["name"],
                sequence=each["sequence"],
                state=JobState(each["state"]),
                sender=each["sender"],
            )
            for each in read_records(base / "statuses.jsonl")
        ],
        cluster=read_cluster_log(base / "slurm" / "log"),
        faults={
            **{what: faults.count(what) for what in sorted(set(faults))},
            "sbatch hung after its job was taken": len(list(base.glob("hung.*"))),
        },
    )


def _kept(file: Path) -> Sequence[Kept]:
    config = read_site(file)
    found = []
    with Reader(config.store) as reader:
        for job in reversed(reader.latest(1_000_000)):
            attempts = reader.attempts(job.id)
            runs = {
                each.number: run_directory(config.work_directory, job.id, each.number) for each in attempts
            }
            found.append(
                Kept(
                    job=job,
                    history=reader.history(job.id),
                    attempts=attempts,
                    tokens={number: run.token() for number, run in runs.items()},
                    notes={number: _note(run) for number, run in runs.items()},
                )
            )
    return found


def _note(run: RunDirectory) -> str:
    path = run.path / "note.txt"
    return path.read_text() if path.exists() else ""
