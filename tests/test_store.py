"""The store: what was answered is durable, one writes, many read, and every refusal says what to do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from packages import Environment, build_wheel

from edgecore import migrations, store_file
from edgecore.clock import Clock
from edgecore.desk import Desk
from edgecore.directories import file_system_of
from edgecore.errors import StoreError, StoreLocked, StoreUnusable
from edgecore.models import Application, Attempt, Intent, Job, JobDefinition, JobState
from edgecore.reader import Reader
from edgecore.rows import TransferRecord
from edgecore.store import Arrival, Change, Route, Store
from edgecore.store_file import connect, is_running

S = JobState
TESTS = Path(__file__).parent


class SetClock(Clock):
    """A wall clock that a test sets."""

    def __init__(self, now: int) -> None:
        self.at = now

    def now(self) -> int:
        return self.at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with opened(path) as store:
        yield store


@contextlib.contextmanager
def opened(path: Path, **more: Any) -> Iterator[Store]:
    store = Store(path, site="testsite", route=Route("hpc", "status"), **more)
    try:
        yield store
    finally:
        store.close()


def new_job(store: Store, **more: Any) -> Job:
    definition = JobDefinition(
        name="job", application="app", site="testsite", job_id=more.pop("job_id", None)
    )
    return Job(
        id=store.new_id(),
        owner="somebody",
        definition=definition,
        state=S.CREATED,
        sequence=1,
        changed=store.now(),
        **more,
    )


def take(store: Store, job: Job, identity: str | None = None) -> int:
    return store.take([Arrival(identity or str(job.id), Change(None, (job,)))]).result(10)[0]


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(connect(path, read_only=True)) as connection:
        return connection.execute(query).fetchall()


# ------------------------------------------------------------------------- one transaction


def test_a_change_writes_job_history_attempt_status_and_transfer_together(store: Store, path: Path) -> None:
    job = new_job(store)
    take(store, job)
    attempt = Attempt(number=1, tag="e1", group_tag="e1", intended=5, batch_id="77")
    staged = job.moved(S.STAGED_IN, 2_000_000)
    ready = staged.moved(S.PREPROCESSED, 3_000_000)
    submitting = ready.moved(S.SUBMITTING, 4_000_000, attempt=attempt)
    record = TransferRecord(
        direction="in", url="file:///x", started=1, ended=2, files=3, size_bytes=4, verified="size"
    )

    assert [True] == store.apply([Change(job, (staged, ready, submitting), transfer=record)]).result(10)

    with Reader(path) as reader:
        assert submitting == reader.job(job.id)
        assert (attempt,) == reader.attempts(job.id)
        assert (record,) == reader.transfers(job.id)
        assert [S.CREATED, S.STAGED_IN, S.PREPROCESSED, S.SUBMITTING] == [
            entry.state for entry in reader.history(job.id)
        ]
        bodies = [json.loads(entry.body) for entry in reader.outbox(0, 10)]
    assert [
        (n, state) for n, state in enumerate(("CREATED", "STAGED_IN", "PREPROCESSED", "SUBMITTING"), 1)
    ] == [(body["sequence"], body["state"]) for body in bodies]


def test_a_note_without_a_new_status_writes_no_history_and_no_message(store: Store, path: Path) -> None:
    job = new_job(store)
    take(store, job)

    assert [True] == store.apply([Change(job, (evolve(job, message="waits", failures=1),))]).result(10)

    with Reader(path) as reader:
        assert "waits" == reader.latest(1)[0].message
        assert 1 == len(reader.history(job.id)) == len(reader.outbox(0, 10))


def test_a_stale_change_is_refused_and_writes_nothing_while_its_neighbours_are_written(
    store: Store, path: Path
) -> None:
    job, other = new_job(store), new_job(store)
    take(store, job)
    take(store, other)
    staged = job.moved(S.STAGED_IN, 2)
    assert [True] == store.apply([Change(job, (staged,))]).result(10)

    stale = Change(job, (job.moved(S.JOB_CANCELLED, 3),))
    fresh = Change(other, (other.moved(S.STAGED_IN, 3),))
    assert [False, True] == store.apply([stale, fresh]).result(10)

    with Reader(path) as reader:
        assert staged == reader.job(job.id)
        assert [S.CREATED, S.STAGED_IN] == [entry.state for entry in reader.history(job.id)]
        assert 4 == len(reader.outbox(0, 10))


def test_a_change_keeps_what_the_user_wants(store: Store, path: Path) -> None:
    job = new_job(store)
    take(store, job)
    store.set_intent(job.id, Intent.CANCELLED).result(10)

    store.apply([Change(job, (job.moved(S.STAGED_IN, 2),))]).result(10)  # begun before it was cancelled

    with Reader(path) as reader:
        assert Intent.CANCELLED is reader.latest(1)[0].intent


def test_an_identity_is_taken_once_and_answers_the_first_job(store: Store, path: Path) -> None:
    first, again = new_job(store), new_job(store)

    assert [first.id, first.id] == [take(store, first, "same"), take(store, again, "same")]
    with Reader(path) as reader:
        assert [first.id] == [job.id for job in reader.latest(10)]


def test_of_many_that_come_together_each_is_taken_once_and_reported_in_order(
    store: Store, path: Path
) -> None:
    known = new_job(store)
    take(store, known, "known")
    jobs = [new_job(store) for _ in range(150)]  # more than two statements hold
    paths = [(job, job.moved(S.STAGED_IN, 2_000_000)) for job in jobs]
    arrivals = [Arrival(str(job.id), Change(None, path)) for job, path in zip(jobs, paths, strict=True)]
    again = [Arrival(name, Change(None, (new_job(store),))) for name in ("known", str(jobs[3].id))]

    answer = store.take([*arrivals, *again]).result(10)

    assert [*(job.id for job in jobs), known.id, jobs[3].id] == answer
    with Reader(path) as reader:
        assert {known, *(path[-1] for path in paths)} == set(reader.latest(1_000))
        assert [S.CREATED, S.STAGED_IN] == [entry.state for entry in reader.history(jobs[149].id)]
        bodies = [json.loads(entry.body) for entry in reader.outbox(0, 1_000)]
    assert [(job.id, job.sequence) for job in [known, *(job for path in paths for job in path)]] == [
        (body["job_id"], body["sequence"]) for body in bodies
    ]


def test_of_many_that_come_together_none_is_taken_where_one_cannot_be_written(
    store: Store, path: Path
) -> None:
    good, bad = new_job(store), evolve(new_job(store), sequence=0)  # breaks a CHECK
    with pytest.raises(StoreError, match="CHECK"):
        store.take([Arrival("a", Change(None, (good,))), Arrival("b", Change(None, (bad,)))]).result(10)

    assert good.id == take(store, good, "a")
    with Reader(path) as reader:
        assert (good,) == reader.latest(10)
        assert [1] == [json.loads(entry.body)["sequence"] for entry in reader.outbox(0, 10)]


def test_an_identity_that_proves_nothing_may_be_taken_again(store: Store, path: Path) -> None:
    first, second = new_job(store), new_job(store)
    take(store, first, "body")

    assert [second.id] == store.take([Arrival("body", Change(None, (second,)), since=2**62)]).result(10)
    assert second.id == take(store, new_job(store), "body")
    with Reader(path) as reader:
        assert 2 == len(reader.latest(10))


def test_an_identity_is_known_to_those_who_ask_since_when_it_was_taken_and_no_later(path: Path) -> None:
    clock = SetClock(1_000)
    with opened(path, clock=clock) as store:
        first = new_job(store)
        take(store, first, "body")

        def again(since: int) -> int:
            return store.take([Arrival("body", Change(None, (new_job(store),)), since=since)]).result(10)[0]

        assert first.id == again(since=1_000)
        clock.at = 2_000
        second = again(since=1_001)
        assert first.id != second
        assert second == again(since=2_000)  # it counts from the last time that it made a job


def test_a_cancel_is_taken_back_by_nobody_who_does_not_revive_the_job(store: Store, path: Path) -> None:
    job = new_job(store)
    take(store, job)

    def intent() -> Intent:
        with Reader(path) as reader:
            return reader.latest(1)[0].intent

    store.set_intent(job.id, Intent.CANCELLED).result(10)
    for other in (Intent.RUN, Intent.HELD):
        store.set_intent(job.id, other).result(10)
        assert Intent.CANCELLED is intent()
    store.set_intent(job.id, Intent.RUN, revive=True).result(10)
    assert Intent.RUN is intent()


def test_contents_are_forgotten_after_a_time_and_ids_never(path: Path) -> None:
    clock = SetClock(1_000)
    with opened(path, clock=clock) as store:
        taken = {}
        for at, age in ((1_000, "old"), (5_000, "new")):
            clock.at = at
            for kind in ("body", "rejected", "job", "message"):
                taken[kind, age] = take(store, new_job(store), f"{kind}\t{age}")
        store.forget_identities(5_000).result(10)
        forgotten = {
            each for each, job_id in taken.items() if job_id != take(store, new_job(store), "\t".join(each))
        }
    assert {("body", "old"), ("rejected", "old")} == forgotten


# ---------------------------------------------------------------------------- group commit


def commits(store: Store, path: Path) -> Callable[[], int]:
    """Return how many transactions were committed since this call."""
    begins: list[str] = []
    store._connection.set_trace_callback(lambda text: begins.append(text) if text == "COMMIT" else None)
    return lambda: len(begins)


def test_what_waits_is_committed_together(store: Store, path: Path) -> None:
    count = commits(store, path)
    release, held = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        held.set()
        release.wait(10)

    store._hand(hold)
    held.wait(10)
    futures = [store.take([Arrival(str(n), Change(None, (new_job(store),)))]) for n in range(100)]
    release.set()

    assert 100 == len({job_id for future in futures for job_id in future.result(10)})
    assert 2 == count()


def test_what_one_thread_writes_together_is_one_transaction(store: Store, path: Path) -> None:
    count = commits(store, path)
    with store.together():
        futures = [store.take([Arrival(str(n), Change(None, (new_job(store),)))]) for n in range(50)]
        assert not any(future.done() for future in futures)
    assert 50 == len({job_id for future in futures for job_id in future.result(10)})
    assert 1 == count()


def test_one_bad_operation_does_not_spoil_those_it_was_committed_with(store: Store, path: Path) -> None:
    good, bad = new_job(store), new_job(store)
    with store.together():
        first = store.take([Arrival("a", Change(None, (good,)))])
        second = store.take([Arrival("b", Change(None, (evolve(bad, sequence=0),)))])  # breaks a CHECK
        third = store.take([Arrival("c", Change(None, (new_job(store),)))])

    assert [good.id] == first.result(10)
    with pytest.raises(StoreError, match="could not write to the store: CHECK"):
        second.result(10)
    assert all(third.result(10))
    with Reader(path) as reader:
        assert 2 == len(reader.latest(10))
    fourth = new_job(store)
    assert fourth.id == take(store, fourth, "b")


def test_closing_writes_what_is_still_waiting(path: Path) -> None:
    with opened(path) as store:
        futures = [store.take([Arrival(str(n), Change(None, (new_job(store),)))]) for n in range(2000)]
    assert all(future.done() for future in futures)
    assert [(2000,)] == rows(path, "SELECT count(*) FROM jobs")


_WRITER = """
import os, sys, threading
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_store import new_job, opened
from edgecore.store import Arrival, Change
with opened(Path(sys.argv[1])) as store:
    def write(lane):
        n = 0
        while True:
            n += 1
            job = new_job(store)
            store.take([Arrival(f"{lane}.{n}", Change(None, (job,)))]).result()
            os.write(1, b"%d\\n" % job.id)
    threads = [threading.Thread(target=write, args=(lane,)) for lane in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["wal", "rollback"])
