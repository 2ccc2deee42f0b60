"""The driver for amqps:// and amqp:// keeps the contract of the messaging role, against a real RabbitMQ."""

from __future__ import annotations

from typing import Any

import pytest
from testbed.rabbitmq import RabbitMQ

from edgecore.testing.messaging import MessageBroker, MessagingContract

pytestmark = pytest.mark.slow

_PREFETCH = 20
_SOON: dict[str, Any] = {"prefetch": _PREFETCH, "reconnect_s": 1.0, "answer_timeout_s": 20.0}


class Server(MessageBroker):
    """The worker's own server, and a way to connect to it."""

    def __init__(self, server: RabbitMQ, settings: dict[str, Any]) -> None:
        self.server, self.settings = server, settings

    def stop(self) -> None:
        self.server.stop()

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()


class TestAmqps(MessagingContract):
    driver = "amqps"
    live = True
    prefetch = _PREFETCH

    @pytest.fixture
    def broker(self, rabbitmq: RabbitMQ) -> MessageBroker:
        return Server(rabbitmq, rabbitmq.settings(**_SOON))


class TestAmqpWithClassicQueues(MessagingContract):
    driver = "amqp"
    live = True
    prefetch = _PREFETCH
    forgets = "a classic queue writes acknowledgements down some time after it has answered"

    @pytest.fixture
    def broker(self, rabbitmq: RabbitMQ) -> MessageBroker:
        return Server(rabbitmq, rabbitmq.plain_settings(quorum=False, **_SOON))
