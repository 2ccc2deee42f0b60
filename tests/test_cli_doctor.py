"""`edgecore doctor`: what it writes, answers with, and leaves alone."""

from __future__ import annotations

import io
import json
import os
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packages import Environment, build_wheel
from places import Live, Place
from test_drivers import GOOD, NEEDS_MORE

from edgecore.cli import cli
from edgecore.doctor import Section
from edgecore.models import Finding, Level

EDGE = "\x1b[2J"
SECTIONS = [
    Section("host", (Finding("python", Level.OK, "3.12"), Finding("umask", Level.WARNING, "0000", "set it"))),
    Section(
        "transfer",
        (
            Finding(
                "gsiftp://a.long.name.example.gov/data/",
                Level.FAILURE,
                f"away {EDGE} " + "word " * 30,
                "call them",
            ),
            Finding("/p", Level.FAILURE, "/a/very/long/path" * 8, "shorten it"),
        ),
    ),
]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every site have the same trouble."""
    monkeypatch.setattr("edgecore.doctor.diagnose", lambda config: iter(SECTIONS))


def test_a_site_that_is_all_right_answers_with_0(place: Place) -> None:
    result = CliRunner().invoke(cli, ["doctor", str(place.file)])

    assert 0 == result.exit_code, result.output
    assert f"site demo, {place.file}" == result.stdout.splitlines()[0]
    assert "FAILURE" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("nothing will fail: ")


def test_a_site_that_will_fail_answers_with_1_and_says_what_to_fix_first(place: Place) -> None:
    place.file.write_text(place.file.read_text().replace('store = "site', 'store = "nowhere/site'))

    result = place.run("doctor")

    assert 1 == result.exit_code
    words = " ".join(result.stdout.split())
    assert (
        f" FAILURE store directory {place.base}/nowhere does not exist -> mkdir -p {place.base}/nowhere"
        in words
    )
    assert words.endswith(": fix directories, store directory first")


@pytest.mark.usefixtures("found")
def test_findings_are_grouped_aligned_and_80_columns_wide(place: Place) -> None:
    result = place.run("doctor")

    assert 1 == result.exit_code
    lines = result.stdout.splitlines()[1:]
    assert [
        "",
        "host",
        "  ok       python           3.12",
        "  warning  umask            0000",
        "                            -> set it",
        "",
        "transfer",
        "  FAILURE  gsiftp://a.long.name.example.gov/data/",
    ] == lines[:8]
    assert ["2 failures, 1 warning: fix transfer, gsiftp://a.long.name.example.gov/data/", "first"] == lines[
        -2:
    ]
    assert [] == [line for line in lines if len(line) > 80 and "/a/very/long/path" not in line]
    assert "/a/very/long/path" * 8 in lines[-5]  # a path stays whole, to be copied
    assert EDGE not in result.stdout
    assert "\\x1b[2J" in result.stdout


@pytest.mark.usefixtures("found")
def test_at_a_terminal_there_are_signs_and_colours(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    rich_console = pytest.importorskip("rich.console")
    screen = io.StringIO()
    terminal = rich_console.Console(file=screen, force_terminal=True, width=60, color_system="standard")
    monkeypatch.setattr("edgecore.cli.doctor.console", lambda: terminal)

    place.run("doctor")

    shown = screen.getvalue()
    assert "\x1b[32m\N{CHECK MARK}\x1b[0m" in shown
    assert "\x1b[33m!\x1b[0m" in shown
    assert "\x1b[31m\N{BALLOT X}\x1b[0m" in shown
    assert EDGE not in shown


@pytest.mark.usefixtures("found")
def test_json_has_the_same_findings_for_machines(place: Place) -> None:
    result = place.run("doctor", "--json")

    assert 1 == result.exit_code
    document = json.loads(result.stdout)
    findings = document.pop("findings")
    assert {"site": "demo", "source": str(place.file), "ok": False, "failures": 2, "warnings": 1} == document
    assert {
        "section": "host",
        "subject": "umask",
        "level": "warning",
        "message": "0000",
        "remedy": "set it",
    } == (findings[1])
    assert ["ok", "warning", "failure", "failure"] == [finding["level"] for finding in findings]


def test_a_site_file_that_cannot_be_used_answers_with_2_and_all_its_problems(place: Place) -> None:
    place.file.write_text(place.file.read_text().replace("max_queued = 100", "max_queud = 1\nstaging = 0"))

    result = place.run("doctor")
    assert (2, "") == (result.exit_code, result.stdout)
    assert "did you mean max_queued?" in result.stderr
    assert "limits.staging" in result.stderr

    result = place.run("doctor", "--json")
    assert 2 == result.exit_code
    document = json.loads(result.stdout)
    assert (None, False, 2) == (document["site"], document["ok"], document["failures"])
    assert {"limits.max_queud", "limits.staging"} == {
        one["message"].partition(":")[0] for one in document["findings"]
    }


# --------------------------------------------------------------------------- really, and slowly


@pytest.mark.slow
def test_a_service_at_work_is_not_disturbed(tmp_path: Path) -> None:
    live = Live(tmp_path)
    text = 'cd "$HOME_OF_COUNTS"; echo start >>$EDGECORE_JOB_ID; while [ ! -e go ]; do sleep 0.02; done'
    live.add_shell_application("count", text)
    with live.file.open("a") as file:
        file.write(f'\n[environment.set]\nHOME_OF_COUNTS = "{live.base}/data"\n')
    for number in range(6):
        job = live.write(application="count", job_id=f"job-{number}")
        live.edgecore("submit", job)
    with live.service("-m", "edgecore", "run", str(live.file)) as service:
        reports = []
        while not all(live.state(f"job-{number}") == "JOB_FINISHED" for number in range(6)):
            reports.append(json.loads(live.edgecore("doctor", "--json")))
            assert service.poll() is None
            assert len(reports) < 100
            if len(reports) == 3:
                (live.base / "data" / "go").touch()

        (word,) = {
            one["message"].partition(" on ")[0]
            for report in reports
            for one in report["findings"]
            if one["subject"] == "service"
        }
        assert f"is running (pid {service.pid}" == word
        assert [True] * len(reports) == [report["ok"] for report in reports]
    counts = [path.read_text() for path in (live.base / "data").glob("[0-9]*")]
    assert ["start\n"] * 6 == counts
    log = (live.base / "service.log").read_text()
    assert "WARNING" not in log
    assert "ERROR" not in log


HANGS = GOOD.replace("def open(self, site):", "def open(self, site):\n        import time; time.sleep(600)")
TELLS = GOOD.replace(
    "    @hookimpl\n    def close",
    "    @hookimpl\n    def diagnose(self):\n        from edgecore.models import Finding, Level\n"
    "        return [Finding('credential', Level.FAILURE, 'expired', 'renew it')]\n\n    @hookimpl\n    def close",
)
ASK = textwrap.dedent(
    """
    import json, os
    from pathlib import Path
    import edgecore
    from edgecore.doctor import drivers
    drivers._DRIVER_S = 2.0
    path = Path(os.environ["SITE"])
    text = path.read_text()
    found = {}
    for name in ("good", "tells", "needy", "hangs"):
        path.write_text(text.replace('driver = "fork"', f'driver = "{name}"'))
        found[name] = [
            [section.title, one.subject, one.level, one.message]
            for section in edgecore.diagnose(edgecore.read_site(path))
            for one in section.findings
        ]
    print(json.dumps(found))
    """
)


@pytest.mark.slow
def test_packages_that_are_broken_or_hang_are_told_and_hold_nobody_up(tmp_path: Path) -> None:
    place = Place(tmp_path / "place")
    environment = Environment.make(tmp_path / "environment")
    modules = {"good": GOOD, "tells": TELLS, "needy": NEEDS_MORE, "hangs": HANGS}
    for name, module in modules.items():
        points = {"edgecore.scheduling": {name: f"edgecore_{name}:Driver"}}
        environment.install(build_wheel(tmp_path, f"edgecore-{name}", "1.0", module, entry_points=points))

    begun = time.monotonic()
    found: dict[str, list[list[Any]]] = environment.ask(
        ASK, environment={"IMPORTED": os.devnull, "SITE": str(place.file)}
    )
    assert time.monotonic() - begun < 60  # the process ended although a thread of it still sleeps

    def levels(name: str, title: str) -> dict[str, str]:
        return {subject: level for section, subject, level, _ in found[name] if section == title}

    def words(name: str, subject: str) -> str:
        return next(str(message) for _, what, _, message in found[name] if what == subject)

    assert "warning" == levels("good", "plugins")["edgecore-needy"]
    assert {"good": "ok", "query": "ok"} == levels("good", "scheduling")
    assert "failure" == levels("tells", "scheduling")["credential"]
    assert {"needy": "failure"} == levels("needy", "scheduling")
    assert "edgecore-needy" not in levels("needy", "plugins")
    assert "No module named 'a_module_that_nobody_has'" in words("needy", "needy")
    assert {"hangs": "failure"} == levels("hangs", "scheduling")
    assert "gave no answer within 2 s" == words("hangs", "hangs")
    assert "ok" == levels("hangs", "limits")["limits"]
