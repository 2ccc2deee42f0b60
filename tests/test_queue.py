"""Hold `edgecore.builtin.queue` to the promises of a message driver, within one process."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pluggy
import pytest
from attrs import evolve
from queue_helpers import (
    SITE,
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

from edgecore.builtin import queue as queue_module
from edgecore.builtin import queue_file
from edgecore.builtin.queue import key_matches
from edgecore.errors import BrokerUnavailable, ConfigurationError
from edgecore.hookspecs import Messaging
from edgecore.models import Queue, Topology, Verdict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.sqlite"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite://{path}"


@pytest.fixture
def connect(url: str) -> Iterator[Open]:
    with connections(url) as connect_:
        yield connect_


# ------------------------------------------------------------------------------- the role


def test_the_driver_answers_every_hook_of_its_role(connect: Open) -> None:
    manager = pluggy.PluginManager("edgecore")
    manager.add_hookspecs(Messaging)
    manager.register(connect())
    manager.check_pending()
    manager.hook.send(messages=messages("a"))

    assert ids(manager.hook.receive(queue="theta", limit=1, timeout_s=0.0)) == ["a"]


def test_the_profile_says_that_nobody_vouches_for_a_sender(connect: Open, path: Path) -> None:
    driver = connect()
    profile = driver.open(site=SITE)
    driver.send(messages=messages("a"))

    assert str(path) in profile.broker
    assert profile.validates_sender is False
    assert take(driver)[0].sender is None


# -------------------------------------------------------------------------------- routing

RABBITMQ_BINDINGS = [
    "a.b.c",
    "a.*.c",
    "a.#.b",
    "a.b.b.c",
    "#",
    "#.#",
    "#.b",
    "*.*",
    "a.*",
    "*.b.c",
    "a.#",
    "a.#.#",
    "b.b.c",
    "a.b.b",
    "a.b",
    "b.c",
    "-",
    "*.*.*",
    "vodka.martini",
    "a.b.c",
    "*.#",
    "#.*.#",
    "*.#.#",
    "#.#.#",
    "*",
    "#.b.#",
]
"""The bindings of RabbitMQ's own test of topic exchanges; a dash stands for the empty key."""


@pytest.mark.parametrize(
    ("key", "matching"),
    [
        ("a.b.c", {1, 2, 5, 6, 10, 11, 12, 18, 20, 21, 22, 23, 24, 26}),
        ("a.b", {3, 5, 6, 7, 8, 9, 11, 12, 15, 21, 22, 23, 24, 26}),
        ("a.b.b", {3, 5, 6, 7, 11, 12, 14, 18, 21, 22, 23, 24, 26}),
        ("", {5, 6, 17, 24}),
        ("b.c.c", {5, 6, 18, 21, 22, 23, 24, 26}),
        ("a.a.a.a.a", {5, 6, 11, 12, 21, 22, 23, 24}),
        ("vodka.gin", {5, 6, 8, 21, 22, 23, 24}),
        ("vodka.martini", {5, 6, 8, 19, 21, 22, 23, 24}),
        ("b.b.c", {5, 6, 10, 13, 18, 21, 22, 23, 24, 26}),
        ("nothing.here.at.all", {5, 6, 21, 22, 23, 24}),
        ("oneword", {5, 6, 21, 22, 23, 24, 25}),
    ],
)
def test_topic_keys_match_as_rabbitmq_matches_them(key: str, matching: set[int]) -> None:
    patterns = [pattern.replace("-", "") for pattern in RABBITMQ_BINDINGS]

    assert matching == {n for n, pattern in enumerate(patterns, 1) if key_matches(pattern, key)}


def test_a_pattern_of_many_wildcards_is_matched_in_a_moment() -> None:
    begun = time.process_time()

    assert not key_matches(".".join(["#", "*"] * 60) + ".end", ".".join(["word"] * 200))
    assert time.process_time() - begun < 1


def test_an_unroutable_message_is_reported_with_the_reason(connect: Open) -> None:
    driver = connect()
    report = driver.send(
        messages=[
            message("key", key="thta"),
            message("exchange", exchange="hcp"),
            message("queue", exchange="", key="nowhere"),
        ]
    )

    assert report.unroutable == {
        "key": "no queue is bound to exchange 'hpc' with a key that matches 'thta'",
        "exchange": "there is no exchange 'hcp'",
        "queue": "there is no queue 'nowhere'",
    }


def test_a_queue_bound_to_an_undeclared_exchange_is_refused_and_nothing_is_made(connect: Open) -> None:
    driver = connect()
    wrong = Queue(name="summit", exchange="hcp", keys=("summit",))
    with pytest.raises(ConfigurationError, match=r"queue summit: exchange.*'hcp'"):
        driver.declare(topology=Topology(exchanges=("hpc",), queues=(wrong,)))

    assert {"a"} == set(driver.send(messages=[message("a", "summit", exchange="")]).unroutable)


# ------------------------------------------------------------------------------- delivery


def test_a_batch_ends_early_when_its_messages_are_large(
    connect: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "_BATCH_BYTES", 1000)
    driver = connect()
    driver.send(messages=[message(f"m{n}", body=b"x" * 400) for n in range(5)])

    assert ids(take(driver)) == ["m0", "m1", "m2"]
    assert ids(take(driver)) == ["m3", "m4"]


