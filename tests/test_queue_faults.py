"""Hold `edgecore.builtin.queue` to clear words when its file, its disk or its URL is wrong."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from queue_helpers import SITE, Open, connections, flags, ids, message, messages, opened, take

from edgecore.errors import BrokerUnavailable, ConfigurationError


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


@pytest.mark.parametrize(
    "wrong",
    ["sqlite:queue.sqlite", "sqlite://queue.sqlite", "sqlite://", "sqlite:///", "sqlite:///q/", "sqlite:///q?x=1",
     "sqlite:///q%00", "amqp://host/q", "sqlite://["],
)  # fmt: skip
def test_a_url_without_an_absolute_path_is_refused_with_an_example(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=r"absolute path after sqlite://, such as"):
        opened(wrong)


def test_a_path_with_odd_characters_can_be_written_with_percent_signs(tmp_path: Path) -> None:
    driver = opened(f"sqlite://{tmp_path}/a%20%3f%23%25%ff.sqlite")
    driver.close()

    assert (tmp_path / os.fsdecode(b"a ?#%\xff.sqlite")).is_file()


def test_nothing_is_left_beside_a_new_file_but_its_directory(connect: Open, path: Path) -> None:
    driver = connect()
    take(driver)
    driver.close()

    assert {path, Path(f"{path}.d")} == set(path.parent.iterdir())


def test_a_missing_directory_is_reported_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match=r"see that its directory exists"):
        opened(f"sqlite://{tmp_path}/none/queue.sqlite")


def test_a_locked_file_is_reported_and_works_again_afterwards(connect: Open, path: Path) -> None:
    driver = connect(busy_timeout_s=0.05)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(BrokerUnavailable, match=r"locked.*another process"):
        driver.send(messages=messages("a"))
    blocker.close()
    driver.send(messages=messages("b"))

    assert ids(take(driver)) == ["b"]


def test_close_never_raises_and_what_it_could_not_put_back_comes_again(connect: Open, path: Path) -> None:
    driver, other = connect(busy_timeout_s=0.05), connect()
    driver.send(messages=messages("a"))
    take(driver)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    assert "locked" in driver.close().message
    blocker.close()

    assert flags(take(other)) == [("a", True)]


def test_a_full_disk_is_reported_and_nothing_of_the_call_is_kept(connect: Open) -> None:
    driver = connect()
    driver.send(messages=messages("a"))
    assert driver._session is not None
    connection = driver._session.file._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(BrokerUnavailable, match=r"the disk is full; free some space"):
        driver.send(messages=[message("b"), message("large", body=b"x" * 100_000)])
    connection.execute("PRAGMA max_page_count = 1000000")
    driver.send(messages=messages("c"))

    assert ids(take(driver)) == ["a", "c"]


def test_a_damaged_file_is_reported_with_what_to_do(connect: Open, path: Path) -> None:
    driver = connect()
    driver.send(messages=messages("a"))
    driver.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(BrokerUnavailable, match=r"the file is damaged"):
        take(connect())


def test_a_file_that_is_no_database_is_reported(path: Path, url: str) -> None:
    path.write_text("a shopping list\n" * 100)
    with pytest.raises(BrokerUnavailable, match=r"no SQLite file"):
        opened(url)
    assert path.read_text().startswith("a shopping list")


def test_a_database_of_somebody_else_is_left_alone(path: Path, url: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE jobs (id INTEGER)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"which is no message queue"):
        opened(url)
    assert before == path.read_bytes()


def test_a_file_of_a_later_format_is_left_alone(connect: Open, path: Path, url: str) -> None:
    connect().close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(ConfigurationError, match=r"format 2.*this release reads format 1"):
        opened(url)


def test_a_file_that_was_removed_or_replaced_takes_no_more_messages(
    connect: Open, path: Path, tmp_path: Path
) -> None:
    driver = connect()
    path.unlink()
    with pytest.raises(BrokerUnavailable, match=r"No such file"):
        driver.send(messages=messages("a"))
    path.touch()
    with pytest.raises(BrokerUnavailable, match=r"was replaced while it was open"):
        driver.send(messages=messages("a"))


def test_a_consumer_whose_lock_file_was_removed_is_told_before_it_takes_more(
    connect: Open, path: Path
) -> None:
    driver = connect()
    driver.send(messages=messages("a"))
    take(driver)
    for lock in Path(f"{path}.d/consumers").iterdir():
        lock.unlink()
    with pytest.raises(BrokerUnavailable, match=r"taken? .* for dead|was removed"):
        take(driver)
    driver.open(site=SITE)

    assert flags(take(driver)) == [("a", True)]