def test_what_was_acknowledged_survives_a_kill_in_the_middle_of_writing(path: Path, mode: str) -> None:
    script = _WRITER.replace("opened(Path(sys.argv[1]))", f"opened(Path(sys.argv[1]), mode={mode!r})")
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(TESTS)], stdout=subprocess.PIPE, text=True
    )
    with writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(100)]
        writer.kill()
        acknowledged += [int(line) for line in writer.stdout]

    with opened(path, mode=mode), Reader(path) as reader:
        jobs = {job.id for job in reader.latest(1_000_000)}
    assert set() == set(acknowledged) - jobs
    assert [] == rows(path, "SELECT id FROM jobs WHERE id NOT IN (SELECT job_id FROM history)")
    assert [] == rows(path, "SELECT id FROM jobs WHERE id NOT IN (SELECT job_id FROM outbox)")
    assert [("ok",)] == rows(path, "PRAGMA integrity_check")


# ------------------------------------------------------------------------------------- ids


def test_ids_are_unique_and_increase_also_when_the_clock_goes_back(path: Path) -> None:
    clock = SetClock(1_700_000_000_000_000)
    with opened(path, clock=clock) as store:
        first = [store.new_id(), store.new_id()]
        clock.at -= 3_600_000_000
        then = [store.new_id(), store.new_id()]
        take(store, evolve(new_job(store)))
        last = store.new_id()
    with opened(path, clock=clock) as store:  # a restart remembers what it wrote
        again = store.new_id()
    ids = [*first, *then, last]
    assert sorted(set(ids)) == ids
    assert again > then[-1]


