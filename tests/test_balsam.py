"""A job's way through one site: each step, each failure, and what comes after it."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from scripted import Edge, ScriptedTransfer

from edgecore import batch
from edgecore.config import LauncherTable, Limits, TransferTable
from edgecore.desk import Desk
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.models import JobState as S
from edgecore.models import NativeState, Option, Parameter, Refusal
from edgecore.reader import Reader

WHOLE_WAY = [
    *("CREATED", "STAGED_IN", "PREPROCESSED", "SUBMITTING", "SUBMITTED", "EXECUTION_FINISHED"),
    *("POSTPROCESSED", "STAGED_OUT", "JOB_FINISHED"),
]


def without_listings(states: list[str]) -> list[str]:
    """Leave out what a listing may or may not have shown of a short execution."""
    return [state for state in states if state not in ("QUEUED", "RUNNING")]


# ----------------------------------------------------------------------------- the whole way


def test_a_job_goes_through_every_state_in_order(edge: Edge) -> None:
    edge.start()
    edge.send(**edge.input("job"))
    edge.wait("job", S.JOB_FINISHED)
    assert WHOLE_WAY == without_listings(edge.states())


def test_a_job_without_urls_skips_the_work_and_keeps_the_states(edge: Edge) -> None:
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    assert WHOLE_WAY == without_listings(edge.states())
    with Reader(edge.config.store) as reader:
        assert () == reader.transfers(edge.job().id)


def test_every_state_is_published_once_in_order_with_a_sequence_number(edge: Edge) -> None:
    edge.start()
    edge.send(job_id="mine", argo_job_id=1507945011064986)
    job = edge.wait("job", S.JOB_FINISHED)
    edge.until(lambda: len(edge.broker.sent) >= job.sequence)
    statuses = [json.loads(message.body) for message in edge.broker.sent]
    assert list(range(1, job.sequence + 1)) == [status["sequence"] for status in statuses]
    assert edge.states() == [status["state"] for status in statuses]
    assert [None, *edge.states()[:-1]] == [status["previous_state"] for status in statuses]
    last = statuses[-1]
    assert ("mine", 1507945011064986, "testsite", "job", "local") == (
        *(last["job_id"], last["argo_job_id"], last["site"], last["name"], last["owner"]),
    )
    assert ("1001", 0, 1) == (last["batch_id"], last["exit_code"], last["attempt"])


def test_a_listing_moves_a_job_between_queued_held_and_running(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", S.QUEUED)
    entry = edge.wait_entry()
    entry.reason, entry.state = "JobHeldAdmin", NativeState.HELD
    assert "JobHeldAdmin" == edge.wait("job", S.HELD).message
    entry.reason, entry.state = "", NativeState.QUEUED
    edge.wait("job", S.QUEUED, times=2)
    edge.scheduling.start(entry)
    edge.wait("job", S.JOB_FINISHED)


def test_transfers_are_recorded_with_what_they_moved(edge: Edge) -> None:
    edge.start()
    edge.send(**edge.input("job"))
    edge.wait("job", S.JOB_FINISHED)
    with Reader(edge.config.store) as reader:
        came, went = reader.transfers(edge.job().id)
    assert ("in", 1, True) == (came.direction, came.files, came.started <= came.ended)
    assert ("out", f"file://{edge.site.base}/data/out-job") == (went.direction, went.url)
    assert went.files == 3  # the settings, stdout, stderr


@pytest.mark.slow
def test_each_prefix_has_its_own_settings(edge: Edge) -> None:
    (prefix,) = {entry.prefix for entry in edge.config.transfer}
    sizes = TransferTable(prefix=f"{prefix}out-quick/", settings={"compare": False})
    edge.config = evolve(edge.config, transfer=(sizes, *edge.config.transfer))
    edge.start()
    for name in ("careful", "quick"):
        edge.send(name=name, **edge.input(name))
    verified = {}
    for name in ("careful", "quick"):
        edge.wait(name, S.JOB_FINISHED)
        with Reader(edge.config.store) as reader:
            verified[name] = [each.verified for each in reader.transfers(edge.job(name).id)]
    assert {"careful": ["bytes", "bytes"], "quick": ["bytes", "size"]} == verified


def test_an_application_runs_under_its_launcher_with_typed_values_and_our_environment(edge: Edge) -> None:
    launcher = edge.program("launch", 'echo "launched $1 $2"; shift 2; exec "$@"')
    arguments = (launcher, "{processes}", "{processes_per_node}")
    edge.config = evolve(edge.config, launchers={"mpi": LauncherTable(arguments=arguments)})
    said = edge.program("say", 'echo "$1:$EDGECORE_NODES:$EDGECORE_SITE:$EDGECORE_ATTEMPT"')
    events = Parameter(type="integer", minimum=1)
    edge.register(
        "say", executable=said, arguments=("{events}",), launcher="mpi", parameters={"events": events}
    )
    edge.start()
    edge.send(application="say", num_nodes=2, processes_per_node=4, **edge.input("job", events=7))
    edge.wait("job", S.JOB_FINISHED)
    output = edge.site.base / "data/out-job/stdout.1.txt"
    assert "launched 8 4\n7:2:testsite:1\n" == output.read_text()


def test_a_missing_launcher_fails_the_submission_with_words(edge: Edge) -> None:
    edge.register("parallel", launcher="mpi")
    edge.start()
    edge.send(application="parallel")
    assert "no launcher mpi" in edge.wait("job", S.SUBMIT_FAILED).message
    edge.wait("job", S.JOB_FAILED)
    assert [] == edge.scheduling.entries


# ------------------------------------------------------------------------------- each failure


def test_a_missing_input_fails_the_stage_in_for_good_and_keeps_the_directory(edge: Edge) -> None:
    edge.start()
    edge.send(input_url=f"file://{edge.site.base}/data/nothing")
    failed = edge.wait("job", S.STAGE_IN_FAILED)
    edge.wait("job", S.JOB_FAILED)
    assert ["CREATED", "STAGE_IN_FAILED", "JOB_FAILED"] == edge.states()
    assert "nothing" in failed.message
    assert batch.data_directory(edge.config.work_directory, failed.id).is_dir()


def test_a_refused_transfer_is_not_tried_again(edge: Edge) -> None:
    edge.transfer = ScriptedTransfer()
    edge.transfer.errors.append(TransferRefused("permission denied"))
    edge.start()
    edge.send(input_url=f"file://{edge.site.base}/data/x")
    assert "permission denied" == edge.wait("job", S.JOB_FAILED).message
    assert 1 == len(edge.transfer.fetched)


def test_a_url_that_is_not_allowed_any_more_never_reaches_a_driver(edge: Edge) -> None:
    edge.transfer = ScriptedTransfer(slow=True)
    edge.start()
    edge.send(input_url=f"file://{edge.site.base}/data/x")
    assert edge.transfer.moving.wait(10)
    edge.stop()
    edge.config = evolve(edge.config, transfer=())  # narrowed while the job is on its way
    edge.start()
    assert "not below a prefix that this site allows" in edge.wait("job", S.STAGE_IN_FAILED).message
    assert 1 == len(edge.transfer.fetched)


def test_a_failing_preprocess_fails_the_step_with_its_exit_code_and_words(edge: Edge) -> None:
    edge.register("picky", preprocess=edge.program("prepare", "echo no card >&2; exit 1"))
    edge.start()
    edge.send(application="picky")
    message = edge.wait("job", S.PREPROCESS_FAILED).message
    assert "prepare ended with exit code 1: no card" == message
    edge.wait("job", S.JOB_FAILED)


def test_preprocess_and_postprocess_are_given_a_description_of_the_job(edge: Edge) -> None:
    copy = edge.program("copy", f'cp "$1" "{edge.site.base}/seen.$EDGECORE_JOB_NAME.$(basename "$0")"')
    after = edge.program("after", f'cp "$1" "{edge.site.base}/seen.after"')
    edge.register("described", preprocess=copy, postprocess=after)
    edge.start()
    edge.send(application="described", wall_time_minutes=7)
    job = edge.wait("job", S.JOB_FINISHED)
    seen = json.loads((edge.site.base / "seen.job.copy").read_text())
    assert (job.id, "STAGED_IN", 0) == (seen["id"], seen["state"], seen["attempt"])
    assert 7 == seen["definition"]["wall_time_minutes"]
    seen = json.loads((edge.site.base / "seen.after").read_text())
    assert ("EXECUTION_FINISHED", 1, "1001", 0) == (
        *(seen["state"], seen["attempt"], seen["batch_id"], seen["exit_code"]),
    )


def endless(edge: Edge) -> Path:
    """Register an application whose preprocess never ends; answers where it notes its process."""
    note = edge.site.base / "preprocess.pid"
    program = edge.program(
        "endless", f'[ -e "{edge.site.base}/repaired" ] || {{ echo $$ >"{note}"; exec sleep 60; }}'
    )
    edge.register("endless", preprocess=program)
    return note


def pid_in(edge: Edge, note: Path) -> int:
    edge.until(lambda: note.exists() and note.read_text().endswith("\n"))
    return int(note.read_text())


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_cancel_stops_a_preprocess(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecore.commands._ASK_EVERY_S", 0.05)
    note = endless(edge)
    edge.start()
    edge.send(application="endless")
    pid = pid_in(edge, note)
    edge.ask("cancel")
    edge.wait("job", S.JOB_CANCELLED)
    assert not lives(pid)
    assert ["CREATED", "STAGED_IN", "JOB_CANCELLED"] == edge.states()


def test_a_preprocess_is_stopped_with_the_service_and_done_again_after_the_next_start(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecore.commands._ASK_EVERY_S", 0.05)
    note = endless(edge)
    edge.start()
    edge.send(application="endless")
    pid = pid_in(edge, note)
    edge.stop()
    assert not lives(pid)
    assert (S.STAGED_IN, 0) == (edge.job().state, edge.job().failures)
    (edge.site.base / "repaired").touch()
    edge.start()
    edge.wait("job", S.JOB_FINISHED)


def test_a_bad_value_fails_the_preprocess_with_file_line_key_value_and_what_is_allowed(edge: Edge) -> None:
    events = Parameter(type="integer", minimum=1, maximum=9)
    edge.register("typed", arguments=("{events}",), parameters={"events": events})
    edge.start()
    edge.send(application="typed", **edge.input("job", events="many"))
    message = edge.wait("job", S.PREPROCESS_FAILED).message
    for word in ("app.cfg", "line 1", "events", "'many'", "at least 1", "at most 9"):
        assert word in message
    assert [] == edge.scheduling.entries


def test_an_option_that_the_site_does_not_offer_fails_the_preprocess(edge: Edge) -> None:
    constraint = Option(type="string", choices=("knl", "haswell"))
    scheduling = evolve(edge.config.scheduling, options={"constraint": constraint})
    edge.config = evolve(edge.config, scheduling=scheduling)
    edge.start()
    edge.send(
        "good", **{**edge.input("good", constraint="knl"), "config_file": None}, scheduler_config="app.cfg"
    )
    edge.send(
        "bad", **{**edge.input("bad", reservation="all"), "config_file": None}, scheduler_config="app.cfg"
    )
    assert "reservation" in edge.wait("bad", S.PREPROCESS_FAILED).message
    edge.wait("good", S.JOB_FINISHED)
    assert {"constraint": "knl"} == edge.scheduling.entries[0].group.options


def test_a_config_script_builds_the_argument_list_from_the_users_file(edge: Edge) -> None:
    script = edge.program("arguments", """printf '["%s", "two words"]' "$(sed 's/.*= //' "$2")" """)
    echo = edge.program("echo", 'printf "%s|" "$@"')
    edge.register("built", executable=echo, arguments=(), config_script=script)
    edge.start()
    edge.send(application="built", **edge.input("job", events=12))
    edge.wait("job", S.JOB_FINISHED)
    assert "12|two words|" == (edge.site.base / "data/out-job/stdout.1.txt").read_text()


def test_a_config_script_that_prints_no_list_fails_the_preprocess(edge: Edge) -> None:
    edge.register("built", arguments=(), config_script=edge.program("arguments", "echo hello"))
    edge.start()
    edge.send(application="built")
    assert "arguments" in edge.wait("job", S.PREPROCESS_FAILED).message


def test_a_failing_postprocess_fails_the_step_and_the_execution_is_not_repeated(edge: Edge) -> None:
    edge.register("checked", postprocess=edge.program("check", "echo no histogram >&2; exit 4"))
    edge.start()
    edge.send(application="checked")
    assert "exit code 4: no histogram" in edge.wait("job", S.POSTPROCESS_FAILED).message
    edge.wait("job", S.JOB_FAILED)
    assert {edge.job().id: 1} == edge.site.starts()


def test_a_stage_out_that_is_refused_fails_the_job_after_its_execution(edge: Edge) -> None:
    (edge.site.base / "data/occupied").write_text("a file, no directory")
    edge.start()
    edge.send(output_url=f"file://{edge.site.base}/data/occupied")
    edge.wait("job", S.STAGE_OUT_FAILED)
    edge.wait("job", S.JOB_FAILED)
    assert ["POSTPROCESSED", "STAGE_OUT_FAILED", "JOB_FAILED"] == edge.states()[-3:]


def test_an_application_that_was_removed_meanwhile_fails_the_job_with_words(edge: Edge) -> None:
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    entry = edge.wait_entry()
    Desk(edge.config.store).remove_application("quick")
    edge.scheduling.start(entry)
    message = edge.wait("job", S.POSTPROCESS_FAILED).message
    assert "the application quick is not registered any more" == message


# ------------------------------------------------------------------------ failed executions


def test_an_execution_that_fails_without_retries_brings_its_output_home_and_ends(edge: Edge) -> None:
    edge.start()
    edge.send(application="fails", output_url=edge.output("job"))
    failed = edge.wait("job", S.EXECUTION_FAILED)
    edge.wait("job", S.JOB_FAILED)
    assert "exit code 3" == failed.message
    assert failed.attempt is not None
    assert 3 == failed.attempt.exit_code
    names = {path.name for path in (edge.site.base / "data/out-job").iterdir()}
    assert {"stdout.1.txt", "stderr.1.txt"} <= names
    assert "exit code 3" == edge.job().message


@pytest.mark.slow
@pytest.mark.parametrize("error", [TransferInterrupted("reset"), TransferRefused("denied")])
def test_why_an_execution_failed_is_not_forgotten_over_trouble_with_its_output(
    edge: Edge, error: Exception
) -> None:
    edge.transfer = ScriptedTransfer()
    edge.transfer.errors.extend([TransferInterrupted("reset"), error])
    edge.start()
    edge.send(application="fails", output_url=edge.output("job"))
    told = "; and its output was not staged out: denied" if isinstance(error, TransferRefused) else ""
    assert f"exit code 3{told}" == edge.wait("job", S.JOB_FAILED).message


def test_a_failed_execution_without_an_output_url_ends_the_job(edge: Edge) -> None:
    edge.start()
    edge.send(application="fails")
    edge.wait("job", S.JOB_FAILED)
    assert ["EXECUTION_FAILED", "JOB_FAILED"] == edge.states()[-2:]


def test_a_failed_execution_whose_output_cannot_go_home_says_both(edge: Edge) -> None:
    (edge.site.base / "data/occupied").write_text("")
    edge.start()
    edge.send(application="fails", output_url=f"file://{edge.site.base}/data/occupied")
    message = edge.wait("job", S.JOB_FAILED).message
    assert message.startswith("exit code 3; and its output was not staged out: ")


def test_retries_are_new_attempts_with_directories_and_output_of_their_own(edge: Edge) -> None:
    edge.start()
    edge.send(application="fails", retries=2, output_url=edge.output("job"))
    edge.wait("job", S.JOB_FAILED)
    job = edge.job()
    assert 3 == edge.site.starts()[job.id]
    with Reader(edge.config.store) as reader:
        attempts = reader.attempts(job.id)
    assert [1, 2, 3] == [attempt.number for attempt in attempts]
    assert [3, 3, 3] == [attempt.exit_code for attempt in attempts]
    assert 3 == len({attempt.tag for attempt in attempts})
    run = batch.job_directory(edge.config.work_directory, job.id) / "run"
    assert {"1", "2", "3"} == {path.name for path in run.iterdir()}
    output = {path.name for path in (edge.site.base / "data/out-job").iterdir()}
    assert {f"stdout.{number}.txt" for number in (1, 2, 3)} <= output
    assert ["retry 1 of 2", "retry 2 of 2"] == [m for m in edge.messages() if m.startswith("retry")]


def test_a_retry_that_succeeds_finishes_the_job(edge: Edge) -> None:
    flag = edge.site.base / "flag"
    moody = edge.program("moody", f'[ -e "{flag}" ] || {{ : >"{flag}"; exit 1; }}')
    edge.register("moody", executable=moody, arguments=())
    edge.start()
    edge.send(application="moody", retries=5)
    edge.wait("job", S.JOB_FINISHED)
    assert 2 == len(edge.scheduling.entries)


def test_staged_input_cannot_redirect_the_output_of_the_application(edge: Edge) -> None:
    urls = edge.input("job")
    place = edge.site.base / "data/job"
    target = edge.site.base / "data/job/target"
    target.write_text("precious")
    (place / "stdout.1.txt").symlink_to("target")
    edge.start()
    edge.send(**{**urls, "config_file": None})
    edge.wait("job", S.JOB_FINISHED)
    data = batch.data_directory(edge.config.work_directory, edge.job().id)
    assert "precious" == (data / "target").read_text()
    assert not (data / "stdout.1.txt").is_symlink()


def test_a_directory_where_the_output_must_go_fails_the_submission(edge: Edge) -> None:
    urls = edge.input("job")
    (edge.site.base / "data/job/stdout.1.txt").mkdir()
    edge.start()
    edge.send(**urls)
    assert "directory stdout.1.txt" in edge.wait("job", S.SUBMIT_FAILED).message


# --------------------------------------------------------------------------------- not_after


def when(**offset: float) -> str:
    return (datetime.now(UTC) + timedelta(**offset)).isoformat()


def test_a_job_is_not_begun_after_its_not_after(edge: Edge) -> None:
    edge.transfer = ScriptedTransfer()
    edge.start()
    edge.send("late", input_url=f"file://{edge.site.base}/data/x", not_after=when(seconds=-1))
    edge.send("early", not_after=when(hours=1))
    assert "not to be submitted after" in edge.wait("late", S.STAGE_IN_FAILED).message
    edge.wait("early", S.JOB_FINISHED)
    assert [] == edge.transfer.fetched


def test_a_job_that_waited_too_long_for_its_place_is_not_submitted(edge: Edge) -> None:
    edge.scheduling.open_gate.clear()
    edge.register("other")
    edge.start()
    edge.send("first")
    assert edge.scheduling.at_gate.acquire(timeout=10)
    edge.send("second", not_after=when(seconds=0.4))
    edge.wait("second", S.PREPROCESSED)
    limit = datetime.now(UTC) + timedelta(seconds=0.5)
    edge.until(lambda: datetime.now(UTC) > limit)
    edge.scheduling.open_gate.set()
    edge.wait("second", S.SUBMIT_FAILED)
    edge.wait("first", S.JOB_FINISHED)
    assert 1 == len(edge.scheduling.entries)


# ------------------------------------------------------------------------- an operator's retry


def repairable(edge: Edge, name: str) -> str:
    """Return a program that fails until the operator has made the file ``repaired``."""
    return edge.program(name, f'[ -e "{edge.site.base}/repaired" ] || exit 1')


@pytest.mark.parametrize(
    ("failed", "more"),
    [
        (S.PREPROCESS_FAILED, "preprocess"),
        (S.POSTPROCESS_FAILED, "postprocess"),
        (S.EXECUTION_FAILED, "executable"),
    ],
)
def test_a_retry_resumes_at_the_program_that_failed(edge: Edge, failed: S, more: str) -> None:
    program = repairable(edge, "program")
    table: dict[str, Any] = {more: program}
    edge.register("moody", **table)
    edge.start()
    edge.send(application="moody")
    edge.wait("job", S.JOB_FAILED)
    assert failed == edge.states()[-2]
    (edge.site.base / "repaired").touch()
    edge.ask("retry")
    edge.wait("job", S.JOB_FINISHED)
    after = edge.states()[edge.states().index("JOB_FAILED") + 1 :]
    resumed = {"preprocess": "STAGED_IN", "postprocess": "EXECUTION_FINISHED", "executable": "PREPROCESSED"}
    assert resumed[more] == after[0]
    assert (more == "postprocess") == ("SUBMITTING" not in after)


def test_a_retry_resumes_at_the_transfer_that_failed(edge: Edge) -> None:
    place = edge.site.base / "data/input"
    out = edge.site.base / "data/output"
    out.write_text("in the way")
    edge.start()
    edge.send(input_url=f"file://{place}", output_url=f"file://{out}")
    edge.wait("job", S.STAGE_IN_FAILED)
    edge.wait("job", S.JOB_FAILED)
    place.mkdir()
    edge.ask("retry")
    edge.wait("job", S.STAGE_OUT_FAILED)
    edge.wait("job", S.JOB_FAILED, times=2)
    out.unlink()
    edge.ask("retry")
    edge.wait("job", S.JOB_FINISHED)
    assert {edge.job().id: 1} == edge.site.starts()
    assert ["JOB_FAILED", "POSTPROCESSED", "STAGED_OUT", "JOB_FINISHED"] == edge.states()[-4:]


def test_a_retry_of_a_refused_submission_makes_a_new_attempt(edge: Edge) -> None:
    edge.scheduling.refuse(Refusal.PERMANENT, "invalid account")
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FAILED)
    edge.ask("retry")
    finished = edge.wait("job", S.JOB_FINISHED)
    assert finished.attempt is not None
    assert 2 == finished.attempt.number


def test_a_retry_of_a_finished_job_changes_nothing(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    edge.ask("retry")
    edge.until(lambda: "cannot retry job" in caplog.text)
    assert S.JOB_FINISHED is edge.job().state


def test_a_retry_of_a_job_whose_directory_was_cleaned_begins_at_its_input(edge: Edge) -> None:
    edge.start()
    edge.send(application="fails", **edge.input("job"))
    edge.wait("job", S.JOB_FAILED)
    shutil.rmtree(batch.job_directory(edge.config.work_directory, edge.job().id))
    edge.ask("retry")
    edge.wait("job", S.STAGED_IN, times=2)
    edge.wait("job", S.JOB_FAILED, times=2)
    assert batch.data_directory(edge.config.work_directory, edge.job().id).joinpath("app.cfg").exists()


# ------------------------------------------------------------------------- passing failures


def test_a_broken_transfer_is_resumed_after_a_while(edge: Edge) -> None:
    edge.transfer = ScriptedTransfer()
    edge.transfer.errors.append(TransferInterrupted("connection reset"))
    edge.start()
    edge.send(input_url=f"file://{edge.site.base}/data/x", output_url=edge.output("job"))
    edge.wait("job", S.STAGED_IN)
    edge.wait("job", S.JOB_FINISHED)
    assert 2 == len(edge.transfer.fetched)
    assert "STAGE_IN_FAILED" not in edge.states()
    assert 0 == edge.job().failures


def test_a_job_that_brings_more_than_the_site_allows_is_refused_before_it_fills_the_disk(edge: Edge) -> None:
    edge.config = evolve(edge.config, limits=Limits(max_transfer_bytes=1000))
    place = edge.site.base / "data/huge"
    place.mkdir()
    with (place / "file").open("wb") as file:
        file.truncate(10**12)  # all hole: it costs the sender nothing
    edge.start()
    edge.send(input_url=f"file://{place}")
    job = edge.wait("job", S.JOB_FAILED)
    assert S.STAGE_IN_FAILED is job.failed_state
    assert "this site allows 1.0 kB (max_transfer_bytes)" in job.message
