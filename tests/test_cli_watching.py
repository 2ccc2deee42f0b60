"""Waiting for jobs and watching them: at once, in lines or in a picture that fits, until Ctrl-C."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from places import DEADLINE_S, Live, Place, wait_for

from edgecore.cli import following
from edgecore.cli.following import Followed, Looks
from edgecore.cli.jobs import Choice
from edgecore.cli.watching import Changes, _picture
from edgecore.models import Intent, Job, JobState
from edgecore.reader import HistoryEntry, Reader
from edgecore.store import Arrival, Change, Store

S = JobState


@contextlib.contextmanager
def moving(place: Place) -> Iterator[Store]:
    """Have the store, as a service has it."""
    with contextlib.closing(place.store()) as store:
        yield store


def move(store: Store, job: Job, *states: JobState, message: str = "") -> Job:
    for state in states:
        moved = job.moved(state, store.now(), message)
        assert [True] == store.apply([Change(job, (moved,))]).result(10)
        job = moved
    return job


# --------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--state", "RUNING"], "did you mean RUNNING?"),
        (["--state", "runing"], "did you mean RUNNING?"),
        (["--since", "yesterday"], "say 90m, 12h, 3d"),
        (["--since", "99999999999d"], "is no time"),
        (["--counts", "--owner", "x"], "--counts counts all jobs"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_with_what_is_allowed(
    place: Place, arguments: list[str], words: str
) -> None:
    result = place.run("jobs", *arguments)

    assert 2 == result.exit_code
    assert words in result.stderr.replace("\n", " ")


def test_jobs_are_chosen_by_owner_application_and_age(place: Place) -> None:
    old = place.keep(owner="anna")
    new = place.keep(owner="bert", application="other")

    def ids(*arguments: str) -> list[int]:
        return [job["id"] for job in json.loads(place.run("jobs", "--json", *arguments).stdout)]

    assert [old.id] == ids("--owner", "anna")
    assert [new.id] == ids("-a", "other")
    assert [new.id, old.id] == ids("--since", "1h")
    assert [] == ids("--since", "2999-01-01T00:00")
    assert [] == ids("--owner", "anna", "-a", "other")


def test_alarms_are_said_beside_the_list(place: Place) -> None:
    place.keep()
    with moving(place) as store:
        for number in range(5):
            store.note_alarm(f"job {number}", "LOST\x1b[2J").result(10)

    result = place.run("jobs")

    assert "alarm: job 0: LOST\\x1b[2J" in result.stderr
    assert "and 2 alarms more" in result.stderr
    assert [] != json.loads(place.run("jobs", "--json").stdout)


# ----------------------------------------------------------------------------- several jobs


def test_several_definitions_are_sent_at_once(place: Place) -> None:
    files = []
    for name in ("a", "b"):
        path = place.base / f"{name}.json"
        path.write_text(json.dumps(place.definition(job_id=name)))
        files.append(str(path))

    result = place.run("submit", *files, "--json")

    assert ["a", "b"] == [each["job_id"] for each in json.loads(result.stdout)]
    assert ["a", "b"] == [json.loads(body)["job_id"] for body in place.queued()]


def test_of_several_definitions_none_is_sent_when_some_are_wrong(place: Place) -> None:
    good, bad, worse = (place.base / f"{name}.json" for name in ("good", "bad", "worse"))
    good.write_text(json.dumps(place.definition()))
    bad.write_text(json.dumps(place.definition(num_nodes=0)))
    worse.write_text("{")

    result = place.run("submit", str(good), str(bad), str(worse))

    assert 2 == result.exit_code
    assert "2 of 3 definitions" in result.stderr
    assert "bad.json: num_nodes" in result.stderr
    assert "worse.json" in result.stderr
    assert [] == place.queued()


def test_waiting_for_several_jobs_tells_whose_every_line_is_and_ends_with_the_worst(place: Place) -> None:
    for job_id, state in (("a", S.JOB_FINISHED), ("b", S.JOB_FAILED)):
        place.keep(state, job_id=job_id, message=f"of {job_id}")
        (place.base / f"{job_id}.json").write_text(json.dumps(place.definition(job_id=job_id)))

    result = place.run("submit", str(place.base / "a.json"), str(place.base / "b.json"), "--wait")

    assert 1 == result.exit_code
    assert re.search(r"JOB_FINISHED +a  of a\n", result.stdout)
    assert re.search(r"JOB_FAILED +b  of b\n", result.stdout)
    assert "1 JOB_FAILED, 1 JOB_FINISHED" in result.stdout
    both = json.loads(
        place.run("submit", str(place.base / "a.json"), str(place.base / "b.json"), "--wait", "--json").stdout
    )
    assert ["JOB_FINISHED", "JOB_FAILED"] == [each["state"] for each in both]


# -------------------------------------------------------------------------------- following


class Told:
    """Note what a follower says."""

    def __init__(self) -> None:
        self.states: list[tuple[object, str]] = []
        self.services: list[bool] = []
        self.news = threading.Event()

    def status(self, followed: Followed, entry: HistoryEntry) -> None:
        self.states.append((followed.label, entry.state))
        self.news.set()

    def present(self, all_of_them: Any) -> None:
        pass

    def service(self, runs: bool) -> None:
        self.services.append(runs)
        self.news.set()


def test_every_status_is_told_once_however_many_come_between_two_looks(place: Place) -> None:
    job = place.keep(S.CREATED, job_id="mine")
    told = Told()
    followed = Followed("mine", lambda: reader.job(job.id))
    with moving(place) as store, Reader(place.config.store) as reader:
        looks = Looks(reader, place.config)
        assert not following.follow(looks, [followed], told, timeout_s=0)
        after = move(store, job, S.STAGED_IN, S.PREPROCESSED, S.SUBMITTING)
        assert not following.follow(looks, [followed], told, timeout_s=0)
        store.note(after, "only a note").result(10)
        assert not following.follow(looks, [followed], told, timeout_s=0)
        assert followed.job is not None
        assert "only a note" == followed.job.message
        move(store, evolve(after, message="only a note"), S.SUBMIT_FAILED, S.JOB_FAILED)
        assert following.follow(looks, [followed], told, timeout_s=0)

    states = [S.CREATED, S.STAGED_IN, S.PREPROCESSED, S.SUBMITTING, S.SUBMIT_FAILED, S.JOB_FAILED]
    assert [("mine", state) for state in states] == told.states


@pytest.mark.slow
def test_a_look_at_a_store_where_nothing_happened_reads_no_job(place: Place) -> None:
    job = place.keep(S.RUNNING)
    finds: list[int] = []

    def find() -> Job | None:
        finds.append(1)
        return reader.job(job.id)

    with Reader(place.config.store) as reader:
        following.follow(Looks(reader, place.config), [Followed("mine", find)], Told(), timeout_s=0.5)
    assert [1, 1] == finds  # to find it, and to read it


def test_who_waits_is_told_that_the_service_has_gone_and_is_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = place.keep(S.RUNNING)
    monkeypatch.setattr(following, "_SERVICE_S", 0.0)
    told = Told()
    with Reader(place.config.store) as reader:
        looks = Looks(reader, place.config)
        followed = [Followed("mine", lambda: reader.job(job.id))]
        following.follow(looks, followed, told, timeout_s=0)
        with moving(place):
            following.follow(looks, followed, told, timeout_s=0)
        following.follow(looks, followed, told, timeout_s=0)
    assert [True, False] == told.services


@pytest.mark.slow
def test_thousands_of_jobs_are_followed_with_few_questions(place: Place) -> None:
    with moving(place) as store:
        template = place_job(store, place)
        jobs = [evolve(template, id=store.new_id()) for _ in range(2000)]
        with store.together():
            for job in jobs:
                written = store.take([Arrival(str(job.id), Change(None, (job,)))])
        written.result(10)
        with Reader(place.config.store) as reader:
            followed = [Followed(job.id, lambda job_id=job.id: reader.job(job_id)) for job in jobs]  # type: ignore[misc]
            looks = Looks(reader, place.config)
            following.follow(looks, followed, Told(), timeout_s=0)
            move(store, jobs[7], S.STAGED_IN)
            asked: list[str] = []
            reader._connection.set_trace_callback(asked.append)
            following.follow(looks, followed, Told(), timeout_s=0)
    assert len(asked) < 12


def place_job(store: Store, place: Place) -> Job:
    from edgecore import serial
    from edgecore.models import JobDefinition

    definition = serial.structure(JobDefinition, place.definition(), source="test")
    return Job(id=1, owner="o", definition=definition, state=S.CREATED, sequence=1, changed=store.now())


# --------------------------------------------------------------------------------- watching


def test_changes_are_found_once_each_also_of_jobs_that_came_and_went_or_go_on_again(place: Place) -> None:
    place.keep(S.JOB_FINISHED)
    failed = place.keep(S.JOB_FAILED)
    running = place.keep(S.RUNNING)
    with Reader(place.config.store) as reader:
        changes = Changes(reader)
        assert [] == list(changes.look())
        new = place.keep(S.JOB_REJECTED)
        with moving(place) as store:
            move(store, running, S.EXECUTION_FINISHED, S.POSTPROCESSED)
            again = move(store, failed, S.PREPROCESSED)
        assert [
            (failed.id, S.PREPROCESSED),
            (running.id, S.EXECUTION_FINISHED),
            (running.id, S.POSTPROCESSED),
            (new.id, S.JOB_REJECTED),
        ] == [(job.id, entry.state) for job, entry in changes.look()]
        assert [] == list(changes.look())
        with moving(place) as store:
            move(store, again, S.SUBMIT_FAILED, S.JOB_FAILED)
        assert [S.SUBMIT_FAILED, S.JOB_FAILED] == [entry.state for _, entry in changes.look()]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 3)])
def test_the_picture_of_a_site_is_never_larger_than_the_terminal(
    place: Place, width: int, height: int
) -> None:
    rich_console = pytest.importorskip("rich.console")
    for _ in range(30):
        place.keep(S.RUNNING, name="n" * 90, message="m" * 200, intent=Intent.CANCELLED)
    with moving(place) as store:
        for number in range(5):
            store.note_alarm(f"job {number}", "x" * 200).result(10)
    terminal = rich_console.Console(file=io.StringIO(), force_terminal=True, width=width, height=height)
    with Reader(place.config.store) as reader:
        looks = Looks(reader, place.config, service_runs=False)
        lines = _picture(looks, Choice(limit=20), terminal).plain.split("\n")
    assert len(lines) <= height
    assert all(len(line) <= max(width, 25) for line in lines)  # the state is 22 wide
    if height == 24:
        assert "ITS SERVICE IS NOT RUNNING" in lines[0]
        assert "and 2 alarms more" in lines[4]
        assert "30 RUNNING" == lines[5]
        assert "RUNNING (cancel asked)" in lines[-1]


class Screen:
    """Run a command at a terminal of its own."""

    def __init__(self, place: Place, *arguments: str, columns: int = 80, rows: int = 24) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns, rows)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgecore", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "EDGECORE_SITE": str(place.file), "TERM": "xterm-256color"},
        )
        os.close(slave)
        self.text = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait(self, words: str) -> None:
        """Read until *words* have come since the last call."""
        deadline = time.monotonic() + DEADLINE_S
        while words not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.master], [], [], 0.5)[0]:
                self.text += os.read(self.master, 65536).decode(errors="replace")
        self.text = self.text[self.text.index(words) + len(words) :]

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        self.wait("to look again: edgecore ")
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        os.close(self.master)


@pytest.mark.slow
def test_a_watched_site_is_drawn_anew_for_every_change_and_every_size(place: Place) -> None:
    job = place.keep(S.RUNNING, name="a-name-that-is-longer-than-the-terminal-is-wide")
    with contextlib.closing(Screen(place, "jobs", "--watch")) as screen:
        screen.wait("ITS SERVICE IS NOT RUNNING")
        screen.wait("1 RUNNING")
        screen.wait("a-name")
        with moving(place) as store:
            move(store, job, S.EXECUTION_FINISHED)
            screen.wait("1 EXECUTION_FINISHED")
            screen.resize(40, 10)
            screen.wait("EXECUTION_FINISHED")
        assert 130 == screen.interrupt()


@pytest.mark.slow
def test_who_waits_at_a_terminal_sees_every_status_and_may_leave(place: Place) -> None:
    job = place.keep(S.RUNNING, job_id="mine")
    with contextlib.closing(Screen(place, "submit", place.write(job_id="mine"), "--wait")) as screen:
        screen.wait("RUNNING for")
        with moving(place) as store:
            move(store, job, S.EXECUTION_FINISHED)
            screen.wait("EXECUTION_FINISHED")
        assert 130 == screen.interrupt()


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
def test_a_watched_site_is_written_as_one_line_per_change_where_there_is_no_terminal(
    tmp_path: Path, as_json: bool
) -> None:
    live = Live(tmp_path)
    job = live.keep(S.RUNNING, name="watched")
    process = live.start("-m", "edgecore", "jobs", "--watch", *(["--json"] if as_json else []))
    assert process.stderr is not None
    assert process.stdout is not None
    assert "is not running here" in process.stderr.readline()
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
    reading.start()
    try:
        with moving(live) as store:
            # It may not have begun to watch yet, so there is one change after the other until it tells of one.
            states = (S.HELD, S.QUEUED)
            for number in range(10_000):
                job = move(store, job, states[number % 2], message="moved")
                if lines:
                    break
                time.sleep(0.01)
            last = move(store, job, S.EXECUTION_FINISHED, message="the end")
        wait_for(lambda: any("EXECUTION_FINISHED" in line for line in lines), "the line of the last change")
    finally:
        process.send_signal(signal.SIGINT)
        reading.join(DEADLINE_S)
        code = process.wait(DEADLINE_S)
        said = process.stderr.read()
        process.stderr.close()
        process.stdout.close()

    assert (130, True) == (code, "the jobs go on; to look again: edgecore jobs" in said)
    if as_json:
        told = json.loads(lines[-1])
        assert (last.id, "watched", "the end", last.sequence) == (
            *(told["id"], told["name"], told["message"], told["sequence"]),
        )
    else:
        assert re.fullmatch(
            rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\dZ  EXECUTION_FINISHED  {last.id}  watched  the end\n",
            lines[-1],
        )