def test_threads_never_get_the_same_id(store: Store) -> None:
    ids: list[int] = []
    threads = [
        threading.Thread(target=lambda: ids.extend(store.new_id() for _ in range(2000))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 8000 == len(set(ids))
    assert max(ids) < 2**53


# ------------------------------------------------------------------------ readers and writer


def test_readers_never_block_the_writer_and_see_what_was_committed(store: Store, path: Path) -> None:
    job = new_job(store)
    take(store, job)
    with contextlib.closing(connect(path, read_only=True)) as slow:
        slow.execute("BEGIN")
        slow.execute("SELECT * FROM jobs").fetchall()  # a reader in the middle of its work
        assert [True] == store.apply([Change(job, (job.moved(S.STAGED_IN, 2),))]).result(5)
        assert [("CREATED",)] == slow.execute("SELECT state FROM jobs").fetchall()
        assert [("STAGED_IN",)] == rows(path, "SELECT state FROM jobs")


def test_a_writer_in_the_middle_of_its_work_never_blocks_readers(store: Store, path: Path) -> None:
    job = new_job(store)
    take(store, job)
    begun, release = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE jobs SET message = 'half'")
        begun.set()
        release.wait(10)

    future = store._hand(slow)
    begun.wait(10)
    try:
        with Reader(path) as reader:
            assert [""] == [each.message for each in reader.latest(10)]
    finally:
        release.set()
    future.result(10)


def test_a_reader_cannot_write(store: Store, path: Path) -> None:
    refused = pytest.raises(sqlite3.OperationalError, match="readonly")
    with contextlib.closing(connect(path, read_only=True)) as connection, refused:
        connection.execute("DELETE FROM jobs")


@pytest.mark.slow
def test_the_command_line_writes_requests_while_the_service_writes_too(store: Store, path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgecore.desk import Desk\n"
        "for n in range(100): Desk(Path(sys.argv[1])).request('report', n, asked_by='me', now=1)"
    )
    asking = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(2)]
    written = 0
    while any(process.poll() is None for process in asking):
        take(store, new_job(store))
        written += 1
    assert [0, 0] == [process.returncode for process in asking]
    with Reader(path) as reader:
        assert 200 == len(reader.requests(0))
    assert [(written,)] == rows(path, "SELECT count(*) FROM jobs")


# ---------------------------------------------------------------------------------- the lock


_HOLDER = """
import sys
from pathlib import Path
from edgecore.store import Store
store = Store(Path(sys.argv[1]), site="testsite")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_store_that_a_service_owns_is_refused_naming_the_service_and_free_after_its_death(
    path: Path,
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        assert is_running(path)
        words = f"belongs to a running service (pid {holder.pid} on {os.uname().nodename} since "
        with pytest.raises(StoreLocked, match=rf"{re.escape(words)}[0-9T:-]{{19}}Z\); stop it first"):
            Store(path, site="testsite")
    finally:
        holder.kill()
        holder.communicate()

    assert not is_running(path)
    with opened(path):
        assert is_running(path)


def test_looking_whether_a_service_runs_makes_no_file(path: Path) -> None:
    assert not is_running(path)
    assert [] == list(path.parent.iterdir())


# ----------------------------------------------------------------------------- where and what


def test_a_store_of_a_newer_edgecore_is_refused_untouched(path: Path) -> None:
    with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {migrations.VERSION + 1}")
        connection.execute("CREATE TABLE of_the_future (x)")

    newer = f"newer edgecore \\(schema {migrations.VERSION + 1}, this one knows {migrations.VERSION}\\)"
    with pytest.raises(StoreUnusable, match=newer):
        Store(path, site="testsite")
    with pytest.raises(StoreUnusable, match=f"has schema {migrations.VERSION + 1}"):
        Reader(path)
    with pytest.raises(StoreUnusable, match=newer):
        Desk(path).add_application(Application(name="a", executable="/bin/a"), now=1)
    assert [("of_the_future",)] == rows(path, "SELECT name FROM sqlite_master WHERE name LIKE 'of%'")
    assert not is_running(path)


@pytest.mark.parametrize("content", [b"this is no database, but long enough to be taken for one" * 100])
def test_a_file_that_is_no_store_is_refused_in_words(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreUnusable, match="file is not a database; restore it from a backup"):
        Store(path, site="testsite")
    with pytest.raises(StoreUnusable, match="file is not a database; restore it from a backup"):
        Reader(path)
    assert content == path.read_bytes()
    assert not is_running(path)


def test_a_damaged_page_is_an_error_in_words_for_the_one_who_asked(path: Path) -> None:
    with opened(path) as store:
        for _ in range(50):
            take(store, new_job(store))
    (root,) = rows(path, "SELECT rootpage FROM sqlite_master WHERE name = 'jobs'")[0]
    (size,) = rows(path, "PRAGMA page_size")[0]
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)

    with pytest.raises(StoreUnusable, match=r"is damaged: .*; restore it from a backup"):
        Store(path, site="testsite")
    assert not is_running(path)
    with Reader(path) as reader, pytest.raises(StoreUnusable, match="malformed"):
        reader.latest(10)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "store.sqlite"
    with pytest.raises(
        StoreUnusable, match=re.escape(f"the directory {path.parent} does not exist; make it")
    ):
        Store(path, site="testsite")
    assert [] == list(tmp_path.iterdir())


_AS_NOBODY = """
import os, sys
from pathlib import Path
from edgecore.errors import StoreError
from edgecore.store import Store
import edgecore.migrations, edgecore.serial, sqlite_utils
os.setgid(65534), os.setuid(65534)
try:
    Store(Path(sys.argv[1]), site="testsite")
except StoreError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_is_named() -> None:
    import tempfile

    # Not below tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        directory.chmod(0o555)
        script = (
            _AS_NOBODY if os.getuid() == 0 else _AS_NOBODY.replace("os.setgid(65534), os.setuid(65534)", "")
        )
        answer = subprocess.run(
            [sys.executable, "-c", script, str(directory / "store.sqlite")],
            capture_output=True,
            text=True,
            check=True,
        )
        directory.chmod(0o755)
        assert "StoreUnusable" in answer.stdout
        assert f"{directory / 'store.sqlite.lock'}: Permission denied" in answer.stdout
        assert "must be able to write there" in answer.stdout


def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 33, 9))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.33.9")
    with pytest.raises(StoreUnusable, match=re.escape("SQLite 3.33.9 is too old; at least 3.34")):
        Store(path, site="testsite")


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "gpfs"])
def test_a_network_file_system_is_refused_with_what_to_set(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "file_system_of", lambda directory: kind)
    words = f"network file system ({kind}), where the default mode of the store is not safe; "
    with pytest.raises(StoreUnusable, match=re.escape(words) + '.*local disk.*store_mode = "rollback"'):
        Store(path, site="testsite")
    assert not path.exists()

    with opened(path, mode="rollback") as store:
        take(store, new_job(store))
        assert [("delete",)] == rows(path, "PRAGMA journal_mode")
        assert not path.with_name(f"{path.name}-wal").exists()


