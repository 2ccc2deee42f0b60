"""What is removed of settled jobs, when, and what never is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, evolve
from scripted import Edge
from sites import make_site

from edgecore.batch import job_directory
from edgecore.cleaning import Cleaning, _remove_tree
from edgecore.clock import Clock
from edgecore.config import Retention, SiteConfig
from edgecore.models import Job, JobDefinition
from edgecore.models import JobState as S
from edgecore.reader import Reader
from edgecore.store import Arrival, Change, Store

DAY_US = 86_400_000_000


@define(eq=False)
class Calendar(Clock):
    """Tell a time that a test sets, in days."""

    day: float = 20_000

    def now(self) -> int:
        return round(self.day * DAY_US)


@define(eq=False)
class Old:
    """A store with jobs of a test's making, and their directories."""

    config: SiteConfig
    store: Store
    calendar: Calendar

    def job(self, state: S, changed_days_ago: float) -> Path:
        number = self.store.new_id()
        definition = JobDefinition(name="job", application="quick", site="testsite")
        job = Job(
            id=number,
            owner="alice",
            definition=definition,
            state=state,
            sequence=1,
            changed=round((self.calendar.day - changed_days_ago) * DAY_US),
        )
        self.store.take([Arrival(str(number), Change(None, (job,)))]).result()
        directory = job_directory(self.config.work_directory, number)
        (directory / "data").mkdir(parents=True)
        (directory / "data/file").write_text("data")
        return directory

    def clean(self) -> int:
        cleaning = Cleaning(config=self.config, store=self.store, clock=self.calendar)
        with Reader(self.config.store) as reader:
            return cleaning.clean(reader)


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Old]:
    site = make_site(tmp_path / "site")
    config = evolve(site.config, retention=Retention(keep_days=30, keep_failed_days=90))
    calendar = Calendar()
    store = Store(config.store, site="testsite", clock=calendar)
    yield Old(config, store, calendar)
    store.close()


@pytest.mark.parametrize("state", [S.JOB_FINISHED, S.JOB_CANCELLED, S.JOB_REJECTED, S.SUBMIT_DISABLED])
def test_settled_jobs_are_kept_for_keep_days(old: Old, state: S) -> None:
    younger, older = old.job(state, 29), old.job(state, 31)
    assert 1 == old.clean()
    assert younger.exists()
    assert not older.exists()


def test_failed_jobs_are_kept_for_keep_failed_days(old: Old) -> None:
    younger, older = old.job(S.JOB_FAILED, 89), old.job(S.JOB_FAILED, 91)
    assert 1 == old.clean()
    assert younger.exists()
    assert not older.exists()


@pytest.mark.parametrize("state", [S.CREATED, S.SUBMITTING, S.RUNNING, S.LOST, S.EXECUTION_FAILED])
def test_a_job_that_is_not_settled_is_never_touched(old: Old, state: S) -> None:
    active = old.job(state, 10_000)
    assert 0 == old.clean()
    assert (active / "data/file").exists()


def test_rows_stay_and_are_not_cleaned_twice(old: Old) -> None:
    for _ in range(3):
        old.job(S.JOB_FINISHED, 100)
    assert 3 == old.clean()
    assert 0 == old.clean()
    with Reader(old.config.store) as reader:
        assert 3 == len(reader.latest(10))


