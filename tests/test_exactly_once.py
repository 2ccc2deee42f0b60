"""Each application runs exactly once, whenever the service is killed."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from doomed import POINTS
from sites import Site, make_site, wait_for

from edgecore.desk import Desk
from edgecore.models import JobState
from edgecore.reader import Reader
from edgecore.states import SETTLED

pytestmark = pytest.mark.slow

ON_A_CANCELLED_JOB = {"before revoking", "revoked", "before cancelling", "cancelled"}
ON_AN_INTERRUPTED_JOB = {"before fencing", "fenced"}
AFTER_AN_UNCLEAR_SUBMIT = {"looked for by tag"}


def die(site: Site, point: str, count: int = 1) -> None:
    """Run a service until it dies at *point*."""
    with (site.base / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "doomed.py", point, str(count), str(site.file)],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parent,
        )
    try:
        exit_code = process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        pytest.fail(f"the service never came to the point '{point}': {site.diagnosis()}")
    assert exit_code == -signal.SIGKILL, site.diagnosis()


def files(site: Site, name: str, **settings: object) -> dict[str, str]:
    """Lay input for a job out; answers the URLs for its definition."""
    place = site.base / "data" / name
    place.mkdir()
    (place / "app.cfg").write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
    return {
        "input_url": f"file://{place}",
        "output_url": f"file://{site.base}/data/out-{name}",
        "config_file": "app.cfg",
    }


def assert_history_has_no_gap(site: Site) -> None:
    published: dict[str | int, list[int]] = defaultdict(list)
    for status in site.statuses():
        published[status["job_id"]].append(status["sequence"])
    with Reader(site.config.store) as reader:
        assert reader.outbox(0, 1) == ()
        for job in reader.latest(100_000):
            sequences = [entry.sequence for entry in reader.history(job.id)]
            assert list(range(1, job.sequence + 1)) == sequences
            first_time = list(dict.fromkeys(published[job.public_id]))
            assert sequences == first_time, f"job {job.id} published {published[job.public_id]}"


def assert_each_ran_once(site: Site, codes: dict[str, int]) -> None:
    starts = site.starts()
    for job in site.jobs():
        assert starts.get(job.id) == 1, f"{job.id} started {starts.get(job.id)} times: {site.diagnosis()}"
        expected = JobState.JOB_FINISHED if codes[job.name] == 0 else JobState.JOB_FAILED
        assert job.state is expected, site.diagnosis()
        assert job.attempt is not None
        assert job.attempt.exit_code == codes[job.name]


POINTS_OF_A_PLAIN_JOB = sorted(
    set(POINTS) - ON_A_CANCELLED_JOB - ON_AN_INTERRUPTED_JOB - AFTER_AN_UNCLEAR_SUBMIT
)


@pytest.mark.parametrize("point", POINTS_OF_A_PLAIN_JOB)
def test_a_kill_at_any_point_neither_loses_nor_repeats_a_job(point: str, tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    site.send(
        site.job(name="good", job_id="a", **files(site, "good", seconds=0.3)),
        site.job(name="bad", job_id="b", **files(site, "bad", code=3)),
    )
    die(site, point)
    with site.service():
        site.wait_settled(2)
        wait_for(lambda: _outbox_is_empty(site), 10)
    assert len(site.jobs()) == 2
    assert_each_ran_once(site, {"good": 0, "bad": 3})
    assert_history_has_no_gap(site)
    assert list((site.base / "data/out-good").glob("stdout.*.txt"))
    assert list((site.base / "data/out-bad").glob("stderr.*.txt"))


@pytest.mark.parametrize("point", sorted(ON_A_CANCELLED_JOB))
def test_a_kill_while_cancelling_leaves_a_job_that_is_cancelled_and_does_not_run(
    point: str, tmp_path: Path
) -> None:
    site = make_site(tmp_path / "site", slots=1)
    site.send(site.job(name="blocker", **files(site, "blocker", seconds=120)))
    with site.service():
        wait_for(lambda: _in_state(site, "blocker", JobState.RUNNING), 15, site.diagnosis)
        site.send(site.job(name="waiting", **files(site, "waiting", seconds=0)))
        wait_for(lambda: _in_state(site, "waiting", JobState.QUEUED), 15, site.diagnosis)
    (waiting,) = (job for job in site.jobs() if job.name == "waiting")
    (blocker,) = (job for job in site.jobs() if job.name == "blocker")
    Desk(site.config.store).request("cancel", waiting.id, asked_by="test", now=1)
    die(site, point)
    with site.service():
        wait_for(lambda: _in_state(site, "waiting", JobState.JOB_CANCELLED), 15, site.diagnosis)
        Desk(site.config.store).request("cancel", blocker.id, asked_by="test", now=1)
        site.wait_settled(2)
    assert site.starts() == {blocker.id: 1}
    assert site.states(blocker.id)[-1] is JobState.JOB_CANCELLED


@pytest.mark.parametrize("point", sorted(ON_AN_INTERRUPTED_JOB))
def test_a_kill_while_fencing_ends_the_job_as_interrupted(point: str, tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", grace_s=1)
    site.send(site.job(name="victim", **files(site, "victim", seconds=60)))
    with site.service():
        wait_for(lambda: _in_state(site, "victim", JobState.RUNNING), 15, site.diagnosis)
        _kill_batch_script(site)
    die(site, point)
    with site.service():
        site.wait_settled(1)
    (job,) = site.jobs()
    assert JobState.EXECUTION_FAILED in site.states(job.id)
    assert job.state is JobState.JOB_FAILED
    assert site.starts() == {job.id: 1}


def test_a_kill_after_a_submit_that_nobody_recorded_adopts_what_is_found_by_tag(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    site.send(site.job(name="good", **files(site, "good", seconds=1)))
    die(site, "after submit")
    die(site, "looked for by tag")
    with site.service():
        site.wait_settled(1)
    assert_each_ran_once(site, {"good": 0})
    (job,) = site.jobs()
    assert job.attempt is not None
    assert job.attempt.number == 1


def test_ten_kills_at_random_times_change_nothing(tmp_path: Path) -> None:
    _campaign(tmp_path, kills=10, in_flight=20, seed=20171)


@pytest.mark.long
def test_two_hundred_kills_at_random_times_with_a_hundred_jobs_in_flight(tmp_path: Path) -> None:
    _campaign(tmp_path, kills=200, in_flight=100, seed=2017)


def _campaign(tmp_path: Path, *, kills: int, in_flight: int, seed: int) -> None:
    """Kill the service again and again with jobs in flight; then let it finish and count."""
    dice = random.Random(seed)
    site = make_site(tmp_path / "site", slots=16)
    codes: dict[str, int] = {}
    for _ in range(kills):
        missing = in_flight - sum(job.state not in SETTLED for job in site.jobs()) if codes else in_flight
        definitions = []
        for _ in range(max(0, missing)):
            name = f"job-{len(codes)}"
            codes[name] = dice.choice((0, 0, 0, 3))
            urls = files(site, name, seconds=round(dice.uniform(0, 2), 2), code=codes[name])
            definitions.append(site.job(name=name, job_id=name, **urls))
        site.send(*definitions)
        process = site.start()
        time.sleep(dice.uniform(0.3, 2.0))
        process.kill()
        process.wait()
    with site.service():
        site.wait_settled(len(codes), 120 + 2 * len(codes))
        wait_for(lambda: _outbox_is_empty(site), 20)
    assert len(site.jobs()) == len(codes)
    assert_each_ran_once(site, codes)
    assert_history_has_no_gap(site)
    print(f"{kills} kills, {len(codes)} jobs, each ran once, no status missing")


def _outbox_is_empty(site: Site) -> bool:
    with Reader(site.config.store) as reader:
        return not reader.outbox(0, 1)


def _in_state(site: Site, name: str, state: JobState) -> bool:
    return any(job.name == name and job.state is state for job in site.jobs())


def _kill_batch_script(site: Site) -> None:
    """Kill the one running batch script and all that it started, as a failing node does."""
    (spool,) = (site.config.work_directory / ".fork").glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(spool)) as database:
        (pid,) = database.execute("SELECT pid FROM jobs WHERE pid IS NOT NULL").fetchone()
    subprocess.run(["kill", "-KILL", "--", f"-{pid}"], check=True)
