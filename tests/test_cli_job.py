"""What is said of one job: why it failed and who can mend it, what it waits for, and where everything lies."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from places import Place

import edgecore
from edgecore import batch
from edgecore.cli.advice import FAILURES, NEXT, failure, next_step
from edgecore.cli.output import exit_words
from edgecore.cli.waiting import waits_for
from edgecore.config import Limits
from edgecore.models import Attempt, Intent, Job, JobDefinition, JobState
from edgecore.reader import Reader
from edgecore.rows import Rejection
from edgecore.states import RESUMES_AT
from edgecore.store import Arrival, Change

S = JobState
HOUR_US = 3_600_000_000


def attempt(**more: Any) -> Attempt:
    return Attempt(**{"number": 1, "tag": "t", "group_tag": "t", "intended": 1, "batch_id": "77", **more})


def failed(step: JobState, message: str, **more: Any) -> Job:
    return Job(
        id=1,
        owner="o",
        definition=JobDefinition(name="n", application="hello", site="s"),
        state=S.JOB_FAILED,
        failed_state=step,
        message=message,
        attempt=attempt(reason=message, **more) if more else None,
    )


# --------------------------------------------------------------------------- why it failed


@pytest.mark.parametrize(
    ("job", "kind", "who"),
    [
        (failed(S.STAGE_IN_FAILED, "cannot read file:///d/x: No such file or directory"), "input-missing", "submitter"),
        (failed(S.STAGE_IN_FAILED, "cannot read /d: Permission denied"), "permission", "operator"),
        (failed(S.STAGE_IN_FAILED, "staging in 2.0 GB; this site allows 1.0 GB (max_transfer_bytes)"), "too-large", "submitter"),
        (failed(S.STAGE_IN_FAILED, "file:///e is not below a prefix that this site allows (none)"), "url-not-allowed", "operator"),
        (failed(S.STAGE_IN_FAILED, "Host key verification failed: the host key of dtn has changed"), "not-logged-in", "operator"),
        (failed(S.STAGE_OUT_FAILED, "me@dtn:22: Permission denied (publickey): none of our keys"), "not-logged-in", "operator"),
        (failed(S.STAGE_IN_FAILED, "gave up after 10 tries: the server broke off"), "storage-away", "nobody"),
        (failed(S.STAGE_IN_FAILED, "gave up after 10 tries: cannot write x: No space left on device"), "disk-full", "operator"),
        (failed(S.STAGE_IN_FAILED, "the link a leads in circles"), "input-refused", "submitter"),
        (failed(S.STAGE_IN_FAILED, "it was not to be submitted after 2026-01-01"), "too-late", "submitter"),
        (failed(S.PREPROCESS_FAILED, "app.cfg: line 3, seed: 'x' (must be a whole number)"), "settings", "submitter"),
        (failed(S.PREPROCESS_FAILED, "job x: app.cfg: there is no such file in /d/data"), "settings-missing", "submitter"),
        (failed(S.PREPROCESS_FAILED, "fetch ended with exit code 1: no card"), "program-refused", "submitter"),
        (failed(S.PREPROCESS_FAILED, "fetch gave no answer within 600 s"), "program-slow", "operator"),
        (failed(S.PREPROCESS_FAILED, "cannot run /x: No such file or directory (/x)"), "program-unusable", "operator"),
        (failed(S.PREPROCESS_FAILED, "the application x is not registered any more"), "application-gone", "operator"),
        (failed(S.SUBMIT_FAILED, "sbatch: error: invalid partition specified: x"), "refused", "submitter"),
        (failed(S.SUBMIT_FAILED, "sbatch: error: Invalid account or account/partition combination"), "account", "operator"),
        (failed(S.SUBMIT_FAILED, "given up: it has waited for 3 hours, which is longer than this site allows: x"), "never-starts", "submitter"),
        (failed(S.SUBMIT_FAILED, "the site has no launcher mpi; see [launchers] in its file"), "launcher-gone", "operator"),
        (failed(S.EXECUTION_FAILED, "exit code 3", exit_code=3), "application", "submitter"),
        (failed(S.EXECUTION_FAILED, "exit code 127", exit_code=127), "program-missing", "operator"),
        (failed(S.EXECUTION_FAILED, "exit code 126", exit_code=126), "not-executable", "operator"),
        (failed(S.EXECUTION_FAILED, "exit code 137", exit_code=137), "killed", "submitter"),
        (failed(S.EXECUTION_FAILED, "exit code 137: OUT_OF_MEMORY", exit_code=137), "memory", "submitter"),
        (failed(S.EXECUTION_FAILED, "exit code 143: TIMEOUT", exit_code=143), "walltime", "submitter"),
        (failed(S.EXECUTION_FAILED, "exit code 139", exit_code=139), "crashed", "submitter"),
        (failed(S.EXECUTION_FAILED, "interrupted: NODE_FAIL", exit_code=None), "node", "nobody"),
        (failed(S.EXECUTION_FAILED, "interrupted: CANCELLED by 1000", exit_code=None), "removed", "operator"),
        (failed(S.EXECUTION_FAILED, "interrupted: ended without an end record", exit_code=None), "interrupted", "nobody"),
        (failed(S.EXECUTION_FAILED, "exit code 3; and its output was not staged out: No space left", exit_code=3), "application", "submitter"),
        (failed(S.POSTPROCESS_FAILED, "check ended with exit code 1: bad"), "program-refused", "submitter"),
        (failed(S.POSTPROCESS_FAILED, "internal error"), "postprocess", "operator"),
        (failed(S.STAGE_OUT_FAILED, "cannot make file:///x: Permission denied"), "permission", "operator"),
        (failed(S.STAGE_OUT_FAILED, "cannot write x: Disk quota exceeded"), "disk-full", "operator"),
        (failed(S.STAGE_OUT_FAILED, "there is a directory in its way"), "output-refused", "submitter"),
    ],
)  # fmt: skip
def test_a_failure_says_its_kind_and_who_can_mend_it(job: Job, kind: str, who: str) -> None:
    found = failure(job)
    assert found is not None
    assert (kind, who) == (found.kind, found.who)


def test_every_step_that_can_fail_has_an_advice_for_any_reason() -> None:
    for step in RESUMES_AT:
        assert failure(failed(step, "words that nobody has thought of")) is not None
    assert failure(evolve(failed(S.STAGE_IN_FAILED, "x"), state=S.CREATED)) is None


def test_every_advice_names_a_command_or_a_thing_to_do_and_every_kind_can_be_met() -> None:
    for each in FAILURES:
        text = each.todo.format(id=7, application="hello")
        assert "{" not in text
        assert "edgecore" in text or "submit" in text.lower()
    assert len(FAILURES) == len({(each.step, each.kind) for each in FAILURES})
    for step in RESUMES_AT:  # one that fits anything hides all that follow
        of_step = [each for each in FAILURES if each.step is step]
        assert [of_step[-1]] == [each for each in of_step if not each.words and not each.codes]


@pytest.mark.parametrize(
    "words",
    [
        "was not to be submitted after", "is not registered any more", "max_transfer_bytes", "is not below a prefix",
        "gave up after", "gave no answer within", "ended with exit code", "attempts were made", "cannot run",
        "the site has no launcher", "the input has a directory", "given up: ", "interrupted: ", "declared dead",
        "ended before it started", "there is no such file in", "and its output was not staged out: ",
    ],
)  # fmt: skip
def test_the_words_by_which_a_kind_is_found_are_those_that_the_service_writes(words: str) -> None:
    package = Path(str(edgecore.__file__)).parent
    assert any(words in path.read_text() for path in package.glob("*.py"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "-"),
        (0, "0"),
        (3, "3"),
        (137, "137 (SIGKILL)"),
        (271, "271 (SIGTERM)"),
        (255, "255"),
        (-1, "-1"),
    ],
)
def test_an_exit_code_is_said_with_the_signal_that_it_stands_for(code: int | None, words: str) -> None:
    assert words == exit_words(code)


# ------------------------------------------------------------------------- what it waits for


def waits(place: Place, job: Job, **limits: Any) -> tuple[str, ...]:
    config = evolve(place.config, limits=Limits(**limits))
    with contextlib.closing(place.store()) as store, Reader(place.config.store) as reader:
        return waits_for(config, reader, job, store.now())


def test_a_job_that_is_settled_or_at_work_waits_for_nothing(place: Place) -> None:
    for state in (S.JOB_FINISHED, S.JOB_FAILED, S.RUNNING, S.CREATED, S.PREPROCESSED):
        assert () == waits(place, place.keep(state, attempt=attempt()))


def test_a_job_whose_service_does_not_run_waits_for_it(place: Place) -> None:
    job = place.keep(S.CREATED)
    with Reader(place.config.store) as reader:
        assert ("the service of site demo, which is not running here",) == waits_for(
            place.config, reader, job, 0
        )


def test_a_job_in_back_off_says_until_when_and_why(place: Place) -> None:
    job = evolve(place.keep(S.CREATED, message="broke off"), failures=3)
    (words,) = waits(place, evolve(job, due=job.changed + HOUR_US))
    assert words.startswith("its next try at ")
    assert words.endswith("after 3 failures in a row: broke off")
    assert " in 59 min " in words or " in 1 h 0 min " in words


def test_a_job_behind_a_limit_of_the_site_says_which(place: Place) -> None:
    job = place.keep(S.PREPROCESSED)
    assert () == waits(place, job, max_queued=1)
    place.keep(S.QUEUED)
    (words,) = waits(place, job, max_queued=1)
    assert "this site lets 1 jobs wait there (max_queued), and 1 do" in words

    staged = [place.keep(S.CREATED) for _ in range(3)]
    (words,) = waits(place, staged[-1], staging=2)
    assert "this site has 2 transfers at once (staging), and 2 other jobs want the same" in words


def test_a_job_at_the_batch_system_says_what_that_says(place: Place) -> None:
    queued = place.keep(S.QUEUED, message="Priority", attempt=attempt())
    assert ("the batch system: Priority",) == waits(place, queued)
    silent = place.keep(S.QUEUED, attempt=attempt())
    assert ("the batch system, which gives no reason",) == waits(place, silent)
    ours = place.keep(S.HELD, intent=Intent.HELD, attempt=attempt(held=True))
    assert [True] == [f"edgecore release {ours.id}" in words for words in waits(place, ours)]
    theirs = place.keep(S.HELD, message="JobHeldAdmin", attempt=attempt())
    assert ("whoever holds it in the batch system: JobHeldAdmin",) == waits(place, theirs)
    asked = place.keep(S.PREPROCESSED, intent=Intent.HELD)
    assert f"edgecore release {asked.id}" in waits(place, asked)[0]
    assert "it is given up at " in waits(place, place.keep(S.QUEUED, attempt=attempt(stuck=5)))[1]


# ------------------------------------------------------------------------------ as it is shown


def test_a_job_shows_where_its_files_are_how_long_it_took_and_its_alarm(place: Place) -> None:
    began = attempt(submitted=HOUR_US, started=2 * HOUR_US, ended=3 * HOUR_US, exit_code=137, reason="OOM")
    job = place.keep(S.RUNNING, job_id="mine", attempt=began, message="m\x1b[2J")
    with contextlib.closing(place.store()) as store:
        moved = job.moved(S.EXECUTION_FAILED, job.changed + 90_000_000, "exit code 137: OOM")
        ended = moved.moved(
            S.JOB_FAILED, job.changed + 90_000_001, "exit code 137: OOM", failed_state=S.EXECUTION_FAILED
        )
        store.apply([Change(job, (moved, ended))]).result(10)
        store.note_alarm(f"job {job.id}", "it needs you").result(10)
    data = batch.data_directory(place.config.work_directory, job.id)
    data.mkdir(parents=True)
    (data / "stderr.1.txt").write_text("Killed\n")

    shown = place.run("job", "mine").stdout

    assert "1 min 30 s  RUNNING" in shown
    assert "137 (SIGKILL)" in shown
    assert "alarm        it needs you (since " in shown
    assert f"{data / 'stderr.1.txt'}, last lines\n  Killed" in shown
    assert "more memory than it was given" in shown
    assert "\x1b" not in shown

    told = json.loads(place.run("job", "mine", "--json").stdout)
    assert [90.0, 0.000001, None] == [each["lasted_s"] for each in told["history"]]
    assert {"kind": "memory", "step": "EXECUTION_FAILED", "who": "submitter"}.items() <= told[
        "failure"
    ].items()
    assert "137 (SIGKILL)" == told["attempts"][0]["exit_words"]
    assert "1970-01-01T02:00:00.000000Z" == told["attempts"][0]["started"]
    assert "it needs you" == told["alarm"]["message"]
    assert {"stderr.1.txt": str(data / "stderr.1.txt")} == told["printed_files"]
    assert [] == told["waits_for"]


def test_a_rejected_definition_shows_every_reason_its_writer_and_its_message(place: Place) -> None:
    job = place.keep(owner="mallory")
    rejection = Rejection(
        message_id="m-1",
        sha256="ab" * 32,
        size_bytes=12_345,
        reasons=("colour: unknown key", "num_nodes: 0"),
        excerpt='{"name":\n\x1b[2J',
    )
    with contextlib.closing(place.store()) as store:
        rejected = evolve(job, id=store.new_id(), state=S.JOB_REJECTED, message="colour; num_nodes")
        store.take([Arrival("x", Change(None, (rejected,)), rejection=rejection)]).result(10)

    shown = place.run("job", str(rejected.id)).stdout

    assert "owner        mallory" in shown
    assert "why          colour: unknown key\n             num_nodes: 0\n" in shown
    assert f"sha256       {'ab' * 32}\nsize         12,345 bytes" in shown
    assert 'the message\n  {"name":\n  \\x1b[2J\n' in shown
    told = json.loads(place.run("job", str(rejected.id), "--json").stdout)["rejection"]
    assert ["colour: unknown key", "num_nodes: 0"] == told["reasons"]
    assert ("m-1", 12_345, rejection.excerpt) == (told["message_id"], told["size_bytes"], told["excerpt"])


def test_the_next_step_of_every_state_is_a_sentence() -> None:
    for state in NEXT:
        job = evolve(failed(S.STAGE_IN_FAILED, "x"), state=state, failed_state=None)
        assert "{" not in next_step(job)


def test_an_advice_holds_also_where_nothing_follows_it() -> None:
    texts = {each.kind: each.todo for each in FAILURES} | {state.value: text for state, text in NEXT.items()}
    assert [] == [name for name, text in texts.items() if "below" in text]
    assert "edgecore job {id}" in texts["application"]
