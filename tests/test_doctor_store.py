"""A doctor looks at the store, and stands in nobody's way."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve
from examined import FAILURE, OK, WARNING, changed, examined
from places import Place, copied

from edgecore.config import SiteConfig
from edgecore.directories import NETWORK_FILE_SYSTEMS
from edgecore.doctor import store as store_part
from edgecore.grounds import take_grounds
from edgecore.models import Finding


def stored(config: SiteConfig) -> dict[str, Finding]:
    return examined(store_part.store_checks(config), "store")


def test_a_service_that_runs_is_named_and_keeps_its_store(place: Place) -> None:
    with contextlib.closing(place.store()):
        found = stored(place.config)

        assert f"is running (pid {os.getpid()} on {os.uname().nodename}" in found["service"].message
        assert {OK} == {finding.level for finding in found.values()}


@pytest.mark.slow
def test_a_service_that_hangs_is_a_failure_and_told_to_who_looks_at_jobs_or_asks_for_something(
    place: Place,
) -> None:
    job = place.keep()
    with contextlib.closing(place.store()) as store:
        lock = place.config.store.with_name("site.sqlite.lock")
        long_ago = time.time() - 3600
        os.utime(lock, (long_ago, long_ago))

        found = stored(place.config)["service"]
        assert (FAILURE, True) == (found.level, "but has not moved for 60 minutes" in found.message)
        assert "kill -9 loses nothing" in found.remedy
        for command in (("jobs",), ("cancel", str(job.id))):
            assert "the service of site demo has not moved for 60 minutes" in place.run(*command).stderr

        store.beat()
        assert OK is stored(place.config)["service"].level
        assert "" == place.run("jobs").stderr
    os.utime(lock, (long_ago, long_ago))
    assert "is not running on this host" == stored(place.config)["service"].message


def test_a_service_of_another_host_on_a_shared_store_cannot_be_seen(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_part, "file_system_of", lambda directory: "nfs4")
    place.config.store.with_name("site.sqlite.lock").write_text("pid 7 on elsewhere\n")

    found = stored(evolve(place.config, store_mode="rollback"))

    assert WARNING is found["service"].level
    assert "look on elsewhere" in found["service"].remedy
    assert OK is found["place"].level


@pytest.mark.parametrize("kind", sorted(NETWORK_FILE_SYSTEMS))
def test_a_store_on_a_network_file_system_wants_another_mode(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(store_part, "file_system_of", lambda directory: kind)

    found = stored(place.config)["place"]

    assert FAILURE is found.level
    assert 'set store_mode = "rollback"' in found.remedy


def test_a_store_of_a_newer_edgecore_is_a_failure_and_an_older_one_is_upgraded(place: Place) -> None:
    for version, level, words in ((99, FAILURE, "upgrade edgecore"), (0, OK, "the next start upgrades it")):
        with contextlib.closing(sqlite3.connect(place.config.store)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        found = stored(place.config)["version"]
        assert level is found.level
        assert words in f"{found.message} {found.remedy}"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("spoil", [damage, lambda path: path.write_text("no database" * 1000)])
def test_a_damaged_store_is_a_failure_with_what_to_do(place: Place, spoil: Callable[[Path], None]) -> None:
    spoil(place.config.store)

    found = stored(place.config)["integrity"]

    assert FAILURE is found.level
    assert "site.sqlite is damaged: " in found.message
    assert ".recover" in found.remedy


def test_a_store_that_was_cut_off_or_has_vanished_is_a_failure_as_it_is_for_a_start(place: Place) -> None:
    config = place.config
    config.store.write_bytes(b"")
    found = stored(config)
    assert {"service", "place", "file"} == set(found)
    assert (FAILURE, True) == (found["file"].level, "is empty" in found["file"].message)

    config.store.unlink()
    assert OK is stored(config)["file"].level
    take_grounds(config).close()  # a service has worked with it
    found = stored(config)
    assert FAILURE is found["file"].level
    assert f"{config.store} is not there, and a service has worked with it" in found["file"].message


def test_a_store_that_is_no_file_or_everybodys_is_told(place: Place) -> None:
    store = place.config.store
    store.chmod(0o666)
    assert "who writes it gives orders" in stored(place.config)["file"].remedy

    store.unlink()
    store.symlink_to("/nowhere/at/all")
    found = stored(place.config)["file"]
    assert (FAILURE, "remove it, or mount what it leads to") == (found.level, found.remedy)

    store.unlink()
    store.mkdir()
    assert FAILURE is stored(place.config)["file"].level


AS_ANOTHER = """
import json, os, sys
from pathlib import Path
import edgecore
config = edgecore.read_site(Path(sys.argv[1]))
list(edgecore.diagnose(config))  # imports what the other account may not be able to
os.setuid(54321)
found = [one for section in edgecore.diagnose(config) for one in section.findings]
print(json.dumps([[one.subject, one.message] for one in found if one.level == "failure"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_what_an_account_may_not_look_at_is_said_in_words(original: Place) -> None:
    with tempfile.TemporaryDirectory() as base:  # others may not go to where pytest keeps its own
        os.chmod(base, 0o755)
        place = copied(original, Path(base))
        secret = place.base / "secret"
        secret.mkdir(mode=0o700)
        changed(place, 'store = "site.sqlite"', f'store = "{secret}/site.sqlite"')
        command = [sys.executable, "-c", AS_ANOTHER, str(place.file)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    found = json.loads(answer.stdout)
    assert {"file", "store directory"} == {subject for subject, words in found if str(secret) in words}
    assert [] == [words for _, words in found if "the check itself failed" in words]


def test_a_job_from_the_future_shows_a_clock_that_was_set_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.keep()
    monkeypatch.setattr("edgecore.doctor.store.time.time_ns", lambda: 0)

    assert "in the future" in stored(place.config)["clock"].message


def test_alarms_that_nobody_cleared_are_told(place: Place) -> None:
    with contextlib.closing(sqlite3.connect(place.config.store)) as connection, connection:
        connection.execute(
            "INSERT INTO alarms (subject, message, raised) VALUES ('broker', 'away', 1700000000000000)"
        )

    found = stored(place.config)["alarm: broker"]
    assert (WARNING, "since 2023-11-14T22:13:20Z: away") == (found.level, found.message)


@pytest.mark.slow
def test_a_check_of_a_large_store_is_given_up_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE large (x INTEGER UNIQUE)")
        connection.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500000) "
            "INSERT INTO large SELECT i FROM n"
        )
        connection.commit()

    with pytest.raises(TimeoutError):
        store_part._quick_check(path, 0.0)
    assert "ok" == store_part._quick_check(path, 60.0)

    monkeypatch.setattr(store_part, "_QUICK_CHECK_S", 0.0)
    place = Place(tmp_path / "place")
    found = stored(evolve(place.config, store=path))["integrity"]
    assert (WARNING, "the check was given up after 0 s") == (found.level, found.message.partition(":")[0])


def test_a_service_in_rollback_mode_is_not_kept_from_writing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_part, "is_running", lambda path: True)

    found = stored(evolve(place.config, store_mode="rollback"))["integrity"]

    assert (OK, "not checked") == (found.level, found.message[:11])
