"""Credentials are renewed before they expire, never in a loop; what needs one that cannot be used waits and goes on."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field
from examined import FAILURE, OK, WARNING, added, changed, examined
from places import Place
from scripted import Edge, ScriptedTransfer
from sites import make_site, wait_for
from testbed.proxies import place_file, proxy_pem, write_proxy

from edgecore import serial
from edgecore.alarms import Alarms
from edgecore.backoff import Backoff
from edgecore.certificates import judge, utc
from edgecore.cli.waiting import waits_for
from edgecore.clock import Clock, iso
from edgecore.config import CredentialTable, MetricsTable
from edgecore.credentials import Credential, Credentials, CredentialWatch, open_credentials
from edgecore.doctor.credentials import credential_checks
from edgecore.errors import ConfigurationError, StoreError, TransferInterrupted, TransferRefused
from edgecore.hookspecs import Lifecycle, hookimpl
from edgecore.models import Intent, TransferProgress, TransferReport, WarningMessage
from edgecore.models import JobState as S
from edgecore.processes import process_start
from edgecore.reader import Reader
from edgecore.store import Store
from edgecore.testing.site import DEADLINE_S
from edgecore.warned import Warned

HOUR_S = 3600.0


class SetClock(Clock):
    """A clock that stands still until a test sets it forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._begin = super().now()

    def now(self) -> int:
        return self._begin + round(self.ahead_s * 1e6)

    def monotonic(self) -> float:
        return self.ahead_s


@define(eq=False)
class Watched:
    """A proxy, a command that renews it, and who watches; a test says when it looks."""

    directory: Path
    clock: SetClock = field(factory=SetClock)
    raised: list[tuple[str, str]] = field(factory=list)
    cleared: list[str] = field(factory=list)
    announced: list[tuple[str, str]] = field(factory=list)
    """In words for operators, and in words for people outside."""
    let_go: int = 0
    watch: CredentialWatch = field(init=False)

    @property
    def file(self) -> Path:
        return self.directory / "proxy"

    @property
    def runs(self) -> int:
        """How often the command was run."""
        count = self.directory / "count"
        return len(count.read_text().splitlines()) if count.exists() else 0

    def alarm_raised(self, *, subject: str, message: str) -> None:
        self.raised.append((subject, message))

    def alarm_cleared(self, *, subject: str, message: str) -> None:
        self.cleared.append(subject)

    def begin(self, *, lasts_s: float, script: str | None = None, **more: Any) -> None:
        """Lay out a proxy and a command, and make who watches; nothing runs yet."""
        if lasts_s > 0:
            write_proxy(self.file, lasts_s)
        program = self.directory / "renew.sh"
        program.write_text(f"#!/bin/sh\necho run >>{self.directory}/count\n{script or ''}\n")
        program.chmod(0o755)
        keys = {"renew_before_minutes": 60, "warn_before_minutes": 30, **more}
        if script is not None:
            keys["renew"] = (str(program),)
        table = CredentialTable(name="grid", file=self.file, **keys)

        def usable() -> None:
            self.let_go += 1

        self.watch = CredentialWatch(
            credential=Credential(table, self.clock),
            alarms=Alarms(self),
            environment={"PATH": "/usr/bin:/bin", "WATCHED": str(self.directory)},
            marks=[os.fsencode(f"WATCHED={self.directory}")],
            expiring=lambda credential, *words: self.announced.append(words),
            usable=usable,
            unusable=lambda: None,
            backoff=Backoff(first_s=10, longest_s=100),
        )

    def next(self, lasts_s: float) -> str:
        """Make what the command may put in place; answers the command that does."""
        write_proxy(self.directory / "next", lasts_s)
        return f"cp {self.directory}/next $EDGECORE_CREDENTIAL_FILE"

    def look(self, ahead_s: float = 0.0) -> None:
        """Look once, so many seconds later."""
        self.clock.ahead_s += ahead_s
        self.watch._turn()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


EXPIRY, UNUSABLE = "expiry of credential grid", "credential grid"


# ---------------------------------------------------------------------------------- renewing


