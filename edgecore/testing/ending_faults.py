"""Faults of how jobs end: by others, again, without a word, or while nobody looked.

Faults 12 to 15 of the matrix. An end is what the token or the batch system's own word proves; a
second start is told apart from the first.
"""

from __future__ import annotations

from typing import Final

import pytest

from edgecore.models import JobState as S
from edgecore.testing.batch_system import Ending
from edgecore.testing.contract import MakeBench, SchedulingTests

__all__ = ["EndingFaults"]

_AN_HOUR_AND_MORE_S: Final = 3_700.0
"""After which an execution is past the walltime that a definition asks for by default."""

_EACH_ENDING = pytest.mark.parametrize(
    "ending", [pytest.param(ending, marks=pytest.mark.fault(13, ending), id=ending.name) for ending in Ending]
)


def _plain(words: str) -> str:
    return words.lower().replace("_", " ")


@pytest.mark.slow
class EndingFaults(SchedulingTests):
    """Show that each end is told for what it was."""

    # -------------------------------------------------------------------------- 12: requeue

    @pytest.mark.fault(12)
    def test_a_restartable_job_that_is_requeued_goes_on_as_the_same_attempt(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.start("restartable")
            bench.system.requeue(bench.batch_id())
            bench.site.let_end("job")
            bench.end("job", S.JOB_FINISHED)
        assert 1 == len(bench.system.jobs())
        bench.close_books({"job": 2})

    @pytest.mark.fault(12)
    def test_a_restartable_job_that_is_told_to_stop_and_requeued_goes_on_as_the_same_attempt(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.start("restartable")
            bench.system.preempt(bench.batch_id())
            bench.site.let_end("job")
            bench.end("job", S.JOB_FINISHED)
        assert 1 == len(bench.system.jobs())
        bench.close_books({"job": 2})

    @pytest.mark.fault(12)
    def test_a_restartable_job_that_is_told_to_stop_and_never_goes_on_has_failed(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.start("restartable")
            bench.system.pause()
            bench.system.preempt(bench.batch_id())
            bench.system.forget(bench.batch_id())
            bench.wait("job", S.JOB_FAILED)
        assert "stopped" == bench.token()
        bench.close_books({"job": 1})

    @pytest.mark.fault(12)
    def test_a_job_that_must_not_be_restarted_abstains_and_fails_without_a_retry(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.start("patient")
            bench.system.requeue(bench.batch_id())
            bench.wait("job", S.JOB_FAILED)
        assert "stopped" == bench.token()
        bench.close_books({"job": 1}, executions=2)

    @pytest.mark.fault(12)
    def test_a_job_that_must_not_be_restarted_gets_a_new_attempt_where_retries_are_left(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.start("patient", retries=1)
            bench.system.requeue(bench.batch_id())
            bench.site.let_end("job")
            bench.end("job", S.JOB_FINISHED, attempt=2)
        assert ["stopped", "ended"] == [bench.token(1), bench.token(2)]
        bench.close_books({"job": 2}, executions=3)

    # ---------------------------------------------------------------- 13: ended or held by others

    @_EACH_ENDING
    def test_a_running_job_that_the_batch_system_ends_says_why(
        self, make_bench: MakeBench, ending: Ending
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.start()
            bench.system.interrupt(bench.batch_id(), ending)
            bench.wait("job", S.JOB_FAILED)
        job = bench.job()
        assert "EXECUTION_FAILED" in bench.states()
        assert self.words[ending] in _plain(job.message), bench.site.diagnosis()
        assert job.attempt is not None
        assert 0 != job.attempt.exit_code
        assert bench.token() in ("stopped", "ended")
        bench.close_books({"job": 1})

    @pytest.mark.fault(13, Ending.CANCELLED)
    def test_a_waiting_job_that_somebody_removes_never_ran(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        with bench.service():
            bench.queue()
            bench.system.interrupt(bench.batch_id(), Ending.CANCELLED)
            bench.wait("job", S.JOB_FAILED)
            bench.system.resume()
        assert "EXECUTION_FAILED" in bench.states()
        assert "revoked" == bench.token()
        assert self.words[Ending.CANCELLED] in _plain(bench.job().message)
        bench.close_books({"job": 0})

    @pytest.mark.fault(13, "held")
    def test_a_job_that_an_administrator_holds_is_shown_so_and_runs_when_it_is_released(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.queue()
            bench.system.hold(bench.batch_id())
            bench.wait("job", S.HELD)
            bench.system.resume()
            bench.wait_looks()
            assert S.HELD is bench.job().state
            bench.system.release(bench.batch_id())
            bench.end("job", S.JOB_FINISHED)
        bench.close_books({"job": 1})

    # ------------------------------------------------------------ 14: ended and purged meanwhile

    @pytest.mark.fault(14)
    @pytest.mark.parametrize(("application", "code"), [("quick", 0), ("fails", 3)])
    def test_a_job_that_ended_and_was_purged_while_nobody_looked_is_known_by_its_record(
        self, make_bench: MakeBench, application: str, code: int
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.queue(application)
        bench.system.resume()
        bench.wait_token("ended")
        bench.system.forget(bench.batch_id())
        with bench.service():
            bench.wait("job", S.JOB_FAILED if code else S.JOB_FINISHED)
        bench.end("job", S.JOB_FAILED if code else S.JOB_FINISHED, exit_code=code)
        bench.close_books({"job": 1})

    # ------------------------------------------------------------------- 15: gone without a word

    @pytest.mark.fault(15)
    def test_a_waiting_job_that_nobody_knows_any_more_is_revoked_and_submitted_anew(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.queue()
            bench.system.lose(bench.batch_id())
            bench.system.resume()
            bench.end("job", S.JOB_FINISHED, attempt=2)
        assert "revoked" == bench.token(1)
        bench.close_books({"job": 1})

    @pytest.mark.fault(15)
    def test_a_waiting_job_that_is_only_unlisted_and_starts_late_finds_that_it_may_not(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.queue()
            with bench.system.unlisted(bench.batch_id()):
                bench.wait_token("revoked")
                bench.system.resume()
                bench.end("job", S.JOB_FINISHED, attempt=2)
        bench.close_books({"job": 1}, executions=2)

    @pytest.mark.fault(15)
    def test_a_running_job_that_nobody_knows_is_lost_and_alarmed_until_its_record_tells(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            lost = bench.start()
            bench.system.forget(bench.batch_id())
            bench.wait("job", S.LOST)
            bench.wait_looks()
            assert S.LOST is bench.job().state
            bench.site.let_end("job")
            bench.end("job", S.JOB_FINISHED)
            bench.wait_log(f"alarm cleared: job {lost.id}")
        assert 1 == bench.site.log.count(f"alarm: job {lost.id}:")
        bench.close_books({"job": 1})

    @pytest.mark.fault(15)
    def test_a_lost_job_that_is_listed_again_runs_on(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        with bench.service():
            lost = bench.start()
            with bench.system.unlisted(bench.batch_id()):
                bench.wait("job", S.LOST)
            bench.wait("job", S.RUNNING, times=2)
            bench.wait_log(f"alarm cleared: job {lost.id}")
            bench.site.let_end("job")
            bench.end("job", S.JOB_FINISHED)
        bench.close_books({"job": 1})

    @pytest.mark.fault(15)
    def test_a_lost_job_whose_walltime_is_long_over_is_fenced_and_ended(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        with bench.service():
            bench.start()
            bench.system.forget(bench.batch_id())
            bench.wait("job", S.LOST)
        with bench.service(ahead_s=_AN_HOUR_AND_MORE_S):
            bench.wait("job", S.JOB_FAILED)
        assert "stopped" == bench.token()
        assert "walltime" in bench.job().message
        bench.close_books({"job": 1})
