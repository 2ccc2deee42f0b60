"""Work with a driver in a process of its own, so that a test can kill it.

``python -m edgecore.testing.worker`` reads one line of JSON: the role, the driver's name and settings, and
what to do. It finds the driver by its entry point as a service does, says on stdout how far it is,
one line each, and ends when told so or killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import define

from edgecore import serial
from edgecore.drivers import find_driver
from edgecore.models import Delivery, OutgoingMessage, SiteContext, TransferUpdate, Verdict
from edgecore.relays import MessagingRelay, TransferRelay

__all__ = ["Worker", "make_driver", "working"]

_WAIT_S: Final = 30.0
_PATIENCE_S: Final = 120.0


def make_driver(role: str, name: str, settings: Mapping[str, Any]) -> Any:
    """Make the installed driver *name* with its *settings*, not yet opened."""
    return serial.structure(find_driver(role, name), dict(settings), source=f"the contract's {name}")


# ------------------------------------------------------------------------------ the test's side


@define(eq=False)
class Worker:
    """One process that works with a driver."""

    process: subprocess.Popen[str]

    def line(self) -> str:
        """Wait for the next line that it says; empty when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> list[str]:
        """End it without a word, as ``kill -9`` does; return what it had said besides."""
        self.process.kill()
        return self.rest()

    def rest(self) -> list[str]:
        """Wait for its end; return the lines that it says until then. One that does not end is killed."""
        assert self.process.stdout is not None
        patience = threading.Timer(_PATIENCE_S, self.process.kill)
        patience.start()
        try:
            lines = self.process.stdout.read().splitlines()
            self.process.wait(_WAIT_S)
        finally:
            patience.cancel()
        return lines

    @property
    def killed(self) -> bool:
        """Tell whether it was killed, and had not ended before."""
        return self.process.wait(_WAIT_S) == -signal.SIGKILL


@contextmanager
def working(
    role: str, driver: str, settings: Mapping[str, Any], site: SiteContext
) -> Iterator[Callable[..., Worker]]:
    """Give a way to start workers, ``start(task, *arguments)``; none of them outlives the context."""
    workers: list[Worker] = []

    def start(task: str, *arguments: object) -> Worker:
        order = {
            "role": role,
            "driver": driver,
            "settings": dict(settings),
            "environment": dict(site.environment),
            "site": site.site,
            "work_directory": str(site.work_directory),
            "task": task,
            "arguments": list(arguments),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "edgecore.testing.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        workers.append(Worker(process))
        assert process.stdin is not None
        process.stdin.write(json.dumps(order, default=str) + "\n")
        process.stdin.flush()
        return workers[-1]

    try:
        yield start
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.communicate()


# --------------------------------------------------------------------------- the worker's side


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def _fetch(relay: TransferRelay, url: str, directory: str) -> None:
    relay.fetch(url=url, directory=Path(os.fsdecode(directory)), progress=_telling())


def _deliver(relay: TransferRelay, url: str, directory: str) -> None:
    relay.deliver(directory=Path(os.fsdecode(directory)), url=url, progress=_telling())


def _copy(relay: TransferRelay, source: str, target: str) -> None:
    relay.copy(source=source, target=target, progress=_telling())


def _telling() -> Callable[[TransferUpdate], None]:
    """Say once that it has begun, so that the clock of who kills us starts there."""
    begun: list[TransferUpdate] = []

    def progress(update: TransferUpdate) -> None:
        if not begun:
            _say("begun")
        begun.append(update)

    return progress


def _produce(relay: MessagingRelay, exchange: str, key: str, name: str, calls: int, size: int) -> None:
    """Send *calls* times *size* messages; say the name of each call when it is confirmed."""
    for call in range(calls):
        ids = [f"{name}.{call:05}.{n:03}" for n in range(size)]
        relay.send(
            messages=[
                OutgoingMessage(exchange=exchange, key=key, body=each.encode(), message_id=each)
                for each in ids
            ]
        )
        _say(f"{name}.{call:05}")


def _consume(relay: MessagingRelay, queue: str, limit: int) -> None:
    """Say the ids of what came, flagged with ``!`` when redelivered, then accept; end with one called stop."""
    while True:
        deliveries = relay.receive(queue=queue, limit=limit, timeout_s=_WAIT_S)
        stops = [each for each in deliveries if each.message_id == "stop"]
        work = [each for each in deliveries if each.message_id != "stop"]
        if work:
            _say(*(f"{each.message_id}{'!' * each.redelivered}" for each in work))
            _settle(relay, work, Verdict.ACCEPT)
        if stops or not deliveries:
            _settle(relay, stops[:1], Verdict.ACCEPT)
            _settle(relay, stops[1:], Verdict.PUT_BACK)
            return


def _settle(relay: MessagingRelay, deliveries: Sequence[Delivery], verdict: Verdict) -> None:
    if deliveries:
        relay.settle(deliveries=deliveries, verdict=verdict, reason="")


def _hold(relay: MessagingRelay, queue: str, count: int) -> None:
    """Take *count* messages and settle none."""
    held: list[str] = []
    while len(held) < count:
        came = relay.receive(queue=queue, limit=count - len(held), timeout_s=_WAIT_S)
        held += [each.message_id or "" for each in came]
    _say(*held)
    signal.pause()


def _clock(relay: MessagingRelay, queue: str, count: int) -> None:
    """Say at what time of the machine's monotonic clock each of *count* messages came."""
    _say("ready")
    for _ in range(count):
        deliveries = relay.receive(queue=queue, limit=1, timeout_s=_WAIT_S)
        _say(time.monotonic())
        relay.settle(deliveries=deliveries, verdict=Verdict.ACCEPT, reason="")


def _idle(relay: MessagingRelay, queue: str, seconds: float) -> None:
    """Wait for nothing; say how many seconds that took, and how much of them a processor worked."""
    begun, worked = time.monotonic(), time.process_time()
    relay.receive(queue=queue, limit=1, timeout_s=seconds)
    _say(time.monotonic() - begun, time.process_time() - worked)


_TASKS: Final[Mapping[str, Callable[..., None]]] = {
    "fetch": _fetch,
    "deliver": _deliver,
    "copy": _copy,
    "produce": _produce,
    "consume": _consume,
    "hold": _hold,
    "clock": _clock,
    "idle": _idle,
}


def _end_with_who_started_us() -> None:
    os.read(0, 1)  # comes back when the test's process has gone, however it went
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Do what stdin says."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_who_started_us, daemon=True).start()
    site = SiteContext(
        site=order["site"], work_directory=Path(order["work_directory"]), environment=order["environment"]
    )
    driver = make_driver(order["role"], order["driver"], order["settings"])
    relay = (TransferRelay if order["role"] == "transfer" else MessagingRelay)(driver, site)
    _TASKS[order["task"]](relay, *order["arguments"])
    relay.close()


if __name__ == "__main__":
    main()
