"""Each application runs exactly once, whenever the service is killed."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from sites import Site, make_site, wait_for

from edgecore.desk import Desk
from edgecore.models import JobState
from edgecore.testing.campaign import Campaign
from edgecore.testing.doomed import POINTS

pytestmark = pytest.mark.slow

ON_A_CANCELLED_JOB = {"before revoking", "revoked", "before cancelling", "cancelled"}
ON_AN_INTERRUPTED_JOB = {"before fencing", "fenced"}
AFTER_AN_UNCLEAR_SUBMIT = {"looked for by tag"}


def assert_each_ran_once(site: Site, codes: dict[str, int]) -> None:
    """Check that the jobs of these names ran once, and ended with these exit codes."""
    campaign = Campaign(site=site, kills=0, in_flight=0, seed=0)
    campaign.codes.update(codes)
    campaign.check()


POINTS_OF_A_PLAIN_JOB = sorted(
    set(POINTS) - ON_A_CANCELLED_JOB - ON_AN_INTERRUPTED_JOB - AFTER_AN_UNCLEAR_SUBMIT
)


@pytest.mark.parametrize("point", POINTS_OF_A_PLAIN_JOB)
def test_a_kill_at_any_point_neither_loses_nor_repeats_a_job(point: str, tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    site.send(
        site.job(name="good", job_id="a", **site.files("good", seconds=0.3)),
        site.job(name="bad", job_id="b", **site.files("bad", code=3)),
    )
    site.die(point)
    with site.service():
        site.wait_settled(2)
        site.wait_published()
    assert_each_ran_once(site, {"good": 0, "bad": 3})
    assert list((site.base / "data/out-good").glob("stdout.*.txt"))
    assert list((site.base / "data/out-bad").glob("stderr.*.txt"))


def _with_one_that_waits(base: Path, **more: Any) -> Site:
    """Make a site whose batch system is busy with one job for long, while another waits for its turn."""
    site = make_site(base, slots=1)
    site.send(site.job(name="blocker", **site.files("blocker", seconds=120)))
    with site.service():
        wait_for(lambda: _in_state(site, "blocker", JobState.RUNNING), 15, site.diagnosis)
        site.send(site.job(name="waiting", **more, **site.files("waiting", seconds=0)))
        wait_for(lambda: _in_state(site, "waiting", JobState.QUEUED), 15, site.diagnosis)
    return site


@pytest.mark.parametrize("point", sorted(ON_A_CANCELLED_JOB))
def test_a_kill_while_cancelling_leaves_a_job_that_is_cancelled_and_does_not_run(
    point: str, tmp_path: Path
) -> None:
    site = _with_one_that_waits(tmp_path / "site")
    (waiting,) = (job for job in site.jobs() if job.name == "waiting")
    (blocker,) = (job for job in site.jobs() if job.name == "blocker")
    Desk(site.config.store).request("cancel", waiting.id, asked_by="test", now=1)
    site.die(point)
    with site.service():
        wait_for(lambda: _in_state(site, "waiting", JobState.JOB_CANCELLED), 15, site.diagnosis)
        Desk(site.config.store).request("cancel", blocker.id, asked_by="test", now=1)
        site.wait_settled(2)
    assert site.starts() == {blocker.id: 1}
    assert site.states(blocker.id)[-1] is JobState.JOB_CANCELLED


@pytest.mark.parametrize("point", sorted({*ON_A_CANCELLED_JOB, "before JOB_FAILED is committed"}))
def test_a_kill_while_giving_up_leaves_a_job_that_has_failed_for_that_and_does_not_run(
    point: str, tmp_path: Path
) -> None:
    site = _with_one_that_waits(tmp_path / "site", retries=3)
    text = site.file.read_text()
    site.file.write_text(text.replace("[timing]\n", "[timing]\noverdue_after_s = 0.01\n"))
    site.die(point)
    with site.service():
        wait_for(lambda: _in_state(site, "waiting", JobState.JOB_FAILED), 15, site.diagnosis)
        blocker = site.named("blocker")
        assert blocker is not None
        Desk(site.config.store).request("cancel", blocker.id, asked_by="test", now=1)
        site.wait_settled(2)
    assert site.starts() == {blocker.id: 1}
    failed = site.named("waiting")
    assert failed is not None
    assert failed.failed_state is JobState.SUBMIT_FAILED
    assert "longer than this site allows" in failed.message
    assert site.states(failed.id)[-2:] == [JobState.SUBMIT_FAILED, JobState.JOB_FAILED]


@pytest.mark.parametrize("point", sorted(ON_AN_INTERRUPTED_JOB))
def test_a_kill_while_fencing_ends_the_job_as_interrupted(point: str, tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", grace_s=1)
    site.send(site.job(name="victim", **site.files("victim", seconds=60)))
    with site.service():
        wait_for(lambda: _in_state(site, "victim", JobState.RUNNING), 15, site.diagnosis)
        _kill_batch_script(site)
    site.die(point)
    with site.service():
        site.wait_settled(1)
    (job,) = site.jobs()
    assert JobState.EXECUTION_FAILED in site.states(job.id)
    assert job.state is JobState.JOB_FAILED
    assert site.starts() == {job.id: 1}


def test_a_kill_after_a_submit_that_nobody_recorded_adopts_what_is_found_by_tag(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site")
    site.send(site.job(name="good", **site.files("good", seconds=1)))
    site.die("after submit")
    site.die("looked for by tag")
    with site.service():
        site.wait_settled(1)
    assert_each_ran_once(site, {"good": 0})
    (job,) = site.jobs()
    assert job.attempt is not None
    assert job.attempt.number == 1


@pytest.mark.long  # in the suite, the contract of the fork driver does the same with five
def test_ten_kills_at_random_times_change_nothing(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", slots=16)
    Campaign(site=site, kills=10, in_flight=20, seed=20171).run()


@pytest.mark.long
def test_two_hundred_kills_at_random_times_with_a_hundred_jobs_in_flight(tmp_path: Path) -> None:
    site = make_site(tmp_path / "site", slots=16)
    Campaign(site=site, kills=200, in_flight=100, seed=2017).run()


def _in_state(site: Site, name: str, state: JobState) -> bool:
    return any(job.name == name and job.state is state for job in site.jobs())


def _kill_batch_script(site: Site) -> None:
    """Kill the one running batch script and all that it started, as a failing node does."""
    (spool,) = (site.config.work_directory / ".fork").glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(spool)) as database:
        (pid,) = database.execute("SELECT pid FROM jobs WHERE pid IS NOT NULL").fetchone()
    subprocess.run(["kill", "-KILL", "--", f"-{pid}"], check=True)