def test_the_bodies_of_what_was_accepted_go_too(connect: Open, path: Path) -> None:
    driver = connect()
    driver.send(messages=messages("a", "b"))

    assert settle(driver, take(driver)) == 2
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM bodies").fetchone() == (0,)
    connection.close()


def test_what_was_put_back_comes_first_and_flagged(connect: Open) -> None:
    driver = connect()
    driver.send(messages=messages("a", "b", "c", "d"))
    a, b, c = take(driver, limit=3)

    assert settle(driver, [b], Verdict.PUT_BACK) == 1
    assert settle(driver, [a, c]) == 2
    assert flags(take(driver)) == [("b", True), ("d", False)]


def test_what_is_refused_among_the_rejected_stays_there_with_the_new_reason(connect: Open) -> None:
    driver = connect()
    driver.send(messages=messages("bad"))
    settle(driver, take(driver), Verdict.REFUSE, "first")
    settle(driver, take(driver, queue="theta.rejected"), Verdict.REFUSE, "second")

    assert [letter.reason for letter in take(driver, queue="theta.rejected")] == ["second"]


def test_a_queue_that_nobody_declared_is_an_error_that_names_those_that_exist(connect: Open) -> None:
    with pytest.raises(ConfigurationError, match=r"'thta'.*cori, cori\.rejected, theta"):
        take(connect(), queue="thta")


def test_a_limit_below_one_is_a_mistake(connect: Open) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        take(connect(), limit=0)


# ---------------------------------------------------------------------------- connections


def test_a_later_message_does_not_inherit_the_token_of_a_former_one(connect: Open) -> None:
    driver = connect()
    driver.send(messages=messages("a"))
    first = take(driver)
    settle(driver, first)
    driver.send(messages=messages("b"))
    take(driver)

    assert settle(driver, first) == 0


@pytest.mark.parametrize(
    "token", ["", "x", "x.1.1", "..", "1.1", "{name}.1", "{name}.1.1.1", "{name}.-1.1", "{name}.x.1"]
)
def test_a_token_that_is_none_of_ours_is_not_counted(connect: Open, token: str) -> None:
    driver = connect()
    driver.send(messages=messages("a"))
    (delivery,) = take(driver)
    name = delivery.token.split(".")[0]

    assert settle(driver, [evolve(delivery, token=token.format(name=name))]) == 0
    assert settle(driver, [delivery]) == 1


def test_settling_before_any_receive_counts_nothing(connect: Open) -> None:
    one, other = connect(), connect()
    one.send(messages=messages("a"))

    assert settle(other, take(one)) == 0


def test_close_wakes_a_receive_that_waits(connect: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = waiting_bells(monkeypatch)
    monkeypatch.setattr(queue_module, "_LOOK_S", 60.0)  # so that only the bell can end the wait
    driver = connect()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(driver.receive, queue="theta", limit=1, timeout_s=60)
        assert sleeps.wait(20)
        assert list(Path(f"{path}.d/bells").glob("*/*"))
        driver.close()

        assert list(waiting.result(timeout=5)) == []
    assert not list(Path(f"{path}.d/bells").glob("*/*"))
    assert not list(Path(f"{path}.d/consumers").iterdir())


def test_a_closed_driver_says_that_it_is_closed_and_can_be_opened_again(connect: Open) -> None:
    driver = connect()
    driver.send(messages=messages("a"))
    driver.close()
    driver.close()
    with pytest.raises(BrokerUnavailable, match="is not open"):
        take(driver)
    driver.open(site=SITE)

    assert ids(take(driver)) == ["a"]


@pytest.mark.slow
def test_opening_and_closing_beside_others_never_fails(url: str) -> None:
    together = threading.Barrier(4)

    def visit(visitor: int) -> int:
        together.wait(20)  # the first round races to make the file
        for n in range(8):
            driver = opened(url)
            driver.send(messages=messages(f"{visitor}.{n}"))
            assert driver.close().message == ""
        return 8

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(visit, range(4))) == 32
    driver = opened(url)
    assert len(take(driver)) == 32
    driver.close()


def test_looking_into_an_empty_queue_does_not_wait_for_who_is_writing(connect: Open, path: Path) -> None:
    driver = connect(busy_timeout_s=0.05)
    take(driver)  # from here on it is a consumer
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")

    assert take(driver) == ()
    writer.close()


# ---------------------------------------------------------------------------------- speed

STATEMENTS = {
    f"{module.__name__}.{name}": text
    for module in (queue_module, queue_file)
    for name, text in vars(module).items()
    if isinstance(text, str) and text.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))
}
SMALL_TABLES = {"SCAN consumers", "SCAN queues"}
"""One row for each open consumer; names of queues, read for an error message only."""

EXAMINING = {"edgecore.builtin.queue_file._COUNT", "edgecore.builtin.queue_file._LAST_REASON"}
"""Asked once, when somebody examines the site."""


def test_no_query_scans_the_messages(connect: Open, path: Path) -> None:
    connect()
    connection = sqlite3.connect(path)
    assert len(STATEMENTS) > 15
    assert EXAMINING <= set(STATEMENTS)
    for name in set(STATEMENTS) - EXAMINING:
        statement = STATEMENTS[name]
        rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?"))
        for detail in (row[3] for row in rows):
            small = any(detail.startswith(table) for table in SMALL_TABLES)
            assert small or not detail.startswith("SCAN"), f"{name}: {detail}"
            assert "ORDER BY" not in detail, f"{name}: {detail}"
    connection.close()
