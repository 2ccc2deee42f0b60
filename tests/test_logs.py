"""What a service logs: where it goes, how it looks, and that every record says which job it is about."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import re
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import DEADLINE_S, Live, Place, wait_for
from scripted import Edge

import edgecore
from edgecore.cli.logs import JsonLines, TextLines, set_up
from edgecore.config import LogTable, read_site
from edgecore.errors import ConfigurationError
from edgecore.logs import about
from edgecore.models import Attempt, Job, JobDefinition, JobState

JOB = Job(
    id=12,
    owner="anna",
    definition=JobDefinition(name="n", application="a", site="s", job_id="mine"),
    state=JobState.QUEUED,
    attempt=Attempt(number=2, tag="t", group_tag="t", intended=1, batch_id="77"),
)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Leave the logging of this process as it was."""
    root, ours = logging.getLogger(), logging.getLogger("edgecore")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("edgecore.test").makeRecord(
        "edgecore.test", logging.WARNING, "f", 1, message, (), None, extra=extra
    )
    made.created = 1_507_945_011.25
    return made


# --------------------------------------------------------------------------------- fields


def test_a_record_about_a_job_says_whose_it_is_and_which_execution() -> None:
    expected = {
        "job": 12,
        "job_id": "mine",
        "owner": "anna",
        "state": "QUEUED",
        "attempt": 2,
        "batch_id": "77",
    }
    assert expected == about(JOB)


_ABOUT_NO_JOB = {
    "jobs are queued, but nothing will start them yet",
    "removed the directories of %d settled jobs",
    "the umask was %04o, and is %04o for this service and its jobs",
}
"""Words of records that have the word and mean no certain job."""


def test_every_record_that_speaks_of_jobs_has_their_fields() -> None:
    package = Path(str(edgecore.__file__)).parent
    silent, seen = set(), 0
    for path in package.rglob("*.py"):
        for call in logging_calls(ast.parse(path.read_text())):
            words = ast.unparse(call.args[0])
            seen += 1
            if re.search(r"\bjobs?\b", words) and not any(key.arg == "extra" for key in call.keywords):
                silent.add(words.strip("\"'"))
    assert seen > 20
    assert _ABOUT_NO_JOB == silent


def logging_calls(tree: ast.AST) -> Iterator[ast.Call]:
    levels = {"debug", "info", "warning", "error", "exception"}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "_log"), attr=level)) if (
                level in levels
            ):
                yield node


def test_a_service_logs_the_fields_of_the_job_with_every_status(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgecore")
    edge.start()
    edge.send(job_id="mine")
    done = edge.wait("job", JobState.JOB_FINISHED)
    edge.stop()

    records: list[Any] = [each for each in caplog.records if getattr(each, "job", None) == done.id]
    told = [each.state for each in records]
    assert [JobState.CREATED, JobState.JOB_FINISHED] == [told[0], told[-1]]
    assert {"mine"} == {each.job_id for each in records}
    assert (1, edge.scheduling.entries[0].batch_id) == (records[-1].attempt, records[-1].batch_id)


# --------------------------------------------------------------------------------- formats


def test_a_line_of_json_holds_time_site_words_and_all_fields() -> None:
    line = JsonLines("theta").format(record("two\nlines \u2028", **about(JOB)))

    assert "\n" not in line
    assert line.isascii()
    assert {
        "time": "2017-10-14T01:36:51.250Z",
        "level": "WARNING",
        "logger": "edgecore.test",
        "message": "two\nlines \u2028",
        "site": "theta",
        **about(JOB),
    } == json.loads(line)


def test_a_line_of_json_holds_the_traceback_of_an_error() -> None:
    made = record("it failed")
    try:
        raise ValueError("boom")
    except ValueError:
        made.exc_info = sys.exc_info()

    found = json.loads(JsonLines("theta").format(made))

    assert found["exception"].startswith("Traceback")
    assert found["exception"].endswith("ValueError: boom")


def test_a_line_of_text_says_when_how_bad_and_what_and_commands_no_terminal() -> None:
    assert "2017-10-14 01:36:51Z WARNING bad \\x1b[2J" == TextLines().format(record("bad \x1b[2J"))


# ------------------------------------------------------------------------------ where it goes


def test_a_log_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "edge.log"
    set_up(LogTable(level="debug", format="json", file=file), "theta", source=tmp_path)
    log = logging.getLogger("edgecore.test")

    log.debug("first")
    file.rename(tmp_path / "edge.log.1")
    log.debug("second")

    words = [json.loads(path.read_text())["message"] for path in (tmp_path / "edge.log.1", file)]
    assert ["first", "second"] == words


def test_a_log_whose_directory_goes_away_goes_to_stderr_and_never_stops_who_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    file = directory / "edge.log"
    set_up(LogTable(file=file), "theta", source=tmp_path)
    log = logging.getLogger("edgecore.test")

    log.info("a")
    directory.rename(tmp_path / "gone")
    log.info("b")
    log.info("c")
    told = capsys.readouterr().err
    directory.mkdir()
    log.info("d")
    log.info("e")

    assert 1 == told.count(
        f"the log {file} cannot be written, it goes to stderr: No such file or directory\n"
    )
    assert ["b", "c"] == re.findall(r"INFO +(\w)$", told, re.MULTILINE)
    assert ["d", "e"] == re.findall(r"INFO +(\w)$", file.read_text(), re.MULTILINE)
    assert "" == capsys.readouterr().err


def test_a_log_on_a_full_disk_goes_to_stderr_until_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "edge.log"
    file.symlink_to("/dev/full")
    set_up(LogTable(file=file), "theta", source=tmp_path)
    log = logging.getLogger("edgecore.test")

    log.info("a")
    log.info("b")
    told = capsys.readouterr().err
    file.unlink()
    log.info("c")

    assert 1 == told.count("cannot be written, it goes to stderr: No space left on device\n")
    assert ["a", "b"] == re.findall(r"INFO +(\w)$", told, re.MULTILINE)
    assert ["c"] == re.findall(r"INFO +(\w)$", file.read_text(), re.MULTILINE)
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("level", "written"), [("debug", "abcd"), ("info", "bcd"), ("warning", "cd"), ("error", "d")]
)
def test_only_what_is_bad_enough_is_written(tmp_path: Path, level: Any, written: str) -> None:
    file = tmp_path / "edge.log"
    set_up(LogTable(level=level, file=file), "theta", source=tmp_path)
    log, other = logging.getLogger("edgecore.test"), logging.getLogger("some.library")

    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    other.debug("never")

    assert written == "".join(line.split()[-1] for line in file.read_text().splitlines())


