"""A store that was spoiled by a host: nothing is started on it, and the words say what to do. One on a network file system."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sqlite3
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from attrs import evolve
from click.testing import CliRunner
from scripted import Edge
from sites import make_site, stop, wait_for

from edgecore import store_file
from edgecore.cli import cli
from edgecore.desk import Desk
from edgecore.errors import StoreError, StoreUnusable
from edgecore.grounds import look_for_stranger, take_grounds
from edgecore.models import Application
from edgecore.models import JobState as S
from edgecore.reader import Reader, Request
from edgecore.store import Store

pytestmark = pytest.mark.slow

REPAIR = "restore it from a backup"


def pages(path: Path) -> tuple[int, int]:
    """Return a store's page size, and the root page of its jobs."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
    return size, root


def flip(path: Path) -> None:
    """Turn bits in the page that leads to all jobs."""
    size, root = pages(path)
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        content = file.read(size)
        file.seek((root - 1) * size)
        file.write(bytes(byte ^ 0xA5 for byte in content))


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    path.write_bytes(b"a mail, a picture, whatever " * 1000)


def cut_header(path: Path) -> None:
    os.truncate(path, 60)


@pytest.mark.parametrize("spoil", [flip, halve, empty, replace, cut_header])
def test_nothing_is_started_on_a_store_that_was_spoiled(edge: Edge, spoil: Callable[[Path], None]) -> None:
    edge.start()
    for number in range(30):
        edge.send(f"job-{number}", "quick" if number else "long")
    edge.wait("job-29", S.JOB_FINISHED)
    edge.stop()
    entries = len(edge.scheduling.entries)
    edge.send("later")
    spoil(edge.config.store)
    before = edge.config.store.read_bytes()
    edge.start(wait=False)
    edge.until(lambda: edge.failure is not None)
    assert isinstance(edge.failure, StoreUnusable)
    assert REPAIR in str(edge.failure)
    assert str(edge.config.store) in str(edge.failure)
    assert entries == len(edge.scheduling.entries)
    assert before == edge.config.store.read_bytes()  # and it is left as it was found


@pytest.mark.parametrize("spoil", [empty, replace])
def test_a_spoiled_store_ends_the_command_in_words(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    site = make_site(tmp_path / "site")
    spoil(site.config.store)
    for command in (("run", str(site.file)), ("jobs", "--site", str(site.file))):
        answer = CliRunner().invoke(cli, command)
        assert 1 == answer.exit_code
        assert answer.stderr.startswith("error: ")
    with pytest.raises(StoreError, match=REPAIR):
        Desk(site.config.store).add_application(Application(name="a", executable="/bin/a"), now=1)


def test_a_store_that_is_damaged_while_its_service_works_starts_nothing_more(edge: Edge) -> None:
    edge.start()
    for number in range(40):
        edge.send(f"job-{number}")
    edge.until(lambda: len(edge.site.jobs()) == 40)
    edge.wait("job-39", S.JOB_FINISHED)
    with contextlib.closing(sqlite3.connect(edge.config.store)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    entries = len(edge.scheduling.entries)
    flip(edge.config.store)
    with edge.config.store.open("r+b") as file:  # so that the service looks at the file again
        file.seek(24)
        file.write(b"\xff\xff\xff\xff")
    for number in range(3):
        edge.send(f"later-{number}")
    assert REPAIR in edge.wait_alarm("store")
    assert entries == len(edge.scheduling.entries)
    assert edge.failure is None
    edge.stop()
    edge.start(wait=False)
    edge.until(lambda: edge.failure is not None)
    assert REPAIR in str(edge.failure)


def test_once_damage_was_seen_nothing_is_written_to_the_rest_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Store(tmp_path / "store.sqlite", site="testsite")) as store:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

        def damaged(_: object) -> None:
            raise error

        with pytest.raises(StoreError, match=REPAIR):
            store._hand(damaged).result()
        with pytest.raises(StoreError, match=REPAIR):
            store.reply("hello", None).result()


# ------------------------------------------------------------------------------ the log of SQLite


def remove(path: Path) -> None:
    path.unlink()


def garble(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:32] + bytes(byte ^ 0x5A for byte in content[32:]))


@pytest.mark.parametrize("spoil", [remove, garble, empty])
def test_a_job_runs_once_although_the_log_of_the_store_was_lost_with_what_it_held(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """What was committed last is forgotten then; the token in the job's directory is not."""
    site = make_site(tmp_path / "site")
    site.add_ledger("waits", waits=True)
    process = site.start()
    site.send(site.job(name="old", application="waits"))
    wait_for(lambda: site.named("old") is not None, 30, site.diagnosis)
    with contextlib.closing(sqlite3.connect(site.config.store, timeout=20)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    wait_for(lambda: site.starts(), 30, site.diagnosis)
    process.send_signal(signal.SIGKILL)
    process.wait()
    spoil(site.config.store.with_name("store.sqlite-wal"))
    site.let_end("old")
    with site.service():
        (job,) = site.wait_settled(1)
    assert S.JOB_FINISHED is job.state
    assert {job.id: 1} == site.starts()


# ------------------------------------------------------------------------------- who may read it


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_new_stores_and_queues_are_for_their_owner_only_whatever_the_umask(
    edge: Edge, tmp_path: Path, umask: int
) -> None:
    edge.config = evolve(
        edge.config,
        store=tmp_path / "new.sqlite",
        messaging=evolve(edge.config.messaging, url=f"sqlite://{tmp_path}/new-queue.sqlite"),
    )
    former = os.umask(umask)
    try:
        Store(edge.config.store, site="testsite").close()
        edge.start()
        edge.stop()
    finally:
        os.umask(former)
    found = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.iterdir()
        if path.name.startswith("new") and path.is_file()
    }
    assert {"new.sqlite", "new-queue.sqlite"} <= set(found)
    assert {0o600 & ~umask} | {0o600} >= set(found.values()), found


def test_a_store_that_could_not_be_made_to_its_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr("edgecore.migrations.migrate", fail)
    with pytest.raises(StoreError):
        Store(tmp_path / "store.sqlite", site="testsite")
    assert ["store.sqlite.lock"] == [path.name for path in tmp_path.iterdir()]


# --------------------------------------------------------------------------- network file system


def test_a_store_on_a_network_file_system_wants_another_mode_and_the_command_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path / "site")
    monkeypatch.setattr(store_file, "file_system_of", lambda _: "nfs4")
    answer = CliRunner().invoke(cli, ["run", str(site.file)])
    assert 1 == answer.exit_code
    assert "is on a network file system (nfs4)" in answer.stderr
    assert 'put the store on a local disk, or set store_mode = "rollback"' in answer.stderr


