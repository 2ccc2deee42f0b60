"""Give tests the private RabbitMQ: one per process of pytest, since it takes seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from testbed.rabbitmq import RabbitMQ, why_missing

__all__ = ["rabbitmq", "rabbitmq_server"]


@pytest.fixture(scope="session")
def rabbitmq_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """The server, started; skipped where it cannot be, but not in continuous integration."""
    if missing := why_missing():
        if os.environ.get("CI"):
            pytest.fail(f"RabbitMQ is {missing}")
        pytest.skip(f"RabbitMQ is {missing}")
    server = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def rabbitmq(rabbitmq_server: RabbitMQ) -> RabbitMQ:
    """The server, running, whatever a test before has done to it."""
    rabbitmq_server.start()
    return rabbitmq_server
