"""Half a change in a store: taken back by who reads when its writer is dead, and never when it may live."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from attrs import evolve
from sites import Site, make_site, wait_for

from edgecore import locks, store_file
from edgecore.config import SiteConfig
from edgecore.desk import Desk
from edgecore.doctor.store import store_checks
from edgecore.errors import StoreUnusable
from edgecore.models import Application, Level
from edgecore.reader import Reader

pytestmark = pytest.mark.slow

_CUT_OFF = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.executemany("INSERT INTO applications VALUES (?, ?, 1)", ((f"half {n}", "x" * 4000) for n in range(200)))
os.kill(os.getpid(), signal.SIGKILL)
"""

_HOLDER = """
import sys
from pathlib import Path
from edgecore import store_file
lock = store_file.lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""

_WRITER = """
import sys
from pathlib import Path
from edgecore.store import Store
store = Store(Path(sys.argv[1]), site="testsite", mode="rollback")
def change(number, connection):
    connection.execute("PRAGMA cache_size = 1")  # so that pages of half a change reach the file
    rows = ((f"{number} {n}", "x" * 4000, number) for n in range(40))
    connection.executemany("INSERT INTO applications VALUES (?, ?, ?)", rows)
    connection.execute("DELETE FROM applications WHERE changed = ?", (number - 3,))
number = 10
while number < 25 or Path(sys.argv[2]).exists():
    store._hand(lambda connection: change(number, connection)).result()
    number += 1
store.close()
print(number)
"""

_WITHOUT_LOCKS = """
import os, sqlite3, sys
from pathlib import Path
from types import SimpleNamespace
from edgecore.errors import StoreUnusable
from edgecore.reader import Reader
connect = sqlite3.connect
sqlite3.connect = lambda url, **more: connect(f"{url}&vfs=unix-none", **more)
os.uname = lambda: SimpleNamespace(nodename="another-host")
while Path(sys.argv[2]).exists():
    try:
        with Reader(Path(sys.argv[1])) as reader:
            reader.application_names()
    except StoreUnusable as error:
        if "so it is left alone" in str(error):
            Path(sys.argv[2]).unlink(missing_ok=True)
"""


def cut_off(path: Path) -> None:
    """Leave half a change behind, as a writer does that is killed in the middle of it."""
    subprocess.run([sys.executable, "-c", _CUT_OFF, str(path)], check=False)
    assert journal(path).stat().st_size > 0


def journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")


def contents(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), journal(path).read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store in rollback mode with one application, ``whole``."""
    path = tmp_path / "store.sqlite"
    add(path, "whole")
    return path


def add(path: Path, name: str) -> None:
    Desk(path, "rollback").add_application(Application(name=name, executable="/bin/true"), now=1)


def names(path: Path) -> tuple[str, ...]:
    with Reader(path) as reader:
        return reader.application_names()


def note(path: Path, text: str) -> None:
    path.with_name(f"{path.name}.lock").write_text(f"{text}\n")


@contextlib.contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process hold a store, as a service does; it is killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert b"held\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


# ------------------------------------------------------------------------- the writer is dead


@pytest.mark.parametrize("opened", ["before", "after"])
def test_half_a_change_of_a_killed_writer_is_taken_back_by_who_only_reads(opened: str, path: Path) -> None:
    with contextlib.ExitStack() as stack:
        early = stack.enter_context(Reader(path))
        cut_off(path)
        reader = early if opened == "before" else stack.enter_context(Reader(path))
        assert ("whole",) == reader.application_names()


def test_half_a_change_of_a_killed_service_of_this_host_is_taken_back(path: Path) -> None:
    with held(path):
        pass
    assert locks.host_in(store_file.holder(path))
    cut_off(path)
    assert ("whole",) == names(path)


def test_who_writes_takes_half_a_change_back_first(path: Path) -> None:
    cut_off(path)
    add(path, "later")
    assert ("later", "whole") == tuple(sorted(names(path)))