ON_NFS = """
from edgecore import store_file
store_file.file_system_of = lambda _: "nfs4"
from edgecore.testing import doomed
doomed.main()
"""


def test_with_rollback_a_site_works_on_a_network_file_system_with_readers_and_through_a_kill(
    tmp_path: Path,
) -> None:
    site = make_site(tmp_path / "site")
    text = site.file.read_text()
    site.file.write_text(
        text.replace('store = "store.sqlite"', 'store = "store.sqlite"\nstore_mode = "rollback"')
    )
    site.config.store.unlink()
    site = evolve(site, config=evolve(site.config, store_mode="rollback"))
    Desk(site.config.store, "rollback").add_application(
        Application(
            name="ledger", executable=str(site.base / "ledger.sh"), arguments=(str(site.ledger), "0.2", "0")
        ),
        now=1,
    )
    process = site.start(ON_NFS)
    with Reader(site.config.store) as reader:
        site.send(*(site.job(name=f"job-{number}") for number in range(6)))
        wait_for(lambda: reader.latest(1), 30, site.diagnosis)
        wait_for(lambda: site.starts(), 30, site.diagnosis)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not site.config.store.with_name("store.sqlite-wal").exists()
    process = site.start(ON_NFS)
    try:
        jobs = site.wait_settled(6)
        assert {S.JOB_FINISHED} == {job.state for job in jobs}
        assert dict.fromkeys((job.id for job in jobs), 1) == site.starts()
        site.wait_published()
    finally:
        assert 0 == stop(process)
    site.check_statuses()


def test_requests_are_served_again_after_the_store_could_not_be_read_for_a_moment(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Reader.requests
    troubles = [StoreUnusable("disk I/O error")]

    def requests(self: Reader, after: int) -> Sequence[Request]:
        if troubles:
            raise troubles.pop()
        return real(self, after)

    monkeypatch.setattr(Reader, "requests", requests)
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", S.QUEUED)
    edge.until(lambda: not troubles)
    edge.ask("cancel")
    edge.wait("job", S.JOB_CANCELLED)


@pytest.mark.parametrize("part", ["outbox", "cleaning", "control", "intake"])
def test_a_part_that_cannot_open_the_store_is_told_by_the_start_and_no_thread_dies_of_it(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def busy(path: Path) -> Reader:
        raise StoreUnusable(f"{path}: database is locked")

    with monkeypatch.context() as patched:
        patched.setattr(f"edgecore.{part}.Reader", busy)
        edge.start(wait=False)
        edge.until(lambda: edge.failure is not None)
    assert f"{edge.config.store}: database is locked" == str(edge.failure)
    edge.stop()
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FINISHED)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOLCK, "its file system has no locks"), (errno.EIO, "whether a service runs cannot be seen")],
)
def test_a_store_whose_lock_cannot_be_seen_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    site = make_site(tmp_path / "site")
    take_grounds(site.config).close()
    Store(site.config.store, site="testsite").close()
    monkeypatch.setattr("edgecore.locks.fcntl.flock", flock)
    answer = CliRunner().invoke(cli, ("jobs", "--site", str(site.file)))
    assert 1 == answer.exit_code
    said = f"{site.config.store}.lock: {os.strerror(number)}; {advice}"
    assert said in " ".join(answer.stderr.split())
    with pytest.raises(StoreUnusable, match=f"{os.strerror(number)}; "):
        Store(site.config.store, site="testsite")


def test_a_work_directory_without_locks_is_looked_at_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    config = make_site(tmp_path / "site").config
    monkeypatch.setattr("edgecore.locks.fcntl.flock", flock)
    take_grounds(config).close()
    look_for_stranger(config)


def test_a_store_at_which_nobody_may_look_is_told_in_words(tmp_path: Path) -> None:
    above, beside = (
        tmp_path / ("n" * 300) / "store.sqlite",
        tmp_path / ("n" * 250),
    )  # with a journal's name too long
    for ask in (
        lambda: Reader(above),
        lambda: Store(above, site="testsite"),
        lambda: Desk(above).remove_application("x"),
        lambda: Desk(beside).remove_application("x"),
    ):
        with pytest.raises(
            StoreUnusable, match=r"File name too long; .* this account must be allowed to look"
        ):
            ask()
