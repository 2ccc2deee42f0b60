"""Stop, kill and race real batch scripts, and hold the token against what really happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from attrs import evolve
from batch_bench import DEADLINE_S, SHELLS, Bench, application, eventually, make_bench, ran, started

from edgecore.batch import ABSTAINED, EndRecord, TokenState, render_script


@pytest.fixture(params=SHELLS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return make_bench(tmp_path, request.param)


HEEDS = "trap 'echo told >>log; exit 7' TERM; echo begun >>log; n=0; while [ $n -lt 20 ]; do sleep 0.005; n=$((n+1)); done; echo done >>log"
"""An application that notes what happens to it."""

TRUTHS = [
    (-signal.SIGTERM, ["ready"], []),  # before the shell had read its first line
    (ABSTAINED, ["ready"], []),
    (143, ["ended.143"], []),
    (7, ["ended.7"], ["told"]),
    (7, ["ended.7"], ["begun", "told"]),
    (7, ["ended.7"], ["begun", "done", "told"]),
    (0, ["ended.0"], ["begun", "done"]),
]
"""Exit code, token and the application's own notes, wherever the stop comes."""

CRASHES = {-signal.SIGSEGV}
"""What may become of bash among 10,000 signals and more per second: it starts a trap's command within that of the
signal before, at once, until its stack is full. No text of a trap prevents that: the nesting begins before its first
command. Being deaf after the first signal would; but an application may be told to stop a second time. The token
has told of the end by then, and it is what the service believes."""


def _has_begun(bench: Bench) -> bool:
    return ran(bench) and bench.output() != ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_forwarded_and_the_exit_code_is_the_applications(bench: Bench, number: int) -> None:
    text = "trap 'sleep 0.1; exit 7' TERM; echo; while :; do sleep 0.01; done"
    bench = bench.with_values(command=application(text))
    with started(bench) as process:
        eventually(partial(_has_begun, bench))
        os.kill(process.pid, number)
        assert process.wait(DEADLINE_S) == 7
    assert bench.tokens() == ["ended.7"]


@pytest.mark.slow
def test_a_restartable_attempt_that_is_told_to_stop_goes_on_when_it_is_started_again(bench: Bench) -> None:
    text = "echo; test -e again && exit 0; touch again; exec sleep 60"
    bench = bench.with_values(restartable=True, command=application(text))
    with started(bench) as process:
        eventually(lambda: (bench.values.data / "again").exists())
        process.terminate()
        assert 143 == process.wait(DEADLINE_S)
    paused = bench.run.token()
    assert paused is not None
    assert (TokenState.PAUSED, "7", 143) == (paused.state, paused.batch_id, paused.exit_code)
    assert EndRecord() == bench.run.end_record()
    assert 0 == bench.finish()
    assert ["ended.0"] == bench.tokens()


@pytest.mark.slow
def test_a_restartable_attempt_whose_whole_group_is_told_to_stop_pauses(bench: Bench, tmp_path: Path) -> None:
    bench = bench.with_values(restartable=True, command=application("echo; exec sleep 60"))
    for number in range(8):
        again = evolve(bench.values, run=tmp_path / f"run {number}", data=tmp_path / f"data {number}")
        again.data.mkdir()
        one = evolve(bench, values=again)
        with started(one) as process:
            eventually(partial(_has_begun, one))
            os.killpg(process.pid, signal.SIGTERM)
            assert 143 == process.wait(DEADLINE_S)
        token = one.run.token()
        assert token is not None
        assert TokenState.PAUSED is token.state


@pytest.mark.slow
def test_a_restartable_attempt_pauses_although_its_application_is_told_before_it(bench: Bench) -> None:
    bench = bench.with_values(restartable=True, command=application("echo $$; exec sleep 60"))
    with started(bench) as process:
        eventually(partial(_has_begun, bench))
        os.kill(int(bench.output()), signal.SIGTERM)
        time.sleep(0.1)  # between two processes, as a batch system may take
        process.terminate()
        assert 143 == process.wait(DEADLINE_S)
    token = bench.run.token()
    assert token is not None
    assert TokenState.PAUSED is token.state


@pytest.mark.slow
def test_a_restartable_attempt_that_ends_well_although_it_is_told_to_stop_has_ended(bench: Bench) -> None:
    text = "trap 'exit 0' TERM; echo; while :; do sleep 0.01; done"
    bench = bench.with_values(restartable=True, command=application(text))
    with started(bench) as process:
        eventually(partial(_has_begun, bench))
        process.terminate()
        assert 0 == process.wait(DEADLINE_S)
    assert ["ended.0"] == bench.tokens()


@pytest.mark.slow
def test_an_application_that_dies_by_the_stop_ends_with_143(bench: Bench) -> None:
    bench = bench.with_values(command=application("echo; exec sleep 60"))
    with started(bench) as process:
        eventually(partial(_has_begun, bench))
        process.terminate()
        assert process.wait(DEADLINE_S) == 143
    assert bench.tokens() == ["ended.143"]


