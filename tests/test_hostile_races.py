"""What is exchanged while we look leads nowhere: files and directories for links, by somebody who never tires."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from hostile_cases import SECRET, recorder
from sites import make_site

from edgecore.cli.job import _tail
from edgecore.errors import DefinitionError
from edgecore.models import JobState
from edgecore.settings import find_configuration

pytestmark = pytest.mark.slow

LOOKS: Final = 1500
EXCHANGES: Final = 200
"""So many at least, or nothing was tested."""


@contextmanager
def exchanging(*steps: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """Do the steps one after the other, over and over, in a thread; gives how many were done."""
    done, errors = [0], list[BaseException]()
    ended = threading.Event()

    def work() -> None:
        try:
            while not ended.is_set():
                for step in steps:
                    step()
                    done[0] += 1
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda: done[0]
    finally:
        ended.set()
        thread.join(20)
    assert [] == errors


def put_file(path: Path, text: str) -> Callable[[], None]:
    """Return a step that puts a file at *path*, in one move, whatever is there."""

    def step() -> None:
        spare = path.with_name(f".{path.name}.file")
        spare.write_text(text)
        spare.replace(path)

    return step


def put_link(path: Path, target: Path | str) -> Callable[[], None]:
    """Return a step that puts a link at *path*, in one move, in place of a file or a link."""

    def step() -> None:
        spare = path.with_name(f".{path.name}.link")
        spare.symlink_to(target)
        spare.replace(path)

    return step


def put_fifo(path: Path) -> Callable[[], None]:
    def step() -> None:
        spare = path.with_name(f".{path.name}.fifo")
        os.mkfifo(spare)
        spare.replace(path)

    return step


def swap(one: Path, other: Path) -> Callable[[], None]:
    """Return a step that lets two directories change places."""

    def step() -> None:
        spare = one.with_name(".spare")
        one.rename(spare)
        other.rename(one)
        spare.rename(other)

    return step


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "app.cfg").write_text(SECRET)
    return place


def looking(seen: Counter[str], exchanges: Callable[[], int]) -> Iterator[None]:
    """Go on until enough was looked at and exchanged, and both kinds were seen: what is fine, and what is not."""
    deadline = time.monotonic() + 20
    while seen.total() < LOOKS or exchanges() < EXCHANGES or not {"fine"} < set(seen):
        assert time.monotonic() < deadline, seen
        yield


def look(data: Path, name: str, exchanges: Callable[[], int]) -> Counter[str]:
    """Read a configuration file again and again; count what came of it."""
    seen: Counter[str] = Counter()
    for _ in looking(seen, exchanges):
        try:
            seen[find_configuration(name, data).content.decode()] += 1
        except DefinitionError as error:
            seen[str(error).rpartition(": ")[2]] += 1
    return seen


def test_a_configuration_file_that_becomes_a_link_or_a_fifo_is_never_followed(
    tmp_path: Path, secret: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    path = data / "app.cfg"
    put_file(path, "fine")()
    steps = (put_link(path, secret / "app.cfg"), put_fifo(path), put_file(path, "fine"))
    with exchanging(*steps) as exchanges:
        seen = look(data, "app.cfg", exchanges)
    assert SECRET not in "".join(seen)
    assert all(words.startswith(("fine", "it is", "is not a regular file")) for words in seen)


def test_a_directory_that_becomes_a_link_is_never_followed(tmp_path: Path, secret: Path) -> None:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "app.cfg").write_text("fine")
    (data / "link").symlink_to(secret)
    with exchanging(swap(data / "sub", data / "link")) as exchanges:
        seen = look(data, "sub/app.cfg", exchanges)
    assert SECRET not in "".join(seen)


def test_output_that_becomes_a_link_is_not_shown(tmp_path: Path, secret: Path) -> None:
    path = tmp_path / "stdout.1.txt"
    put_file(path, "fine")()
    seen: Counter[str] = Counter()
    with exchanging(put_link(path, secret / "app.cfg"), put_fifo(path), put_file(path, "fine")) as exchanges:
        for _ in looking(seen, exchanges):
            seen[str(_tail(path))] += 1
    assert {"fine", "None"} == set(seen)


def test_input_that_is_exchanged_while_a_service_stages_it_brings_no_secret(
    tmp_path: Path, secret: Path
) -> None:
    site = make_site(tmp_path / "site")
    base, count = site.base, 40
    (base / "records").mkdir()
    site.add(recorder(base))
    place = base / "data" / "in"
    (place / "sub").mkdir(parents=True)
    (secret / "app.cfg").write_text(f"text = {SECRET}")
    put_file(place / "app.cfg", "text = fine")()
    steps = (put_link(place / "app.cfg", secret / "app.cfg"), put_file(place / "app.cfg", "text = fine"))
    document = {"application": "record", "config_file": "app.cfg", "input_url": f"file://{place}"}
    with site.service():
        with exchanging(*steps) as exchanges:
            site.send(*(site.job(name=f"job-{number}", **document) for number in range(count)))
            jobs = site.wait_settled(count, 120)
        assert exchanges() > EXCHANGES
    assert {JobState.JOB_FINISHED, JobState.JOB_FAILED} >= {job.state for job in jobs}
    for job in jobs:
        if job.state is JobState.JOB_FINISHED:
            assert "--text=fine" in (base / "records" / f"{job.id}.arguments").read_text().split("\0")
    for path in (*(base / "work").rglob("*"), *(base / "records").rglob("*"), *base.glob("*.sqlite*")):
        if path.is_file() and not path.is_symlink():
            assert SECRET.encode() not in path.read_bytes(), path
