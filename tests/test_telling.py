"""How alarms reach people: through the store, and through a program of the operator's."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from examined import WARNING, examined
from scripted import Edge
from sites import wait_for

from edgecore.backoff import Backoff
from edgecore.clock import Clock
from edgecore.config import AlarmsTable
from edgecore.doctor.store import store_checks
from edgecore.errors import ConfigurationError
from edgecore.models import JobState
from edgecore.reader import Reader
from edgecore.telling import AlarmCommand, open_alarm_command

pytestmark = pytest.mark.slow

LONG_S = 20.0


class Program:
    """A program that keeps what it is told, one file per run, and does what a test says."""

    def __init__(self, base: Path) -> None:
        self.path, self._told, self.fails = base / "tell", base / "told", base / "fails"
        self._told.mkdir()
        self.write(
            f'cat >"{self._told}/.$$" && mv "{self._told}/.$$" "{self._told}/$$"; test ! -e "{self.fails}"'
        )

    def write(self, text: str) -> None:
        self.path.write_text(f"#!/bin/sh\n{text}\n")
        self.path.chmod(stat.S_IRWXU)

    def told(self) -> list[dict[str, Any]]:
        files = [entry for entry in os.scandir(self._told) if not entry.name.startswith(".")]
        files.sort(key=lambda entry: entry.stat().st_mtime_ns)
        return [json.loads(Path(entry.path).read_text()) for entry in files]

    def wait(self, count: int) -> list[dict[str, Any]]:
        wait_for(lambda: len(self.told()) >= count, LONG_S, self.told)
        return self.told()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def command(program: Program) -> Iterator[AlarmCommand]:
    command = AlarmCommand(
        site="theta",
        command=[str(program.path)],
        interval_s=0.0,
        timeout_s=LONG_S,
        environment={},
        backoff=Backoff(first_s=0.05, longest_s=0.05),
    )
    thread = command.start()
    yield command
    command.stop()
    thread.join(LONG_S)
    assert not thread.is_alive()


def test_the_program_is_told_of_an_alarm_and_of_its_end(program: Program, command: AlarmCommand) -> None:
    command.alarm_raised("broker", 'away: "x"\n$(reboot)')
    (first,) = program.wait(1)
    assert ("theta", "edgecore site theta: alarm raised: broker") == (first["site"], first["subject"])
    assert 'raised: broker: away: "x"\n$(reboot)' in first["message"]
    (event,) = first["alarms"]
    assert ("raised", "broker", 'away: "x"\n$(reboot)') == (
        event["event"],
        event["subject"],
        event["message"],
    )

    command.alarm_cleared("broker", "back")
    assert "cleared" == program.wait(2)[1]["alarms"][0]["event"]


def test_what_comes_within_the_interval_is_told_together_in_order(
    program: Program, command: AlarmCommand
) -> None:
    command.interval_s = 3600.0
    command.alarm_raised("a", "1")
    program.wait(1)
    for number in range(600):
        command.alarm_raised("b", str(number))
    command.stop()

    together = program.wait(2)[1]
    assert "edgecore site theta: 500 alarms" == together["subject"]
    assert [str(number) for number in range(100, 600)] == [event["message"] for event in together["alarms"]]


def test_a_program_that_fails_is_told_again_with_what_came_meanwhile(
    program: Program, command: AlarmCommand, caplog: pytest.LogCaptureFixture
) -> None:
    program.fails.touch()
    command.alarm_raised("a", "1")
    program.wait(2)
    command.alarm_raised("b", "2")
    wait_for(lambda: ["a", "b"] == [each["subject"] for each in program.told()[-1]["alarms"]], LONG_S)
    program.fails.unlink()
    done = len(program.told()) + 1
    wait_for(lambda: not command._waiting and not command._news.is_set(), LONG_S)

    command.alarm_raised("c", "3")
    wait_for(lambda: ["c"] == [each["subject"] for each in program.told()[-1]["alarms"]], LONG_S)
    assert len(program.told()) >= done
    assert "tell ended with exit code 1" in caplog.text


def test_a_program_that_is_not_there_is_logged_and_tried_again(
    program: Program, command: AlarmCommand, caplog: pytest.LogCaptureFixture
) -> None:
    kept = program.path.rename(program.path.with_name("hidden"))
    command.alarm_raised("a", "1")
    wait_for(lambda: "cannot run" in caplog.text, LONG_S)
    kept.rename(program.path)
    program.wait(1)


def test_a_program_that_hangs_makes_nobody_wait(
    program: Program, command: AlarmCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.telling._LAST_S", 0.0)
    program.write("sleep 600")
    begun = time.monotonic()
    for number in range(2000):
        command.alarm_raised("a", str(number))
    assert time.monotonic() - begun < 5
    command.stop()
    wait_for(lambda: "edgecore-alarms" not in {thread.name for thread in threading.enumerate()}, LONG_S)


def test_a_service_tells_the_program_of_its_site(edge: Edge, program: Program) -> None:
    edge.config = evolve(edge.config, alarms=AlarmsTable(command=(str(program.path),), interval_s=0))
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait_entry()
    edge.scheduling.down = "maintenance"
    edge.wait_alarm("batch system")
    (told,) = program.wait(1)
    assert "testsite" == told["site"]
    assert "maintenance" in told["message"]


def test_a_program_that_fails_is_told_to_those_who_look_until_it_works_again(
    edge: Edge, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.telling.Backoff", lambda **_: Backoff(first_s=0.05, longest_s=0.05))
    program.fails.touch()
    edge.config = evolve(edge.config, alarms=AlarmsTable(command=(str(program.path),), interval_s=0))
    edge.start()

    def noted() -> str:
        with Reader(edge.config.store) as reader:
            alarm = reader.alarm("alarm program")
        return "" if alarm is None else alarm.message

    edge.balsam._engine.alarms.raise_once("disk", "full")  # type: ignore[union-attr]
    edge.until(lambda: noted().startswith("tell ended with exit code 1"))
    found = examined(store_checks(edge.config), "store")["alarm: alarm program"]
    assert (WARNING, True) == (found.level, "tell ended with exit code 1" in found.message)
    program.fails.unlink()
    edge.until(lambda: noted() == "")
    assert {"disk"} == {one["subject"] for told in program.told() for one in told["alarms"]}


def test_a_program_that_cannot_be_run_is_refused_at_the_start(edge: Edge, tmp_path: Path) -> None:
    for program in (str(tmp_path / "none"), "no-such-program", str(tmp_path)):
        config = evolve(edge.config, alarms=AlarmsTable(command=(program,)))
        with pytest.raises(ConfigurationError, match=r"alarms\.command.*there is no such program"):
            open_alarm_command(config, Clock())
    assert open_alarm_command(evolve(edge.config, alarms=AlarmsTable(command=("cat",))), Clock()) is not None
    assert open_alarm_command(edge.config, Clock()) is None


def test_alarms_stand_in_the_store_until_they_are_cleared_or_the_service_begins_anew(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", JobState.SUBMITTED)

    def subjects() -> list[str]:
        with Reader(edge.config.store) as reader:
            return [alarm.subject for alarm in reader.alarms()]

    edge.scheduling.down = "maintenance"
    edge.until(lambda: subjects() == ["batch system"])
    edge.scheduling.down = ""
    edge.until(lambda: subjects() == [])

    edge.scheduling.down = "maintenance"
    edge.until(lambda: subjects() == ["batch system"])
    edge.stop()
    assert ["batch system"] == subjects()
    edge.scheduling.down = ""
    edge.start()
    edge.until(lambda: subjects() == [])
