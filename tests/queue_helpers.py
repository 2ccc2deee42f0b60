"""Help the tests of the queue: short names for what every one of them does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from edgecore.builtin import queue as queue_module
from edgecore.builtin.queue import SqliteMessaging
from edgecore.models import Delivery, OutgoingMessage, Queue, SiteContext, Topology, Verdict
from edgecore.wakeup import Bell

__all__ = [
    "SITE",
    "TOPOLOGY",
    "Open",
    "connections",
    "flags",
    "ids",
    "message",
    "messages",
    "opened",
    "settle",
    "take",
    "waiting_bells",
]

SITE = SiteContext(site="theta", work_directory=Path("/nowhere"))
TOPOLOGY = Topology(
    exchanges=("hpc",),
    queues=(
        Queue(name="theta", exchange="hpc", keys=("theta", "all.#")),
        Queue(name="cori", exchange="hpc", keys=("cori", "all.*")),
    ),
)

Open = Callable[..., SqliteMessaging]


def opened(url: str, **settings: float) -> SqliteMessaging:
    driver = SqliteMessaging(url=url, **settings)
    try:
        driver.open(site=SITE)
        driver.declare(topology=TOPOLOGY)
    except BaseException:
        driver.close()
        raise
    return driver


def message(name: str, key: str = "theta", exchange: str = "hpc", body: bytes = b"{}") -> OutgoingMessage:
    return OutgoingMessage(exchange=exchange, key=key, body=body, message_id=name)


def messages(*names: str) -> list[OutgoingMessage]:
    return [message(name) for name in names]


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message_id or "" for delivery in deliveries]


def take(driver: SqliteMessaging, limit: int = 1000, queue: str = "theta") -> Sequence[Delivery]:
    return driver.receive(queue=queue, limit=limit, timeout_s=0)


def settle(
    driver: SqliteMessaging, deliveries: Sequence[Delivery], verdict: Verdict = Verdict.ACCEPT, why: str = ""
) -> int:
    return driver.settle(deliveries=deliveries, verdict=verdict, reason=why).count


def flags(deliveries: Sequence[Delivery]) -> list[tuple[str | None, bool]]:
    return [(delivery.message_id, delivery.redelivered) for delivery in deliveries]


def waiting_bells(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when a `receive` has found nothing and goes to sleep."""
    sleeps = threading.Event()

    class ToldBell(Bell):
        def wait(self, timeout_s: float) -> bool:
            sleeps.set()
            return super().wait(timeout_s)

    monkeypatch.setattr(queue_module, "Bell", ToldBell)
    return sleeps


@contextlib.contextmanager
def connections(url: str) -> Iterator[Open]:
    """Open as many drivers as a test asks for, and close them all."""
    drivers: list[SqliteMessaging] = []

    def connect(**settings: float) -> SqliteMessaging:
        drivers.append(opened(url, **settings))
        return drivers[-1]

    try:
        yield connect
    finally:
        for driver in drivers:
            driver.close()
