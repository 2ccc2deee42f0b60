"""The driver keeps the contract of the scheduling role, on a fake Slurm whose squeue forgets what has ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from slurm_dialect import SlurmWithoutMemory

from edgecore.testing import BatchSystem, SchedulingContract
from edgecore.testing.fake import FakeBatchSystem


@pytest.mark.slow
class TestSlurm(SchedulingContract):
    """MinJobAge is so short here that an end is seen in the accounting, which may be late or off, or nowhere."""

    driver = "slurm"
    # The campaign of tests/test_campaign.py kills a service on a real Slurm, and the broker and slurmctld as well.
    by_hand: ClassVar = frozenset({"test_kills_at_random_times_change_nothing"})
    accepted: ClassVar = {"queue": "batch", "project": "atlas", "options": {"constraint": "knl"}}

    @pytest.fixture
    def batch_system(self, tmp_path: Path) -> Iterator[BatchSystem]:
        settings = {"timeout_s": 3.0, "poll_interval_s": 0.1}
        with FakeBatchSystem(
            tmp_path / "fake", SlurmWithoutMemory, settings=settings, kill_grace_s=0.2
        ) as system:
            yield system