def test_a_store_changes_between_modes_and_keeps_its_jobs(path: Path) -> None:
    for mode, journal in (("wal", "wal"), ("rollback", "delete"), ("wal", "wal")):
        with opened(path, mode=mode) as store:
            take(store, new_job(store))
            assert [(journal,)] == rows(path, "PRAGMA journal_mode")
            assert (2,) == store._connection.execute("PRAGMA synchronous").fetchone()  # FULL
    assert [(3,)] == rows(path, "SELECT count(*) FROM jobs")


def test_the_file_system_of_a_directory_is_that_of_the_deepest_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "with space" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / "with spaceship").mkdir()
    escaped = str(tmp_path / "with space").replace(" ", "\\040")
    mounts = f"/dev/a / ext4 rw 0 0\nserver:/x {escaped} nfs4 rw 0 0\n"
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **kw: mounts if str(self) == "/proc/self/mounts" else real(self, **kw)
    )
    assert ["nfs4", "nfs4", "ext4", "ext4"] == [
        file_system_of(place) for place in (deep, deep.parent, tmp_path, tmp_path / "with spaceship")
    ]


def test_only_the_service_may_read_the_lock_file(store: Store, path: Path) -> None:
    assert 0o600 == stat.S_IMODE(path.with_name(f"{path.name}.lock").stat().st_mode)


@pytest.mark.slow
def test_a_broken_plugin_of_sqlite_utils_does_not_disturb_the_store(tmp_path: Path) -> None:
    environment = Environment.make(tmp_path / "venv")
    module = (
        "from sqlite_utils import hookimpl\n"
        "@hookimpl\n"
        "def prepare_connection(conn):\n"
        "    raise RuntimeError('this plugin is broken')\n"
    )
    wheel = build_wheel(
        tmp_path,
        "broken-plugin",
        "1.0",
        module,
        entry_points={"sqlite_utils": {"broken": "broken_plugin"}},
        requires=["sqlite-utils"],
    )
    environment.install(wheel)
    script = (
        "import json, pathlib, sqlite3, sqlite_utils\n"
        "try:\n"
        "    sqlite_utils.Database(sqlite3.connect(':memory:')); broken = False\n"
        "except RuntimeError: broken = True\n"
        "from edgecore.store import Store\n"
        f"store = Store(pathlib.Path({str(tmp_path / 'store.sqlite')!r}), site='testsite')\n"
        "print(json.dumps([broken, store.new_id() > 0])); store.close()\n"
    )
    assert [True, True] == environment.ask(script)
