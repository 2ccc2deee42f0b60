"""The driver keeps the scheduling contract, every fault included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecore.testing import BatchSystem, SchedulingContract
from edgecore.testing.fake import FakeBatchSystem, PlainDialect


class TestFake(SchedulingContract):
    """The driver on its batch system, whose commands are real processes."""

    driver = "fake"

    @pytest.fixture
    def batch_system(self, tmp_path: Path) -> Iterator[BatchSystem]:
        settings = {"timeout_s": 2.0, "poll_interval_s": 0.1}
        with FakeBatchSystem(tmp_path / "fake", PlainDialect, settings=settings) as system:
            yield system
