"""Disks that are full, read-only, gone, or another one: nothing is lost, nothing runs twice, people are told what to do."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from click.testing import CliRunner
from host_disks import disk, fill, moved, read_only
from scripted import Edge
from sites import make_site

from edgecore.cli import cli
from edgecore.config import Retry
from edgecore.errors import ConfigurationError, StoreError
from edgecore.models import JobState as S
from edgecore.service import Balsam

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    with disk(tmp_path / "disk") as directory:
        yield directory


def gated(edge: Edge) -> Path:
    """Register an application that runs until the answered file is there, and notes its start."""
    release = edge.site.base / "release"
    text = (
        f'printf "start %s %s\\n" "$EDGECORE_JOB_ID" 1 >>"{edge.site.ledger}"\n'
        f'while [ ! -e "{release}" ]; do sleep 0.02; done; exit 7'
    )
    edge.register("gated", executable=edge.program("gated", text), arguments=())
    return release


def once_each(edge: Edge) -> None:
    """Check that every job has run exactly once."""
    assert {job.id: 1 for job in edge.site.jobs()} == edge.site.starts()


# --------------------------------------------------------------------------------- full disks


def test_a_full_disk_under_the_store_is_alarmed_and_everything_goes_on_when_there_is_room(
    edge: Edge, place: Path
) -> None:
    moved(edge, store=place / "store.sqlite")
    edge.scheduling.auto = False
    edge.start()
    edge.send("before")
    entry = edge.wait_entry()
    with fill(place):
        edge.scheduling.start(entry)
        for number in range(5):
            edge.send(f"meanwhile-{number}")
        for subject in ("store", "job definitions"):
            assert f"the disk of {place} is full: make room there" in edge.wait_alarm(subject)
        assert edge.failure is None
    edge.scheduling.auto = True
    edge.wait("before", S.JOB_FINISHED)
    for number in range(5):
        edge.wait(f"meanwhile-{number}", S.JOB_FINISHED)
    edge.wait_alarm("job definitions", cleared=True)
    once_each(edge)


def test_a_full_disk_under_the_work_directory_fails_no_job_however_long_it_lasts(
    edge: Edge, place: Path
) -> None:
    moved(edge, work=place / "work")
    edge.config = evolve(edge.config, retry=Retry(first_s=0.01, longest_s=0.02, tries=2))
    edge.start()
    with fill(place):
        edge.send()
        message = edge.wait_alarm("host")
        assert "No space left on device" in message
        assert "the disk is full: make room there; it goes on by itself" in message
        seen = len(edge.heard.jobs)
        dues: set[int] = set()

        def tried_again() -> bool:
            dues.add(edge.job().due)
            return len(dues) > 5  # more often than an ordinary failure is borne

        edge.until(tried_again)
        assert edge.job().state in (S.CREATED, S.STAGED_IN, S.PREPROCESSED)
        assert not any("FAILED" in job.state for job in edge.heard.jobs[seen:])
    edge.wait("job", S.JOB_FINISHED)
    edge.wait_alarm("host", cleared=True)
    once_each(edge)


def test_a_full_disk_under_the_queue_stops_no_job_and_every_status_is_told_later(
    edge: Edge, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(edge, queue=place / "queue.sqlite")
    release = gated(edge)
    edge.start()
    edge.send(application="gated")
    edge.wait("job", S.RUNNING)
    with fill(place):
        release.touch()
        edge.wait("job", S.JOB_FAILED)
        assert "the disk is full; free some space" in edge.wait_alarm("message broker", timeout_s=40)
    edge.wait_alarm("message broker", cleared=True, timeout_s=90)
    edge.stop()
    told = [status["sequence"] for status in edge.site.statuses()]
    assert list(range(1, edge.job().sequence + 1)) == sorted(set(told))
    once_each(edge)


def test_the_end_is_told_although_the_disk_of_the_run_directory_is_full(edge: Edge, place: Path) -> None:
    moved(edge, work=place / "work")
    release = gated(edge)
    edge.start()
    edge.send(application="gated")
    edge.wait("job", S.RUNNING)
    with fill(place):
        release.touch()
        job = edge.wait("job", S.JOB_FAILED)
    assert job.attempt is not None
    assert 7 == job.attempt.exit_code
    once_each(edge)


@pytest.mark.parametrize("what", ["store", "queue"])
def test_a_disk_that_is_full_at_the_start_is_said_in_words(edge: Edge, place: Path, what: str) -> None:
    """The queue is only waited for: a broker that is away keeps no site from starting."""
    file = place / f"{what}.sqlite"
    with fill(place):
        if what == "store":
            config = evolve(edge.config, store=file)
            with pytest.raises(
                StoreError, match=r"the disk of .* is full: make room|No space left on device"
            ):
                Balsam(config).run()
            assert not file.exists()
        else:
            edge.config = evolve(edge.config, messaging=evolve(edge.config.messaging, url=f"sqlite://{file}"))
            edge.start()
            message = edge.wait_alarm("job definitions", timeout_s=40)
            assert re.search("disk is full; free some space|has room", message), message


# ---------------------------------------------------------------------------- read-only disks


def test_a_work_directory_that_becomes_read_only_is_alarmed_and_running_jobs_end_as_they_would(
    edge: Edge, place: Path
) -> None:
    moved(edge, work=place / "work")
    release = gated(edge)
    edge.start()
    edge.send("running", application="gated")
    edge.wait("running", S.RUNNING)
    with read_only(place):
        edge.send("later")
        message = edge.wait_alarm("host")
        assert "Read-only file system" in message
        assert "the disk is mounted read-only: see the system's log, and mount it anew" in message
    release.touch()
    assert 7 == edge.wait("running", S.JOB_FAILED).attempt.exit_code  # type: ignore[union-attr]
    edge.wait("later", S.JOB_FINISHED)
    edge.wait_alarm("host", cleared=True)
    once_each(edge)


def test_a_store_that_becomes_read_only_starts_nothing_and_goes_on_when_it_can_be_written(
    edge: Edge, place: Path
) -> None:
    edge.config = evolve(edge.config, store_mode="rollback")  # which opens its journal at every change
    moved(edge, store=place / "store.sqlite")
    edge.start()
    with read_only(place):
        edge.send()
        message = edge.wait_alarm("store")
        assert "mounted read-only" in message
        assert [] == edge.scheduling.entries
    edge.wait("job", S.JOB_FINISHED, timeout_s=40)
    once_each(edge)


@pytest.mark.parametrize("what", ["work", "store"])
def test_what_is_read_only_at_the_start_is_refused_with_what_to_do(
    edge: Edge, place: Path, what: str
) -> None:
    config = (
        evolve(edge.config, work_directory=place / "work")
        if what == "work"
        else evolve(edge.config, store=place / "store.sqlite")
    )
    with read_only(place), pytest.raises((ConfigurationError, StoreError)) as caught:
        Balsam(config).run()
    assert "Read-only file system" in str(caught.value)
    assert str(place) in str(caught.value)
    assert re.search("look at its permissions, the mount|must be able to write there", str(caught.value))


# ------------------------------------------------------------------------- gone and come back


def test_a_work_directory_that_vanishes_under_running_jobs_loses_none_of_them(
    edge: Edge, tmp_path: Path
) -> None:
    moved(edge, work=tmp_path / "work")
    release = gated(edge)
    edge.start()
    edge.send("running", application="gated")
    edge.wait("running", S.RUNNING)
    (tmp_path / "work").rename(tmp_path / "away")
    edge.send("later")
    assert "the work directory is gone" in edge.wait_alarm("host")
    assert S.CREATED is edge.wait("later", S.CREATED).state
    assert not (tmp_path / "work").exists()  # nothing is begun in a place that is not the right one
    (tmp_path / "away").rename(tmp_path / "work")
    release.touch()
    assert 7 == edge.wait("running", S.JOB_FAILED).attempt.exit_code  # type: ignore[union-attr]
    edge.wait("later", S.JOB_FINISHED)
    assert not any(job.state is S.LOST for job in edge.heard.jobs)
    once_each(edge)


def test_another_file_system_in_place_of_the_work_directory_is_not_worked_in(
    edge: Edge, tmp_path: Path
) -> None:
    moved(edge, work=tmp_path / "work")
    edge.start()
    edge.send("first")
    edge.wait("first", S.JOB_FINISHED)
    with disk(tmp_path / "work"):
        edge.send("second")
        message = edge.wait_alarm("host")
        assert "another file system, or made anew" in message
        assert "see that the file system is mounted" in message
        assert [] == os.listdir(tmp_path / "work")
    edge.wait("second", S.JOB_FINISHED)
    once_each(edge)


def test_a_run_directory_that_is_removed_while_its_job_runs_is_alarmed_and_repeats_nothing(
    edge: Edge,
) -> None:
    release = gated(edge)
    edge.start()
    edge.send(application="gated", retries=3)
    job = edge.wait("job", S.RUNNING)
    shutil.rmtree(edge.config.work_directory / next(os.walk(edge.config.work_directory))[1][0] / str(job.id))
    release.touch()
    assert "no token: is the file system mounted?" in edge.wait_alarm(f"job {job.id}")
    edge.wait("job", S.LOST)
    once_each(edge)


def test_a_store_that_has_vanished_is_not_replaced_by_an_empty_one(edge: Edge) -> None:
    edge.start()
    edge.stop()
    for file in edge.config.store.parent.glob(f"{edge.config.store.name}*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(StoreError) as caught:
        Balsam(edge.config).run()
    assert "mount its file system or restore it from a backup; to begin with an empty store" in str(
        caught.value
    )
    assert not edge.config.store.exists()
    (edge.config.work_directory / ".edgecore.lock").unlink()  # as the message says
    edge.start()


# ------------------------------------------------------------------------- wrong at the start


def _is_a_file(path: Path) -> None:
    path.write_text("in the way")


def _is_below_a_file(path: Path) -> None:
    path.parent.write_text("in the way")


def _is_a_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("spoil", [_is_a_file, _is_below_a_file, _is_a_loop])
@pytest.mark.parametrize("key", ["work_directory", "store"])
def test_a_place_that_cannot_be_used_is_said_in_words_and_the_command_ends(
    spoil: Callable[[Path], None], key: str, tmp_path: Path
) -> None:
    site = make_site(tmp_path / "site")
    place = tmp_path / "other" / "place"
    if spoil is not _is_below_a_file:
        place.parent.mkdir()
    spoil(place)
    text = site.file.read_text()
    old = "work" if key == "work_directory" else "store.sqlite"
    site.file.write_text(text.replace(f'{key} = "{old}"', f'{key} = "{place}"'))
    answer = CliRunner().invoke(cli, ["run", str(site.file)])
    assert (2 if key == "work_directory" else 1) == answer.exit_code, answer.output
    assert answer.stderr.splitlines()[0].startswith("error: ")
    assert str(place) in answer.stderr
    assert not isinstance(answer.exception, OSError)


AS_NOBODY = """
import os, sys
import edgecore.cli.run, edgecore.service, edgecore.cli.output, sqlite_utils
from edgecore.cli import main
os.setgid(65534); os.setuid(65534)  # after the imports: another account may not see this interpreter
sys.argv = ["edgecore", "run", sys.argv[1]]
main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
@pytest.mark.parametrize("key", ["work_directory", "store"])
def test_a_place_of_another_owner_is_said_in_words(key: str) -> None:
    with tempfile.TemporaryDirectory() as base:  # others may not go to where pytest keeps its own
        os.chmod(base, 0o755)
        site = make_site(Path(base) / "site")
        site.config.work_directory.mkdir()
        for directory in (site.base, site.base / "data"):
            directory.chmod(0o777)
        if key == "store":
            site.config.work_directory.chmod(0o777)
        command = [sys.executable, "-c", AS_NOBODY, str(site.file)]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    wrong = getattr(site.config, key)
    assert (2 if key == "work_directory" else 1) == found.returncode, found.stderr
    assert f"{wrong}" in found.stderr
    expected = {
        "work_directory": "look at its permissions",
        "store": "attempt to write a readonly|unable to open",
    }
    assert re.search(expected[key], found.stderr), found.stderr
    assert "Traceback" not in found.stderr


def test_two_sites_in_one_work_directory_are_told_of_each_other(edge: Edge) -> None:
    edge.start()
    other: Any = evolve(edge.config, site="other", store=edge.config.store.with_name("other.sqlite"))
    with pytest.raises(ConfigurationError) as caught:
        Balsam(other).run()
    words = str(caught.value)
    assert "work_directory" in words
    assert (
        f"another service works there (site testsite, store {edge.config.store}, pid {os.getpid()} on"
        in words
    )
    assert "every site needs a work directory of its own" in words
    with contextlib.suppress(StoreError):
        assert not other.store.exists()
    edge.stop()
    edge.start()  # and the same site again, which finds its own directory free
