"""How jobs end on a real Slurm that preempts, counts memory, or is without its accounting, is told for what it was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from slurm_live import LiveSlurm
from testbed.slurm import Slurm

from edgecore import batch
from edgecore.models import Application, JobState, NativeState, Reference
from edgecore.testing import Command
from edgecore.testing.bench import Bench
from edgecore.testing.client import Client
from edgecore.testing.site import DEADLINE_S, wait_for

pytestmark = pytest.mark.slow

_WHOLE: Final[Mapping[str, Any]] = {"num_nodes": 2, "processes_per_node": 4}
"""What takes all of the strict cluster."""
_MANY: Final = 5_000


@pytest.fixture
def bench(slurm_strict: Slurm, tmp_path: Path) -> Bench:
    """A site on the strict cluster."""
    system = LiveSlurm(slurm_strict)
    return Bench.make(tmp_path / "site", "slurm", system, {"grace_s": 5, "lost_after_s": 30})


def _output_of_slurm(bench: Bench) -> str:
    run = batch.run_directory(bench.site.config.work_directory, bench.job().id, 1)
    return "".join(path.read_text() for path in run.path.glob("slurm-*.out"))


def _preempt(slurm: Slurm) -> None:
    """Let somebody come whose work is more urgent."""
    shape = ["-N2", "--ntasks-per-node=4"]
    slurm.run("sbatch", "-J", "analysis", "-p", "urgent", "-o", "/dev/null", *shape, "--wrap", "sleep 1")


def test_a_restartable_job_that_is_preempted_goes_on_in_the_same_attempt(
    bench: Bench, slurm_strict: Slurm
) -> None:
    with bench.service():
        bench.start("restartable", **_WHOLE)
        _preempt(slurm_strict)
        bench.wait("job", JobState.RUNNING, times=2)
        bench.site.let_end("job")
        bench.end("job", JobState.JOB_FINISHED)
    bench.close_books({"job": 2})


def test_a_job_that_is_preempted_and_must_not_be_restarted_has_failed_for_that_reason(
    bench: Bench, slurm_strict: Slurm
) -> None:
    with bench.service():
        bench.start("patient", **_WHOLE)
        _preempt(slurm_strict)
        bench.wait("job", JobState.JOB_FAILED)
    assert "preempted" in bench.job().message.lower(), bench.site.diagnosis()
    bench.close_books({"job": 1})


def test_an_ended_job_that_an_administrator_queues_again_stays_ended(bench: Bench) -> None:
    bench.site.add_ledger("quick", restartable=True)
    with bench.service():
        bench.submit("quick")
        bench.end("job", JobState.JOB_FINISHED)
        bench.system.requeue(bench.batch_id())
        wait_for(lambda: bench.native(bench.batch_id()).executions == 2, DEADLINE_S, bench.system.jobs)
        bench.start("patient", "later")
        bench.wait_looks()
        bench.site.let_end("later")
        bench.end("later", JobState.JOB_FINISHED)
        bench.end("job", JobState.JOB_FINISHED)
    bench.close_books({"job": 1, "later": 1}, executions=3)


def test_a_job_that_takes_more_memory_than_it_asked_for_has_failed_by_sigkill(bench: Bench) -> None:
    eat = "x = b'x' * 400_000_000; import time; time.sleep(100)"
    bench.site.add(Application(name="eats", executable="/usr/bin/env", arguments=("python3", "-c", eat)))
    with bench.service():
        bench.submit("eats")
        bench.wait("job", JobState.JOB_FAILED)
    job = bench.job()
    assert job.attempt is not None
    # Without control groups Slurm calls it FAILED, with a reason that is of little help; its own words are in the output.
    assert "exceeded memory limit" in _output_of_slurm(bench)
    assert 0 != job.attempt.exit_code
    assert "stopped" == bench.token(), bench.site.diagnosis()


def test_while_slurmdbd_is_down_jobs_are_taken_watched_and_ended_by_their_own_record(
    bench: Bench, slurm_strict: Slurm
) -> None:
    assert slurm_strict.slurmdbd is not None
    slurm_strict.slurmdbd.stop()
    try:
        with bench.service():
            bench.submit("quick", "good")
            bench.submit("fails", "bad")
            bench.end("good", JobState.JOB_FINISHED)
            bench.end("bad", JobState.JOB_FAILED, exit_code=3)
            slurm_strict.slurmdbd.start()
            bench.submit("fails", "later")
            bench.end("later", JobState.JOB_FAILED, exit_code=3)
    finally:
        slurm_strict.slurmdbd.start()
    assert 1 == bench.site.log.count("going on without accounting")
    bench.close_books({"good": 1, "bad": 1, "later": 1})


def test_five_thousand_queued_jobs_are_seen_in_one_question(slurm: Slurm, tmp_path: Path) -> None:
    system = LiveSlurm(slurm, timeout_s=60)
    client = Client("slurm", system, tmp_path / "client")
    arrays = [
        slurm.run(
            "sbatch", "--parsable", "-H", f"-J{_tag(number)}", "-a0-999", "-o", "/dev/null", "--wrap", "true"
        )
        for number in range(_MANY // 1000)
    ]
    references = [
        Reference(
            tag=f"{_tag(number)}{index}",
            group_tag=_tag(number),
            index=index,
            batch_id=f"{array}_{index}",
            directory=tmp_path,
            submitted=time.time_ns() // 1000,
        )
        for number, array in enumerate(arrays)
        for index in range(1000)
    ]
    before = system.asked(Command.QUERY)
    seen = client.relay.observe(references=references)
    assert 1 == system.asked(Command.QUERY) - before
    assert _MANY == len(seen)
    assert {NativeState.HELD} == {each.state for each in seen.values()}
    client.relay.close()


def _tag(number: int) -> str:
    return f"emany{number}"