def test_a_credential_is_renewed_when_little_of_it_is_left_and_then_left_alone(watched: Watched) -> None:
    watched.begin(lasts_s=2 * HOUR_S, script=watched.next(9 * HOUR_S))
    watched.look()
    assert 0 == watched.runs
    watched.look(HOUR_S + 60)
    watched.look()
    watched.look(HOUR_S)
    assert 1 == watched.runs
    assert ([], []) == (watched.raised, watched.announced)
    assert 6 * HOUR_S < watched.watch.credential.left_s() < 8 * HOUR_S


def test_a_renewal_that_fails_is_tried_again_ever_less_often(watched: Watched) -> None:
    watched.begin(lasts_s=55 * 60, script="echo no route to server >&2; exit 1")
    watched.look()
    watched.look()
    watched.look(5)
    assert 1 == watched.runs, "not at every look"
    assert [] == watched.raised, "there is time"
    for pause_s in (13, 26, 51):
        watched.look(pause_s)
    assert 4 == watched.runs
    watched.look(51)
    assert 4 == watched.runs


def test_a_good_one_that_somebody_put_there_ends_the_waiting_of_a_renewal_that_failed(
    watched: Watched,
) -> None:
    watched.begin(lasts_s=55 * 60, script="exit 1")
    for pause_s in (0, 13, 26, 51):
        watched.look(pause_s)
    write_proxy(watched.file, watched.clock.ahead_s + HOUR_S + 10)
    watched.look()
    assert 4 == watched.runs
    watched.look(45)
    assert 5 == watched.runs


def test_people_are_told_of_what_expires_soon_with_the_last_words_of_the_command(watched: Watched) -> None:
    watched.begin(lasts_s=55 * 60, script="echo no route to server >&2; exit 1")
    watched.look()
    watched.look(26 * 60)
    ((subject, words),) = watched.raised
    assert EXPIRY == subject
    assert "was not renewed; the last renewal: renew.sh ended with exit code 1: no route to server" in words
    ((inside, outside),) = watched.announced
    assert words == inside
    assert str(watched.file) in inside
    until = utc(watched.watch.credential.seen.expires)
    assert f"the credential grid expires at {until} and was not renewed; the last renewal failed" == outside
    watched.look(60)
    assert 1 == len(watched.announced) == len(watched.raised)


def test_without_a_command_people_are_told_in_time_and_again_of_the_end(watched: Watched) -> None:
    watched.begin(lasts_s=HOUR_S)
    watched.look()
    assert [] == watched.raised
    watched.look(31 * 60)
    watched.look(30 * 60)
    assert [EXPIRY, UNUSABLE] == [subject for subject, _ in watched.raised]
    assert "it cannot be used: it expired at" in watched.raised[1][1]
    write_proxy(watched.file, 5 * HOUR_S)
    let_go = watched.let_go
    watched.look()
    assert [UNUSABLE, EXPIRY] == watched.cleared
    assert let_go + 1 == watched.let_go


def test_a_command_that_ends_well_and_changes_nothing_has_failed_and_is_not_run_in_a_loop(
    watched: Watched,
) -> None:
    watched.begin(lasts_s=20 * 60, script="true")
    for _ in range(5):
        watched.look()
    assert 1 == watched.runs
    assert "the credential expires no later than before" in watched.raised[0][1]


def test_a_new_one_that_lives_too_short_is_renewed_at_the_half_of_its_life(watched: Watched) -> None:
    watched.begin(lasts_s=10 * 60, script=watched.next(20 * 60))
    for _ in range(5):
        watched.look()
    assert 1 == watched.runs
    watched.look(9 * 60)
    assert 1 == watched.runs
    watched.next(40 * 60)
    watched.look(2 * 60)
    assert 2 == watched.runs


def test_a_command_that_hangs_is_ended_and_has_failed(watched: Watched) -> None:
    watched.begin(lasts_s=20 * 60, script="sleep 60", renew_timeout_s=0.1)
    watched.look()
    assert "renew.sh gave no answer within" in watched.raised[0][1]