def test_who_cannot_take_half_a_change_back_is_told_who_can(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(path)
    monkeypatch.setattr("edgecore.store_file.connect", partial(store_file.connect, read_only=True))
    with pytest.raises(StoreUnusable, match=r"killed in the middle of a change.*; start the service"):
        Reader(path)


# --------------------------------------------------------------------------- the writer may live


@pytest.mark.parametrize("use", [names, partial(add, name="later")], ids=["reading", "writing"])
def test_half_a_change_of_another_hosts_service_is_left_alone_saying_where_to_go(
    path: Path, use: Callable[[Path], object]
) -> None:
    cut_off(path)
    note(path, "pid 7 on login-2 since 2026-01-01T00:00:00Z")
    before = contents(path)
    with pytest.raises(
        StoreUnusable, match=r"its service was pid 7 on login-2 since.*: run this on login-2, or"
    ):
        use(path)
    assert before == contents(path)


@pytest.mark.parametrize("use", [names, partial(add, name="later")], ids=["reading", "writing"])
def test_half_a_change_of_nobody_knows_whom_is_left_alone_on_a_network_file_system(
    path: Path, use: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(path)
    monkeypatch.setattr(store_file, "file_system_of", lambda _: "nfs4")
    before = contents(path)
    with pytest.raises(StoreUnusable, match=r"no service has noted its host.*nfs4.*: start the service"):
        use(path)
    assert before == contents(path)


def test_half_a_change_is_left_to_a_service_that_runs_here_until_it_has_ended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_file, "_WHOLE_S", 0.2)
    with held(path) as process:
        cut_off(path)
        before = contents(path)
        with pytest.raises(StoreUnusable, match=rf"its service \(pid {process.pid} on .*; try again"):
            names(path)
        assert before == contents(path)
    assert ("whole",) == names(path)


def test_a_service_that_runs_takes_half_a_change_of_a_killed_command_back(tmp_path: Path) -> None:
    site = in_rollback(make_site(tmp_path / "site"))
    with site.service():
        wait_for(lambda: wakes(site), 30, site.diagnosis)
        cut_off(site.config.store)
        found: list[str] = []

        def read() -> bool:
            with contextlib.suppress(StoreUnusable):  # a busy machine may need longer than a reader waits
                found.extend(names(site.config.store))
            return bool(found)

        wait_for(read, 60)
        assert ["ledger", "whole"] == sorted(found)


def in_rollback(site: Site) -> Site:
    site.file.write_text(site.file.read_text().replace("\nstore =", '\nstore_mode = "rollback"\nstore ='))
    add(site.config.store, "whole")
    return evolve(site, config=evolve(site.config, store_mode="rollback"))


def wakes(site: Site) -> bool:
    """Tell whether a service waits for requests."""
    place = store_file.wake_directory(site.config.store)
    return place.is_dir() and any(not each.name.startswith(".") for each in place.iterdir())


def test_readers_of_a_host_that_sees_no_locks_never_spoil_what_a_living_service_writes(
    path: Path, tmp_path: Path
) -> None:
    """SQLite's ``unix-none`` locks nothing, as a mount without locks: every journal looks left over."""
    goes_on = tmp_path / "goes-on"  # until the stranger has met a journal
    goes_on.touch()
    arguments = [str(path), str(goes_on)]
    with subprocess.Popen([sys.executable, "-c", _WRITER, *arguments], stdout=subprocess.PIPE) as writer:
        wait_for(lambda: store_file.is_running(path), 60)
        with subprocess.Popen([sys.executable, "-c", _WITHOUT_LOCKS, *arguments]) as stranger:
            try:
                while writer.poll() is None:
                    assert "whole" in names(path)  # who sees the locks is always answered
            finally:
                goes_on.unlink(missing_ok=True)
        assert writer.stdout is not None
        last = int(writer.stdout.read()) - 1
    assert [0, 0] == [writer.returncode, stranger.returncode]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        kept = connection.execute("SELECT changed, count(*) FROM applications GROUP BY changed").fetchall()
    assert [(1, 1), *((number, 40) for number in range(last - 2, last + 1))] == kept


# ------------------------------------------------------------------------------------- the doctor


def test_a_doctor_takes_half_a_change_back_or_repeats_why_not(tmp_path: Path) -> None:
    config = in_rollback(make_site(tmp_path / "site")).config
    cut_off(config.store)
    note(config.store, "pid 7 on login-2 since 2026-01-01T00:00:00Z")
    found = failures(config)
    assert ["content", "integrity"] == list(found)
    assert all("run this on login-2" in words for words in found.values())
    note(config.store, "")
    assert {} == failures(config)
    assert not journal(config.store).exists()


def failures(config: SiteConfig) -> dict[str, str]:
    """Return what a doctor finds to be wrong with the store: subject -> words."""
    found = [finding for check in store_checks(config) for finding in check.find()]
    return {finding.subject: finding.message for finding in found if finding.level is Level.FAILURE}
