"""The built-in `fork` batch system keeps the scheduling contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_system import ForkBatchSystem

from edgecore.testing import BatchSystem, Ending, SchedulingContract

_NO_COMMANDS = "its driver runs no command: submission and listing are transactions of a local file"
_NO_TEXT = "its listing is no text: states are what the database's own constraint allows"


class TestFork(SchedulingContract):
    """The driver and its real supervisor, on this host."""

    driver = "fork"
    live = True
    accepted = {"num_nodes": 1}  # noqa: RUF012 - the contract declares it
    cannot = {  # noqa: RUF012 - the contract declares it
        (2, "once"): "what is in the way of its file is there for a time, not for a number of questions",
        (2, "thrice"): "what is in the way of its file is there for a time, not for a number of questions",
        3: "its driver gives a busy file up by itself, see `busy_timeout_s`; nothing can hang",
        (4, "behind"): "there is no accounting beside the listing",
        5: _NO_TEXT,
        6: _NO_TEXT,
        7: _NO_TEXT,
        9: _NO_COMMANDS,
        10: _NO_COMMANDS,
        (
            13,
            Ending.OUT_OF_MEMORY,
        ): "the kernel ends one process and tells nobody; the batch script reports 137",
        16: "its queue has no limit",
    }

    @pytest.fixture
    def batch_system(self, tmp_path: Path) -> Iterator[BatchSystem]:
        system = ForkBatchSystem(tmp_path / "spool")
        try:
            yield system
        finally:
            system.close()