def test_only_the_file_says_whether_a_renewal_worked(watched: Watched) -> None:
    watched.begin(lasts_s=20 * 60, script=f"{watched.next(5 * HOUR_S)}; exit 1")
    watched.look()
    assert [] == watched.raised


def test_rubbish_that_a_command_wrote_is_told_with_its_words(watched: Watched) -> None:
    watched.begin(lasts_s=50 * 60, script="echo rubbish >$EDGECORE_CREDENTIAL_FILE; echo done")
    watched.look()
    ((subject, words),) = watched.raised
    assert UNUSABLE == subject
    assert "holds no certificate in PEM" in words
    assert "ended well; the credential cannot be used" in words
    assert 0 == watched.let_go
    watched.look()
    assert 1 == watched.runs
    write_proxy(watched.file, 5 * HOUR_S)
    watched.look()
    assert [UNUSABLE] == watched.cleared
    assert 1 == watched.let_go
    watched.look(4.5 * HOUR_S)
    assert 2 == watched.runs, "what failed before is forgotten"


def test_a_credential_that_has_expired_is_renewed_before_anybody_is_alarmed(watched: Watched) -> None:
    watched.begin(lasts_s=0, script=watched.next(5 * HOUR_S))
    watched.look()
    assert (1, [], 1) == (watched.runs, watched.raised, watched.let_go)


