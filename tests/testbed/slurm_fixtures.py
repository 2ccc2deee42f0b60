"""Give tests the private Slurm: one per process of pytest, empty and in order at the start of each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.slurm import Slurm, running_slurm

__all__ = ["slurm", "slurm_accounting", "slurm_accounting_server", "slurm_server"]


@pytest.fixture(scope="session")
def slurm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of four nodes without accounting; skipped where there is none, but not in continuous integration."""
    with running_slurm(tmp_path_factory.mktemp("slurm")) as server:
        yield server


@pytest.fixture
def slurm(slurm_server: Slurm) -> Slurm:
    """The cluster, whatever a test before has done to it."""
    slurm_server.clear()
    return slurm_server


@pytest.fixture(scope="session")
def slurm_accounting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of four nodes with slurmdbd and its database."""
    with running_slurm(tmp_path_factory.mktemp("slurm"), accounting=True) as server:
        yield server


@pytest.fixture
def slurm_accounting(slurm_accounting_server: Slurm) -> Slurm:
    """The cluster with accounting, whatever a test before has done to it."""
    slurm_accounting_server.clear()
    return slurm_accounting_server
