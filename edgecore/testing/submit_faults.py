"""Faults around a submission: an answer that is lost, a service that dies, a batch system that refuses.

Faults 9 to 11, 16, 18 and 19 of the matrix. Whatever becomes of the answer, an attempt is submitted once.
"""

from __future__ import annotations

from typing import Final

import pytest

from edgecore.models import JobState as S
from edgecore.models import NativeState, Refusal
from edgecore.testing.batch_system import SubmitFault
from edgecore.testing.bench import Bench
from edgecore.testing.campaign import Campaign
from edgecore.testing.contract import MakeBench, SchedulingTests

__all__ = ["SubmitFaults"]

_POINTS = (
    "token made",
    "before SUBMITTING is committed",
    "SUBMITTING committed",
    "before submit",
    "after submit",
    "before SUBMITTED is committed",
    "SUBMITTED committed",
    "observed",
    "before EXECUTION_FINISHED is committed",
    "EXECUTION_FINISHED committed",
)
"""Where a service dies; see `edgecore.testing.doomed`."""
_AN_HOUR_S: Final = 3_600.0
_OF_A_RUNNING_JOB = ("before EXECUTION_FINISHED is committed", "EXECUTION_FINISHED committed")


@pytest.mark.slow
class SubmitFaults(SchedulingTests):
    """Show that nothing is submitted twice, and nothing that was submitted is lost."""

    # ------------------------------------------------------------------ 9 and 10: the answer

    @pytest.mark.fault(9)
    def test_an_id_counts_although_the_command_says_that_it_failed(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        with bench.system.spoil_submit(SubmitFault.FAILS_WITH_ID), bench.service():
            bench.submit()
            bench.wait("job", S.SUBMITTED)
            bench.end("job", S.JOB_FINISHED)
        assert [bench.batch_id()] == [job.batch_id for job in bench.system.jobs()]
        bench.close_books({"job": 1})

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param(fault, marks=pytest.mark.fault(10, fault), id=fault.name)
            for fault in (SubmitFault.DIES, SubmitFault.HANGS)
        ],
    )
    def test_a_submission_whose_answer_is_lost_is_adopted_and_not_repeated(
        self, make_bench: MakeBench, fault: SubmitFault
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.system.pause()  # so that no script tells its id: the tag alone leads to the job
            with bench.system.spoil_submit(fault):
                bench.submit()
                bench.wait("job", S.QUEUED)
            bench.system.resume()
            bench.end("job", S.JOB_FINISHED)
        assert [bench.batch_id()] == [job.batch_id for job in bench.system.jobs()]
        bench.close_books({"job": 1})

    # ------------------------------------------------------------------ 11: the service is killed

    @pytest.mark.parametrize("point", _POINTS)
    @pytest.mark.fault(11)
    def test_a_service_that_is_killed_at_any_point_of_a_submission_runs_the_job_once(
        self, make_bench: MakeBench, point: str
    ) -> None:
        bench = make_bench()
        bench.submit()
        if point not in _OF_A_RUNNING_JOB:
            bench.system.pause()  # so that no script tells its id: the tag alone leads to the job
        bench.site.die(point)
        with bench.service():
            if point not in _OF_A_RUNNING_JOB:
                bench.wait("job", S.QUEUED)
                bench.system.resume()
            bench.wait("job", S.JOB_FINISHED)
            # An intent that nobody acted on is given up for a new attempt: an attempt is never submitted twice.
            attempt = 2 if point in ("before submit", "SUBMITTING committed") else 1
            bench.end("job", S.JOB_FINISHED, attempt=attempt)
        assert 1 == len(bench.system.jobs())
        bench.close_books({"job": 1})

    @pytest.mark.fault(11)
    def test_a_service_that_is_killed_again_while_it_looks_for_what_it_submitted_adopts_it(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        bench.submit()
        bench.system.pause()
        bench.site.die("after submit")
        bench.site.die("looked for by tag")
        with bench.service():
            bench.wait("job", S.QUEUED)
            bench.system.resume()
            bench.wait("job", S.JOB_FINISHED)
            bench.end("job", S.JOB_FINISHED)
        assert [bench.batch_id()] == [job.batch_id for job in bench.system.jobs()]
        bench.close_books({"job": 1})

    @pytest.mark.fault(11)
    def test_kills_at_random_times_change_nothing(
        self, make_bench: MakeBench, request: pytest.FixtureRequest
    ) -> None:
        kills, in_flight = (request.config.getoption(name) for name in ("--kills", "--in-flight"))
        bench = make_bench(lost_after_s=4, grace_s=2)
        Campaign(site=bench.site, kills=kills, in_flight=in_flight, seed=2017).run()
        assert len(bench.site.jobs()) == sum(job.executions for job in bench.system.jobs())

    # ------------------------------------------------------------------------- 16: refused for load

    @pytest.mark.fault(16)
    def test_a_refusal_for_load_is_waited_out_and_fails_nothing(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        with bench.service():
            with bench.system.refusing(Refusal.TRANSIENT) as words:
                bench.submit()
                bench.wait("job", S.SUBMITTING, times=2)
                bench.wait_message(words.lower())
            bench.wait("job", S.JOB_FINISHED)
        assert 0 == bench.job().retries_used
        assert "SUBMIT_FAILED" not in bench.states()
        bench.close_books({"job": 1})

    @pytest.mark.fault(16, "for good")
    def test_a_refusal_for_good_fails_the_job_with_the_batch_systems_words(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service(), bench.system.refusing(Refusal.PERMANENT) as words:
            bench.submit()
            bench.end("job", S.JOB_FAILED, exit_code=None, words=words.lower())
            assert "SUBMIT_FAILED" in bench.states()
        bench.close_books({"job": 0})

    # --------------------------------------------------------------- 18: acknowledged, then lost

    @pytest.mark.fault(18)
    def test_a_job_that_the_batch_system_lost_and_whose_id_another_got_is_submitted_anew(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.queue()
            batch_id = bench.batch_id()
            bench.system.lose(batch_id)
            bench.system.give_away(batch_id)
            bench.system.resume()
            bench.end("job", S.JOB_FINISHED, attempt=2)
        assert "revoked" == bench.token(1)
        assert batch_id != bench.batch_id()
        assert bench.system.stranger_is_alive(batch_id)
        assert 0 == bench.job().retries_used
        bench.close_books({"job": 1})

    # -------------------------------------------------------------------------- 19: can never run

    @pytest.mark.fault(19)
    def test_what_can_never_run_is_reported_and_taken_back_after_a_time(self, make_bench: MakeBench) -> None:
        bench = make_bench(stuck_after_s=1)
        with bench.service(), bench.system.spoil_submit(SubmitFault.NEVER_RUNS):
            bench.submit(retries=1)
            bench.wait("job", S.JOB_FAILED)
            (native,) = bench.system.jobs()
            assert NativeState.ENDED is native.state
        self._check_taken_back(bench, "never start it")
        bench.close_books({"job": 0})

    @pytest.mark.fault(19, "held")
    def test_what_is_held_for_ever_is_reported_and_taken_back_after_a_time(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench(overdue_after_s=_AN_HOUR_S)
        with bench.service():
            bench.queue()
            bench.system.hold(bench.batch_id())
            bench.wait("job", S.HELD)
        with bench.service(ahead_s=_AN_HOUR_S):
            bench.wait("job", S.JOB_FAILED)
            assert NativeState.ENDED is bench.native(bench.batch_id()).state
            bench.system.resume()
        self._check_taken_back(bench, "longer than this site allows")
        bench.close_books({"job": 0})

    def _check_taken_back(self, bench: Bench, words: str) -> None:
        """Check that people were told once, with the batch system's reason, and that it can never start."""
        job = bench.job()
        said = job.message.partition(words)[2].partition(": ")
        assert said[2].strip(), f"no reason of the batch system's: {bench.site.diagnosis()}"
        assert 1 == bench.site.log.count(f"alarm: job {job.id}:")
        assert "revoked" == bench.token()
