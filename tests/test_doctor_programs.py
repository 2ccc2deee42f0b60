"""A doctor finds programs that a site names and that could not be run."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

import pytest
from attrs import evolve
from examined import FAILURE, OK, WARNING, added, examined
from places import Place

from edgecore.config import SiteConfig
from edgecore.desk import Desk
from edgecore.doctor import programs
from edgecore.models import Application, Finding, Level


def programs_of(config: SiteConfig, title: str) -> dict[str, Finding]:
    return examined(programs.program_checks(config, config.context), title)


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
