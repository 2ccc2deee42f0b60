"""The command line: what each command says, writes and answers with."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from places import Place

from edgecore import batch
from edgecore.cli import COMMANDS, cli, output, submit
from edgecore.cli.advice import NEXT
from edgecore.drivers import Listing
from edgecore.models import Attempt, Intent, Job, JobState

S = JobState


# ---------------------------------------------------------------------------------- in general


@pytest.mark.slow
def test_starting_the_command_line_imports_nothing_heavy() -> None:
    program = (
        "import sys, edgecore.cli; heavy = {'rich', 'cattrs', 'pluggy', 'stevedore', 'sqlite_utils', 'sqlite3'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


def test_the_overview_names_every_command_without_importing_one() -> None:
    result = CliRunner().invoke(cli, ["--help"])

    assert result.exit_code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"{name} " in result.output
        assert line in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_shows_an_example(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])

    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"edgecore {name} " in result.output


def test_the_version_is_that_of_the_package() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == "edgecore, version 0.1.0\n"


def test_a_command_that_there_is_not_gets_the_nearest_one_named() -> None:
    result = CliRunner().invoke(cli, ["submitt"])

    assert result.exit_code == 2
    assert "did you mean submit?" in result.stderr


@pytest.mark.parametrize("arguments", [["jobs"], ["run"], ["submit", "x.json"], ["apps", "list"]])
def test_without_a_site_the_three_ways_to_name_one_are_said(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGECORE_SITE", raising=False)

    result = CliRunner().invoke(cli, arguments)

    assert result.exit_code == 2
    for way in ("--site SITE.toml", "EDGECORE_SITE", "a site.toml"):
        assert way in result.stderr
    assert result.stdout == ""


def test_a_site_in_the_present_directory_is_found(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.base)
    monkeypatch.delenv("EDGECORE_SITE", raising=False)

    assert CliRunner().invoke(cli, ["jobs", "--json"]).output == "[]\n"


def test_the_option_for_the_site_wins_over_the_environment(place: Place) -> None:
    result = place.run("jobs", "--site", "/no/such/site.toml")

    assert result.exit_code == 2
    assert "/no/such/site.toml" in result.stderr


def test_every_problem_of_a_site_file_is_said_on_a_line_of_its_own(place: Place) -> None:
    place.file.write_text('site = "a b"\nwork_directory = "x"\n[retry]\ntires = 3\n')

    result = place.run("jobs")

    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert any(line.startswith("  site: ") for line in lines)
    assert any("did you mean tries?" in line for line in lines)
    assert "Traceback" not in result.output


def test_what_strangers_wrote_cannot_command_a_terminal(place: Place) -> None:
    place.keep(message="\x1b[2Jgone\nnew line\u202e", description="\n")

    result = place.run("jobs")

    assert "\\x1b[2Jgone\\nnew line\\u202e" in result.stdout
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) == 2


# --------------------------------------------------------------------------------------- submit


def test_a_definition_is_sent_with_a_fresh_id_to_follow_it_by(place: Place) -> None:
    first, second = (place.run("submit", place.write(), "--json") for _ in range(2))

    said = [json.loads(result.stdout)["job_id"] for result in (first, second)]
    sent = [json.loads(body) for body in place.queued()]
    assert [message["job_id"] for message in sent] == said
    assert len(set(said)) == 2
    assert {key: sent[0][key] for key in place.definition()} == place.definition()


def test_a_definition_with_an_id_is_sent_as_it_was_written(place: Place) -> None:
    path = place.write(job_id="mine", description="Ümläut")

    assert place.run("submit", path).exit_code == 0

    assert place.queued() == [Path(path).read_bytes()]


def test_a_definition_may_come_from_stdin(place: Place) -> None:
    result = place.run("submit", "-", input=json.dumps(place.definition(job_id="piped")))

    assert result.exit_code == 0
    assert json.loads(place.queued()[0])["job_id"] == "piped"


def test_submit_says_how_to_follow_and_who_is_missing(place: Place) -> None:
    result = place.run("submit", place.write(job_id="mine"))

    assert "follow it with: edgecore job mine" in result.stdout
    assert "the service of site demo is not running here; the job waits in the queue" in result.stderr


def test_submit_says_nothing_of_a_missing_service_while_one_has_the_store(place: Place) -> None:
    with contextlib.closing(place.store()):
        result = place.run("submit", place.write())

    assert result.exit_code == 0
    assert result.stderr == ""


def test_all_that_is_wrong_with_a_definition_is_said_at_once_and_nothing_is_sent(place: Place) -> None:
    path = place.write(application="helo", num_nodes=0, input_url="file:///etc/", colour="red")

    result = place.run("submit", path)

    assert result.exit_code == 2
    for words in ("did you mean hello?", "num_nodes: ", "input_url: ", "colour: unknown key"):
        assert words in result.stderr
    assert len(result.stderr.splitlines()) == 5
    assert place.queued() == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"name": "job",\n "site": "demo",}', "remove the comma"),
        ('{"command": "cancel", "job_id": 5}', "use: edgecore cancel 5"),
        ("[]", "must be a JSON object"),
        ("", "line 1"),
    ],
)
def test_what_is_no_definition_is_refused_in_words(place: Place, text: str, words: str) -> None:
    result = place.run("submit", "-", input=text)

    assert result.exit_code == 2
    assert words in result.stderr
    assert place.queued() == []


def test_a_file_that_is_not_there_is_an_error_in_words(place: Place) -> None:
    result = place.run("submit", "/no/such.json")

    assert result.exit_code == 2
    assert result.stderr == "error: /no/such.json: cannot be read: No such file or directory\n"


def test_submitting_an_id_again_is_said_to_change_nothing(place: Place) -> None:
    job = place.keep(job_id="mine")

    result = place.run("submit", place.write(job_id="mine"))

    assert f"was taken before, as job {job.id}" in result.stderr


def test_a_job_that_was_rejected_and_corrected_is_followed_and_not_its_rejection(place: Place) -> None:
    place.keep(S.JOB_REJECTED, job_id="mine")

    waiting = place.run("submit", place.write(job_id="mine"), "--wait", "--timeout", "0.1")
    taken = place.keep(S.JOB_FINISHED, job_id="mine")
    place.keep(S.JOB_REJECTED, job_id="mine")
    done = place.run("submit", place.write(job_id="mine"), "--wait", "--json")
    shown = place.run("job", "mine", "--json")

    assert (3, False) == (waiting.exit_code, "was taken before" in waiting.stderr)
    assert (0, taken.id) == (done.exit_code, json.loads(done.stdout)["id"])
    assert taken.id == json.loads(shown.stdout)["id"]


def test_a_rejection_of_what_is_waited_for_ends_the_waiting(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = submit._send

    def send_and_reject(*given: Any) -> Any:
        sent = send(*given)
        place.keep(S.JOB_REJECTED, job_id="mine")
        return sent

    monkeypatch.setattr(submit, "_send", send_and_reject)
    result = place.run("submit", place.write(job_id="mine"), "--wait", "--timeout", "60", "--json")

    assert (1, S.JOB_REJECTED) == (result.exit_code, json.loads(result.stdout)["state"])


@pytest.mark.parametrize(("state", "code"), [(S.JOB_FINISHED, 0), (S.JOB_FAILED, 1)])
def test_the_exit_code_of_waiting_says_how_the_job_ended(place: Place, state: JobState, code: int) -> None:
    place.keep(state, job_id="mine")

    result = place.run("submit", place.write(job_id="mine"), "--wait", "--json")

    assert result.exit_code == code
    assert json.loads(result.stdout)["state"] == state


def test_waiting_ends_with_3_when_the_time_is_up(place: Place) -> None:
    result = place.run("submit", place.write(), "--wait", "--timeout", "0.1")

    assert result.exit_code == 3
    assert "not settled after 0.1 s; the job goes on" in result.stderr


def test_interrupted_waiting_ends_with_130_and_the_job_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgecore.cli.following.time.sleep", interrupt)

    result = place.run("submit", place.write(), "--wait")

    assert result.exit_code == 130
    assert "the job goes on" in result.stderr
    assert len(place.queued()) == 1


def test_a_timeout_without_waiting_is_refused(place: Place) -> None:
    assert place.run("submit", place.write(), "--timeout", "3").exit_code == 2
    assert place.queued() == []


# ---------------------------------------------------------------------------------- jobs, job


def test_jobs_are_listed_newest_first_under_aligned_columns(place: Place) -> None:
    first = place.keep(S.RUNNING, name="short")
    second = place.keep(S.JOB_FINISHED, name="a-longer-name", message="done")

    lines = place.run("jobs").stdout.splitlines()

    assert [line.split()[0] for line in lines] == ["id", str(second.id), str(first.id)]
    assert {
        line.index(word) for line, word in zip(lines, ("application", "hello", "hello"), strict=True)
    } == {lines[0].index("application")}


def test_jobs_can_be_chosen_by_state_and_number(place: Place) -> None:
    running = place.keep(S.RUNNING)
    failed = [place.keep(S.JOB_FAILED).id for _ in range(2)]

    def ids(*arguments: str) -> list[int]:
        return [job["id"] for job in json.loads(place.run("jobs", "--json", *arguments).stdout)]

    assert ids("--state", "running") == [running.id]
    assert ids("--state", "JOB_FAILED") == failed[::-1]
    assert ids("--limit", "1") == [failed[1]]
    assert json.loads(place.run("jobs", "--counts", "--json").stdout) == {"RUNNING": 1, "JOB_FAILED": 2}


def test_what_is_asked_of_a_job_stands_beside_its_state(place: Place) -> None:
    place.keep(S.RUNNING, intent=Intent.CANCELLED)

    assert "RUNNING (cancel asked)" in place.run("jobs").stdout


def test_tables_are_made_with_rich_where_there_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rich_console = pytest.importorskip("rich.console")
    screen = io.StringIO()
    terminal = rich_console.Console(file=screen, force_terminal=True, width=60)
    monkeypatch.setattr(output, "console", lambda: terminal)

    output.show_table(("id", "message"), [(1, "[bold]not markup[/bold] \x1b[2J")])

    assert "[bold]not markup[/bold] \\x1b[2J" in screen.getvalue()


def test_waiting_at_a_terminal_writes_every_status_on_a_line_of_its_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rich_console = pytest.importorskip("rich.console")
    screen = io.StringIO()
    terminal = rich_console.Console(file=screen, force_terminal=True, width=60)
    monkeypatch.setattr("edgecore.cli.following.console", lambda: terminal)
    place.keep(S.JOB_FINISHED, job_id="mine", message="[b]all\x1b[2J")

    result = place.run("submit", place.write(job_id="mine"), "--wait")

    assert result.exit_code == 0
    assert "JOB_FINISHED        [b]all\\x1b[2J\n" in screen.getvalue()


def test_every_state_has_a_sentence_on_what_to_do_next() -> None:
    assert set(NEXT) == set(JobState)


def test_a_job_is_found_by_our_id_and_by_the_senders(place: Place) -> None:
    job = place.keep(job_id="mine", message="waits")

    for text in ("mine", str(job.id)):
        found = json.loads(place.run("job", text, "--json").stdout)
        assert (found["id"], found["job_id"], found["message"]) == (job.id, "mine", "waits")


def test_our_id_wins_over_a_senders_that_imitates_it(place: Place) -> None:
    job = place.keep(name="original")
    place.keep(name="imitation", job_id=str(job.id))

    assert json.loads(place.run("job", str(job.id), "--json").stdout)["name"] == "original"


def test_an_id_that_two_owners_use_lists_both_jobs(place: Place) -> None:
    jobs = [place.keep(job_id="same", owner=owner) for owner in ("anna", "bert")]

    result = place.run("cancel", "same")

    assert result.exit_code == 1
    for job in jobs:
        assert f"{job.id} of {job.owner}" in result.stderr
    assert place.requests() == []


def test_a_job_that_there_is_not_is_an_error_in_words(place: Place) -> None:
    result = place.run("job", "nothing")

    assert result.exit_code == 1
    assert result.stderr == "error: there is no job 'nothing' in this store; `edgecore jobs` lists them\n"


def failed_job(place: Place) -> Job:
    attempt = Attempt(
        number=1, tag="t", group_tag="t", intended=1, batch_id="77", exit_code=3, reason="exit code 3"
    )
    return place.keep(S.JOB_FAILED, failed_state=S.EXECUTION_FAILED, message="exit code 3", attempt=attempt)


def test_a_failed_job_tells_why_what_it_printed_and_what_to_do(place: Place) -> None:
    job = failed_job(place)
    data = batch.data_directory(place.config.work_directory, job.id)
    data.mkdir(parents=True)
    (data / "stdout.1.txt").write_text("".join(f"line {number}\n" for number in range(5000)))
    (data / "stderr.1.txt").write_bytes(b"bad \x1b[2J \xff\n")

    shown = place.run("job", str(job.id)).stdout

    assert "why          at EXECUTION_FAILED: exit code 3" in shown
    assert "means        The application itself ended with an error. (for who submitted it)" in shown
    assert f"edgecore retry {job.id}" in shown
    assert "  line 4999\n" in shown
    assert "line 4989\n" not in shown
    assert "  bad \\x1b[2J \ufffd\n" in shown
    assert str(data.parent) in shown


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_plain_output_file_is_not_shown(place: Place, tmp_path: Path, kind: str) -> None:
    job = failed_job(place)
    data = batch.data_directory(place.config.work_directory, job.id)
    data.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    make: dict[str, Callable[[Path], None]] = {
        "link": lambda path: path.symlink_to(tmp_path / "secret"),
        "pipe": os.mkfifo,
        "directory": Path.mkdir,
    }
    make[kind](data / "stdout.1.txt")

    assert json.loads(place.run("job", str(job.id), "--json").stdout)["printed"] == {}


# -------------------------------------------------------------------------------- apps, drivers


def test_an_application_is_registered_shown_and_removed(place: Place) -> None:
    file = place.base / "sum.toml"
    file.write_text(
        'name = "sum"\nexecutable = "/usr/bin/env"\narguments = ["{a}"]\n'
        '[parameters.a]\ntype = "integer"\nminimum = 1\nmaximum = 9\ndescription = "a digit"\n'
    )

    assert place.run("apps", "add", str(file)).exit_code == 0
    assert [app["name"] for app in json.loads(place.run("apps", "list", "--json").stdout)] == ["hello", "sum"]
    shown = place.run("apps", "show", "sum").stdout
    assert "a digit" in shown
    assert "at least 1, at most 9" in shown
    assert place.run("apps", "remove", "sum").exit_code == 0
    gone = place.run("apps", "show", "sum")
    assert gone.exit_code == 1
    assert "registered: hello" in gone.stderr


def test_an_application_is_shown_with_the_batch_options_of_its_site(place: Place) -> None:
    with place.file.open("a") as file:
        file.write('\n[scheduling.options.constraint]\ntype = "string"\nchoices = ["knl", "haswell"]\n')
    shown = place.run("apps", "show", "hello").stdout
    assert "batch option" in shown
    assert "one of 'knl', 'haswell'" in shown


@pytest.mark.parametrize("key", ["executable", "preprocess", "postprocess", "config_script"])
def test_a_program_that_cannot_be_executed_here_is_told_and_registered(place: Place, key: str) -> None:
    file = place.base / "remote.toml"
    programs = {"executable": "/bin/sh", key: "/no/such/program"}
    file.write_text('name = "remote"\n' + "".join(f'{name} = "{path}"\n' for name, path in programs.items()))

    result = place.run("apps", "add", str(file))

    assert 0 == result.exit_code
    assert "note: /no/such/program cannot be executed on this host" in result.stderr


def test_an_application_that_contradicts_the_site_is_not_registered(place: Place) -> None:
    file = place.base / "bad.toml"
    file.write_text('name = "bad"\nexecutable = "bin/x"\nlauncher = "mpi"\n')

    result = place.run("apps", "add", str(file))

    assert result.exit_code == 2
    assert "must be an absolute path" in result.stderr
    assert "bad" not in place.run("apps", "list").stdout


def test_removing_an_application_says_how_many_jobs_name_it(place: Place) -> None:
    place.keep(S.QUEUED)
    place.keep(S.JOB_FINISHED)

    result = place.run("apps", "remove", "hello")

    assert "1 jobs that are under way name it" in result.stderr


def test_drivers_are_listed_with_their_packages() -> None:
    listed = json.loads(CliRunner().invoke(cli, ["drivers", "--json"]).stdout)

    fork = next(each for each in listed if each["name"] == "fork")
    assert (fork["role"], fork["package"], fork["status"]) == ("scheduling", "edgecore", "not checked")


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--check"], 1)])
def test_a_check_fails_when_a_driver_is_unusable(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int
) -> None:
    broken = Listing(
        role="transfer",
        name="scp",
        package="edgecore-scp",
        version="1",
        requires="",
        target="x:Y",
        status="unusable",
        error="cannot be imported: no x",
    )
    monkeypatch.setattr("edgecore.cli.drivers.list_drivers", lambda *, check: (broken,))

    result = CliRunner().invoke(cli, ["drivers", *arguments])

    assert result.exit_code == code
    assert "cannot be imported: no x" in result.stderr
