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


_SEEN_ELSEWHERE = frozenset({"test_what_was_declared_and_sent_is_there_after_a_restart"})
"""A power failure asks for the same and more, a broker that is away is one that stops in good order; each start takes long."""


class TestAmqps(MessagingContract):
    driver = "amqps"
    live = True
    by_hand = _SEEN_ELSEWHERE
    prefetch = _PREFETCH

    @pytest.fixture
    def broker(self, rabbitmq: RabbitMQ) -> MessageBroker:
        return Server(rabbitmq, rabbitmq.settings(**_SOON))


_SAME_AS_AMQPS = frozenset(
    {
        "test_a_waiting_consumer_of_another_process_wakes_promptly",
        "test_between_several_producers_and_consumers_nothing_is_lost_or_doubled",
        "test_waiting_costs_less_than_a_hundredth_of_a_core",
        *_SEEN_ELSEWHERE,
        "test_while_the_broker_is_away_every_hook_says_so_and_works_again_afterwards",
    }
)
"""What the kind of a queue has no part in, or what a power failure shows as well; each starts the server or processes."""


class TestAmqpWithClassicQueues(MessagingContract):
    driver = "amqp"
    live = True
    by_hand = _SAME_AS_AMQPS
    prefetch = _PREFETCH
    forgets = "a classic queue writes acknowledgements down some time after it has answered"

    @pytest.fixture
    def broker(self, rabbitmq: RabbitMQ) -> MessageBroker:
        return Server(rabbitmq, rabbitmq.plain_settings(quorum=False, **_SOON))
