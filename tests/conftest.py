"""Share fixtures between the test modules."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import Place, copied
from scripted import edge
from testbed.rabbitmq_fixtures import rabbitmq, rabbitmq_server
from testbed.slurm_fixtures import slurm, slurm_server

__all__ = ["edge", "original", "place", "rabbitmq", "rabbitmq_server", "slurm", "slurm_server"]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A site as `edgecore init` makes it, for copies."""
    return Place(tmp_path_factory.mktemp("original"))


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    """A site of the test's own."""
    return copied(original, tmp_path)