def test_a_file_that_is_being_written_is_given_a_moment(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.begin(lasts_s=5 * HOUR_S)
    watched.look()
    whole = proxy_pem(6 * HOUR_S)
    place_file(watched.file, whole[:900])
    monkeypatch.setattr(watched.watch._stop, "wait", lambda timeout: place_file(watched.file, whole))
    watched.look()
    assert [] == watched.raised


def test_what_could_not_be_read_by_a_fault_of_the_host_is_read_again_though_it_did_not_change(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.begin(lasts_s=5 * HOUR_S)
    monkeypatch.setattr(watched.watch._stop, "wait", lambda timeout: None)
    with monkeypatch.context() as patched:
        for number in (errno.EMFILE, errno.EIO):
            patched.setattr("edgecore.certificates.os.open", failing(OSError(number, os.strerror(number))))
            watched.look()
    assert [UNUSABLE] == [subject for subject, _ in watched.raised]
    watched.look()
    assert ([UNUSABLE], 1) == (watched.cleared, watched.let_go)


def failing(error: Exception) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


def test_a_watch_that_stops_ends_the_command(watched: Watched) -> None:
    watched.begin(lasts_s=20 * 60, script="sleep 60")
    thread = watched.watch.start()
    wait_for(lambda: watched.runs == 1, 20)
    watched.watch.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert [] == watched.raised


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [True, False])
def test_a_command_that_is_ended_may_put_things_in_order_and_leaves_nothing_running(
    watched: Watched, stopped: bool
) -> None:
    here = watched.directory
    script = f"trap 'touch {here}/in-order; exit 1' TERM; setsid sh -c 'echo $$ >{here}/pid; exec sleep 600' & wait"
    watched.begin(lasts_s=20 * 60, script=script, renew_timeout_s=3600 if stopped else 1)
    thread = watched.watch.start()
    wait_for(lambda: (here / "pid").exists() and (here / "pid").read_text().endswith("\n"), 20)
    if stopped:
        watched.watch.stop()
    else:
        wait_for(lambda: bool(watched.raised), 20)
        watched.watch.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert (here / "in-order").exists()
    assert process_start(int((here / "pid").read_text())) is None


def test_nothing_is_looked_at_without_need(watched: Watched) -> None:
    watched.begin(lasts_s=2 * HOUR_S, script="exit 1", look_s=3600)
    watched.look()
    assert HOUR_S - 10 < watched.watch._pause_s() <= HOUR_S, "until it is to be renewed"
    watched.look(HOUR_S + 100)
    assert 7 < watched.watch._pause_s() <= 12.5, "until the command is run again"


# ------------------------------------------------------------------------------ configuration


def site_with(edge: Edge, **keys: Any) -> None:
    prefix = edge.config.transfer[0].prefix
    given = {"name": "grid", "file": edge.site.base / "proxy", "needed_by": (prefix,), "look_s": 0.05, **keys}
    edge.config = evolve(edge.config, credential=(CredentialTable(**given),))


def test_a_command_that_is_not_there_keeps_a_site_from_starting(edge: Edge) -> None:
    site_with(edge, renew=("no-such-program",))
    with pytest.raises(
        ConfigurationError, match=r"credential\[0\].renew: found no-such-program; there is no"
    ):
        open_credentials(edge.config, edge.clock)


def test_a_site_with_credentials_needs_cryptography(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    site_with(edge)
    monkeypatch.setitem(sys.modules, "cryptography.x509", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'edgecore\[credentials\]'"):
        open_credentials(edge.config, edge.clock)


def test_what_is_wrong_with_a_credential_table_is_said_at_once(place: Place) -> None:
    tables = """
        [[credential]]
        name = "grid"
        file = "proxy"
        needed_by = ["gsiftp://elsewhere/"]
        renew = ["true"]
        renew_before_minutes = 30
        warn_before_minutes = 40
        [[credential]]
        name = "grid"
        file = "~/other"
    """
    with pytest.raises(ConfigurationError) as caught:
        added(place, tables)
    assert {
        "credential[0].needed_by": "'gsiftp://elsewhere/'",
        "credential[0].warn_before_minutes": "40",
        "credential[1].name": "'grid'",
    } == {problem.path: problem.found for problem in caught.value.problems}


def test_files_of_a_credential_are_found_from_the_directory_of_the_site_s_file(place: Place) -> None:
    table = '\n[[credential]]\nname = "theta"\nfile = "theta.pem"\nkey = "/etc/theta.key"\nneeded_by = ["messaging"]\n'
    (found,) = added(place, table).credential
    assert (place.base / "theta.pem", Path("/etc/theta.key")) == (found.file, found.key)


# ------------------------------------------------------------------------------- in a service


@pytest.fixture
def proxy(edge: Edge) -> Path:
    """Let the transfers of a site need a proxy, which is not there yet."""
    site_with(edge)
    edge.transfer = ScriptedTransfer()
    return edge.site.base / "proxy"


def without_file(edge: Edge, name: str) -> dict[str, Any]:
    return {**edge.input(name), "config_file": None}


def test_only_transfers_wait_for_a_credential_and_go_on_by_themselves(edge: Edge, proxy: Path) -> None:
    edge.start()
    edge.send("needs", **without_file(edge, "needs"))
    edge.send("free")
    edge.wait("free", S.JOB_FINISHED)
    words = edge.wait_alarm("credential grid")
    assert "No such file or directory" in words
    assert f"what needs it waits ({edge.config.transfer[0].prefix})" in words
    edge.until(lambda: "waits for the credential grid, which cannot be used" in edge.job("needs").message)
    with Reader(edge.config.store) as reader:
        (waits,) = waits_for(edge.config, reader, edge.job("needs"), edge.clock.now())
    assert waits.startswith("the credential grid, which cannot be used: ")
    write_proxy(proxy)
    edge.wait("needs", S.JOB_FINISHED)
    edge.wait_alarm("credential grid", cleared=True)
    assert 1 == edge.states("needs").count("CREATED")


@pytest.mark.slow
def test_output_waits_too_and_why_the_job_failed_is_not_forgotten(edge: Edge, proxy: Path) -> None:
    write_proxy(proxy)
    edge.scheduling.auto = False
    edge.start()
    edge.send("job", "fails", **without_file(edge, "job"))
    entry = edge.wait_entry()
    proxy.unlink()
    edge.wait_alarm("credential grid")
    edge.scheduling.start(entry)
    edge.wait("job", S.EXECUTION_FAILED)
    edge.until(lambda: "waits for the credential" in edge.job().message)
    assert edge.transfer is not None
    assert [] == edge.transfer.delivered
    write_proxy(proxy)
    failed = edge.wait("job", S.JOB_FAILED)
    assert "exit code 3" in failed.message
    assert 1 == len(edge.transfer.delivered)


@pytest.mark.slow
def test_a_job_whose_time_is_up_while_it_waits_for_a_credential_ends(edge: Edge, proxy: Path) -> None:
    edge.start()
    limit = datetime.now(UTC) + timedelta(seconds=1)
    edge.send("late", **without_file(edge, "late"), not_after=limit.isoformat())
    edge.send("held", **without_file(edge, "held"), not_after=limit.isoformat())
    edge.send("patient", **without_file(edge, "patient"))
    edge.until(lambda: "waits for the credential" in edge.job("late").message)
    edge.ask("hold", "held")
    edge.until(lambda: edge.job("held").intent is Intent.HELD)
    failed = edge.wait("late", S.STAGE_IN_FAILED)
    assert datetime.now(UTC) > limit
    assert "it was not to be submitted after" in failed.message
    edge.wait("late", S.JOB_FAILED)
    edge.until(lambda: "waits for the credential" in edge.job("patient").message)
    assert S.CREATED is edge.job("held").state
    edge.ask("release", "held")
    edge.wait("held", S.JOB_FAILED)
    write_proxy(proxy)
    edge.wait("patient", S.JOB_FINISHED)
    assert edge.transfer is not None
    assert 1 == len(edge.transfer.fetched)


@pytest.mark.slow
def test_who_waits_for_one_credential_is_not_asked_about_at_every_look_at_another(
    edge: Edge, proxy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand jobs may wait."""
    other = CredentialTable(name="other", file=write_proxy(edge.site.base / "other", 5 * HOUR_S), look_s=0.05)
    edge.config = evolve(edge.config, credential=(*edge.config.credential, other))
    asked, told, missing, tell = list[object](), list[str](), Credentials.missing, CredentialWatch._tell

    def noted(credentials: Credentials, url: str | None, *, look: bool = False) -> str:
        asked.append(url)
        return missing(credentials, url, look=look)

    def counted(watch: CredentialWatch) -> None:
        tell(watch)
        told.append(watch.credential.table.name)

    monkeypatch.setattr(Credentials, "missing", noted)
    monkeypatch.setattr(CredentialWatch, "_tell", counted)
    edge.start()
    edge.send("needs", **without_file(edge, "needs"))
    edge.until(lambda: "waits for the credential" in edge.job("needs").message)

    before, looks = len(asked), len(told)
    edge.until(lambda: min(told[looks:].count("other"), told[looks:].count("grid")) >= 5)
    assert before == len(asked)


@pytest.mark.slow
def test_a_job_that_waits_can_be_cancelled_and_survives_a_restart(edge: Edge, proxy: Path) -> None:
    edge.start()
    for name in ("job", "other"):
        edge.send(name, **without_file(edge, name))
        edge.until(lambda name=name: "waits for the credential" in edge.job(name).message)  # type: ignore[misc]
    edge.ask("cancel", "other")
    edge.wait("other", S.JOB_CANCELLED)
    edge.restart()
    write_proxy(proxy)
    edge.wait("job", S.JOB_FINISHED)
    assert edge.transfer is not None
    assert 1 == len(edge.transfer.fetched)


@pytest.mark.slow
def test_a_job_that_waits_no_more_does_not_say_so_though_its_lane_is_full(edge: Edge, proxy: Path) -> None:
    edge.config = evolve(edge.config, limits=evolve(edge.config.limits, staging=1))
    edge.start()
    for name in ("first", "second"):
        edge.send(name, **without_file(edge, name))
        edge.until(lambda name=name: "waits for the credential" in edge.job(name).message)  # type: ignore[misc]
    edge.stop()
    transfer = edge.transfer
    assert isinstance(transfer, ScriptedTransfer)
    transfer.slow = True
    write_proxy(proxy)
    edge.start()
    edge.until(lambda: not any("waits for" in edge.job(name).message for name in ("first", "second")))
    edge.until(lambda: len(transfer.fetched) > 0)
    assert 1 == len(transfer.fetched)


@pytest.mark.slow
@pytest.mark.parametrize("error", [TransferRefused("530 expired"), TransferInterrupted("530 expired")])
def test_no_job_is_blamed_for_what_failed_when_the_credential_was_gone(
    edge: Edge, proxy: Path, error: Exception
) -> None:
    write_proxy(proxy)
    transfer = edge.transfer = Gone(proxy=proxy, error=error)
    edge.start()
    edge.send("job", **without_file(edge, "job"))
    assert transfer.refused.wait(20)
    edge.until(lambda: "waits for the credential" in edge.job().message)
    assert 0 == edge.job().failures
    write_proxy(proxy)
    edge.wait("job", S.JOB_FINISHED)


@define(eq=False)
class Gone(ScriptedTransfer):
    """Refuse once, after the credential has vanished on the way."""

    proxy: Path = field(factory=Path)
    error: Exception = field(factory=Exception)
    refused: threading.Event = field(factory=threading.Event)

    def _move(self, moved: list[str], url: str, progress: TransferProgress) -> TransferReport:
        if not self.refused.is_set():
            self.proxy.unlink()
            self.refused.set()
            raise self.error
        return super()._move(moved, url, progress)


@define(eq=False)
class Announced(Lifecycle):
    """Remember which credentials expire soon."""

    heard: list[tuple[str, int, str]] = field(factory=list)

    @hookimpl
    def credential_expiring(self, name: str, expires: int, message: str) -> None:
        self.heard.append((name, expires, message))


@pytest.mark.slow
def test_what_expires_soon_is_told_to_listeners_and_where_status_goes(edge: Edge, proxy: Path) -> None:
    write_proxy(proxy, 600)
    listener = Announced()
    edge.plugins.append(listener)
    edge.start()
    edge.wait_alarm("expiry of credential grid")
    edge.until(lambda: bool(edge.broker.sent))
    (message,) = edge.broker.sent
    warning = serial.structure(WarningMessage, json.loads(message.body), source="test")
    ((name, expires, words),) = listener.heard
    assert ("grid", "credential_expiring", "testsite") == (name, warning.warning, warning.site)
    assert iso(expires) == warning.expires
    assert str(proxy) in words
    assert f"the credential grid expires at {utc(expires)} and was not renewed" == warning.message
    assert "balsam_job_status" == message.key


@pytest.mark.slow
def test_what_was_told_once_is_told_again_only_when_it_changes(edge: Edge, proxy: Path) -> None:
    write_proxy(proxy, 600)
    listener = Announced()
    edge.plugins.append(listener)
    for heard, lasts_s in ((1, 600), (1, 600), (2, 900)):
        if lasts_s != 600:
            write_proxy(proxy, lasts_s)
        edge.heard.alarms.clear()
        edge.start()
        edge.wait_alarm("expiry of credential grid")
        edge.until(lambda heard=heard: len(edge.broker.sent) >= heard)  # type: ignore[misc]
        edge.stop()
        assert heard == len(listener.heard) == len(edge.broker.sent)


@pytest.mark.slow
def test_what_could_not_be_told_outside_is_told_when_the_store_can_be_written_again(
    edge: Edge, proxy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, refused = Store.reply, list[Future[None]]()

    def full(store: Store, body: str, key: str | None) -> Future[None]:
        if len(refused) == 2:
            return reply(store, body, key)
        refused.append(Future())
        refused[-1].set_exception(StoreError("the disk is full"))
        return refused[-1]

    monkeypatch.setattr(Store, "reply", full)
    write_proxy(proxy, 600)
    listener = Announced()
    edge.plugins.append(listener)
    edge.start()
    edge.until(lambda: bool(edge.broker.sent))
    assert (2, 1, 1) == (len(refused), len(listener.heard), len(edge.broker.sent))


def test_a_memory_of_warnings_that_cannot_be_read_or_written_only_lets_us_warn_again(tmp_path: Path) -> None:
    for content in ("rubbish", "[1]", '{"grid": "soon"}', "[" * 50_000):
        (tmp_path / "warned").write_text(content)
        assert Warned(tmp_path / "warned").of("grid") is None
    warned = Warned(tmp_path / "warned")
    warned.note("grid", 1)
    warned.note("other", 2)
    assert (1, 2, None) == (warned.of("grid"), warned.of("other"), warned.of("third"))
    Warned(tmp_path / "nowhere" / "warned").note("grid", 1)


@pytest.mark.slow
def test_how_long_credentials_can_be_used_is_counted(edge: Edge, proxy: Path, tmp_path: Path) -> None:
    file = tmp_path / "edgecore.prom"
    edge.config = evolve(edge.config, metrics=MetricsTable(file=file, interval_s=0.1))

    def left_s() -> float:
        lines = file.read_text().splitlines() if file.exists() else []
        found = [line.split()[1] for line in lines if line.startswith("edgecore_credential_expires_seconds{")]
        return float(found[0]) if found else -1.0

    edge.start()
    edge.until(lambda: left_s() == 0)
    write_proxy(proxy, 600)
    edge.until(lambda: 500 < left_s() <= 600)


# ------------------------------------------------------------------------------------ doctor


def test_a_doctor_says_until_when_a_credential_can_be_used_and_what_to_do(place: Place) -> None:
    file = write_proxy(place.base / "proxy", 5 * HOUR_S)
    config = added(place, f'\n[[credential]]\nname = "grid"\nfile = "{file.name}"\nrenew = ["true"]\n')
    found = examined(credential_checks(config), "credentials")
    assert (OK, OK) == (found["grid"].level, found["grid: renew"].level)
    assert "a proxy for CN=4711,CN=Alice, until" in found["grid"].message

    write_proxy(file, 600)
    assert WARNING == examined(credential_checks(config), "credentials")["grid"].level
    file.chmod(0o644)
    broken = examined(credential_checks(config), "credentials")["grid"]
    assert FAILURE == broken.level
    assert "mode 0644" in broken.message
    assert "start the service, which renews it" in broken.remedy

    missing = changed(place, '"true"', '"no-such-program"')
    assert FAILURE == examined(credential_checks(missing), "credentials")["grid: renew"].level


# ------------------------------------------------------------------------- in a real service


@pytest.mark.slow
def test_a_service_renews_what_lives_for_seconds_and_a_killed_one_leaves_no_command_behind(
    tmp_path: Path,
) -> None:
    base = tmp_path / "site"
    renew = tmp_path / "renew.py"
    renew.write_text(_RENEW.format(tests=str(Path(__file__).parent)))
    command = json.dumps([sys.executable, str(renew)])
    site = make_site(
        base,
        more=f'[[credential]]\nname = "grid"\nfile = "proxy"\nneeded_by = ["file://{base}/data/"]\n'
        f"renew = {command}\nrenew_before_minutes = 0.05\nlook_s = 0.2\n",
    )
    file, hang = base / "proxy", base / "hang"
    hang.touch()
    process = site.start()
    wait_for(lambda: (base / "hanging").exists(), DEADLINE_S, site.diagnosis)
    command_pid = int((base / "hanging").read_text())
    process.kill()
    process.wait()
    hang.unlink()
    born = process_start(command_pid)
    assert born is not None
    with site.service():
        wait_for(lambda: process_start(command_pid) != born, DEADLINE_S, site.diagnosis)
        ends = set()
        site.send(site.job(name="job", **site.files("job", seconds=0)))
        site.wait_settled(1)

        def seen() -> int:
            ends.add(judge(file).expires)
            return len(ends)

        wait_for(lambda: seen() >= 4, DEADLINE_S, site.diagnosis)
    assert [S.JOB_FINISHED] == [job.state for job in site.jobs()]


_RENEW = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from testbed.proxies import write_proxy
file = Path(os.environ["EDGECORE_CREDENTIAL_FILE"])
if (file.parent / "hang").exists():
    (file.parent / "hanging.new").write_text(str(os.getpid()))
    (file.parent / "hanging.new").rename(file.parent / "hanging")
    time.sleep(100)
write_proxy(file, 5)
"""
