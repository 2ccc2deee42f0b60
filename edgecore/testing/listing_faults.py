"""Faults of what a batch system tells: silence, half sentences, unknown words and other people's jobs.

Faults 1 to 8 and 17 of the matrix. Nothing of this is evidence that a job ended, and none of it may
touch the jobs beside it.
"""

from __future__ import annotations

import re

import pytest

from edgecore.models import JobState as S
from edgecore.testing.batch_system import Command, Ending, Garbling, Word
from edgecore.testing.bench import PATIENT_S, Bench
from edgecore.testing.contract import MakeBench, SchedulingTests
from edgecore.testing.site import DEADLINE_S, wait_for

__all__ = ["ListingFaults"]

_SILENT = "the batch system does not answer"
_BACK = "batch system: it answers again"
_ALARM = "alarm: batch system"
_CLEARED = "alarm cleared: batch system"
_AT_PEACE = ["CREATED", "STAGED_IN", "PREPROCESSED", "SUBMITTING", "SUBMITTED"]


def _drivers_warnings(bench: Bench) -> list[str]:
    """Return the warnings that did not come from edgecore's own modules."""
    warnings = re.findall(r"^WARNING:(\S+?):(.*)$", bench.site.log, re.MULTILINE)
    return [words for logger, words in warnings if not re.match(r"edgecore\.(?!builtin)", logger)]