def test_a_log_file_that_cannot_be_written_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"log\.file.*cannot be written: Is a directory"):
        set_up(LogTable(file=tmp_path), "theta", source=tmp_path / "site.toml")


def test_paths_of_the_new_tables_begin_at_the_site_file(tmp_path: Path) -> None:
    place = Place(tmp_path)
    more = '[log]\nlevel = "error"\nformat = "json"\nfile = "log/edge.log"\n[metrics]\nfile = "edge.prom"\n'
    place.file.write_text(place.file.read_text() + more)

    config = read_site(place.file)

    assert LogTable(level="error", format="json", file=place.base / "log" / "edge.log") == config.log
    assert place.base / "edge.prom" == config.metrics.file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[log]\nlevel = "loud"', "log.level"),
        ('[log]\nformat = "xml"', "log.format"),
        ("[log]\nfile = 3", "log.file"),
        ('[log]\nfiel = "x"', "did you mean file?"),
        ("[metrics]\ninterval_s = 0", "metrics.interval_s"),
        ('[alarms]\ncommand = "mail"', "alarms.command"),
    ],
)
def test_what_is_wrong_in_the_new_tables_is_said_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    place = Place(tmp_path)
    place.file.write_text(f"{place.file.read_text()}\n{text}\n")

    result = place.run("jobs")

    assert 2 == result.exit_code
    assert words in result.stderr


@pytest.mark.slow
def test_a_service_logs_writes_numbers_and_tells_alarms_as_its_site_says(tmp_path: Path) -> None:
    live = Live(tmp_path)
    told = tmp_path / "told.json"
    log, metrics = live.base / "edge.log", live.base / "edge.prom"
    live.file.write_text(
        f'{live.file.read_text()}alarm_after_s = 0\n[log]\nformat = "json"\nfile = "edge.log"\n'
        '[metrics]\nfile = "edge.prom"\ninterval_s = 0.2\n'
        f'[alarms]\ncommand = ["/bin/sh", "-c", "cat >>{told}"]\ninterval_s = 0\n'
    )
    with live.service("-m", "edgecore", "run", str(live.file)) as service:
        live.edgecore("submit", str(live.base / "hello.json"), "--wait", "--timeout", "60")
        with contextlib.closing(sqlite3.connect(live.config.store)) as connection:
            connection.execute("CREATE TRIGGER no BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'no'); END")
            connection.commit()
            live.edgecore("submit", str(live.base / "hello.json"))
            wait_for(lambda: told.exists() and "raised" in told.read_text(), "the alarm to be told")
            connection.execute("DROP TRIGGER no")
            connection.commit()
        wait_for(lambda: re.search(r"^edgecore_alarms_total [1-9]", metrics.read_text(), re.M), "its count")
        service.send_signal(signal.SIGTERM)
        assert service.wait(DEADLINE_S) == 0

    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"demo"} == {each["site"] for each in records}
    finished = next(each for each in records if each.get("state") == "JOB_FINISHED")
    assert {"attempt", "batch_id", "job", "job_id", "owner"} <= set(finished)
    assert any(each.get("alarm") == "job definitions" for each in records)
    assert 'edgecore_jobs{state="JOB_FINISHED"} ' in metrics.read_text()
    assert "edgecore_up 0.0" in metrics.read_text()
