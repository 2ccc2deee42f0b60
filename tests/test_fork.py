"""Hold the fork batch system to its word as a user sees it, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fork_helpers import Spool, group_members, submitter, wait_for

from edgecore import serial
from edgecore.builtin.fork import ForkScheduling
from edgecore.builtin.fork_spool import supervised
from edgecore.errors import ConfigurationError, SchedulerUnavailable
from edgecore.models import (
    Group,
    NativeState,
    Reference,
    Refusal,
    Refused,
)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path)
    yield made
    made.stop()


# ------------------------------------------------------------------ without any process


def test_the_site_configuration_sets_the_fields_and_unknown_keys_are_refused() -> None:
    made = serial.structure(ForkScheduling, {"slots": 3, "nodes": 2, "queues": ["short"]}, source="site.toml")
    assert (made.slots, made.nodes, made.queues) == (3, 2, ("short",))
    with pytest.raises(ConfigurationError, match="slot"):
        serial.structure(ForkScheduling, {"slotz": 3}, source="site.toml")
    with pytest.raises(ConfigurationError, match="slots"):
        serial.structure(ForkScheduling, {"slots": 0}, source="site.toml")
    with pytest.raises(ConfigurationError, match="connection"):
        serial.structure(ForkScheduling, {"connection": None}, source="site.toml")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"num_nodes": 2}, "num_nodes = 2 is more than this host's nodes = 1"),
        ({"processes_per_node": 3}, "processes_per_node = 3 is more than slots = 2 per node"),
        ({"queue": "lang"}, "there is no queue 'lang'; there are: short, long"),
        ({"options": {"gpus": 1}}, "no options, but was given: gpus"),
    ],
)
def test_what_can_never_fit_is_refused_for_good_with_words(
    tmp_path: Path, wish: dict[str, Any], words: str
) -> None:
    spool = Spool(tmp_path, {"queues": ("short", "long")})
    group = Group(
        tag="a",
        submissions=(spool.submission("a", ""), spool.submission("b", "")),
        **{"num_nodes": 1, "processes_per_node": 1, "wall_time_minutes": 1, **wish},
    )
    answers = spool.driver.submit(group=group)
    assert {"a", "b"} == set(answers)
    for answer in answers.values():
        assert isinstance(answer, Refused)
        assert Refusal.PERMANENT is answer.kind
        assert words in answer.reason
    assert spool.rows("SELECT * FROM jobs") == []
    spool.stop()


def test_a_group_gets_ids_and_places_and_is_found_by_its_tag_and_by_theirs(spool: Spool) -> None:
    with spool.unattended():
        group = spool.submit("", count=3, prefix="g")
        (alone,) = spool.submit("", prefix="alone")
        found = spool.driver.find(tags=["g0", "g2", "alone0", "nobody"])
        assert {"g0", "g2", "alone0"} == set(found)
        assert [(one.name, one.index) for one in found["g0"]] == [("g0", 0), ("g1", 1), ("g2", 2)]
        assert [one.index for one in found["g2"]] == [2]
        assert [one.index for one in found["alone0"]] == [None]
        seen = spool.driver.observe(references=[*group, alone])
        assert [seen[reference.tag].batch_id for reference in [*group, alone]] == ["1", "2", "3", "4"]
        assert {NativeState.QUEUED} == {one.state for one in seen.values()}


def test_batch_ids_are_never_given_twice(spool: Spool) -> None:
    with spool.unattended():
        first = spool.submit("", count=5, prefix="a")
        spool.rows("DELETE FROM jobs")
        (later,) = spool.submit("", prefix="b")
        assert later.batch_id == "6"
        assert spool.driver.observe(references=first) == {}


def test_an_id_under_another_name_counts_as_not_listed_and_is_left_alone(spool: Spool) -> None:
    with spool.unattended():
        (mine,) = spool.submit("")
        stranger = Reference(
            tag="stranger",
            group_tag="stranger",
            index=None,
            batch_id=mine.batch_id,
            directory=mine.directory,
            submitted=0,
        )
        assert {mine.tag} == set(spool.driver.observe(references=[stranger, mine]))
        assert spool.driver.cancel(references=[stranger]).accepted == ("stranger",)
        assert spool.driver.hold(references=[stranger]).accepted == ("stranger",)
        assert NativeState.QUEUED is spool.look(mine).state


def test_an_attempt_whose_id_never_arrived_is_observed_and_cancelled_by_its_tag(spool: Spool) -> None:
    with spool.unattended():
        (known,) = spool.submit("")
        unknown = Reference(
            tag=known.tag,
            group_tag=known.tag,
            index=None,
            batch_id=None,
            directory=known.directory,
            submitted=0,
        )
        assert known.batch_id == spool.look(unknown).batch_id
        spool.driver.cancel(references=[unknown])
        assert NativeState.ENDED is spool.look(known).state


@pytest.mark.parametrize("batch_id", ["", "abc", "1.5", "-1", "9" * 40, "99"])
def test_an_id_that_is_none_of_ours_is_not_listed(spool: Spool, batch_id: str) -> None:
    with spool.unattended():
        (known,) = spool.submit("")
        odd = Reference(
            tag=known.tag,
            group_tag=known.tag,
            index=None,
            batch_id=batch_id,
            directory=known.directory,
            submitted=0,
        )
        assert spool.driver.observe(references=[odd]) == {}


def test_three_thousand_references_are_observed_at_once(spool: Spool) -> None:
    with spool.unattended():
        spool.submit("", count=1)
        copy = "tag || id, group_tag, 'HELD', slots, limit_s, request, queued"
        counting = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)"
        spool.rows(
            "INSERT INTO jobs (tag, group_tag, state, slots, limit_s, request, queued) "
            f"{counting} SELECT {copy.replace('|| id', '|| n.i')} FROM n, jobs WHERE jobs.id = 1"
        )
        names = spool.rows("SELECT id, tag FROM jobs")
        references = [
            Reference(
                tag=tag, group_tag=tag, index=None, batch_id=str(job), directory=spool.root, submitted=0
            )
            for job, tag in names
        ]
        assert {tag for _, tag in names} == set(spool.driver.observe(references=references))
        assert len(names) == 3000


def test_a_job_that_waits_is_held_released_and_cancelled_without_a_supervisor(spool: Spool) -> None:
    with spool.unattended():
        (job,) = spool.submit("")
        assert (job.tag,) == spool.driver.hold(references=[job]).accepted
        assert NativeState.HELD is spool.look(job).state
        assert (job.tag,) == spool.driver.release(references=[job]).accepted
        assert NativeState.QUEUED is spool.look(job).state
        assert (job.tag,) == spool.driver.cancel(references=[job]).accepted
        seen = spool.look(job)
        assert (seen.state, seen.reason, seen.exit_code) == (NativeState.ENDED, "cancelled", None)
        assert seen.ended is not None
        spool.driver.release(references=[job])
        assert NativeState.ENDED is spool.look(job).state


def test_a_job_too_large_for_a_host_that_shrank_waits_with_the_reason(spool: Spool) -> None:
    with spool.unattended():
        (job,) = spool.submit("", processes_per_node=2)
        spool.driver.close()
        spool.open(slots=1)
        seen = spool.look(job)
        assert seen.reason == "it wants 2 slots, and this host has only 1 now"
        assert seen.never_starts
    spool.driver.observe(references=[job])
    assert not supervised(spool.place)  # nobody is started for what cannot start


def test_a_spool_that_another_program_holds_is_unavailable_with_words(tmp_path: Path) -> None:
    spool = Spool(tmp_path, {"busy_timeout_s": 0.05})
    with contextlib.closing(sqlite3.connect(spool.place / "jobs.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SchedulerUnavailable, match=r"spool .*\.fork cannot be used: database is locked"):
            spool.submit("", prefix="a")
        other.execute("ROLLBACK")
    with spool.unattended():
        spool.submit("", prefix="b")
    assert spool.rows("SELECT tag FROM jobs") == [("b0",)]
    spool.stop()


def test_a_full_disk_is_unavailable_with_words_and_nothing_of_the_group_is_queued(spool: Spool) -> None:
    connection = spool.driver._connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with spool.unattended(), pytest.raises(SchedulerUnavailable, match="full"):
        spool.submit("", count=200)
    assert spool.rows("SELECT count(*) FROM jobs") == [(0,)]


def test_a_spool_that_was_removed_or_closed_is_unavailable(spool: Spool) -> None:
    with spool.unattended():
        (job,) = spool.submit("")
    away = spool.place.rename(spool.root / "away")
    with pytest.raises(SchedulerUnavailable, match="is its directory there"):
        spool.driver.observe(references=[job])
    away.rename(spool.place)
    spool.driver.close()
    with pytest.raises(SchedulerUnavailable, match="is not open"), spool.unattended():
        spool.driver.observe(references=[job])


def test_a_damaged_database_is_unavailable_and_one_of_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".fork").mkdir()
    (tmp_path / ".fork/jobs.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(SchedulerUnavailable, match="not a database"):
        Spool(tmp_path)
    (tmp_path / ".fork/jobs.sqlite").unlink()
    with contextlib.closing(sqlite3.connect(tmp_path / ".fork/jobs.sqlite")) as database:
        database.execute("PRAGMA user_version = 7")
    with pytest.raises(ConfigurationError, match="layout 7"):
        Spool(tmp_path)


def test_a_spool_that_cannot_be_made_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="spool"):
        Spool(tmp_path, {"spool": "file/inside"})


def test_a_supervisor_that_cannot_start_is_told_by_observe_but_the_jobs_are_queued(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (job,) = spool.submit("")
    with pytest.raises(SchedulerUnavailable, match="cannot start the supervisor"):
        spool.driver.observe(references=[job])
    assert spool.rows("SELECT state FROM jobs") == [("QUEUED",)]


def test_threads_may_share_one_driver(spool: Spool) -> None:
    failures: list[BaseException] = []
    ids: list[str | None] = []

    def work(name: str) -> None:
        try:
            for number in range(20):
                references = spool.submit("", count=2, prefix=f"{name}{number}x")
                assert len(spool.driver.observe(references=references)) == 2
                ids.extend(reference.batch_id for reference in references)
        except BaseException as error:
            failures.append(error)

    with spool.unattended():
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(set(ids)) == 160


# ---------------------------------------------------------------------------- real jobs


@pytest.mark.slow
def test_a_job_runs_and_its_exit_code_times_and_output_are_kept(spool: Spool) -> None:
    (job,) = spool.submit("echo to stdout; echo to stderr >&2; exit 7\n")
    (seen,) = spool.wait_ended([job])
    assert (seen.exit_code, seen.signal, seen.reason, seen.native_state) == (7, None, "", "ENDED")
    assert seen.queued is not None
    assert seen.started is not None
    assert seen.ended is not None
    assert seen.queued <= seen.started <= seen.ended <= time.time_ns() // 1000
    assert (job.directory / "batch.out").read_text() == "to stdout\nto stderr\n"


@pytest.mark.slow
def test_the_environment_is_built_and_never_that_of_the_service(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the service")
    (job,) = spool.submit("cat /proc/$$/environ >@DIR@/environment; pwd; cat\n")
    spool.wait_ended([job])
    content = (job.directory / "environment").read_text().rstrip("\0").split("\0")
    found = dict(line.split("=", 1) for line in content)
    for added_by_some_shells in ("PWD", "OLDPWD", "SHLVL", "_"):
        found.pop(added_by_some_shells, None)
    assert {
        "PATH": os.defpath,
        "SITE": "one",
        "EDGECORE_FORK_ID": job.batch_id,
        "EDGECORE_FORK_SPOOL": str(spool.place),
    } == found
    assert spool.profile.batch_id_text == "$EDGECORE_FORK_ID"
    assert (job.directory / "batch.out").read_text() == "/\n"


@pytest.mark.slow
def test_a_job_inherits_no_open_file_and_no_ignored_signal(spool: Spool) -> None:
    (job,) = spool.submit("ls /proc/$$/fd; grep -E 'Sig(Ign|Blk)' /proc/self/status\n")
    (seen,) = spool.wait_ended([job])
    words = (job.directory / "batch.out").read_text().split()
    numbers = {word for word in words if word.isdigit() and len(word) < 4}
    assert numbers - {"10", "255"} == {"0", "1", "2"}  # these two: a shell's own copy of its script
    for name in ("SigBlk:", "SigIgn:"):
        mask = int(words[words.index(name) + 1], 16)
        assert mask & 0x7FFFFFFF == 0  # above are the C library's own real-time signals
    assert seen.exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["script", "directory"])
def test_a_job_whose_files_are_gone_ends_with_127_and_the_reason(spool: Spool, missing: str) -> None:
    with spool.unattended():
        (job,) = spool.submit("exit 0\n")
        if missing == "directory":
            elsewhere = spool.submission("elsewhere", "exit 0\n")
            spool.rows("UPDATE jobs SET request = replace(request, 'job0/batch.sh', 'elsewhere/batch.sh')")
            assert elsewhere.script.exists()
        (job.directory / "batch.sh").unlink()
        job.directory.rmdir()
    (seen,) = spool.wait_ended([job])
    assert seen.exit_code == 127
    assert "could not be started" in seen.reason
    assert "No such file" in seen.reason
    assert seen.started is None


@pytest.mark.slow
def test_a_job_that_a_signal_ended_says_which(spool: Spool) -> None:
    (job,) = spool.submit("kill -SEGV $$\n")
    (seen,) = spool.wait_ended([job])
    assert (seen.exit_code, seen.signal, seen.reason) == (None, signal.SIGSEGV, "killed by signal 11")


@pytest.mark.slow
def test_a_job_and_the_queue_outlive_the_process_that_submitted_them(spool: Spool) -> None:
    text = "echo begun >>@DIR@/begun; while [ ! -e %s/go ]; do sleep 0.02; done; exit 3\n" % spool.root  # noqa: UP031
    with submitter(spool, text, count=3, stay_s=60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "submitted\n"
        process.kill()
        process.wait()
    first, second, third = (spool.root / f"run/other{number}x0/begun" for number in range(3))
    wait_for(lambda: first.exists() and second.exists(), "two jobs at work")
    assert not third.exists()
    (spool.root / "go").touch()
    wait_for(lambda: spool.rows("SELECT 1 FROM jobs WHERE state = 'ENDED' LIMIT -1 OFFSET 2"), "all ends")
    assert spool.rows("SELECT exit_code FROM jobs") == [(3,)] * 3
    assert third.read_text() == "begun\n"


@pytest.mark.slow
def test_the_walltime_is_enforced_while_no_service_lives(spool: Spool) -> None:
    with submitter(spool, "sleep 100\n", minutes=50, settings={"minute_s": 0.02}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "submitted\n"
        process.kill()
    wait_for(lambda: spool.rows("SELECT 1 FROM jobs WHERE state = 'ENDED'"), "the end at the walltime")
    ((reason, number, lasted, pid),) = spool.rows("SELECT reason, signal, ended - started, pid FROM jobs")
    assert (reason, number) == ("time limit", signal.SIGTERM)
    assert 0.9e6 <= lasted <= 5e6
    assert group_members(pid) == []


@pytest.mark.slow
def test_never_more_jobs_run_than_there_are_slots(spool: Spool) -> None:
    spool.driver.close()
    spool.open(slots=2, nodes=2)
    everything = f"{spool.root}/everything"
    text = f"echo + >>{everything}; sleep 0.1; echo - >>{everything}\n"
    narrow = spool.submit(text, count=14, prefix="narrow")
    wide = spool.submit(text.replace("+", "++").replace("echo -", "echo --"), num_nodes=2, prefix="wide")
    spool.wait_ended([*narrow, *wide])
    running = highest = 0
    for line in Path(everything).read_text().split():
        running += len(line) if "+" in line else -len(line)
        highest = max(highest, running)
    assert highest == 4
    assert running == 0


@pytest.mark.slow
def test_a_job_that_does_not_fit_lets_smaller_ones_pass(spool: Spool) -> None:
    until = "while [ ! -e %s/go ]; do sleep 0.02; done\n" % spool.root  # noqa: UP031
    with spool.unattended():  # all three wait when the first one is started
        first = spool.submit(until, prefix="first")
        wide = spool.submit("exit 0\n", prefix="wide", processes_per_node=2)
        small = spool.submit("exit 0\n", prefix="small")
    spool.wait_ended(small)
    assert spool.look(wide[0]).state is NativeState.QUEUED
    assert spool.look(first[0]).state is NativeState.RUNNING
    (spool.root / "go").touch()
    spool.wait_ended([*first, *wide])


@pytest.mark.slow
def test_a_held_job_waits_until_it_is_released(spool: Spool) -> None:
    with spool.unattended():
        (held,) = spool.submit("exit 0\n", prefix="held")
        spool.driver.hold(references=[held])
    other = spool.submit("exit 0\n", prefix="other")
    spool.wait_ended(other)
    assert NativeState.HELD is spool.look(held).state
    spool.driver.release(references=[held])
    (seen,) = spool.wait_ended([held])
    assert seen.exit_code == 0


@pytest.mark.slow
def test_holding_a_job_that_runs_is_refused_with_words(spool: Spool) -> None:
    (job,) = spool.submit("sleep 100\n")
    spool.wait_state(NativeState.RUNNING, [job])
    answer = spool.driver.hold(references=[job])
    assert answer.accepted == ()
    assert "runs already" in answer.refused[job.tag]


@pytest.mark.slow
def test_a_cancelled_job_gets_term_and_may_end_in_good_order(spool: Spool) -> None:
    (job,) = spool.submit("trap 'kill $!; exit 9' TERM; sleep 100 & touch @DIR@/begun; wait\n")
    wait_for((job.directory / "begun").exists, "the job at work")
    spool.driver.cancel(references=[job])
    (seen,) = spool.wait_ended([job])
    assert (seen.exit_code, seen.reason) == (9, "cancelled")


@pytest.mark.slow
def test_a_cancelled_job_that_ignores_term_is_killed_with_its_children(spool: Spool) -> None:
    text = "trap '' TERM; sh -c 'sleep 100; sleep 100' & touch @DIR@/begun; wait; wait\n"
    (job,) = spool.submit(text)
    wait_for((job.directory / "begun").exists, "the job at work")
    pid = spool.pid(job)
    assert len(group_members(pid)) >= 2
    spool.driver.cancel(references=[job])
    (seen,) = spool.wait_ended([job])
    assert (seen.exit_code, seen.signal, seen.reason) == (None, signal.SIGKILL, "cancelled")
    wait_for(lambda: not group_members(pid), "the end of the whole group")


@pytest.mark.slow
def test_what_a_job_leaves_behind_is_killed_with_its_end(spool: Spool) -> None:
    (job,) = spool.submit("sleep 100 &\nexit 0\n")
    (seen,) = spool.wait_ended([job])
    assert (seen.exit_code, seen.reason) == (0, "")
    wait_for(lambda: not group_members(spool.pid(job)), "the end of what was left")


@pytest.mark.slow
def test_two_hundred_short_jobs_run_through(spool: Spool) -> None:
    jobs = spool.submit("echo ran >>@DIR@/ran\n", count=200)
    ends = spool.wait_ended(jobs)
    assert {(0, "")} == {(end.exit_code, end.reason) for end in ends}
    assert [(job.directory / "ran").read_text() for job in jobs] == ["ran\n"] * 200


@pytest.mark.slow
def test_two_services_on_one_spool_never_start_a_job_twice(spool: Spool) -> None:
    text = "echo ran >>@DIR@/ran\n"
    with (
        submitter(spool, text, count=40, prefix="a") as one,
        submitter(spool, text, count=40, prefix="b") as other,
    ):
        assert (one.wait(60), other.wait(60)) == (0, 0)
    wait_for(lambda: spool.rows("SELECT count(*) FROM jobs WHERE state = 'ENDED'") == [(80,)], "80 ends")
    assert [path.read_text() for path in (spool.root / "run").glob("*/ran")] == ["ran\n"] * 80
