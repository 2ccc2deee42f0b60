"""The driver keeps the contract of the scheduling role on a real Slurm."""

from __future__ import annotations

from typing import ClassVar

import pytest
from slurm_live import LiveSlurm
from testbed.slurm import Slurm

from edgecore.testing import BatchSystem, Ending, SchedulingContract

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

    @pytest.fixture
    def batch_system(self, slurm_server: Slurm) -> BatchSystem:
        return LiveSlurm(slurm_server)
