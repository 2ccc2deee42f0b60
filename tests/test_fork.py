"""Hold the fork batch system to its word, with real processes that are really killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgecore import serial
from edgecore.builtin.fork import ForkScheduling
from edgecore.builtin.fork_spool import lock_file, log, process_start, process_stat, supervised
from edgecore.errors import ConfigurationError, SchedulerUnavailable
from edgecore.models import (
    Group,
    NativeState,
    Observation,
    Reference,
    Refusal,
    Refused,
    SiteContext,
    Submission,
    Submitted,
)

DEADLINE_S = 30.0

SUBMITTER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_fork import Spool
spool = Spool(Path({root!r}), {settings!r})
for number in range({count}):
    spool.submit({text!r}, prefix={prefix!r} + str(number) + "x", wall_time_minutes={minutes})
print("submitted", flush=True)
time.sleep({stay_s})
"""


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Come back when *condition* holds; fail when it does not within the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


class Spool:
    """One site with one fork batch system, and what a test does with it."""

    def __init__(self, root: Path, settings: dict[str, Any] | None = None) -> None:
        self.root = root
        self.place = root / ".fork"
        self.driver = self.open(**(settings or {}))

    def open(self, **settings: Any) -> ForkScheduling:
        """Open a driver on the spool, as a service that starts does."""
        self.driver = ForkScheduling(**{"slots": 2, "kill_grace_s": 0.3, "idle_s": 5.0, **settings})
        environment = {"SITE": "one"}
        self.profile = self.driver.open(
            site=SiteContext(site="here", work_directory=self.root, environment=environment)
        )
        return self.driver

    def submission(self, tag: str, text: str) -> Submission:
        """Make a run directory with a batch script."""
        directory = self.root / "run" / tag
        directory.mkdir(parents=True)
        (directory / "batch.sh").write_text(text)
        return Submission(tag=tag, script=directory / "batch.sh", directory=directory, comment=f"about {tag}")

    def submit(self, text: str, *, count: int = 1, prefix: str = "job", **wishes: Any) -> list[Reference]:
        """Submit *count* like jobs as one group; ``@DIR@`` in the script stands for its directory."""
        tags = [f"{prefix}{number}" for number in range(count)]
        where = str(self.root / "run")
        group = Group(
            tag=tags[0],
            submissions=tuple(self.submission(tag, text.replace("@DIR@", f"{where}/{tag}")) for tag in tags),
            **{"num_nodes": 1, "processes_per_node": 1, "wall_time_minutes": 10, **wishes},
        )
        answers = self.driver.submit(group=group)
        references = []
        for index, submission in enumerate(group.submissions):
            answer = answers[submission.tag]
            assert isinstance(answer, Submitted), answer
            references.append(
                Reference(
                    tag=submission.tag,
                    group_tag=group.tag,
                    index=index if count > 1 else None,
                    batch_id=answer.batch_id,
                    directory=submission.directory,
                    submitted=0,
                )
            )
        return references

    def look(self, reference: Reference) -> Observation:
        """Observe one job."""
        return self.driver.observe(references=[reference])[reference.tag]

    def wait_state(self, state: NativeState, references: Sequence[Reference]) -> list[Observation]:
        """Wait until all jobs are seen in *state*."""
        seen: dict[str, Observation] = {}

        def reached() -> bool:
            seen.update(self.driver.observe(references=references))
            return all(seen[reference.tag].state is state for reference in references)

        wait_for(reached, f"{state} of {len(references)} jobs, seen {seen}")
        return [seen[reference.tag] for reference in references]

    def wait_ended(self, references: Sequence[Reference]) -> list[Observation]:
        """Wait until all jobs have ended."""
        return self.wait_state(NativeState.ENDED, references)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask or change the database behind everybody's back."""
        with contextlib.closing(sqlite3.connect(self.place / "jobs.sqlite", timeout=10)) as database:
            rows = database.execute(query, values).fetchall()
            database.commit()
        return rows

    def pid(self, reference: Reference) -> int:
        """Return the process id of a job that runs."""
        ((pid,),) = self.rows("SELECT pid FROM jobs WHERE id = ?", reference.batch_id)
        return int(pid)

    def supervisor(self) -> int | None:
        """Return the process id of the supervisor that lives, by what the lock file says."""
        words = lock_file(self.place).read_text().split() if lock_file(self.place).exists() else []
        return int(words[0]) if words and str(process_start(int(words[0]))) == words[1] else None

    def kill_supervisor(self) -> None:
        """Kill the supervisor as a machine does that is short of memory."""
        pid = self.supervisor()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not supervised(self.place), "the lock to be free")

    @contextlib.contextmanager
    def unattended(self) -> Iterator[None]:
        """Keep supervisors away, as if one lived that does nothing."""
        with open(lock_file(self.place), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def stop(self) -> None:
        """Leave no process behind."""
        self.driver.close()
        while (pid := self.supervisor()) is not None:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: process_start(pid) is None, "the supervisor's end")  # type: ignore[misc]
        for pid, start in self.rows("SELECT pid, pid_start FROM jobs WHERE state = 'RUNNING'"):
            if process_start(pid) == start:
                os.killpg(pid, signal.SIGKILL)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path)
    yield made
    made.stop()