def test_more_jobs_than_one_round_takes_are_all_cleaned(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecore.cleaning._MOST_AT_ONCE", 2)
    directories = [old.job(S.JOB_FINISHED, 100) for _ in range(5)]
    assert 5 == old.clean()
    assert not any(directory.exists() for directory in directories)


def test_what_a_job_linked_to_outside_is_not_removed(old: Old, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("")
    directory = old.job(S.JOB_FINISHED, 100)
    (directory / "data/link").symlink_to(precious)
    old.clean()
    assert not directory.exists()
    assert (precious / "file").exists()


def test_a_directory_that_is_gone_already_is_no_trouble(old: Old) -> None:
    shutil.rmtree(old.job(S.JOB_FINISHED, 100))
    assert 1 == old.clean()


_AS_NOBODY = """
import os, sys
from pathlib import Path
from edgecore.cleaning import _remove_tree
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
job = Path(sys.argv[1]) / "job"
(job / "data/sealed/deep").mkdir(parents=True)
(job / "data/sealed/deep/file").write_text("")
(job / "data/sealed/link").symlink_to(sys.argv[1])
for place in ("data/sealed/deep", "data/sealed", "data"):
    (job / place).chmod(0o500)
_remove_tree(job)
print(os.listdir(sys.argv[1]), oct(Path(sys.argv[1]).stat().st_mode & 0o777))
"""


@pytest.mark.slow
def test_what_was_staged_in_as_read_only_is_removed_all_the_same() -> None:
    # Not below tmp_path, which only its owner may enter; as somebody whom modes concern.
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        answer = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, place], capture_output=True, text=True, check=True
        )
    assert "[] 0o777" == answer.stdout.strip()


def test_contents_of_messages_are_forgotten_after_two_days_and_ids_never(old: Old) -> None:
    def take(identity: str) -> int:
        definition = JobDefinition(name="job", application="quick", site="testsite")
        job = Job(
            id=old.store.new_id(), owner="alice", definition=definition, state=S.JOB_REJECTED, sequence=1
        )
        return old.store.take([Arrival(identity, Change(None, (job,)))]).result()[0]

    def known() -> set[str]:
        return {identity for identity, job_id in taken.items() if job_id == take(identity)}

    taken = {each: take(each) for each in ("body\t1", "job\t1")}
    old.calendar.day += 1
    taken["body\t2"] = take("body\t2")
    old.clean()
    assert {"body\t1", "job\t1", "body\t2"} == known()
    old.calendar.day += 1.5
    old.clean()
    assert {"job\t1", "body\t2"} == known()


def test_a_running_service_cleans_from_time_to_time(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecore.cleaning._EVERY_S", 0.05)
    edge.config = evolve(edge.config, retention=Retention(keep_days=0, keep_failed_days=90))
    edge.start()
    edge.send("failed", "fails")
    edge.send("active", "long")
    edge.send("finished")
    edge.wait("failed", S.JOB_FAILED)
    edge.wait("active", S.RUNNING)
    edge.wait("finished", S.JOB_FINISHED)
    work = edge.config.work_directory
    edge.until(lambda: not job_directory(work, edge.job("finished").id).exists())
    assert job_directory(work, edge.job("failed").id).exists()
    assert job_directory(work, edge.job("active").id).exists()


def test_a_retried_job_is_cleaned_again_when_it_has_settled(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.cleaning._EVERY_S", 0.05)
    edge.config = evolve(edge.config, retention=Retention(keep_days=0, keep_failed_days=0))
    edge.start()
    edge.send(application="fails")
    edge.wait("job", S.JOB_FAILED)
    directory = job_directory(edge.config.work_directory, edge.job().id)
    edge.until(lambda: not directory.exists())
    edge.program("ledger.sh", "sleep 0.2")
    edge.ask("retry")
    edge.wait("job", S.JOB_FINISHED)
    edge.until(lambda: not directory.exists())


def test_a_failure_while_cleaning_does_not_end_it(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edgecore.cleaning._EVERY_S", 0.05)
    edge.config = evolve(edge.config, retention=Retention(keep_days=0))
    failed = threading.Event()
    real = Reader.to_clean

    def once(self: Reader, *args: object, **more: object) -> tuple[int, ...]:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("disk I/O error")
        return real(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Reader, "to_clean", once)
    edge.start()
    assert failed.wait(10)
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    edge.until(lambda: not job_directory(edge.config.work_directory, edge.job().id).exists())
    assert "disk I/O error" in caplog.text


def test_a_directory_deeper_than_any_stack_is_removed(tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.mkdir()
    here = os.open(job, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    _remove_tree(job)
    assert not job.exists()
