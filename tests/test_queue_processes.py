"""Hold `edgecore.builtin.queue` to its promises between processes, also when they are killed.

The file is its own worker: ``python test_queue_processes.py ROLE URL ...`` plays one producer or consumer.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from queue_helpers import (
    Open,
    connections,
    flags,
    ids,
    message,
    messages,
    opened,
    settle,
    take,
    waiting_bells,
)

from edgecore.builtin.queue import SqliteMessaging
from edgecore.models import OutgoingMessage, Verdict

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


def test_between_several_producers_and_consumers_nothing_is_lost_or_doubled(
    connect: Open, start: Start
) -> None:
    driver = connect()
    consumers = [start("consume") for _ in range(2)]
    producers = [start("produce", name, 15, 40) for name in "ab"]
    assert [producer.wait(60) for producer in producers] == [0, 0]
    driver.send(messages=[message("stop") for _ in consumers])
    outputs = [consumer.communicate(timeout=60)[0].split() for consumer in consumers]

    expected = [f"{name}.{batch:03}.{n:03}" for name in "ab" for batch in range(15) for n in range(40)]
    assert expected == sorted(outputs[0] + outputs[1])
    for output in outputs:
        for name in "ab":
            own = [word for word in output if word.startswith(name)]
            assert sorted(own) == own
    assert list(take(driver)) == []


def test_messages_of_a_killed_consumer_come_again_flagged_and_at_once(connect: Open, start: Start) -> None:
    driver = connect()
    driver.send(messages=messages("a", "b", "c"))
    consumer = start("hold", 2)
    assert line_of(consumer) == "a b"
    assert ids(take(driver)) == ["c"]  # it lives
    consumer.kill()
    consumer.wait(20)

    assert flags(take(driver)) == [("a", True), ("b", True)]


def test_a_consumer_that_waits_gets_what_a_killed_one_held(
    connect: Open, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps = waiting_bells(monkeypatch)
    driver = connect()
    driver.send(messages=messages("a"))
    consumer = start("hold", 1)
    assert line_of(consumer) == "a"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(driver.receive, queue="theta", limit=5, timeout_s=30)
        assert sleeps.wait(20)  # and nobody will ring
        consumer.kill()
        begun = time.monotonic()

        assert flags(waiting.result(timeout=30)) == [("a", True)]
        assert time.monotonic() - begun < 5


def test_while_consumers_are_killed_nothing_is_lost_and_every_repetition_is_flagged(
    connect: Open, start: Start
) -> None:
    driver = connect()
    total = [f"a.{batch:03}.{n:03}" for batch in range(30) for n in range(20)]
    producer = start("produce", "a", 30, 20)
    taken: list[tuple[str, bool]] = []
    for _ in range(3):
        victim = start("log")
        lines = [line_of(victim), line_of(victim), line_of(victim)]
        victim.kill()
        lines += victim.communicate(timeout=20)[0].splitlines()
        taken += [(word.rstrip("!"), word.endswith("!")) for line in lines for word in line.split()]
    assert producer.wait(60) == 0
    while deliveries := take(driver, limit=50):
        taken += [(d.message_id or "", d.redelivered) for d in deliveries]
        settle(driver, deliveries)

    assert total == sorted({name for name, _ in taken})
    unflagged = Counter(name for name, flagged in taken if not flagged)
    assert max(unflagged.values()) == 1


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


def test_a_waiting_consumer_of_another_process_wakes_within_50_ms(connect: Open, start: Start) -> None:
    driver = connect()
    consumer = start("measure", 30)
    pacing = threading.Event()
    delays_s = []
    for n in range(31):
        pacing.wait(0.02)  # so that it waits again, and is not just on its way
        driver.send(messages=messages(f"m{n}"))
        sent = time.monotonic()  # durable: from here on it is the consumer's turn
        delays_s.append(float(line_of(consumer)) - sent)

    assert statistics.median(delays_s[1:]) < 0.05, delays_s  # the first found it starting


def test_waiting_costs_less_than_a_hundredth_of_a_core(connect: Open, start: Start) -> None:
    connect()
    waited_s, cpu_s = map(float, line_of(start("idle", 2)).split())

    assert waited_s >= 2
    assert cpu_s < 0.01 * waited_s


# -------------------------------------------------------------------------------- workers


def _produce(driver: SqliteMessaging, name: str, batches: str, size: str) -> None:
    for batch in range(int(batches)):
        driver.send(messages=messages(*(f"{name}.{batch:03}.{n:03}" for n in range(int(size)))))
        print(f"{name}.{batch:03}", flush=True)


def _consume(driver: SqliteMessaging) -> None:
    while deliveries := driver.receive(queue="theta", limit=7, timeout_s=30):
        stops = [delivery for delivery in deliveries if delivery.message_id == "stop"]
        work = [delivery for delivery in deliveries if delivery.message_id != "stop"]
        assert len(work) == settle(driver, work)
        print(*ids(work), flush=True)
        if stops:
            settle(driver, stops[:1])
            settle(driver, stops[1:], Verdict.PUT_BACK)
            return


def _log(driver: SqliteMessaging) -> None:
    """Write down what is taken before it is accepted; an exclamation mark stands for redelivered."""
    while deliveries := driver.receive(queue="theta", limit=20, timeout_s=30):
        print(*(f"{delivery.message_id}{'!' * delivery.redelivered}" for delivery in deliveries), flush=True)
        settle(driver, deliveries)


def _hold(driver: SqliteMessaging, count: str) -> None:
    print(*ids(take(driver, limit=int(count))), flush=True)
    signal.pause()


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


def _measure(driver: SqliteMessaging, count: str) -> None:
    for _ in range(int(count) + 1):
        deliveries = driver.receive(queue="theta", limit=1, timeout_s=30)
        print(time.monotonic(), flush=True)
        settle(driver, deliveries)


def _idle(driver: SqliteMessaging, seconds: str) -> None:
    begun, cpu_begun = time.monotonic(), time.process_time()
    assert not driver.receive(queue="theta", limit=1, timeout_s=float(seconds))
    print(time.monotonic() - begun, time.process_time() - cpu_begun, flush=True)


if __name__ == "__main__":
    role, url_, *rest = sys.argv[1:]
    worker = opened(url_)
    globals()[f"_{role}"](worker, *rest)
    worker.close()
