"""Hold `edgecore.builtin.queue` to its promises between processes, also when they are killed.

The file is its own worker: ``python test_queue_processes.py ROLE URL ...`` plays one producer or consumer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from queue_helpers import (
    Open,
    connections,
    ids,
    messages,
    opened,
    take,
)

from edgecore.builtin.queue import SqliteMessaging
from edgecore.models import OutgoingMessage

pytestmark = pytest.mark.slow

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/queue.sqlite"


@pytest.fixture
def connect(url: str) -> Iterator[Open]:
    with connections(url) as connect_:
        yield connect_


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def start_(role: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, role, url, *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start_
    for process in processes:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_producer_killed_in_the_middle_of_a_send_leaves_nothing_of_it(connect: Open, start: Start) -> None:
    producer = start("die", 50)
    assert line_of(producer) == "sent"
    assert producer.wait(20) == -signal.SIGKILL

    assert ids(take(connect())) == ["before"]


def test_every_send_call_of_a_killed_producer_arrived_whole_or_not_at_all(
    connect: Open, start: Start
) -> None:
    driver = connect()
    confirmed = set()
    for name in "abc":
        producer = start("produce", name, 10_000, 25)
        lines = [line_of(producer) for _ in range(5)]
        producer.kill()
        lines += producer.communicate(timeout=20)[0].splitlines()
        confirmed |= {line for line in lines if len(line) == len("a.000")}
    batches = Counter(name.rpartition(".")[0] for name in ids(take(driver, limit=100_000)))

    assert {25} == set(batches.values())
    assert confirmed <= set(batches)
    assert len(batches) <= len(confirmed) + 3


# -------------------------------------------------------------------------------- workers


def _produce(driver: SqliteMessaging, name: str, batches: str, size: str) -> None:
    for batch in range(int(batches)):
        driver.send(messages=messages(*(f"{name}.{batch:03}.{n:03}" for n in range(int(size)))))
        print(f"{name}.{batch:03}", flush=True)


def _die(driver: SqliteMessaging, after: str) -> None:
    class Killing(list[OutgoingMessage]):
        def __iter__(self) -> Iterator[OutgoingMessage]:
            for n, each in enumerate(super().__iter__()):
                if n == int(after):
                    os.kill(os.getpid(), signal.SIGKILL)
                yield each

    driver.send(messages=messages("before"))
    print("sent", flush=True)
    driver.send(messages=Killing(messages(*(f"m{n}" for n in range(100)))))


if __name__ == "__main__":
    role, url_, *rest = sys.argv[1:]
    worker = opened(url_)
    globals()[f"_{role}"](worker, *rest)
    worker.close()
