"""Giving jobs to the batch system: grouping, limits, refusals, and answers that never came."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import evolve
from scripted import Edge

from edgecore import batch
from edgecore.config import Limits
from edgecore.layers import DryRun
from edgecore.models import Group, NativeState, Refusal, Refused, SubmissionAnswer
from edgecore.models import JobState as S
from edgecore.reader import Reader
from edgecore.store import Change, Store

pytestmark = pytest.mark.slow


def groups(edge: Edge) -> list[int]:
    """Return how many members each submission had."""
    return [len(tags) for hook, tags in edge.scheduling.calls if hook == "submit"]


def busy_lane(edge: Edge) -> None:
    """Let the only thread of the submitting lane hang in a submission of the job ``first``."""
    edge.scheduling.open_gate.clear()
    edge.start()
    edge.send("first")
    assert edge.scheduling.at_gate.acquire(timeout=10)


# ----------------------------------------------------------------------------------- grouping


def test_a_job_that_comes_to_an_idle_lane_goes_at_once_and_alone(edge: Edge) -> None:
    edge.scheduling.max_group = 10
    edge.start()
    for name in ("a", "b"):
        edge.send(name)
        edge.wait(name, S.JOB_FINISHED)
    assert [1, 1] == groups(edge)
    assert [None, None] == [entry.submission.index for entry in edge.scheduling.entries]


def test_like_jobs_that_gather_while_the_lane_is_busy_go_as_one_group(edge: Edge) -> None:
    edge.scheduling.max_group = 10
    busy_lane(edge)
    names = [f"job-{number}" for number in range(5)]
    for name in names:
        edge.send(name)
        edge.wait(name, S.PREPROCESSED)
    edge.scheduling.open_gate.set()
    for name in names:
        finished = edge.wait(name, S.JOB_FINISHED)
        assert finished.attempt is not None
        assert edge.scheduling.entries[1].tag == finished.attempt.group_tag
    assert [1, 5] == groups(edge)
    members = edge.scheduling.entries[1:]
    assert [0, 1, 2, 3, 4] == [entry.submission.index for entry in members]
    assert [f"1002_{index}" for index in range(5)] == [entry.batch_id for entry in members]
    assert 6 == len(edge.site.starts())


def test_a_group_is_never_larger_than_the_batch_system_takes(edge: Edge) -> None:
    edge.scheduling.max_group = 2
    busy_lane(edge)
    for number in range(5):
        edge.send(f"job-{number}")
        edge.wait(f"job-{number}", S.PREPROCESSED)
    edge.scheduling.open_gate.set()
    for number in range(5):
        edge.wait(f"job-{number}", S.JOB_FINISHED)
    assert [1, 2, 2, 1] == groups(edge)


@pytest.mark.parametrize(
    "difference",
    [
        {"application": "other"},
        {"num_nodes": 2},
        {"processes_per_node": 2},
        {"wall_time_minutes": 5},
        {"queue": "debug"},
        {"project": "atlas"},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_unlike_jobs_do_not_mix(edge: Edge, difference: dict[str, Any]) -> None:
    edge.register("other")
    edge.scheduling.max_group = 10
    busy_lane(edge)
    for name, more in (("a", {}), ("b", difference), ("c", {}), ("d", difference)):
        edge.send(name, **{"application": "quick", **more})
        edge.wait(name, S.PREPROCESSED)
    edge.scheduling.open_gate.set()
    for name in "abcd":
        edge.wait(name, S.JOB_FINISHED)
    assert [1, 2, 2] == groups(edge)
    shapes = [entry.group for entry in edge.scheduling.entries]
    key, value = next(iter(difference.items()))
    if key != "application":
        assert [value, value] == [getattr(shape, key) for shape in shapes[3:]]


def test_a_job_whose_directory_cannot_be_used_keeps_none_of_its_group_waiting(edge: Edge) -> None:
    edge.scheduling.max_group = 10
    busy_lane(edge)
    for name in "abc":
        edge.send(name)
        edge.wait(name, S.PREPROCESSED)
    data = batch.data_directory(edge.config.work_directory, edge.job("b").id)
    data.parent.mkdir(parents=True)
    data.symlink_to("/nonexistent/scratch")
    edge.scheduling.open_gate.set()
    for name in "ac":
        edge.wait(name, S.JOB_FINISHED)
    assert [1, 2] == groups(edge)
    assert (
        f"gave up after 3 tries: [Errno 17] File exists: '{data}'" == edge.wait("b", S.SUBMIT_FAILED).message
    )


def test_a_job_whose_directory_cannot_be_used_is_given_up_though_it_never_comes_alone(edge: Edge) -> None:
    turnstile = Turnstile()
    edge.scheduling.max_group = 10
    edge.scheduling.open_gate = turnstile
    edge.start()
    edge.send("other-0", queue="debug")
    assert edge.scheduling.at_gate.acquire(timeout=20)  # the lane is busy: what comes gathers
    edge.send("bad")
    data = batch.data_directory(edge.config.work_directory, edge.wait("bad", S.PREPROCESSED).id)
    data.parent.mkdir(parents=True)
    data.symlink_to("/nonexistent/scratch")
    for number in range(3):
        edge.send(f"good-{number}")
        edge.until(lambda: gathered(edge) == 2)
        assert number == edge.job("bad").failures
        edge.send(f"other-{number + 1}", queue="debug")  # will keep the lane busy until it has come again
        edge.until(lambda: gathered(edge) == 3)
        for _ in range(2):
            turnstile.passing.release()
            assert edge.scheduling.at_gate.acquire(timeout=20)
    told = edge.wait("bad", S.SUBMIT_FAILED).message
    assert f"gave up after 3 tries: [Errno 17] File exists: '{data}'" == told
    turnstile.passing.release()
    for number in range(3):
        edge.wait(f"good-{number}", S.JOB_FINISHED)


class Turnstile(threading.Event):
    """Let one submission pass for each time that `passing` is released."""

    def __init__(self) -> None:
        super().__init__()
        self.passing = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        return self.passing.acquire(timeout=timeout)


def gathered(edge: Edge) -> int:
    """Return how many jobs have gathered before the submitting lane."""
    engine = edge.balsam._engine
    assert engine is not None
    return sum(len(items) for items, _ in engine._crew.lanes["submitting"]._waiting.values())


def test_a_job_that_nobody_wants_any_more_is_left_out_of_its_group(edge: Edge) -> None:
    edge.scheduling.max_group = 10
    busy_lane(edge)
    for name in "abc":
        edge.send(name)
        edge.wait(name, S.PREPROCESSED)
    edge.ask("cancel", "b")
    edge.ask("hold", "c")
    edge.until(lambda: edge.job("c").intent == "held" and edge.job("b").intent == "cancelled")
    edge.scheduling.open_gate.set()
    edge.wait("a", S.JOB_FINISHED)
    edge.wait("b", S.JOB_CANCELLED)
    assert ["CREATED", "STAGED_IN", "PREPROCESSED"] == edge.states("c")
    edge.ask("release", "c")
    edge.wait("c", S.JOB_FINISHED)
    assert [1, 1, 1] == groups(edge)


def test_a_member_that_is_refused_does_not_spoil_its_group(edge: Edge) -> None:
    edge.scheduling.max_group = 10
    busy_lane(edge)
    for name in "abc":
        edge.send(name)
        edge.wait(name, S.PREPROCESSED)

    def second_refused(group: Group) -> dict[str, SubmissionAnswer]:
        first, second, third = group.submissions
        taken = edge.scheduling.take(evolve(group, submissions=(first, third)))
        return {**taken, second.tag: Refused(kind=Refusal.PERMANENT, reason="array task 1 refused")}

    edge.scheduling.submits.extend([edge.scheduling.take, second_refused])
    edge.scheduling.open_gate.set()
    assert "array task 1 refused" == edge.wait("b", S.JOB_FAILED).message
    for name in ("first", "a", "c"):
        edge.wait(name, S.JOB_FINISHED)


# ------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("threads", [1, 4])
def test_no_more_than_max_queued_jobs_wait_in_the_batch_system_and_places_are_refilled(
    edge: Edge, threads: int
) -> None:
    edge.scheduling.parallel_submits, edge.scheduling.auto = threads, False
    edge.config = evolve(edge.config, limits=Limits(max_queued=3))
    most: list[int] = []
    take = edge.scheduling.take

    def counted(group: Group) -> dict[str, SubmissionAnswer]:
        answer = take(group)
        most.append(sum(entry.state is NativeState.QUEUED for entry in edge.scheduling.entries))
        return answer

    edge.scheduling.submits.extend([counted] * 10)
    edge.start()
    edge.site.send(*(edge.site.job(name=f"job-{number}", application="quick") for number in range(10)))
    for number in range(10):
        entry = edge.wait_entry(number + 1)
        if number == 0:
            edge.wait_entry(3)
            edge.wait_looks()
            assert 3 == len(edge.scheduling.entries)
        edge.scheduling.start(entry)
    for number in range(10):
        edge.wait(f"job-{number}", S.JOB_FINISHED)
    assert 3 == max(most)


def test_jobs_that_are_refused_at_the_limit_leave_their_places_to_others(edge: Edge) -> None:
    edge.scheduling.parallel_submits = 4
    edge.config = evolve(edge.config, limits=Limits(max_queued=1))
    edge.scheduling.refuse(Refusal.PERMANENT, "no", times=30)
    edge.start()
    edge.site.send(*(edge.site.job(name=f"job-{number}", application="quick") for number in range(40)))
    done = (S.JOB_FAILED, S.JOB_FINISHED)
    edge.until(lambda: sum(job.state in done for job in edge.site.jobs()) == 40)
    assert 10 == sum(job.state is S.JOB_FINISHED for job in edge.site.jobs())


# ------------------------------------------------------------------------------------ refusals


def test_a_permanent_refusal_fails_the_job_at_once_with_the_batch_systems_words(edge: Edge) -> None:
    edge.scheduling.refuse(Refusal.PERMANENT, "Invalid account or account/partition combination")
    edge.start()
    edge.send()
    failed = edge.wait("job", S.JOB_FAILED)
    assert ["SUBMITTING", "SUBMIT_FAILED", "JOB_FAILED"] == edge.states()[-3:]
    assert "Invalid account or account/partition combination" == failed.message
    assert 1 == edge.scheduling.count("submit")
    with Reader(edge.config.store) as reader:
        (attempt,) = reader.attempts(failed.id)
    assert "Invalid account or account/partition combination" == attempt.reason
    token = batch.run_directory(edge.config.work_directory, failed.id, 1).token()
    assert token is not None
    assert batch.TokenState.REVOKED is token.state


def test_a_passing_refusal_waits_and_submits_a_new_attempt(edge: Edge) -> None:
    edge.scheduling.refuse(Refusal.TRANSIENT, "QOSMaxSubmitJobPerUserLimit", times=2)
    edge.start()
    edge.send()
    waiting = edge.wait("job", S.PREPROCESSED, times=2)
    assert "refused for now: QOSMaxSubmitJobPerUserLimit" == waiting.message
    assert waiting.due > waiting.changed
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert 3 == finished.attempt.number
    tags = [tags for hook, tags in edge.scheduling.calls if hook == "submit"]
    assert 3 == len(set(tags))


def test_the_wait_after_a_passing_refusal_outlives_a_restart(edge: Edge) -> None:
    edge.config = evolve(edge.config, retry=evolve(edge.config.retry, first_s=600, longest_s=600))
    edge.scheduling.refuse(Refusal.TRANSIENT, "too many jobs")
    edge.start()
    edge.send()
    edge.wait("job", S.PREPROCESSED, times=2)
    edge.restart()
    edge.send("other")
    edge.wait("other", S.JOB_FINISHED)
    assert S.PREPROCESSED is edge.job().state
    assert 2 == edge.scheduling.count("submit")


def test_a_queue_that_refuses_for_load_is_left_alone_by_its_other_jobs_while_other_queues_go_on(
    edge: Edge,
) -> None:
    edge.config = evolve(edge.config, retry=evolve(edge.config.retry, first_s=600, longest_s=600))
    edge.scheduling.refuse(Refusal.TRANSIENT, "QOSMaxSubmitJobPerUserLimit")
    edge.start()
    edge.send("refused", queue="full")
    refused = edge.wait("refused", S.PREPROCESSED, times=2)
    edge.send("same", queue="full")
    edge.until(lambda: "its queue takes nothing now" in edge.job("same").message)
    edge.send("other", queue="free")
    edge.wait("other", S.JOB_FINISHED)
    same = edge.job("same")
    assert "its queue takes nothing now: QOSMaxSubmitJobPerUserLimit" == same.message
    assert (None, 0) == (same.attempt, same.failures)
    assert same.due == pytest.approx(refused.due, abs=1e5)  # microseconds: one wait is counted on each clock
    assert 2 == edge.scheduling.count("submit")


def test_a_job_whose_queue_was_left_alone_goes_as_its_first_attempt_when_the_wait_is_over(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    edge.config = evolve(edge.config, retry=evolve(edge.config.retry, first_s=0.3, longest_s=0.3, tries=1))
    edge.scheduling.refuse(Refusal.TRANSIENT, "too many jobs")
    busy_lane(edge)
    edge.send("second")
    edge.wait("second", S.PREPROCESSED)
    edge.scheduling.open_gate.set()
    finished = [edge.wait(name, S.JOB_FINISHED) for name in ("first", "second")]
    assert [2, 1] == [job.attempt.number for job in finished if job.attempt is not None]
    assert "its queue takes nothing now: too many jobs" in caplog.text


def test_a_dry_run_ends_in_submit_disabled_and_a_retry_goes_on_without_it(edge: Edge) -> None:
    edge.plugins.append(DryRun())
    edge.start()
    edge.send()
    assert "dry run" in edge.wait("job", S.SUBMIT_DISABLED).message
    assert [] == edge.scheduling.entries
    edge.stop()
    edge.plugins.clear()
    edge.start()
    edge.ask("retry")
    edge.wait("job", S.JOB_FINISHED)
    assert {edge.job().id: 1} == edge.site.starts()


def test_a_job_of_a_dry_run_can_be_cancelled(edge: Edge) -> None:
    edge.plugins.append(DryRun())
    edge.start()
    edge.send()
    edge.wait("job", S.SUBMIT_DISABLED)
    edge.ask("cancel")
    edge.wait("job", S.JOB_CANCELLED)


# --------------------------------------------------------------------------- unclear answers


def test_a_submission_whose_answer_was_lost_is_adopted_and_not_repeated(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.scheduling.lose_answer()
    edge.start()
    edge.send()
    entry = edge.wait_entry()
    queued = edge.wait("job", S.QUEUED)
    assert queued.attempt is not None
    assert (1, "1001") == (queued.attempt.number, queued.attempt.batch_id)
    edge.scheduling.start(entry)
    edge.wait("job", S.JOB_FINISHED)
    assert 1 == edge.scheduling.count("submit")
    assert {edge.job().id: 1} == edge.site.starts()


def test_a_lost_answer_for_a_group_is_adopted_member_by_member(edge: Edge) -> None:
    edge.scheduling.max_group = 10
    busy_lane(edge)
    for name in "abc":
        edge.send(name)
        edge.wait(name, S.PREPROCESSED)
    edge.scheduling.submits.append(edge.scheduling.take)
    edge.scheduling.lose_answer()
    edge.scheduling.open_gate.set()
    for index, name in enumerate("abc"):
        finished = edge.wait(name, S.JOB_FINISHED)
        assert finished.attempt is not None
        assert f"1002_{index}" == finished.attempt.batch_id
    assert [1, 3] == groups(edge)


def test_a_submission_that_ran_to_its_end_before_we_learnt_its_id_is_adopted(edge: Edge) -> None:
    edge.scheduling.lose_answer()
    edge.start()
    edge.send()
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert (1, "1001", 0) == (
        *(finished.attempt.number, finished.attempt.batch_id, finished.attempt.exit_code),
    )


def test_a_submission_that_never_arrived_gives_way_to_a_new_attempt(edge: Edge) -> None:
    lost = edge.scheduling.lose_request()
    edge.start()
    edge.send()
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert 2 == finished.attempt.number
    assert "attempt 1 never started: the batch system does not know it" in edge.messages()
    # The request was only slow: the old script starts now, and abstains.
    assert 75 == edge.scheduling.run_again(lost)
    assert {finished.id: 1} == edge.site.starts()


def test_attempts_that_never_arrived_wait_the_longer_the_more_they_are(edge: Edge) -> None:
    edge.config = evolve(edge.config, retry=evolve(edge.config.retry, first_s=0.05, longest_s=60.0))
    for _ in range(3):
        edge.scheduling.lose_request()
    edge.start()
    edge.send()
    for number in (1, 2, 3):
        waiting = edge.wait("job", S.PREPROCESSED, times=number + 1)
        assert waiting.due - waiting.changed >= 0.75 * 50_000 * 2 ** (number - 1)
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert 4 == finished.attempt.number
    assert 4 == edge.scheduling.count("submit")


def test_a_member_whose_directory_cannot_be_made_does_not_spoil_its_group(edge: Edge) -> None:
    edge.config = evolve(edge.config, retry=evolve(edge.config.retry, tries=10))
    edge.scheduling.max_group = 10
    busy_lane(edge)
    for name in ("odd", "even"):
        edge.send(name)
        edge.wait(name, S.PREPROCESSED)
    directory = batch.job_directory(edge.config.work_directory, edge.job("odd").id)
    directory.mkdir(parents=True)
    (directory / "run").write_text("in the way")
    edge.scheduling.open_gate.set()
    edge.wait("even", S.JOB_FINISHED)


def test_every_token_of_a_group_is_durable_before_its_intents_are(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    make_durable, apply = batch.RunDirectory.make_durable, Store.apply

    def noting_tokens(run: batch.RunDirectory) -> None:
        assert run.token() is not None
        make_durable(run)
        seen.append("token")

    def noting_intents(store: Store, changes: Sequence[Change]) -> Any:
        seen.extend("intent" for change in changes if change.after.state is S.SUBMITTING)
        return apply(store, changes)

    edge.scheduling.max_group = 10
    busy_lane(edge)
    for name in ("one", "other", "third"):
        edge.send(name)
        edge.wait(name, S.PREPROCESSED)
    monkeypatch.setattr(batch.RunDirectory, "make_durable", noting_tokens)
    monkeypatch.setattr(Store, "apply", noting_intents)
    edge.scheduling.open_gate.set()
    edge.wait("third", S.JOB_FINISHED)
    assert ["token"] * 3 + ["intent"] * 3 == seen


def test_nothing_is_concluded_from_a_batch_system_that_stays_silent_after_a_submission(edge: Edge) -> None:
    edge.scheduling.open_gate.clear()
    edge.start()
    edge.send()
    assert edge.scheduling.at_gate.acquire(timeout=10)
    edge.scheduling.down = "Unable to contact slurm controller"
    edge.scheduling.open_gate.set()
    edge.wait("job", S.SUBMITTING)
    edge.wait_looks()
    assert S.SUBMITTING is edge.job().state
    edge.scheduling.down = ""
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert 2 == finished.attempt.number


def test_a_member_without_an_answer_is_looked_for(edge: Edge) -> None:
    def silent(group: Group) -> dict[str, SubmissionAnswer]:
        edge.scheduling.take(group)
        return {}

    edge.scheduling.submits.append(silent)
    edge.start()
    edge.send()
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert 1 == finished.attempt.number
    assert edge.scheduling.count("find") >= 1


def test_a_refused_submission_that_started_all_the_same_counts_as_started(edge: Edge) -> None:
    def refused_and_run(group: Group) -> dict[str, SubmissionAnswer]:
        edge.scheduling.take(group)
        entry = edge.scheduling.entries[-1]
        assert entry.process is not None
        entry.process.wait(10)
        return {group.tag: Refused(kind=Refusal.PERMANENT, reason="error after the fact")}

    edge.scheduling.submits.append(refused_and_run)
    edge.start()
    edge.send()
    finished = edge.wait("job", S.JOB_FINISHED)
    assert {finished.id: 1} == edge.site.starts()


def test_a_driver_that_fails_in_its_own_way_while_submitting_does_not_stop_the_others(edge: Edge) -> None:
    def broken(group: Group) -> dict[str, SubmissionAnswer]:
        raise KeyError("JOBID")

    edge.scheduling.submits.append(broken)
    edge.start()
    edge.send("unlucky")
    edge.send("lucky")
    edge.wait("lucky", S.JOB_FINISHED)
    finished = edge.wait("unlucky", S.JOB_FINISHED)
    assert {finished.id: 1, edge.job("lucky").id: 1} == edge.site.starts()


def test_a_submission_that_repeated_itself_runs_once_under_the_id_that_the_token_names(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    first = edge.wait_entry()
    second = evolve(first, batch_id="2002")
    edge.scheduling.entries.append(second)
    edge.scheduling.start(second)
    assert second.process is not None
    second.process.wait(10)
    assert 75 == edge.scheduling.run_again(first)
    edge.scheduling.end(first, "COMPLETED", 75)
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert ("2002", 0) == (finished.attempt.batch_id, finished.attempt.exit_code)
    assert {finished.id: 1} == edge.site.starts()