@pytest.mark.slow
def test_a_stop_that_comes_after_the_claim_and_before_the_application_is_forwarded(bench: Bench) -> None:
    bench = bench.with_tools(mv='/bin/mv "$@"; kill -TERM $PPID')
    bench = bench.with_values(command=application("exec sleep 60"))
    with started(bench) as process:
        assert process.wait(DEADLINE_S) == 143
    assert bench.tokens() == ["ended.143"]


@pytest.mark.slow
def test_an_application_that_ignores_the_stop_is_waited_for(bench: Bench) -> None:
    text = "trap '' TERM; echo; while [ ! -e go ]; do sleep 0.01; done; exit 3"
    bench = bench.with_values(command=application(text))
    with started(bench) as process:
        eventually(partial(_has_begun, bench))
        for _ in range(3):
            process.terminate()
        (bench.values.data / "go").touch()
        assert process.wait(DEADLINE_S) == 3
    assert bench.tokens() == ["ended.3"]


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 3])
def test_an_application_that_ends_in_a_hail_of_stops_leaves_its_own_code(
    bench: Bench, code: int, tmp_path: Path
) -> None:
    text = f"trap '' TERM; echo; while [ ! -e go ]; do sleep 0.001; done; exit {code}"
    bench = bench.with_values(command=application(text))
    for number in range(10):
        again = evolve(bench.values, run=tmp_path / f"run {number}", data=tmp_path / f"data {number}")
        again.data.mkdir()
        one = evolve(bench, values=again)
        thick = number % 2 == 0
        with started(one) as process:
            eventually(partial(_has_begun, one))
            process.terminate()
            (again.data / "go").touch()
            while process.poll() is None:
                process.terminate()
                time.sleep(0 if thick else 0.001)
            assert [f"ended.{code}"] == one.tokens()
        assert process.returncode in ({code, *CRASHES} if thick and bench.shell[0] == "bash" else {code})


@pytest.mark.slow
def test_a_stop_for_the_whole_process_group_costs_neither_code_nor_token(bench: Bench) -> None:
    bench = bench.with_values(command=application("trap 'exit 7' TERM; echo; while :; do sleep 0.01; done"))
    with started(bench) as process:
        eventually(partial(_has_begun, bench))
        os.killpg(process.pid, signal.SIGTERM)
        assert 7 == process.wait(DEADLINE_S)
    assert ["ended.7"] == bench.tokens()
    assert bench.run.end_record().ended is not None


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_stop_at_any_moment_leaves_one_token_and_never_a_lie(tmp_path: Path, shell: str) -> None:
    chance = random.Random(20171003)
    for number in range(50):
        folder = tmp_path / str(number)
        folder.mkdir()
        bench = make_bench(folder, shell).with_values(command=application(HEEDS))
        with started(bench) as process:
            time.sleep(chance.uniform(0, 0.06))  # the moment is the question, not a wait for something
            process.terminate()
            code = process.wait(DEADLINE_S)
        log = bench.values.data / "log"
        told = log.read_text().split() if log.exists() else []
        assert (code, bench.tokens(), told) in TRUTHS, (code, bench.tokens(), told)


@pytest.mark.slow
def test_a_killed_script_leaves_its_running_token(bench: Bench) -> None:
    bench = bench.with_values(command=application("echo; exec sleep 60"))
    with started(bench) as process:
        eventually(partial(_has_begun, bench))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_S)
    token = bench.run.token()
    assert token is not None
    assert (token.state, token.batch_id) == (TokenState.RUNNING, "7")


@pytest.mark.slow
def test_of_two_scripts_that_race_for_a_token_exactly_one_runs(bench: Bench) -> None:
    bench = bench.with_values(command=application("echo >>log"))
    for number in range(100):
        shutil.rmtree(bench.run.path, ignore_errors=True)
        (bench.values.data / "log").unlink(missing_ok=True)
        bench.run.prepare(render_script(bench.values))
        with started(bench, "7") as first, started(bench, "8" if number % 2 else "7") as second:
            codes = {first.wait(DEADLINE_S), second.wait(DEADLINE_S)}
        assert {0, ABSTAINED} == codes
        assert bench.tokens() == ["ended.0"]
        assert (bench.values.data / "log").read_text() == "\n"


@pytest.mark.slow
def test_of_a_script_and_a_service_that_revokes_exactly_one_wins(bench: Bench) -> None:
    chance = random.Random(64986)
    outcomes = set()
    for _ in range(60):
        shutil.rmtree(bench.run.path, ignore_errors=True)
        bench.run.prepare(render_script(bench.values))
        with started(bench) as process:
            time.sleep(chance.uniform(0, 0.008))  # the moment is the question
            revoked = bench.run.revoke()
            code = process.wait(DEADLINE_S)
        outcomes.add((revoked, code, *bench.tokens()))
    assert outcomes <= {(True, ABSTAINED, "revoked"), (False, 0, "ended.0")}
