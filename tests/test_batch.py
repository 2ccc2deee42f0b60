"""Run the batch script itself under real shells, and read back what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from attrs import evolve
from batch_bench import DEADLINE_S, SHELLS, Bench, application, eventually, make_bench, ran, started
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecore.batch import (
    ABSTAINED,
    MAX_ATTEMPTS,
    EndRecord,
    RunDirectory,
    Token,
    TokenState,
    attempt_tag,
    data_directory,
    job_directory,
    render_script,
    run_directory,
)


@pytest.fixture(params=SHELLS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return make_bench(tmp_path, request.param)


# -------------------------------------------------------------------------------- the way through


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 1, 75, 126, 127, 130, 255])
def test_the_token_and_the_script_end_with_the_exit_code_of_the_application(bench: Bench, code: int) -> None:
    bench = bench.with_values(command=application(f"exit {code}"))
    assert code == bench.finish()
    assert [f"ended.{code}"] == bench.tokens()
    token = bench.run.token()
    assert token is not None
    assert (TokenState.ENDED, code) == (token.state, token.exit_code)


@pytest.mark.slow
def test_while_the_application_runs_the_token_names_the_batch_id(bench: Bench) -> None:
    bench = bench.with_values(command=application("exec sleep 60"))
    with started(bench, "1234[5].server"):
        eventually(lambda: (bench.values.data / "stdout.1.txt").exists())
        token = bench.run.token()
        assert token is not None
        assert (token.state, token.batch_id) == (TokenState.RUNNING, "1234[5].server")
        assert [token.file] == bench.tokens()
        assert abs(token.since - time.time_ns() // 1000) < 60_000_000


@pytest.mark.slow
def test_output_goes_to_the_files_of_the_attempt_and_is_appended(bench: Bench) -> None:
    (bench.values.data / "stdout.1.txt").write_text("before\n")
    bench = bench.with_values(command=application("pwd; echo oops >&2; cat"))
    assert bench.finish() == 0
    assert f"before\n{bench.values.data}\n" == bench.output()
    assert (bench.values.data / "stderr.1.txt").read_text() == "oops\n"


@pytest.mark.slow
def test_the_end_record_tells_times_batch_id_and_host(bench: Bench) -> None:
    before = time.time_ns() // 1_000_000_000 - 1  # some `date` reads a clock that lags by a tick
    bench.finish("7.server")
    after = time.time_ns() // 1_000_000_000
    record = bench.run.end_record()
    assert record.started is not None
    assert record.ended is not None
    assert before <= record.started // 1_000_000 <= record.ended // 1_000_000 <= after
    assert ("7.server", os.uname().nodename) == (record.batch_id, record.host)
    assert json.loads((bench.run.path / "end.json").read_text())["exit_code"] == 0


HOSTILE = ["", "it's", '"', "a\nb\n", "$(touch pwned)", "`touch pwned`", "${HOME}", "\\", "*", "~", "é", "\udcff", "!x", "-n"]  # fmt: skip


@pytest.mark.slow
def test_hostile_values_reach_the_application_unchanged_and_run_nothing(bench: Bench) -> None:
    environment = {f"V{number}": value for number, value in enumerate(HOSTILE)}
    names = " ".join(f'"$V{number}"' for number in range(len(HOSTILE)))
    show = application(f"printf '%s\\0' {names} \"$@\"")
    title = "job\ntouch pwned; $(touch pwned)"
    bench = bench.with_values(environment=environment, command=[*show, "x", *HOSTILE], title=title)
    assert bench.finish() == 0
    shown = (bench.values.data / "stdout.1.txt").read_bytes().split(b"\0")[:-1]
    assert [os.fsencode(value) for value in HOSTILE * 2] == shown
    assert list(bench.values.run.parent.rglob("pwned")) == []


@pytest.mark.slow
def test_names_of_the_scripts_own_variables_may_be_in_the_environment(bench: Bench) -> None:
    names = ["run", "data", "mine", "code", "child", "host", "restartable", "batch_id", "execution"]
    bench = bench.with_values(
        environment=dict.fromkeys(names, "theirs"), command=application("echo $run; exit 3")
    )
    assert bench.finish() == 3
    assert bench.tokens() == ["ended.3"]
    assert bench.output() == "theirs\n"


odd = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20) | st.binary(
    max_size=20
).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))


@pytest.mark.slow
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(arguments=st.lists(odd, max_size=30), value=odd)
def test_any_argument_and_any_value_arrives_byte_by_byte(
    bench: Bench, arguments: list[str], value: str
) -> None:
    shutil.rmtree(bench.run.path, ignore_errors=True)
    (bench.values.data / "stdout.1.txt").unlink(missing_ok=True)
    show = application('printf "%s\\0" "$VALUE" "$@"')
    bench = bench.with_values(command=[*show, "x", *arguments], environment={"VALUE": value})
    assert bench.finish() == 0
    shown = (bench.values.data / "stdout.1.txt").read_bytes().split(b"\0")[:-1]
    assert [os.fsencode(each) for each in (value, *arguments)] == shown


@pytest.mark.slow
def test_an_undisturbed_script_runs_at_most_four_external_commands(bench: Bench) -> None:
    if bench.shell[0] == "busybox":
        pytest.skip("busybox runs its own mv and date, not those on the PATH")
    log = bench.values.run.parent / "commands.txt"
    found = [folder for folder in os.environ["PATH"].split(":") if os.path.isdir(folder)]
    names = sorted({name for folder in found for name in os.listdir(folder)} - {"sh"})
    folder = bench.values.run.parent / "logged"
    folder.mkdir()
    (folder / "any").write_text('#!/bin/sh\necho "${0##*/}" >>"$LOG"\nPATH=$REAL exec "${0##*/}" "$@"\n')
    (folder / "any").chmod(0o755)
    for name in names:
        if name != "any":
            (folder / name).symlink_to("any")
    real = bench.environment["PATH"]
    shell = [shutil.which(bench.shell[0]) or "", *bench.shell[1:]]
    environment = {**bench.environment, "PATH": str(folder), "REAL": real, "LOG": str(log)}
    bench = evolve(bench, environment=environment, shell=shell).with_values(command=["/bin/true"])
    assert bench.finish() == 0
    assert log.read_text().split() == ["mv", "date", "date", "mv"]


@pytest.mark.slow
def test_the_sites_own_text_runs_around_the_application(bench: Bench) -> None:
    bench = bench.with_values(
        prologue="SITE=loaded; export SITE\necho prologue",
        command=application("echo $SITE; exit 5"),
        epilogue="echo epilogue >>stdout.1.txt",
    )
    assert bench.finish() == 5
    assert bench.output() == "prologue\nloaded\nepilogue\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prologue", "code"), [("exit 9", 9), ("set -eu\nfalse", 1), ("set -eu", 7), ("run=/; mine=; code=0", 7)]
)
def test_whatever_the_sites_prologue_does_the_end_is_recorded(bench: Bench, prologue: str, code: int) -> None:
    bench = bench.with_values(prologue=prologue, command=application("exit 7"))
    assert code == bench.finish()
    assert [f"ended.{code}"] == bench.tokens()


@pytest.mark.slow
@pytest.mark.parametrize("epilogue", ["exit 9", "set -e; false", "code=0; mine=x", "cd /", "# nothing"])
def test_whatever_the_sites_epilogue_does_the_exit_code_is_the_applications(
    bench: Bench, epilogue: str
) -> None:
    bench = bench.with_values(epilogue=epilogue, command=application("exit 7"))
    assert bench.finish() == 7
    assert bench.tokens() == ["ended.7"]


@pytest.mark.slow
def test_without_its_data_directory_nothing_runs_and_the_end_says_126(bench: Bench) -> None:
    bench.values.data.rmdir()
    assert bench.finish() == 126
    assert bench.tokens() == ["ended.126"]


@pytest.mark.slow
def test_a_program_that_does_not_exist_ends_with_127(bench: Bench) -> None:
    assert bench.with_values(command=["/no/such/program"]).finish() == 127
    assert bench.tokens() == ["ended.127"]


# ----------------------------------------------------------------------------------- abstaining


@pytest.mark.slow
@pytest.mark.parametrize(
    "token", ["revoked", "stopped", "ended.0", "running.8.aaaa", "running.7.aaaa", "running.7.1.aaaa"]
)
def test_a_script_that_may_not_run_leaves_a_note_and_exits_75(bench: Bench, token: str) -> None:
    bench.put(token)
    assert bench.finish() == ABSTAINED
    assert [token] == bench.tokens()
    assert f"found {token}" in bench.note()
    assert bench.note().startswith("7 ")
    assert not ran(bench)


@pytest.mark.slow
def test_a_script_without_a_token_tries_for_a_while_and_abstains(bench: Bench) -> None:
    bench = bench.with_tools(sleep='echo >>"$0.log"')
    bench.run.prepare(render_script(bench.values))
    (bench.run.path / "ready").unlink()
    assert bench.finish() == ABSTAINED
    assert "found no token" in bench.note()
    assert bench.tokens() == []
    assert not ran(bench)
    waited = bench.values.run.parent / "tools" / "sleep.log"
    assert len(waited.read_text().splitlines()) == 10


@pytest.mark.slow
def test_a_script_waits_for_a_token_that_a_slow_file_server_shows_late(bench: Bench) -> None:
    bench = bench.with_tools(sleep=f"mv '{bench.values.data}/late' ready")
    bench.put("away")
    (bench.run.path / "away").rename(bench.values.data / "late")
    assert bench.finish() == 0
    assert bench.tokens() == ["ended.0"]


@pytest.mark.slow
@pytest.mark.parametrize("token", ["running.8.aaaa", "running.7.1.aaaa", "running.77.aaaa", "ended.0", "revoked", "stopped"])  # fmt: skip
def test_also_a_restartable_attempt_is_not_taken_from_another_batch_id_or_after_its_end(
    bench: Bench, token: str
) -> None:
    bench = bench.with_values(restartable=True).put(token)
    assert bench.finish() == ABSTAINED
    assert [token] == bench.tokens()
    assert not ran(bench)


@pytest.mark.slow
@pytest.mark.parametrize("batch_id", ["7", "12[3].server", "*", ""])
def test_a_restartable_attempt_goes_on_under_the_same_batch_id(bench: Bench, batch_id: str) -> None:
    bench = bench.with_values(restartable=True, command=application("ls ../it*; exit 4"))
    bench.put(f"running.{batch_id}.aaaa")
    assert bench.finish(batch_id) == 4
    assert f"running.{batch_id}.aaaa" not in bench.output()
    assert bench.tokens() == ["ended.4"]


@pytest.mark.slow
def test_an_execution_that_lost_its_token_to_a_requeue_says_nothing_about_the_end(bench: Bench) -> None:
    text = "echo >>begun; while [ ! -e go ]; do sleep 0.01; done; exit 6"
    bench = bench.with_values(restartable=True, command=application(text))
    begun = bench.values.data / "begun"
    with started(bench) as first:
        eventually(lambda: begun.exists() and begun.stat().st_size == 1)
        with started(bench) as second:
            eventually(lambda: begun.stat().st_size == 2)
            (bench.values.data / "go").touch()
            assert (first.wait(DEADLINE_S), second.wait(DEADLINE_S)) == (ABSTAINED, 6)
    assert bench.tokens() == ["ended.6"]


@pytest.mark.slow
def test_an_execution_that_lost_its_token_abstains_although_the_other_has_ended(bench: Bench) -> None:
    text = "echo >>begun; n=$(wc -c <begun); while [ ! -e go.$((n)) ]; do sleep 0.01; done; exit 0"
    bench = bench.with_values(restartable=True, command=application(text))
    begun = bench.values.data / "begun"
    with started(bench) as first:
        eventually(lambda: begun.exists() and begun.stat().st_size == 1)
        with started(bench) as second:
            eventually(lambda: begun.stat().st_size == 2)
            (bench.values.data / "go.2").touch()
            assert 0 == second.wait(DEADLINE_S)
        (bench.values.data / "go.1").touch()
        assert ABSTAINED == first.wait(DEADLINE_S)
    assert ["ended.0"] == bench.tokens()


@pytest.mark.slow
def test_an_execution_that_was_stopped_meanwhile_leaves_a_note_and_exits_75(bench: Bench) -> None:
    text = "echo; while [ ! -e go ]; do sleep 0.01; done"
    bench = bench.with_values(command=application(text))
    with started(bench) as process:
        eventually(lambda: ran(bench) and bench.output() != "")
        token = bench.run.token()
        assert token is not None
        assert bench.run.stop(token)
        (bench.values.data / "go").touch()
        assert process.wait(DEADLINE_S) == ABSTAINED
    assert bench.tokens() == ["stopped"]
    assert "ended with 0 after it was stopped" in bench.note()
    assert EndRecord() == bench.run.end_record()


@pytest.mark.slow
def test_a_rename_that_worked_although_the_file_server_denies_it_counts(bench: Bench) -> None:
    bench = bench.with_tools(mv='/bin/mv "$@"; exit 1', sleep="exit 1")
    bench = bench.with_values(command=application("exit 3"))
    assert bench.finish() == 3
    assert bench.tokens() == ["ended.3"]


@pytest.mark.slow
def test_a_rename_that_fails_once_is_tried_again(bench: Bench) -> None:
    fails_first = 'n=${0%/*}/${1%%.*}; [ -e "$n" ] && exec /bin/mv "$@"; : >"$n"; exit 1'
    bench = bench.with_tools(mv=fails_first, sleep="exit 0").with_values(command=application("exit 3"))
    assert bench.finish() == 3
    assert bench.tokens() == ["ended.3"]


# ----------------------------------------------------------------------- the service's side of it


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run" / "1")
    run.prepare(b"#!/bin/sh\n")
    return run


def names(run: RunDirectory) -> list[str]:
    return sorted(os.listdir(run.path))


def state_of(run: RunDirectory) -> TokenState | None:
    token = run.token()
    return token.state if token else None


def test_preparing_twice_leaves_one_token_and_the_later_script(run: RunDirectory) -> None:
    run.prepare(b"later")
    assert names(run) == ["batch.sh", "ready"]
    assert run.script.read_bytes() == b"later"


def test_whatever_the_umask_nobody_else_may_enter_where_the_script_and_the_token_are(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        run = run_directory(tmp_path, 1, 1)
        run.prepare(b"#!/bin/sh\n")
        run_directory(tmp_path, 1, 2).prepare(b"#!/bin/sh\n")
    finally:
        os.umask(former)
    private = [run.path.parent, run.path, run.path.with_name("2")]
    assert [0o700] * 3 == [place.stat().st_mode & 0o777 for place in private]
    assert 0o600 == (run.path / "ready").stat().st_mode & 0o777


@pytest.mark.parametrize("token", ["running.7.x", "ended.0", "revoked", "stopped"])
def test_preparing_again_never_makes_ready_what_has_moved_on(run: RunDirectory, token: str) -> None:
    (run.path / "ready").rename(run.path / token)
    run.prepare(b"later")
    assert ["batch.sh", token] == names(run)


def test_revoking_takes_ready_away_and_may_be_repeated(run: RunDirectory) -> None:
    assert run.revoke()
    assert names(run) == ["batch.sh", "revoked"]
    assert run.revoke()  # the reply of the first may have been lost


@pytest.mark.parametrize("token", ["running.7.x", "ended.0", "stopped"])
def test_what_has_started_cannot_be_revoked(run: RunDirectory, token: str) -> None:
    (run.path / "ready").rename(run.path / token)
    assert not run.revoke()
    assert ["batch.sh", token] == names(run)


def test_stopping_fences_exactly_the_execution_that_was_seen(run: RunDirectory) -> None:
    (run.path / "ready").rename(run.path / "running.7.x")
    seen = run.token()
    assert seen is not None
    (run.path / "running.7.x").rename(run.path / "running.7.y")
    assert not run.stop(seen)
    now = run.token()
    assert now is not None
    assert run.stop(now)
    assert run.stop(now)
    assert names(run) == ["batch.sh", "stopped"]


def test_an_attempt_whose_directory_vanished_is_abandoned_on_an_operators_word(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "gone" / "1")
    assert run.token() is None
    assert run.abandon()
    assert state_of(run) is TokenState.REVOKED


def test_an_attempt_with_a_token_is_not_abandoned(run: RunDirectory) -> None:
    assert not run.abandon()
    assert state_of(run) is TokenState.READY


JUNK = ["batch.sh", "note.txt", "end.json", ".nfs0001", "running", "running.", "ended", "ended.", "ended.x",
        "ended.-1", "ended.1.2", "paused.1", "paused.7.1", "paused.7.x.y", "ready.", "ready~", "revoked.1", "READY", "stopped2", "\udcff"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ready", Token(state=TokenState.READY, file="ready")),
        ("revoked", Token(state=TokenState.REVOKED, file="revoked")),
        ("stopped", Token(state=TokenState.STOPPED, file="stopped")),
        ("ended.255", Token(state=TokenState.ENDED, file="ended.255", exit_code=255)),
        ("running.7.x", Token(state=TokenState.RUNNING, file="running.7.x", batch_id="7")),
        (
            "running.7.server.x",
            Token(state=TokenState.RUNNING, file="running.7.server.x", batch_id="7.server"),
        ),
        (
            "paused.7.server.x.143",
            Token(state=TokenState.PAUSED, file="paused.7.server.x.143", batch_id="7.server", exit_code=143),
        ),
        ("running..x", Token(state=TokenState.RUNNING, file="running..x", batch_id="")),
        (None, None),
    ],
)
def test_the_token_is_found_among_files_that_only_look_like_one(
    tmp_path: Path, name: str | None, expected: Token | None
) -> None:
    for junk in [*JUNK, *([name] if name else [])]:
        (tmp_path / junk).touch()
    found = RunDirectory(tmp_path).token()
    assert expected == (evolve(found, since=0) if found else None)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", "null", '{"started": 1}', '{"started": "x", "ended": 1, "batch_id": "7", "host": ""}',
     '{"started": null, "ended": 1, "batch_id": "7", "host": ""}',
     '{"started": 1e999, "ended": 1, "batch_id": "7", "host": ""}', "\udcff"],
)  # fmt: skip
def test_a_damaged_end_record_is_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "end.json").write_bytes(os.fsencode(content))
    assert EndRecord() == RunDirectory(tmp_path).end_record()


def test_a_missing_end_record_is_an_empty_one(tmp_path: Path) -> None:
    assert EndRecord() == RunDirectory(tmp_path).end_record()


# ---------------------------------------------------------------------------------------- names

ids = st.integers(0, 36**10 - 1)  # microseconds up to the year 2085
attempts = st.integers(1, MAX_ATTEMPTS)


@given(ids, attempts)
def test_a_tag_has_at_most_13_characters_of_lower_case_letters_and_digits(job_id: int, attempt: int) -> None:
    tag = attempt_tag(job_id, attempt)
    assert len(tag) <= 13
    assert tag.isascii()
    assert tag.isalnum()
    assert tag == tag.lower()
    assert tag.startswith("e")


@given(st.tuples(ids, attempts), st.tuples(ids, attempts))
def test_two_attempts_never_share_a_tag(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (one == other) == (attempt_tag(*one) == attempt_tag(*other))


@given(ids, attempts)
def test_a_tag_tells_the_job_and_the_attempt(job_id: int, attempt: int) -> None:
    tag = attempt_tag(job_id, attempt)
    assert (job_id, attempt) == (int(tag[1:-2] or "0", 36), int(tag[-2:], 36))


@pytest.mark.parametrize("attempt", [-1, 0, MAX_ATTEMPTS + 1])
def test_an_attempt_that_no_tag_can_name_is_refused(attempt: int) -> None:
    with pytest.raises(ValueError, match="is not between 1 and"):
        attempt_tag(1, attempt)


def test_directories_are_sorted_by_the_day_of_the_job(tmp_path: Path) -> None:
    job_id = 1507945011064986
    assert tmp_path / "20171014" / str(job_id) == job_directory(tmp_path, job_id)
    assert tmp_path / "20171014" / str(job_id) / "data" == data_directory(tmp_path, job_id)
    assert tmp_path / "20171014" / str(job_id) / "run" / "2" == run_directory(tmp_path, job_id, 2).path
