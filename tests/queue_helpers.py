"""Help the tests of the queue: short names for what every one of them does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgecore.builtin.queue import SqliteMessaging
from edgecore.models import Delivery, OutgoingMessage, Queue, SiteContext, Topology, Verdict

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
    "until",
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
    driver.open(site=SITE)
    driver.declare(topology=TOPOLOGY)
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


def until(condition: Callable[[], object], what: str, limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        pause.wait(0.005)


def flags(deliveries: Sequence[Delivery]) -> list[tuple[str | None, bool]]:
    return [(delivery.message_id, delivery.redelivered) for delivery in deliveries]


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
