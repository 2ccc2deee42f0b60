"""A doctor opens plugins and drivers as a service will, and asks them one thing."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import threading
from collections.abc import Generator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import Factory, define, evolve
from examined import FAILURE, OK, WARNING, added, changed, examined
from places import Place
from test_relays import Batch
from testbed.certificates import Authority

from edgecore import doctor, partners
from edgecore import drivers as installed
from edgecore.config import SiteConfig
from edgecore.desk import Desk
from edgecore.doctor import drivers
from edgecore.drivers import SchedulingRelay, open_scheduling
from edgecore.errors import EdgeError
from edgecore.hookspecs import hookimpl
from edgecore.models import (
    Application,
    Demands,
    Finding,
    Observation,
    OutgoingMessage,
    SchedulingProfile,
    SiteContext,
    Verdict,
)
from edgecore.partners import open_broker


def asked(config: SiteConfig, title: str) -> dict[str, Finding]:
    """Return what is found in one role's drivers, with the site's plugins opened."""
    checks = drivers.driver_checks(config, evolve(config.context, examining=True), ())
    return examined((one for one in checks if one.title == title or one.subject == "enabled"), title)


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
        only_ours = [one for one in installed._offers() if one.name != "amqps"]
        monkeypatch.setattr("edgecore.drivers._offers", lambda: only_ours)
    found = asked(evolve(place.config, messaging=evolve(place.config.messaging, url=url)), "messaging")

    assert ["broker"] == list(found)
    assert FAILURE is found["broker"].level
    assert words in found["broker"].message


@pytest.mark.slow
def test_certificate_and_key_are_judged_although_the_broker_cannot_be_reached(
    place: Place, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "certificates")
    ours, other = authority.client("demo", lasts=timedelta(days=3)), authority.client("other")
    ours.key.chmod(0o644)
    with socket.socket() as nobody:  # bound and not listening
        nobody.bind(("127.0.0.1", 0))
        settings = {
            "certificate": str(ours.certificate),
            "key": str(ours.key),
            "authority": str(authority.file),
        }
        table = evolve(
            place.config.messaging, url=f"amqps://127.0.0.1:{nobody.getsockname()[1]}/", settings=settings
        )
        found = asked(evolve(place.config, messaging=table), "messaging")
        assert ["broker", "key", "certificate"] == list(found)
        assert (FAILURE, WARNING, WARNING) == tuple(each.level for each in found.values())
        assert "nobody listens there" in found["broker"].message
        assert "mode 0644" in found["key"].message
        assert "expires in 3 days" in found["certificate"].message

        table = evolve(table, settings={**settings, "key": str(other.key)})
        found = asked(evolve(place.config, messaging=table), "messaging")
        assert "the key is not that of the certificate" in found["broker"].message
        assert ["broker", "key"] == list(found), "and not a second time"


def test_queues_that_another_process_keeps_locked_are_no_reason_to_make_them_anew(place: Place) -> None:
    config = changed(place, "[messaging]", "[messaging]\nbusy_timeout_s = 0.05")
    assert OK is asked(config, "messaging")["queues"].level

    with contextlib.closing(sqlite3.connect(place.base / "queues.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        found = asked(config, "messaging")["queues"]

    assert (FAILURE, True) == (found.level, "database is locked" in found.message)
    assert "see that the broker runs" in found.remedy


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


def test_layers_of_whoever_embeds_the_library_are_around_the_drivers(place: Place) -> None:
    asked_for: list[str] = []

    class Layer:
        @hookimpl(wrapper=True)
        def find(self, tags: Sequence[str]) -> Generator[None, Any, Any]:
            asked_for.extend(tags)
            return (yield)

    list(doctor.diagnose(place.config, plugins=[Layer()]))

    assert ["edoctor"] == asked_for


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
        partners, "open_scheduling", lambda name, settings, site, **more: SchedulingRelay(driver, site)
    )
    return asked(config, "scheduling")


def test_a_driver_is_told_what_jobs_may_ask_for_by_default_by_the_sites_limits_and_its_applications(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    @define(eq=False)
    class Told(Odd):
        demands: Demands = Factory(Demands)

        @hookimpl
        def open(self, site: SiteContext) -> SchedulingProfile:
            self.demands = site.demands
            return SchedulingProfile(batch_id_text="$ID")

    text = place.file.read_text()
    assert "[limits]" in text
    place.file.write_text(
        text.replace("[limits]", "[limits]\nmax_nodes = 8")
        + '\n[defaults]\nqueue = "batch"\nproject = "atlas"\n'
    )
    desk = Desk(place.config.store)
    for name, nodes in (("small", 2), ("large", 9)):
        desk.add_application(
            Application(name=name, executable="/bin/sh", max_nodes=nodes, max_wall_time_minutes=5), now=1
        )
    driver = Told()

    scheduled(place, monkeypatch, driver)

    found = driver.demands
    assert ("batch", "atlas") == (found.queue, found.project)
    assert {
        "[defaults] num_nodes": 1,
        "[limits] max_nodes": 8,
        "max_nodes of application small": 2,
    } == found.num_nodes
    assert {
        "[defaults] wall_time_minutes": 60,
        "max_wall_time_minutes of application hello": 60,
        "max_wall_time_minutes of application large": 5,
        "max_wall_time_minutes of application small": 5,
    } == found.wall_time_minutes


def test_a_driver_tells_what_only_it_knows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = Finding("credential", WARNING, "expires in 2 hours", "renew it: kinit")

    found = scheduled(place, monkeypatch, Odd(told=(ticket,)))

    assert ticket == found["credential"]
    assert OK is found["query"].level


@pytest.mark.parametrize(
    ("driver", "subject", "words"),
    [
        (Odd(found=EdgeError("the controller is away")), "query", "the controller is away"),
        (Odd(found={"edoctor": ()}), "query", "which nobody submitted"),
        (Odd(told=("no finding",)), "driver", "answered str, not findings"),
        (Odd(told=EdgeError("no licence")), "driver", "no licence"),
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
    monkeypatch.setattr(partners, "open_scheduling", lambda *given, **more: end.wait())
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
