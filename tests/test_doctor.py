"""A doctor finds what a site lacks, says what to do, and touches nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from examined import FAILURE, OK, WARNING, added, changed, examined
from places import Place

import edgecore
from edgecore import doctor, serial
from edgecore.doctor import Section, diagnose, host, limits
from edgecore.doctor.checks import Check
from edgecore.grounds import take_grounds
from edgecore.models import Finding, Level

# ------------------------------------------------------------------------------ in general


def test_a_fresh_site_has_no_failure_in_any_part(place: Place) -> None:
    found = list(edgecore.diagnose(place.config))

    assert [
        "host", "directories", "store", "plugins", "messaging", "scheduling", "transfer", "launchers",
        "applications", "limits",
    ] == [section.title for section in found]  # fmt: skip
    assert [] == [one for section in found for one in section.findings if one.level is FAILURE]


def test_a_site_is_examined_before_its_first_start(place: Place) -> None:
    config = place.config
    config.store.unlink()
    config.work_directory.rmdir()

    found = [one for section in diagnose(config) for one in section.findings]

    assert [] == [one for one in found if one.level is FAILURE]
    assert not config.store.exists()
    words = " ".join(one.message for one in found)
    assert f"{config.store} is not there yet; the first start makes it" in words
    assert f"{config.work_directory}: will be made in {place.base}" in words


def test_a_check_that_crashes_is_a_finding_after_what_it_found() -> None:
    def find() -> Iterator[Finding]:
        yield Finding("first", OK, "fine")
        raise ZeroDivisionError("of all things")

    first, crash = doctor._run(Check(title="t", subject="s", find=find))

    assert Finding("first", OK, "fine") == first
    assert (FAILURE, "the check itself failed: ZeroDivisionError: of all things") == (
        crash.level,
        crash.message,
    )
    assert "report it" in crash.remedy


def test_a_check_that_hangs_is_a_finding_after_its_time_limit() -> None:
    end = threading.Event()

    def find() -> Iterator[Finding]:
        yield Finding("first", OK, "fine")
        end.wait()

    check = Check(title="t", subject="s", find=find, limit_s=0.1, when_silent="wake it")
    try:
        found = doctor._run(check)
    finally:
        end.set()

    assert (
        Finding("first", OK, "fine"),
        Finding("s", FAILURE, "gave no answer within 0.1 s", "wake it"),
    ) == found


# ----------------------------------------------------------------------------- host, directories


@pytest.mark.parametrize(
    ("subject", "target", "value", "level", "words"),
    [
        ("python", "sys.version_info", (3, 10, 1), FAILURE, "install Python 3.11"),
        ("python", "sys.version_info", (3, 99, 0), WARNING, "not tested"),
        ("sqlite", "sqlite3.sqlite_version_info", (3, 33, 0), FAILURE, "3.34.0 or later"),
        ("clock", "time.time", lambda: 86_400.0, FAILURE, "set the clock"),
        ("open files", "resource.getrlimit", lambda which: (64, 64), WARNING, "ulimit -n"),
        ("open files", "resource.getrlimit", lambda which: (resource.RLIM_INFINITY, -1), OK, "any number"),
        (
            "host name",
            "os.uname",
            lambda: os.uname_result(("", "localhost", "", "", "")),
            WARNING,
            "localhost",
        ),
    ],
)
def test_what_is_odd_about_the_host_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subject: str,
    target: str,
    value: object,
    level: Level,
    words: str,
) -> None:
    find = {
        "python": host._python,
        "sqlite": host._sqlite,
        "clock": host._clock,
        "open files": host._open_files,
        "host name": host._host_name,
    }[subject]
    monkeypatch.setattr(f"edgecore.doctor.host.{target}", value)

    (found,) = find()

    monkeypatch.undo()
    assert subject == found.subject
    assert level is found.level
    assert words in f"{found.message} {found.remedy}"


def test_an_account_of_its_own_is_better_than_root(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for uid, level, words in ((0, WARNING, "this is root"), (54321, OK, "54321 (54321)")):
        monkeypatch.setattr(host, "_property_of_another", lambda config: None)
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        (found,) = host._account(place.config)
        assert (level, words) == (found.level, found.message)


@pytest.mark.parametrize("what", ["store", "work_directory"])
def test_under_another_account_than_the_services_no_driver_makes_anything(
    place: Place, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = place.config
    if what == "work_directory":
        config.store.unlink()
    monkeypatch.setattr("os.geteuid", lambda: 54321)

    found = {section.title: section for section in diagnose(config)}

    assert {"host", "directories", "store", "launchers", "applications", "limits"} == set(found)
    account = next(one for one in found["host"].findings if one.subject == "account")
    assert FAILURE is account.level
    assert f"this is 54321, and {getattr(config, what)} belongs to " in account.message
    assert not (config.work_directory / ".fork").exists()
    assert not (place.base / "queues.sqlite").exists()


def test_a_variable_to_be_passed_that_is_not_set_is_a_warning(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SET_HERE", "x")
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    config = added(place, '\n[environment]\npass = ["SET_HERE", "NOT_SET_HERE"]\n')

    found = examined(host.host_checks(config), "host")["environment"]

    assert (WARNING, "[environment] pass names what is not set here: NOT_SET_HERE") == (
        found.level,
        found.message,
    )


@pytest.mark.parametrize(("umask", "level"), [(0o027, OK), (0o022, OK), (0o000, WARNING), (0o777, FAILURE)])
def test_a_umask_that_shuts_us_out_or_lets_everybody_in_is_told(umask: int, level: Level) -> None:
    former = os.umask(umask)
    try:
        (found,) = host._umask()
    finally:
        os.umask(former)

    assert level is found.level
    assert f"{umask:04o}" in found.message


def test_a_site_file_that_everybody_can_write_is_told(place: Place) -> None:
    place.file.chmod(0o666)

    found = examined(host.host_checks(place.config), "host")["site file"]

    assert WARNING is found.level
    assert f"chmod o-w {place.file}" in found.remedy


def test_a_work_directory_in_which_another_site_works_is_a_failure_as_it_is_for_a_start(place: Place) -> None:
    config = place.config
    with contextlib.closing(take_grounds(config)):
        assert "other service" not in examined(host.host_checks(config), "directories")

        second = evolve(config, store=place.base / "second.sqlite")
        found = examined(host.host_checks(second), "directories")["other service"]

    assert FAILURE is found.level
    assert (
        f"another service works there (site demo, store {config.store}, pid {os.getpid()} " in found.message
    )
    assert "other service" not in examined(host.host_checks(second), "directories")


def test_metrics_that_nothing_here_can_write_are_a_failure_as_they_are_for_a_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = added(place, '[metrics]\nfile = "edge.prom"\n')
    assert "metrics" not in examined(host.host_checks(config), "directories")

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    found = examined(host.host_checks(config), "directories")["metrics"]
    assert (FAILURE, True) == (found.level, "pip install 'edgecore[metrics]'" in found.message)


def test_directories_of_the_log_and_the_metrics_are_examined_where_there_are_such(place: Place) -> None:
    config = added(place, '\n[log]\nfile = "log/edge.log"\n[metrics]\nfile = "site.toml/edge.prom"\n')

    found = examined(host.host_checks(config), "directories")

    assert {
        "work directory": OK,
        "store directory": OK,
        "log directory": FAILURE,
        "metrics directory": FAILURE,
    } == {subject: finding.level for subject, finding in found.items()}


# ----------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("text", "subject", "level"),
    [
        ("[defaults]\nnum_nodes = 9\n[x]\nmax_nodes = 8", "num_nodes", FAILURE),
        ("[defaults]\nwall_time_minutes = 9\n[x]\nmax_wall_time_minutes = 8", "wall_time_minutes", FAILURE),
        ("[x]\nmax_transfer_bytes = 1_000_000_000_000_000_000", "max_transfer_bytes", WARNING),
        ("[timing]\npoll_interval_s = 600", "lost_after_s", WARNING),
        ("[retry]\nfirst_s = 100\nlongest_s = 10", "retry", WARNING),
        ("[retention]\nkeep_days = 100", "retention", WARNING),
        ("", "limits", OK),
    ],
)
def test_limits_that_contradict_each_other_are_told(
    place: Place, text: str, subject: str, level: Level
) -> None:
    before, _, more = text.partition("[x]\n")
    config = changed(place, "[limits]\n", f"{before}\n[limits]\n{more}\n")

    found = examined(limits.limit_checks(config), "limits")

    assert {subject: level} == {name: finding.level for name, finding in found.items()}


def test_findings_can_be_written_as_json() -> None:
    section = Section("host", (Finding("python", OK, "3.12"),))

    assert {
        "title": "host",
        "findings": [{"subject": "python", "level": "ok", "message": "3.12", "remedy": ""}],
    } == serial.unstructure(section)
