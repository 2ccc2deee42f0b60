"""Share the servers that tests of several packages use, so that there is one of each per process of pytest."""

from __future__ import annotations

import pytest
from testbed.sharing import share
from testbed.slurm_fixtures import (
    slurm,
    slurm_accounting,
    slurm_accounting_server,
    slurm_server,
    slurm_strict,
)

__all__ = [
    "pytest_collection_modifyitems",
    "slurm",
    "slurm_accounting",
    "slurm_accounting_server",
    "slurm_server",
    "slurm_strict",
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort what several processes share; a single one keeps the order of the files."""
    if hasattr(config, "workerinput"):
        share(items)