@pytest.mark.slow
class ListingFaults(SchedulingTests):
    """Show that what is not said proves nothing."""

    # ------------------------------------------------------------- 1: missing from a listing

    @pytest.mark.fault(1)
    def test_a_waiting_job_that_some_listings_leave_out_stays_as_it_was(self, make_bench: MakeBench) -> None:
        bench = make_bench(lost_after_s=PATIENT_S)
        with bench.service():
            bench.queue()
            with bench.system.unlisted(bench.batch_id()):
                bench.wait_looks()
                assert [*_AT_PEACE, "QUEUED"] == bench.states()
                assert "ready" == bench.token()
            bench.system.resume()
            bench.end("job", S.JOB_FINISHED)
        bench.close_books({"job": 1})

    @pytest.mark.fault(1)
    def test_a_running_job_that_some_listings_leave_out_stays_as_it_was(self, make_bench: MakeBench) -> None:
        bench = make_bench(lost_after_s=PATIENT_S)
        with bench.service():
            bench.start()
            before = bench.states()
            with bench.system.unlisted(bench.batch_id()):
                bench.wait_looks()
                assert before == bench.states()
            bench.site.let_end("job")
            bench.end("job", S.JOB_FINISHED)
        bench.close_books({"job": 1})

    # --------------------------------------------------------------- 2 and 3: no answer at all

    @pytest.mark.parametrize(
        "times",
        [
            pytest.param(1, marks=pytest.mark.fault(2, "once"), id="once"),
            pytest.param(3, marks=pytest.mark.fault(2, "thrice"), id="thrice"),
        ],
    )
    def test_a_query_that_fails_so_often_changes_nothing(self, make_bench: MakeBench, times: int) -> None:
        bench = make_bench()
        with bench.service():
            bench.start()
            before = bench.states()
            with bench.system.failing(Command.QUERY, Command.ACCOUNTING, times=times):
                bench.wait_log(_BACK)
                assert before == bench.states()
            bench.site.let_end("job")
            bench.end("job", S.JOB_FINISHED)
        assert 1 == bench.site.log.count(_SILENT)
        bench.close_books({"job": 1})

    @pytest.mark.fault(2, "for an hour")
    def test_a_query_that_fails_for_an_hour_is_alarmed_once_and_every_job_is_right_afterwards(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench(alarm_after_s=0.5)
        with bench.service():
            for name in ("stays", "ends"):
                bench.start("patient", name)
            with bench.system.failing(Command.QUERY, Command.ACCOUNTING):
                bench.wait_log(_ALARM)
                bench.site.let_end("ends")
                bench.wait_token("ended", name="ends")
                bench.wait_failed_looks()
                assert {S.RUNNING} == {job.state for job in bench.site.jobs()}
            bench.end("ends", S.JOB_FINISHED)
            bench.wait_log(_CLEARED)
            assert S.RUNNING is bench.job("stays").state
            bench.site.let_end("stays")
            bench.end("stays", S.JOB_FINISHED)
        assert [1, 1, 1] == [bench.site.log.count(words) for words in (_SILENT, _ALARM, _CLEARED)]
        bench.close_books({"stays": 1, "ends": 1})

    @pytest.mark.fault(3)
    def test_a_query_that_hangs_is_given_up_and_changes_nothing(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        with bench.service():
            bench.start()
            before = bench.states()
            with bench.system.hanging(Command.QUERY, Command.ACCOUNTING):
                bench.wait_failed_looks(2)
                assert before == bench.states()
            bench.site.let_end("job")
            bench.end("job", S.JOB_FINISHED)
        assert 1 == bench.site.log.count(_SILENT)
        bench.close_books({"job": 1})

    # ------------------------------------------------------------------------- 4: accounting

    @pytest.mark.fault(4, "off")
    def test_without_accounting_ends_and_exit_codes_are_known_all_the_same(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.system.without_accounting(), bench.service():
            self._good_and_bad(bench)
        bench.close_books({"good": 1, "bad": 1})

    @pytest.mark.fault(4, "behind")
    def test_with_accounting_behind_ends_and_exit_codes_are_known_all_the_same(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.system.accounting_behind(), bench.service():
            self._good_and_bad(bench)
        bench.close_books({"good": 1, "bad": 1})

    def _good_and_bad(self, bench: Bench) -> None:
        bench.submit("quick", "good")
        bench.submit("fails", "bad")
        bench.wait("good", S.JOB_FINISHED)
        bench.wait("bad", S.JOB_FAILED)
        bench.end("good", S.JOB_FINISHED)
        bench.end("bad", S.JOB_FAILED, exit_code=3)

    # ------------------------------------------------------------------- 5 and 6: state words

    @pytest.mark.fault(5)
    def test_an_unknown_state_word_is_warned_of_once_and_its_job_alone_waits(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            for name in ("victim", "other"):
                bench.start("patient", name)
            before = bench.states("victim")
            with bench.system.showing(bench.batch_id("victim"), Word.UNKNOWN):
                bench.wait_looks()
                bench.site.let_end("other")
                bench.end("other", S.JOB_FINISHED)
                assert before == bench.states("victim")
            assert 1 == len(_drivers_warnings(bench)), bench.site.log
            bench.site.let_end("victim")
            bench.end("victim", S.JOB_FINISHED)
        bench.close_books({"victim": 1, "other": 1})

    @pytest.mark.fault(5)
    def test_a_job_that_ends_under_an_unknown_state_word_is_ended_by_its_own_record(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench()
        with bench.service():
            bench.start()
            with bench.system.showing(bench.batch_id(), Word.UNKNOWN):
                bench.site.let_end("job")
                bench.end("job", S.JOB_FINISHED)
        bench.close_books({"job": 1})

    @pytest.mark.fault(6)
    def test_a_decorated_state_word_counts_by_its_first_word(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        with bench.service():
            bench.start()
            before = bench.states()
            with bench.system.showing(bench.batch_id(), Word.DECORATED):
                bench.wait_looks()
                assert before == bench.states()
                bench.system.interrupt(bench.batch_id(), Ending.CANCELLED)
                bench.wait("job", S.JOB_FAILED)
                assert self.words[Ending.CANCELLED] in bench.job().message.lower()
        assert [] == _drivers_warnings(bench)
        bench.close_books({"job": 1})

    # ----------------------------------------------------------------------- 7: damaged output

    @pytest.mark.parametrize(
        "how", [pytest.param(how, marks=pytest.mark.fault(7, how), id=how.name) for how in Garbling]
    )
    def test_damaged_output_costs_at_most_the_one_job_whose_line_it_is(
        self, make_bench: MakeBench, how: Garbling
    ) -> None:
        bench = make_bench(lost_after_s=PATIENT_S)
        with bench.service():
            for name in ("first", "victim", "last"):
                bench.start("patient", name)
            before = {name: bench.states(name) for name in ("first", "victim", "last")}
            with bench.system.garbling(bench.batch_id("victim"), how):
                bench.wait_questions()
                assert before == {name: bench.states(name) for name in before}
                if how is not Garbling.EMPTY:  # which a driver may well take for no answer
                    for name in ("first", "last"):
                        bench.site.let_end(name)
                        bench.end(name, S.JOB_FINISHED)
                assert before["victim"] == bench.states("victim")
            for name in before:
                bench.site.let_end(name)
                bench.end(name, S.JOB_FINISHED)
        bench.close_books({"first": 1, "victim": 1, "last": 1})

    # --------------------------------------------------------------------- 8: a batch id re-used

    @pytest.mark.fault(8)
    def test_an_id_that_now_is_somebody_elses_is_neither_observed_nor_cancelled(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench(lost_after_s=PATIENT_S)
        with bench.service():
            bench.queue()
            batch_id = bench.batch_id()
            bench.system.lose(batch_id)
            bench.system.give_away(batch_id)
            bench.wait_looks()
            assert [*_AT_PEACE, "QUEUED"] == bench.states(), "the stranger runs, not we"
            bench.cancel()
            bench.end("job", S.JOB_CANCELLED, exit_code=None)
        assert bench.system.stranger_is_alive(batch_id)
        assert "revoked" == bench.token()
        bench.close_books({"job": 0})

    @pytest.mark.fault(8)
    def test_a_job_whose_id_was_re_used_while_we_were_away_is_ended_by_its_own_record(
        self, make_bench: MakeBench
    ) -> None:
        bench = make_bench(lost_after_s=PATIENT_S)
        with bench.service():
            bench.start("patient")
        batch_id = bench.batch_id()
        bench.site.let_end("job")
        bench.wait_token("ended")
        bench.system.forget(batch_id)
        bench.system.give_away(batch_id)
        with bench.service():
            bench.end("job", S.JOB_FINISHED)
        assert bench.system.stranger_is_alive(batch_id)
        bench.close_books({"job": 1})

    # -------------------------------------------------------------- 17: shows up again as running

    @pytest.mark.fault(17)
    def test_an_ended_job_that_the_batch_system_starts_again_stays_ended(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        with bench.service():
            bench.submit("quick")
            bench.end("job", S.JOB_FINISHED)
            batch_id = bench.batch_id()
            bench.system.requeue(batch_id)
            wait_for(lambda: bench.native(batch_id).executions == 2, DEADLINE_S)
            bench.start("patient", "later")
            bench.wait_looks()
            bench.site.let_end("later")
            bench.end("later", S.JOB_FINISHED)
            bench.end("job", S.JOB_FINISHED)
        bench.close_books({"job": 1, "later": 1}, executions=3)
