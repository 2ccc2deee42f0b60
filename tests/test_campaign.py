"""A whole site on RabbitMQ and Slurm runs each job exactly once while all of them are killed; and cheating is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from campaigns.account import Account, account_of, as_json, as_table
from campaigns.cluster import ClusterLog, read_cluster_log
from campaigns.evidence import Evidence, Kept, Status
from campaigns.programs import AskedStranger, Execution, Stranger, Submission
from campaigns.rules import RULES, Loss, losses
from campaigns.storm import LONG, SETTINGS, SHORT, Plan, Storm
from testbed.rabbitmq import RabbitMQ
from testbed.slurm import running_slurm

from edgecore.batch import Token, TokenState
from edgecore.models import Attempt, Job, JobDefinition, JobState
from edgecore.reader import HistoryEntry

LOG = """\
[2026-11-22T10:00:00.000] slurmctld version 22.05.8 started on cluster lab
[2026-11-22T10:00:01.000] _slurm_rpc_submit_batch_job: JobId=4 InitPrio=1 usec=289
[2026-11-22T10:00:02.000] _slurm_rpc_submit_batch_job: JobId=5 InitPrio=1 usec=251
[2026-11-22T10:00:02.100] sched: Allocate JobId=4 NodeList=n1 #CPUs=1 Partition=batch
[2026-11-22T10:00:02.300] sched/backfill: _start_job: Started JobId=5 in batch on n1
[2026-11-22T10:00:02.400] sched: Allocate JobId=3_1(6) NodeList=n1 #CPUs=1 Partition=batch
[2026-11-22T10:00:04.000] slurmctld version 22.05.8 started on cluster lab
[2026-11-22T10:00:04.100] Recovered JobId=3 Assoc=0
[2026-11-22T10:00:04.200] Purged files for defunct batch JobId=4
[2026-11-22T10:00:05.000] _slurm_rpc_submit_batch_job: JobId=4 InitPrio=1 usec=335
[2026-11-22T10:00:06.000] error: Registered PENDING JobId=4 StepId=4.batch on node n1
[2026-11-22T10:00:06.000] error: Orphan StepId=5.batch reported on node n1
[2026-11-22T10:00:06.100] error: Orphan StepId=6.batch reported on node n1
[2026-11-22T10:00:07.000] _slurm_rpc_kill_job: REQUEST_KILL_JOB JobId=4 uid 0
[2026-11-22T10:00:08.000] _slurm_rpc_submit_batch_job: JobId=5 InitPrio=1 usec=335
[2026-11-22T10:00:08.100] _slurm_rpc_kill_job: REQUEST_KILL_JOB JobId=5 uid 0
[2026-11-22T10:00:09.000] _slurm_rpc_submit_batch_job: JobId=6 InitPrio=1 usec=335
[2026-11-22T10:00:09.050] Batch JobId=3_2(12) missing from batch node n1 (not found BatchStartTime after startup)
[2026-11-22T10:00:09.100] Killing non-startable batch JobId=6: Job credential revoked
damaged
"""
NODE = """\
[2026-11-22T10:00:08.090] error: Job 5 already running, do not launch second copy
[2026-11-22T10:00:08.095] Could not launch job 5 and not able to requeue it, cancelling job
"""


@pytest.fixture
def log(tmp_path: Path) -> ClusterLog:
    """What a real slurmctld wrote when it was killed and started again; times are made round."""
    (tmp_path / "slurmctld").write_text(LOG)
    (tmp_path / "n1").write_text(NODE)
    return read_cluster_log(tmp_path)


def test_the_log_of_slurmctld_tells_which_jobs_it_lost(log: ClusterLog) -> None:
    first, again = log.births["4"]
    assert 2 == len(log.starts)
    assert ["4", "5"] == log.reissued()
    assert "10:00:04.200 Purged files for defunct batch JobId=4" == log.loss("4", since=first)
    assert "10:00:06.000 Orphan StepId=5.batch reported on node n1" == log.loss("5", since=log.births["5"][0])
    assert "10:00:06.100 Orphan StepId=6.batch reported on node n1" == log.loss("3", "6", since=first)
    assert "" == log.loss("3", since=first)
    assert "" == log.loss("4", since=again + 2), "what became of the job before proves nothing"
    assert (first, again) == (log.born("4", again - 1), log.born("4", again + 1))
    assert log.born("4", first - 1) is None
    assert ["4"] == [number for _, number in log.kills], "the end of 5 was Slurm's own doing"


def test_a_number_that_is_given_out_again_shows_that_its_job_was_lost(log: ClusterLog) -> None:
    silent = evolve(log, deaths={})
    assert "10:00:05.000 gave its number 4 to another job" == silent.loss("4", since=log.births["4"][0])
    assert "" == silent.loss("4", since=log.births["4"][1])


def test_a_job_that_a_node_refused_for_the_sake_of_its_number_was_ended_by_slurm(log: ClusterLog) -> None:
    words = "10:00:08.095 n1: Could not launch job 5 and not able to requeue it, cancelling job"
    assert words == log.loss("5", since=log.births["5"][1])
    words = "10:00:09.100 Killing non-startable batch JobId=6: Job credential revoked"
    assert words == log.loss("6", since=log.births["6"][0])
    words = "Batch JobId=3_2(12) missing from batch node n1 (not found BatchStartTime after startup)"
    assert f"10:00:09.050 {words}" == log.loss("3", "12", since=log.births["4"][1])


# ------------------------------------------------------------------------------- what is found


def _execution(job: int, attempt: int, batch_id: str, started: float, code: int | None) -> Execution:
    ended = None if code is None else started + 1
    return Execution(
        job=job,
        attempt=attempt,
        batch_id=batch_id,
        number=batch_id,
        pid="99",
        started=started,
        alone=True,
        ended=ended,
        exit_code=code,
    )


def _kept(
    job: int, name: str, state: JobState, code: int | None, token: TokenState, number: int, batch_id: str
) -> Kept:
    attempts = [
        Attempt(number=each, tag=f"e{job}0{each}", group_tag="e", intended=1) for each in range(1, number + 1)
    ]
    attempts[-1] = evolve(attempts[-1], exit_code=code, batch_id=batch_id)
    states = [JobState.CREATED, JobState.SUBMITTING, state]
    definition = JobDefinition(name=name, site="testsite", application="recorder", retries=number - 1)
    found = Token(state=token, file=token, exit_code=code)
    return Kept(
        job=Job(
            id=job,
            owner="physicist",
            definition=definition,
            state=state,
            sequence=len(states),
            changed=1,
            attempt=attempts[-1],
        ),
        history=[
            HistoryEntry(sequence=place + 1, time=1, state=each, attempt=1, message="")
            for place, each in enumerate(states)
        ],
        attempts=attempts,
        tokens={number: found},
        notes={},
    )


@pytest.fixture
def good(log: ClusterLog) -> Evidence:
    """A campaign in which all was well: one job did its work, one failed twice, one Slurm lost while it ran."""
    begun = log.births["4"][0]
    kept = [
        _kept(1, "well", JobState.JOB_FINISHED, 0, TokenState.ENDED, 1, "7"),
        _kept(2, "bad", JobState.JOB_FAILED, 3, TokenState.ENDED, 2, "9"),
        _kept(3, "lost", JobState.LOST, None, TokenState.RUNNING, 1, "4"),
    ]
    return Evidence(
        asked={name: {"name": name} for name in ("well", "bad", "lost")},
        cancelled=frozenset(),
        kept=kept,
        executions=[
            _execution(1, 1, "7", begun, 0),
            _execution(2, 1, "8", begun, 3),
            _execution(2, 2, "9", begun + 5, 3),
            _execution(3, 1, "4", begun + 1.2, None),
        ],
        submissions=[Submission(time=begun + 0.1, name="e301", number="4")],
        strangers=[Stranger(name="theirs", number="4", started=begun + 4.5, ended=begun + 5)],
        asked_strangers=[AskedStranger(time=begun + 4.1, name="theirs", number="4")],
        statuses=[
            Status(name=each.job.name, sequence=entry.sequence, state=entry.state, sender="theta")
            for each in kept
            for entry in each.history
        ],
        cluster=evolve(log, kills=[]),
        faults={"service killed": 1},
    )


def test_a_campaign_in_which_all_was_well_breaks_no_rule(good: Evidence) -> None:
    assert {} == {rule: broken for rule, check in RULES.items() if (broken := list(check(good)))}
    (loss,) = losses(good)
    assert ("lost", JobState.LOST, "4") == (loss.job, loss.state, loss.batch_id)
    assert "Purged files for defunct batch JobId=4" in loss.proof


def _job(good: Evidence, place: int, **more: Any) -> Evidence:
    kept = list(good.kept)
    kept[place] = evolve(kept[place], job=evolve(kept[place].job, **more))
    return evolve(good, kept=kept)


def _execution_with(good: Evidence, place: int, **more: Any) -> Evidence:
    executions = list(good.executions)
    executions[place] = evolve(executions[place], **more)
    return evolve(good, executions=executions)


def _again(good: Evidence, place: int, **more: Any) -> Evidence:
    return evolve(good, executions=[*good.executions, evolve(good.executions[place], **more)])


LATER: Mapping[str, float] = {"started": 4e9, "ended": 4e9 + 1}

CHEATS: Mapping[str, tuple[str, Callable[[Evidence], Evidence]]] = {
    "a definition is lost": (
        "each definition was taken once",
        lambda good: evolve(good, asked={**good.asked, "more": {"name": "more"}}),
    ),
    "a definition became two jobs": (
        "each definition was taken once",
        lambda good: evolve(good, kept=[*good.kept, good.kept[0]]),
    ),
    "an attempt starts twice": ("no attempt started twice", lambda good: _again(good, 1, **LATER)),
    "the lock is held": (
        "no two executions of a job overlap",
        lambda good: _execution_with(good, 2, alone=False),
    ),
    "the times overlap": (
        "no two executions of a job overlap",
        lambda good: _execution_with(good, 2, started=good.executions[1].started + 0.5),
    ),
    "a job that did its work runs again": (
        "no job did its work twice",
        lambda good: _again(good, 0, attempt=2, **LATER),
    ),
    "a failed job runs more often than it may": (
        "no job did its work twice",
        lambda good: _again(good, 2, attempt=3, **LATER),
    ),
    "a failed job is told to have finished": (
        "each end is told as it was",
        lambda good: _job(good, 1, state=JobState.JOB_FINISHED),
    ),
    "a finished job is told to have failed": (
        "each end is told as it was",
        lambda good: _job(good, 0, state=JobState.JOB_FAILED),
    ),
    "another exit code is told": (
        "each end is told as it was",
        lambda good: _job(good, 1, attempt=evolve(good.kept[1].attempts[-1], exit_code=4)),
    ),
    "the end record is not the application's": (
        "each end is told as it was",
        lambda good: _execution_with(good, 2, exit_code=5),
    ),
    "a job is left behind": (
        "each job is settled or LOST",
        lambda good: _job(good, 0, state=JobState.STAGED_OUT),
    ),
    "a job is cancelled unasked": (
        "each job is settled or LOST",
        lambda good: _job(good, 0, state=JobState.JOB_CANCELLED),
    ),
    "an execution without an end is nobody's doing": (
        "what has no end was lost by Slurm",
        lambda good: evolve(good, cluster=evolve(good.cluster, deaths={}, births={})),
    ),
    "a job that ended is left as LOST": (
        "what has no end was lost by Slurm",
        lambda good: _job(good, 0, state=JobState.LOST),
    ),
    "a job that never started is left as LOST": (
        "what has no end was lost by Slurm",
        lambda good: evolve(good, executions=good.executions[:-1]),
    ),
    "a job failed and nobody knows why": (
        "what failed did so for a reason",
        lambda good: evolve(
            _job(good, 2, state=JobState.JOB_FAILED), cluster=evolve(good.cluster, deaths={}, births={})
        ),
    ),
    "a status is missing": (
        "status without gap, in order",
        lambda good: evolve(good, statuses=[each for each in good.statuses if each != good.statuses[1]]),
    ),
    "status is out of order": (
        "status without gap, in order",
        lambda good: evolve(good, statuses=list(reversed(good.statuses))),
    ),
    "a status tells another state": (
        "status without gap, in order",
        lambda good: evolve(
            good, statuses=[evolve(good.statuses[0], state=JobState.LOST), *good.statuses[1:]]
        ),
    ),
    "a status is from somebody else": (
        "status without gap, in order",
        lambda good: evolve(good, statuses=[*good.statuses, evolve(good.statuses[0], sender="physicist")]),
    ),
    "a stranger's job is told to stop": (
        "strangers' jobs untouched",
        lambda good: evolve(good, strangers=[evolve(good.strangers[0], told=True)]),
    ),
    "a stranger's job vanishes": ("strangers' jobs untouched", lambda good: evolve(good, strangers=[])),
    "Slurm is asked to end a stranger's job": (
        "strangers' jobs untouched",
        lambda good: evolve(good, cluster=evolve(good.cluster, kills=[(good.strangers[0].started + 1, "4")])),
    ),
    "Slurm is asked to end a job whose sender wants it": (
        "ended only where its sender asked",
        lambda good: evolve(good, cluster=evolve(good.cluster, kills=[(4e9, "9")])),
    ),
    "Slurm is asked to end what nobody knows": (
        "ended only where its sender asked",
        lambda good: evolve(
            good, cancelled=frozenset({"lost"}), cluster=evolve(good.cluster, kills=[(4e9, "5")])
        ),
    ),
}


@pytest.mark.parametrize("what", CHEATS)
def test_what_must_not_be_is_found(what: str, good: Evidence) -> None:
    rule, cheat = CHEATS[what]
    assert list(RULES[rule](cheat(good)))


def test_a_stranger_whom_slurm_lost_was_not_touched_by_us(good: Evidence) -> None:
    (stranger,) = good.asked_strangers
    earlier = evolve(stranger, name="earlier", time=good.cluster.births["4"][0] + 0.1)
    lost = evolve(good, asked_strangers=[stranger, earlier])
    assert [] == list(RULES["strangers' jobs untouched"](lost))


def test_the_end_of_a_job_of_ours_that_had_the_number_before_is_no_harm_to_a_stranger(good: Evidence) -> None:
    before = good.cluster.births["4"][0] + 1
    asked = evolve(good, cluster=evolve(good.cluster, kills=[(before, "4")]))
    assert [] == list(RULES["strangers' jobs untouched"](asked))


def test_a_job_whose_sender_wants_it_cancelled_may_be_ended(good: Evidence) -> None:
    asked = evolve(good, cancelled=frozenset({"bad"}), cluster=evolve(good.cluster, kills=[(4e9, "9")]))
    assert [] == list(RULES["ended only where its sender asked"](asked))


def test_the_account_names_what_was_lost_and_what_was_broken() -> None:
    loss = Loss(job="job-1", state=JobState.LOST, attempt=2, batch_id="4", proof="Purged")
    account = Account(
        counts={"service killed": 3},
        states={"LOST": 1},
        losses=[loss],
        broken={"kept": [], "broken": [f"breach {number}" for number in range(25)]},
    )
    table = as_table(account)
    assert not account.good
    assert "Verdict: BROKEN" in table
    assert "job-1 (attempt 2, batch id 4): LOST: Purged" in table
    assert "breach 19" in table
    assert "breach 20" not in table
    assert "and 5 more" in table
    assert '"good": false' in as_json(account)
    assert "Verdict: each job exactly once" in as_table(evolve(account, broken={"kept": []}))


# ----------------------------------------------------------------------------------- campaigns


def _campaign(base: Path, plan: Plan, rabbitmq: RabbitMQ) -> Account:
    with running_slurm(base / "slurm", settings=SETTINGS) as slurm:
        Storm(base, plan, rabbitmq, slurm).run()
        account = account_of(base)
    assert account.good, as_table(account)
    assert plan.jobs == sum(account.states.values())
    assert plan.kills == account.counts["service killed"]
    assert plan.broker_kills == account.counts["broker killed"]
    assert plan.controller_kills == account.counts["slurmctld killed"]
    return account


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_each_job_runs_once_while_service_broker_and_slurmctld_are_killed(
    rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    _campaign(tmp_path, SHORT, rabbitmq)


@pytest.mark.long
def test_a_hundred_kills_of_the_service_and_ten_of_each_server_change_nothing(
    rabbitmq: RabbitMQ, tmp_path: Path
) -> None:
    account = _campaign(tmp_path, LONG, rabbitmq)
    assert account.losses, "what lost nothing shows nothing"
    assert account.counts["job numbers that Slurm gave out again"]