def group_members(leader: int) -> list[int]:
    """Return the processes of a process group that are not dead."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        stat = process_stat(int(name))
        if stat is not None and int(stat[2]) == leader and stat[0] not in (b"Z", b"X"):
            found.append(int(name))
    return found


@contextlib.contextmanager
def submitter(spool: Spool, text: str, **wishes: Any) -> Iterator[subprocess.Popen[str]]:
    """Run another process that submits to the spool; it has submitted when this returns."""
    values = {"count": 1, "prefix": "other", "minutes": 10, "stay_s": 0, "settings": {}, **wishes}
    program = SUBMITTER.format(tests=str(Path(__file__).parent), root=str(spool.root), text=text, **values)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


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
        assert spool.look(job).reason == "it wants 2 slots, and this host has only 1 now"
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
    (job,) = spool.submit("ls /proc/$$/fd; grep -E 'Sig(Ign|Blk)' /proc/$$/status\n")
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
    first = spool.submit(until, prefix="first")
    spool.wait_state(NativeState.RUNNING, first)
    wide = spool.submit("exit 0\n", prefix="wide", processes_per_node=2)
    small = spool.submit("exit 0\n", prefix="small")
    spool.wait_ended(small)
    assert NativeState.QUEUED is spool.look(wide[0]).state
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


# ------------------------------------------------------------------------ the supervisor


@pytest.mark.slow
def test_a_killed_supervisor_is_replaced_and_the_next_one_sees_the_end(spool: Spool) -> None:
    (job,) = spool.submit("sleep 100 & while [ ! -e @DIR@/go ]; do sleep 0.02; done; exit 5\n")
    spool.wait_state(NativeState.RUNNING, [job])
    pid = spool.pid(job)
    spool.kill_supervisor()
    assert NativeState.RUNNING is spool.look(job).state
    assert supervised(spool.place)
    assert pid == spool.pid(job)
    (job.directory / "go").touch()
    (seen,) = spool.wait_ended([job])
    assert (seen.exit_code, seen.signal) == (None, None)
    assert "the exit code is not known" in seen.reason
    wait_for(lambda: not group_members(pid), "the end of what the adopted job left behind")


@pytest.mark.slow
def test_a_job_that_ended_while_no_supervisor_lived_has_ended(spool: Spool) -> None:
    (job,) = spool.submit("while [ ! -e @DIR@/go ]; do sleep 0.02; done; touch @DIR@/over\n")
    spool.wait_state(NativeState.RUNNING, [job])
    pid, start = spool.pid(job), process_start(spool.pid(job))
    spool.kill_supervisor()
    (job.directory / "go").touch()
    wait_for(lambda: process_start(pid) != start, "the job's end")
    (seen,) = spool.wait_ended([job])
    assert seen.exit_code is None
    assert (job.directory / "over").exists()


@pytest.mark.slow
def test_the_next_supervisor_enforces_walltime_and_cancel_of_adopted_jobs(spool: Spool) -> None:
    spool.driver.close()
    spool.open(minute_s=0.05)
    stubborn = "trap '' TERM; touch @DIR@/begun; while :; do sleep 0.05; done\n"
    (limited,) = spool.submit(stubborn, prefix="limited", wall_time_minutes=20)
    (unwanted,) = spool.submit(stubborn, prefix="unwanted", wall_time_minutes=100_000)
    jobs = [limited, unwanted]
    wait_for(lambda: all((job.directory / "begun").exists() for job in jobs), "both jobs at work")
    spool.kill_supervisor()
    spool.driver.cancel(references=[unwanted])
    assert [seen.reason for seen in spool.wait_ended(jobs)] == ["time limit", "cancelled"]
    wait_for(lambda: not any(group_members(spool.pid(job)) for job in jobs), "the ends of both groups")


@pytest.mark.slow
@pytest.mark.parametrize("boot", ["boot", "'another'"], ids=["same boot", "other boot"])
def test_a_process_that_only_has_the_number_of_a_job_is_never_signalled(spool: Spool, boot: str) -> None:
    (job,) = spool.submit("sleep 100\n")
    spool.wait_state(NativeState.RUNNING, [job])
    spool.kill_supervisor()
    os.killpg(spool.pid(job), signal.SIGKILL)
    with subprocess.Popen(["/bin/sleep", "100"], start_new_session=True) as stranger:
        try:
            start = process_start(stranger.pid)
            assert start is not None
            other_start = start - (boot == "boot")  # the same number, at another time: of this boot or of all
            spool.rows(
                f"UPDATE jobs SET stop = 'cancelled', boot = {boot}, pid = ?, pid_start = ?",
                stranger.pid,
                other_start,
            )
            (seen,) = spool.wait_ended([job])
            assert (boot != "boot") == ("this host restarted" in seen.reason)
            spool.driver.cancel(references=[job])
            spool.wait_ended(spool.submit("exit 0\n", prefix="other"))  # the supervisor had every occasion
            assert stranger.poll() is None
        finally:
            stranger.kill()


KILLED_SUPERVISOR = """
import os, sys
from pathlib import Path
from edgecore.builtin import fork_supervisor
from edgecore.builtin.fork_spool import lock_file
place = Path(sys.argv[1])
lock = os.open(lock_file(place), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
assert fork_supervisor._take(lock)
def die(*_, **__): os.kill(os.getpid(), 9)
setattr(fork_supervisor.Supervisor if sys.argv[2] == "_commit" else fork_supervisor, sys.argv[2], die)
supervisor = fork_supervisor.Supervisor(place, lock)
supervisor.recover()
supervisor.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("instruction", "ran", "exit_code"),
    [("_commit", "ran\n", 0), ("_shut", "", None)],
    ids=["before the row says running", "before the gate is opened"],
)
def test_a_supervisor_killed_while_it_starts_a_job_never_makes_it_run_twice(
    spool: Spool, instruction: str, ran: str, exit_code: int | None
) -> None:
    (spool.root / "ran").touch()
    with spool.unattended():
        (job,) = spool.submit(f"echo ran >>{spool.root}/ran\n")
    done = subprocess.run(
        [sys.executable, "-c", KILLED_SUPERVISOR, str(spool.place), instruction],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (seen,) = spool.wait_ended([job])
    assert exit_code == seen.exit_code
    assert ran == (spool.root / "ran").read_text()


@pytest.mark.slow
def test_killing_supervisors_again_and_again_runs_no_job_twice_and_forgets_none(spool: Spool) -> None:
    jobs = spool.submit("echo ran >>@DIR@/ran; sleep 0.01\n", count=60)
    for share in range(5, 60, 5):
        wait_for(
            lambda share=share: len(list((spool.root / "run").glob("*/ran"))) >= share,  # type: ignore[misc]
            f"{share} jobs begun",
        )
        if spool.supervisor() is not None:
            spool.kill_supervisor()
        spool.driver.observe(references=jobs[:1])
    for job, end in zip(jobs, spool.wait_ended(jobs), strict=True):
        ran = job.directory / "ran"
        assert ran.read_text().split() == ["ran"] if ran.exists() else end.exit_code is None


@pytest.mark.slow
def test_an_end_is_kept_while_the_database_cannot_be_written(spool: Spool) -> None:
    (job,) = spool.submit("while [ ! -e @DIR@/go ]; do sleep 0.02; done; exit 5\n")
    spool.wait_state(NativeState.RUNNING, [job])
    spool.rows("ALTER TABLE jobs RENAME TO away")
    try:
        (job.directory / "go").touch()
        wait_for(lambda: "trying again" in log(spool.place).read_text(), "the supervisor's trouble")
    finally:
        spool.rows("ALTER TABLE away RENAME TO jobs")
    (seen,) = spool.wait_ended([job])
    assert seen.exit_code == 5


@pytest.mark.slow
def test_the_supervisor_goes_away_when_it_is_idle_and_forgets_no_job_in_going(spool: Spool) -> None:
    spool.driver.close()
    spool.open(idle_s=0)
    for number in range(15):
        (job,) = spool.submit("exit 0\n", prefix=f"a{number}x")
        # No observation here, which would start a supervisor: the submission alone must do.
        ended = partial(spool.rows, "SELECT 1 FROM jobs WHERE state = 'ENDED' AND id = ?", job.batch_id)
        wait_for(ended, "the job's end")
    wait_for(lambda: not supervised(spool.place), "the supervisor to go")
    wait_for(lambda: not list((spool.place / "bells").iterdir()), "its bell to be gone")


@pytest.mark.slow
def test_a_supervisor_that_waits_costs_nothing(spool: Spool) -> None:
    (job,) = spool.submit("sleep 100\n")
    spool.wait_state(NativeState.RUNNING, [job])
    pid = spool.supervisor()
    assert pid is not None
    before = process_stat(pid)
    threading.Event().wait(2.0)  # the span of the measurement
    after = process_stat(pid)
    assert before is not None
    assert after is not None
    ticks = sum(map(int, after[11:13])) - sum(map(int, before[11:13]))
    assert ticks <= 1


@pytest.mark.slow
def test_an_ended_job_stays_listed_for_the_configured_days(spool: Spool) -> None:
    old, recent = spool.submit("exit 0\n", count=2)
    spool.wait_ended([old, recent])
    spool.kill_supervisor()
    spool.rows("UPDATE jobs SET ended = ended - 15 * 86400 * 1000000 WHERE id = ?", old.batch_id)
    assert {old.tag, recent.tag} == set(spool.driver.observe(references=[old, recent]))
    spool.wait_ended(spool.submit("exit 0\n", prefix="later"))
    wait_for(lambda: set(spool.driver.observe(references=[old, recent])) == {recent.tag}, "the purge")
