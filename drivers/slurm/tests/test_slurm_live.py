"""The driver keeps the contract of the scheduling role on a real Slurm."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from slurm_live import LiveSlurm
from testbed.slurm import Slurm

from edgecore.testing import BatchSystem, Ending, SchedulingContract
from edgecore.testing.bench import Bench
from edgecore.testing.contract import MakeBench

_ITS_WORDS: str = (
    "its commands write what they write; the fake Slurm shows what the driver does with other words"
)
_FOR_A_TIME: str = "its server is down for a time, not for a number of questions"


@pytest.mark.slow
class TestLiveSlurm(SchedulingContract):
    """A cluster of four nodes without accounting, whose controller is stopped, frozen, killed and set back."""

    driver = "slurm"
    live = True
    accepted: ClassVar = {"queue": "batch", "project": "atlas", "options": {"nice": 7}}
    cannot: ClassVar = {
        (2, "once"): _FOR_A_TIME,
        (2, "thrice"): _FOR_A_TIME,
        (4, "behind"): "this cluster has no accounting; one that has it is tested beside this contract",
        5: _ITS_WORDS,
        6: _ITS_WORDS,
        7: _ITS_WORDS,
        17: "Slurm starts no ended job again that was submitted with --no-requeue, as the driver does; one that may be "
        "started again is tested beside this contract",
        9: "sbatch prints the id as the last thing it does",
        (
            13,
            Ending.OUT_OF_MEMORY,
        ): "no application of the contract takes memory; one that does is tested beside it",
    }

    by_hand: ClassVar = frozenset(
        {
            # Which are about the service more than about Slurm, or shown by another test here.
            "test_kills_at_random_times_change_nothing",
            "test_a_service_that_is_killed_at_any_point_of_a_submission_runs_the_job_once",
            "test_a_job_that_must_not_be_restarted_gets_a_new_attempt_where_retries_are_left",
            "test_a_lost_job_that_is_listed_again_runs_on",
            "test_a_lost_job_whose_walltime_is_long_over_is_fenced_and_ended",
            "test_a_running_job_that_some_listings_leave_out_stays_as_it_was",
            "test_a_submission_without_an_answer_is_found_by_its_tag",
            "test_a_waiting_job_that_is_only_unlisted_and_starts_late_finds_that_it_may_not",
            "test_an_end_by_the_batch_system_has_its_reason",
            # Which take long: thousands of jobs, or a time-out for each hook.
            "test_a_command_that_hangs_is_given_up_and_leaves_no_process",
            "test_a_group_that_is_too_large_is_split_or_refused_and_every_member_answered",
            "test_a_listing_that_is_longer_than_a_pipe_holds_is_read_whole",
        }
    )

    @pytest.fixture
    def batch_system(self, slurm_server: Slurm) -> BatchSystem:
        return LiveSlurm(slurm_server)

    @pytest.fixture
    def make_bench(self, tmp_path: Path, batch_system: BatchSystem) -> MakeBench:
        """Give Slurm time to say why a job ended whose own record is there already: it is COMPLETING meanwhile.

        And give whoever gets an id that was lost time to come before the service submits anew.
        """

        def make(**timing: float) -> Bench:
            patient = {"grace_s": 2, "lost_after_s": 4, **timing}
            return Bench.make(tmp_path / "site", self.driver, batch_system, patient)

        return make
