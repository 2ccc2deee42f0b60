"""The command line against real services, each command in a process of its own."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from places import DEADLINE_S, Live, wait_for

from edgecore import serial
from edgecore.models import Job, JobDefinition, JobState
from edgecore.store import Arrival, Change
from edgecore.store_file import is_running

pytestmark = pytest.mark.slow


@pytest.fixture
def live(tmp_path: Path) -> Live:
    return Live(tmp_path)


def test_a_site_made_by_init_takes_runs_cancels_retries_and_drains(live: Live, tmp_path: Path) -> None:
    live.add_shell_application("sleeper", "exec sleep 600")
    live.add_shell_application("moody", f'echo trying; test -e "{tmp_path}/mended"')

    with live.service("-m", "edgecore", "run", str(live.file)) as service:
        told = live.edgecore("submit", str(live.base / "hello.json"), "--wait", "--timeout", "60")
        assert [line.split()[2] for line in told.splitlines() if line.startswith("20")][-1] == "JOB_FINISHED"
        assert (live.base / "data" / "hello-output" / "greeting.txt").read_text() == "Hello, World!\n"
        (hello,) = json.loads(live.edgecore("jobs", "--json"))
        assert (hello["name"], hello["state"], hello["exit_code"]) == ("hello", "JOB_FINISHED", 0)
        assert "Hello, World!" in live.edgecore("job", hello["job_id"])

        live.edgecore("submit", live.write(application="sleeper", job_id="long"))
        wait_for(lambda: '"long"' in live.edgecore("jobs", "--state", "RUNNING", "--json"), "a running job")
        live.edgecore("cancel", "long", "--wait")
        assert live.state("long") == "JOB_CANCELLED"

        live.edgecore("submit", live.write(application="moody", job_id="sad"), "--wait", expect=1)
        assert "edgecore retry" in live.edgecore("job", "sad")
        (tmp_path / "mended").touch()
        live.edgecore("retry", "sad", "--wait")
        found = json.loads(live.edgecore("job", "sad", "--json"))
        assert (found["state"], found["attempt"]) == ("JOB_FINISHED", 2)

        service.send_signal(signal.SIGTERM)
        assert service.wait(DEADLINE_S) == 0
    assert not is_running(live.config.store)


def test_what_was_sent_and_asked_for_before_the_service_ran_is_done_when_it_runs(live: Live) -> None:
    live.add_shell_application("sleeper", "exec sleep 600")
    live.edgecore("submit", live.write(application="sleeper", job_id="early"))
    with live.service("-m", "edgecore", "run", str(live.file), "--log-json"):
        wait_for(lambda: '"early"' in live.edgecore("jobs", "--state", "RUNNING", "--json"), "a running job")
        live.edgecore("submit", live.write(job_id="second", name="never-started", application="sleeper"))
    for line in (live.base / "service.log").read_text().splitlines():
        assert json.loads(line)["level"] in ("INFO", "WARNING")

    live.edgecore("cancel", "early")

    with live.service("-m", "edgecore", "run", str(live.file)):
        wait_for(lambda: live.state("early") == "JOB_CANCELLED", "the cancellation")


def test_a_service_of_which_a_thread_dies_ends_and_can_be_started_again(live: Live) -> None:
    live.add_shell_application("quick", "exit 0")
    live.edgecore("submit", live.write(application="quick", job_id="mine"))
    now = live.base / "now"
    broken = (
        "import os, sys, time, edgecore.cli, edgecore.outbox as outbox\n"
        "def run(self, reader):\n"
        f"    while not os.path.exists({str(now)!r}): time.sleep(0.05)\n"
        "    raise KeyError('sequence')\n"
        "outbox.Outbox._run = run\n"
        "sys.argv[1:] = ['run', sys.argv[1]]\n"
        "edgecore.cli.main()"
    )
    with live.service("-c", broken, str(live.file)) as service:
        now.touch()
        assert 1 == service.wait(DEADLINE_S)
    log = (live.base / "service.log").read_text()
    assert "edgecore-outbox died" in log
    assert "it can be started again: nothing is lost" in log

    with live.service("-m", "edgecore", "run", str(live.file)):
        wait_for(lambda: live.state("mine") == "JOB_FINISHED", "the job that was taken before")


def test_a_second_service_of_a_site_is_refused_in_words_or_silently_where_cron_starts_it(live: Live) -> None:
    def second(*options: str) -> tuple[int, str, str]:
        process = live.start("-m", "edgecore", "run", *options)
        out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out, err

    with live.service("-m", "edgecore", "run", "--unless-running", str(live.file)) as service:
        code, _, err = second()
        assert (0, "", "") == second("--unless-running")
        assert service.poll() is None

    assert code == 1
    assert "belongs to a running service" in err
    assert "Traceback" not in err


def test_the_runner_of_the_example_prints_the_jobs_that_finished(live: Live) -> None:
    runner = Path(__file__).parents[1] / "examples" / "balsam" / "runner.py"
    _, err = (refused := live.start(str(runner), str(live.base / "nowhere.toml"))).communicate(
        timeout=DEADLINE_S
    )
    assert (2, True) == (refused.returncode, err.startswith("error: "))

    with live.service(str(runner), str(live.file)) as service:
        live.edgecore("submit", str(live.base / "hello.json"), "--wait")
        log = live.base / "service.log"
        wait_for(lambda: "finished: hello (job hello-" in log.read_text(), "the line of the listener")
        service.send_signal(signal.SIGINT)
        assert service.wait(DEADLINE_S) == 0


def test_a_reader_that_goes_away_early_is_no_error_to_speak_of(live: Live) -> None:
    store = live.store()
    definition = serial.structure(JobDefinition, live.definition(), source="test")
    for _ in range(3000):
        job = Job(
            id=store.new_id(),
            owner="local",
            definition=definition,
            state=JobState.QUEUED,
            sequence=1,
            changed=1,
        )
        written = store.take([Arrival(str(job.id), Change(None, (job,)))])
    written.result()
    store.close()

    process = live.start("-m", "edgecore", "jobs", "--limit", "3000")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("id")
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=DEADLINE_S)

    assert err == ""
