"""A doctor finds what a site lacks, says what to do, and touches nothing."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve
from places import Place, copied
from test_relays import Batch

import edgecore
from edgecore import doctor, serial
from edgecore.config import SiteConfig
from edgecore.desk import Desk
from edgecore.directories import NETWORK_FILE_SYSTEMS
from edgecore.doctor import Section, diagnose, drivers, host, limits, programs
from edgecore.doctor import store as store_part
from edgecore.doctor.checks import Check
from edgecore.drivers import SchedulingRelay, open_scheduling
from edgecore.hookspecs import hookimpl
from edgecore.models import Application, Finding, Level, Observation, OutgoingMessage, Verdict
from edgecore.service import open_broker

OK, WARNING, FAILURE = Level.OK, Level.WARNING, Level.FAILURE


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("original"))


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    return copied(original, tmp_path)


def changed(place: Place, old: str, new: str) -> SiteConfig:
    """Return the configuration of a site whose file was edited."""
    text = place.file.read_text()
    assert old in text
    place.file.write_text(text.replace(old, new, 1))
    return place.config


def added(place: Place, text: str) -> SiteConfig:
    with place.file.open("a") as file:
        file.write(text)
    return place.config


def run(checks: Iterable[Check], title: str) -> dict[str, Finding]:
    """Return what the checks of one part find, by subject; the last one of a subject counts."""
    found = [finding for check in checks if check.title == title for finding in doctor._run(check)]
    assert all(finding.remedy for finding in found if finding.level is not OK), found
    return {finding.subject: finding for finding in found}


def asked(config: SiteConfig, title: str) -> dict[str, Finding]:
    checks = drivers.driver_checks(config, evolve(config.context, examining=True), ())
    return run((one for one in checks if one.title == title or one.subject == "enabled"), title)


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

    found = run(host.host_checks(config), "host")["environment"]

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

    found = run(host.host_checks(place.config), "host")["site file"]

    assert WARNING is found.level
    assert f"chmod o-w {place.file}" in found.remedy


def test_directories_of_the_log_and_the_metrics_are_examined_where_there_are_such(place: Place) -> None:
    config = added(place, '\n[log]\nfile = "log/edge.log"\n[metrics]\nfile = "site.toml/edge.prom"\n')

    found = run(host.host_checks(config), "directories")

    assert {
        "work directory": OK,
        "store directory": OK,
        "log directory": FAILURE,
        "metrics directory": FAILURE,
    } == {subject: finding.level for subject, finding in found.items()}


# ------------------------------------------------------------------------------------ store


def stored(config: SiteConfig) -> dict[str, Finding]:
    return run(store_part.store_checks(config), "store")


def test_a_service_that_runs_is_named_and_keeps_its_store(place: Place) -> None:
    with contextlib.closing(place.store()):
        found = stored(place.config)

        assert f"is running (pid {os.getpid()} on {os.uname().nodename}" in found["service"].message
        assert {OK} == {finding.level for finding in found.values()}


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


# ---------------------------------------------------------------------------------- plugins


@pytest.mark.parametrize(
    ("table", "subject", "words"),
    [
        ('enabled = ["dry-rum"]', "dry-rum", "did you mean dry-run?"),
        ('enabled = ["dry-run", "dry-run"]', "dry-run", "takes its settings"),
        ('enabled = ["pacing"]\n[plugins.pacing]\nburts = 1', "pacing", "did you mean burst?"),
        ("[plugins.pacng]\nburst = 1", "settings", "did you mean pacing"),
    ],
)
def test_a_plugin_that_cannot_be_opened_is_a_failure(
    place: Place, table: str, subject: str, words: str
) -> None:
    config = added(place, f"\n[plugins]\n{table}\n")
    checks = list(drivers.driver_checks(config, config.context, ()))
    found = [one for check in checks if check.subject == "enabled" for one in doctor._run(check)]

    assert FAILURE in {one.level for one in found}
    assert any(one.subject == subject and words in one.message for one in found), found


# -------------------------------------------------------------------------------- messaging


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///no/such/place/queues.sqlite", "cannot use the queue file"),
        ("amqps://broker.example.gov:5671/", "edgecore[rabbitmq]"),
        ("carrier-pigeon://loft/", "no installed package offers it"),
        ("sqlite://relative.sqlite", "an absolute path after sqlite://"),
    ],
)
def test_a_broker_that_cannot_be_opened_is_a_failure_in_its_own_words(
    place: Place, url: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url.startswith("amqps"):
        only_ours = [one for one in edgecore_drivers_offers() if one.name != "amqps"]
        monkeypatch.setattr("edgecore.drivers._offers", lambda: only_ours)
    found = asked(evolve(place.config, messaging=evolve(place.config.messaging, url=url)), "messaging")

    assert ["broker"] == list(found)
    assert FAILURE is found["broker"].level
    assert words in found["broker"].message


def edgecore_drivers_offers() -> list[Any]:
    from edgecore import drivers as installed

    return installed._offers()


def test_a_queue_file_that_is_none_is_a_failure(place: Place) -> None:
    (place.base / "queues.sqlite").write_text("something else" * 100)

    assert FAILURE is asked(place.config, "messaging")["broker"].level


def test_letters_that_were_refused_are_a_warning(place: Place) -> None:
    relay = open_broker(place.config)
    message = OutgoingMessage(exchange="hpc", key="demo", body=b"?", message_id="1")
    relay.send(messages=[message, evolve(message, message_id="2")])
    deliveries = relay.receive(queue="demo", limit=1, timeout_s=0.0)
    relay.settle(deliveries=deliveries, verdict=Verdict.REFUSE, reason="not JSON")
    relay.close()

    found = asked(place.config, "messaging")

    assert WARNING is found["dead letters"].level
    assert "1 refused messages wait in demo.rejected; the last one: not JSON" == found["dead letters"].message
    assert found["queue file"].message.endswith("messages: 1 in demo")
    assert [b"?"] == place.queued()


# ------------------------------------------------------------------------------- scheduling


@define(eq=False)
class Odd(Batch):
    """A batch system that misbehaves as it is told to."""

    found: Mapping[str, Sequence[Observation]] | Exception | None = None
    told: Any = ()

    @hookimpl
    def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found or {}

    @hookimpl
    def diagnose(self) -> Sequence[Finding]:
        if isinstance(self.told, Exception):
            raise self.told
        return tuple(self.told)


def scheduled(
    place: Place, monkeypatch: pytest.MonkeyPatch, driver: Batch, **timing: float
) -> dict[str, Finding]:
    config = place.config
    config = evolve(config, timing=evolve(config.timing, **timing))
    monkeypatch.setattr(
        drivers, "open_scheduling", lambda name, settings, site, **more: SchedulingRelay(driver, site)
    )
    return asked(config, "scheduling")


def test_a_driver_tells_what_only_it_knows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = Finding("credential", WARNING, "expires in 2 hours", "renew it: kinit")

    found = scheduled(place, monkeypatch, Odd(told=(ticket,)))

    assert ticket == found["credential"]
    assert OK is found["query"].level


@pytest.mark.parametrize(
    ("driver", "subject", "words"),
    [
        (Odd(found=edgecore.EdgeError("the controller is away")), "query", "the controller is away"),
        (Odd(found={"edoctor": ()}), "query", "which nobody submitted"),
        (Odd(told=("no finding",)), "driver", "answered str, not findings"),
        (Odd(told=edgecore.EdgeError("no licence")), "driver", "no licence"),
        (
            Odd(found=ZeroDivisionError("a fault")),
            "fork",
            "ZeroDivisionError: a fault in the hook find of the",
        ),
    ],
)
def test_a_batch_system_that_does_not_answer_rightly_is_a_failure(
    place: Place, monkeypatch: pytest.MonkeyPatch, driver: Batch, subject: str, words: str
) -> None:
    found = scheduled(place, monkeypatch, driver)[subject]

    assert FAILURE is found.level
    assert words in found.message


def test_a_slow_answer_and_an_unkind_interval_are_warnings(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "_SLOW_S", -1.0)

    found = scheduled(place, monkeypatch, Odd(), poll_interval_s=5.0)

    assert (WARNING, WARNING) == (found["query"].level, found["poll interval"].level)
    assert "finds 60 s kind" in found["poll interval"].message


def test_a_batch_system_that_hangs_is_a_failure_and_holds_nobody_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = threading.Event()
    monkeypatch.setattr(drivers, "_DRIVER_S", 0.1)
    monkeypatch.setattr(drivers, "open_scheduling", lambda *given, **more: end.wait())
    try:
        found = asked(place.config, "scheduling")["fork"]
    finally:
        end.set()

    assert (FAILURE, "gave no answer within 0.1 s") == (found.level, found.message)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('driver = "slrum"', "did you mean slurm"),
        ('driver = "fork"\nslot = 3', "did you mean slots?"),
        ('driver = "fork"\nspool = "/proc/spool"', "/proc/spool, which cannot be made"),
    ],
)
def test_a_driver_that_cannot_be_opened_is_a_failure(place: Place, line: str, words: str) -> None:
    found = asked(changed(place, 'driver = "fork"', line), "scheduling")

    assert [FAILURE] == [one.level for one in found.values()]
    assert words in next(iter(found.values())).message


def settings_of(place: Place) -> dict[str, float]:
    spool = place.config.work_directory / ".fork" / "jobs.sqlite"
    with contextlib.closing(sqlite3.connect(spool)) as connection:
        return dict(connection.execute("SELECT name, value FROM settings"))


def test_examining_fork_changes_no_setting_and_starts_no_supervisor(place: Place) -> None:
    config = changed(place, 'driver = "fork"', 'driver = "fork"\nslots = 1\nidle_s = 0')
    table = config.scheduling
    open_scheduling(table.driver, table.settings, config.context).close()
    spool = config.work_directory / ".fork"
    with contextlib.closing(sqlite3.connect(spool / "jobs.sqlite")) as connection, connection:
        connection.execute(
            "INSERT INTO jobs (tag, group_tag, state, slots, limit_s, request, queued) VALUES "
            "('e1', 'e1', 'QUEUED', 1, 60, '{}', 1), ('e2', 'e2', 'QUEUED', 9999, 60, '{}', 1)"
        )
    before = settings_of(place)

    found = asked(changed(place, "slots = 1", "slots = 1000"), "scheduling")

    assert before == settings_of(place)
    assert 1.0 == before["slots"]
    assert WARNING is found["slots"].level
    assert "none lives; jobs: 0 running, 2 queued, 0 held" == found["supervisor"].message
    assert "1 waiting jobs want more than the 1000 slots" in found["waiting jobs"].message
    assert not (spool / "supervisor.log").exists()


# --------------------------------------------------------------------------------- transfer


def test_each_prefix_is_looked_at(place: Place) -> None:
    data = f"file://{place.base}/data/"
    config = added(
        place,
        f'\n[[transfer]]\nprefix = "{data}below/"\n[[transfer]]\nprefix = "file:///no/such/"\n'
        '[[transfer]]\nprefix = "gopher://old/"\n[[transfer]]\nprefix = "file:///usr/"\nstreems = 2\n',
    )

    found = asked(config, "transfer")

    assert OK is found[data].level
    assert FAILURE is found[f"{data}below/"].level
    assert f"{data}below/ is never used: {data} stands before it" in found["prefixes"].message
    assert FAILURE is found["file:///no/such/"].level
    assert "no installed package offers it" in found["gopher://old/"].message
    assert "did you mean streams?" in found["file:///usr/"].message


def test_a_prefix_may_be_all_of_this_host(place: Place) -> None:
    config = changed(place, f'prefix = "file://{place.base}/data/"', 'prefix = "file:///"')

    assert OK is asked(config, "transfer")["file:///"].level


def test_a_site_without_transfers_is_told_what_that_means(place: Place) -> None:
    found = asked(evolve(place.config, transfer=()), "transfer")["prefixes"]

    assert (OK, "none: jobs may neither bring input nor take output away") == (found.level, found.message)


# ------------------------------------------------------------- launchers, applications, alarms


def programs_of(config: SiteConfig, title: str) -> dict[str, Finding]:
    return run(programs.program_checks(config, config.context), title)


def register(place: Place, **entry: Any) -> None:
    Desk(place.config.store).add_application(Application(**{"executable": "/bin/sh", **entry}), now=1)


LAUNCHERS = """
[launchers.shell]
arguments = ["sh", "-c"]
[launchers.mpi]
arguments = ["mpirun-of-nowhere", "-n", "{processes}"]
"""


def test_a_launcher_that_is_missing_is_a_failure_once_an_application_uses_it(place: Place) -> None:
    config = added(place, LAUNCHERS)
    found = programs_of(config, "launchers")
    assert (OK, WARNING) == (found["shell"].level, found["mpi"].level)
    assert "mpirun-of-nowhere is not an executable file on PATH=/usr/local/bin:" in found["mpi"].message

    register(place, name="parallel", launcher="mpi")
    assert FAILURE is programs_of(config, "launchers")["mpi"].level

    config = evolve(config, script=evolve(config.script, prologue="module load mpi"))
    assert WARNING is programs_of(config, "launchers")["mpi"].level


def test_a_launcher_is_looked_for_where_the_site_says(place: Place) -> None:
    bin_ = place.base / "bin"
    bin_.mkdir()
    program = bin_ / "mpirun-of-nowhere"
    program.write_text("#!/bin/sh\n")
    config = added(place, f'{LAUNCHERS}\n[environment.set]\nPATH = "{bin_}"\n')
    assert WARNING is programs_of(config, "launchers")["mpi"].level

    program.chmod(0o755)
    found = programs_of(config, "launchers")["mpi"]
    assert (OK, str(program)) == (found.level, found.message)


@pytest.mark.parametrize(
    ("key", "content", "mode", "words"),
    [
        ("executable", None, 0o755, "is not there, or this account may not look for it"),
        ("executable", "#!/bin/sh\n", 0o644, "may not be executed"),
        ("preprocess", "echo no first line\n", 0o755, "neither a program nor begins with #!"),
        ("postprocess", "#! /usr/bin/pyhton3 -u\n", 0o755, "wants /usr/bin/pyhton3, which is not there"),
        ("config_script", None, 0o755, "is not there, or this account may not look for it"),
        ("directory", None, 0o755, "is not there, or this account may not read it"),
    ],
)
def test_a_program_that_could_not_run_is_a_failure(
    place: Place, key: str, content: str | None, mode: int, words: str
) -> None:
    program = place.base / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    register(place, name="broken", **{key: str(program)})

    found = programs_of(place.config, "applications")

    assert OK is found["hello"].level
    assert FAILURE is found["broken"].level
    assert f"{key} {program} " in found["broken"].message
    assert words in found["broken"].message


def test_a_program_that_everybody_can_write_and_defaults_that_do_not_fit_are_warnings(place: Place) -> None:
    program = place.base / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    register(place, name="open", executable=str(program))
    register(place, name="short", max_wall_time_minutes=5)

    found = programs_of(place.config, "applications")

    assert (WARNING, f"chmod o-w {program}") == (found["open"].level, found["open"].remedy)
    assert (WARNING, "[defaults] wall_time_minutes = 60 is more than the 5 that it allows") == (
        found["short"].level,
        found["short"].message,
    )


def test_an_entry_that_contradicts_the_site_or_cannot_be_read_stops_no_other(place: Place) -> None:
    register(place, name="parallel", launcher="mpi")
    with contextlib.closing(sqlite3.connect(place.config.store)) as connection, connection:
        connection.execute("INSERT INTO applications (name, entry, changed) VALUES ('odd', '{', 1)")

    found = programs_of(place.config, "applications")

    assert {"hello": OK, "odd": FAILURE, "parallel": FAILURE} == {
        name: finding.level for name, finding in found.items()
    }
    assert "no launcher of this site" in found["parallel"].message
    assert "edgecore apps add" in found["parallel"].remedy


def test_an_empty_catalogue_is_a_warning(place: Place) -> None:
    Desk(place.config.store).remove_application("hello")

    assert WARNING is programs_of(place.config, "applications")["catalogue"].level


@pytest.mark.parametrize(("command", "level"), [("sh", OK), ("/no/such/pager", FAILURE)])
def test_the_program_that_hears_of_alarms_must_be_there(place: Place, command: str, level: Level) -> None:
    config = added(place, f'\n[alarms]\ncommand = ["{command}", "-x"]\n')

    assert level is programs_of(config, "alarms")["command"].level


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

    found = run(limits.limit_checks(config), "limits")

    assert {subject: level} == {name: finding.level for name, finding in found.items()}


def test_findings_can_be_written_as_json() -> None:
    section = Section("host", (Finding("python", OK, "3.12"),))

    assert {
        "title": "host",
        "findings": [{"subject": "python", "level": "ok", "message": "3.12", "remedy": ""}],
    } == serial.unstructure(section)
