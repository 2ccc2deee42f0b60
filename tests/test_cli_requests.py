"""What cancel, hold, release and retry ask of a service, and whether one is there to hear it."""

from __future__ import annotations

import fcntl
import json
import threading

import pytest
from places import Place

from edgecore.models import Intent, JobState
from edgecore.reader import Reader
from edgecore.store_file import is_running

S = JobState


@pytest.mark.parametrize(
    ("command", "state"),
    [
        ("cancel", S.RUNNING),
        ("hold", S.QUEUED),
        ("release", S.HELD),
        ("retry", S.JOB_FAILED),
        ("retry", S.LOST),
    ],
)
def test_a_request_is_written_for_the_service(place: Place, command: str, state: JobState) -> None:
    job = place.keep(state)

    result = place.run(command, str(job.id))

    assert result.exit_code == 0
    assert place.requests() == [(command, job.id)]
    assert f"asked: {command} job {job.id}" in result.stdout
    assert "is not running here; the request waits in the store until it is" in result.stderr


@pytest.mark.parametrize(
    ("command", "state", "words"),
    [
        ("cancel", S.JOB_FINISHED, "it is JOB_FINISHED already"),
        ("hold", S.JOB_FAILED, "it is JOB_FAILED already"),
        ("release", S.JOB_CANCELLED, "it is JOB_CANCELLED already"),
        ("retry", S.RUNNING, "a retry is for JOB_FAILED, LOST, SUBMIT_DISABLED"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_words(
    place: Place, command: str, state: JobState, words: str
) -> None:
    job = place.keep(state)

    result = place.run(command, str(job.id))

    assert result.exit_code == 1
    assert words in result.stderr
    assert place.requests() == []


def test_a_retry_from_the_start_is_asked_for_and_refused_where_there_is_no_start_to_go_back_to(
    place: Place,
) -> None:
    failed, lost = place.keep(S.JOB_FAILED), place.keep(S.LOST)

    result = place.run("retry", "--from-start", str(failed.id), str(lost.id))

    with Reader(place.config.store) as reader:
        assert [(failed.id, True)] == [(each.job_id, each.from_start) for each in reader.requests(0)]
    assert result.exit_code == 1
    assert "it is LOST; a retry from the start is for JOB_FAILED" in result.stderr


def test_a_job_that_is_being_cancelled_is_not_held(place: Place) -> None:
    job = place.keep(intent=Intent.CANCELLED)

    result = place.run("hold", str(job.id))

    assert "it is being cancelled" in result.stderr
    assert place.requests() == []


def test_a_wrong_id_does_not_keep_the_others_from_being_asked_for(place: Place) -> None:
    job = place.keep()

    result = place.run("cancel", "nothing", str(job.id), "--json")

    assert result.exit_code == 1
    assert [each["accepted"] for each in json.loads(result.stdout)] == [False, True]
    assert place.requests() == [("cancel", job.id)]


def test_looking_for_a_service_neither_keeps_nor_makes_its_lock(place: Place) -> None:
    assert not is_running(place.config.store)
    assert not place.config.store.with_name("site.sqlite.lock").exists()
    store = place.store()
    assert is_running(place.config.store)
    store.close()
    assert not is_running(place.config.store)
    place.store().close()


def test_a_service_starts_although_somebody_looks_for_it(place: Place) -> None:
    place.store().close()
    with open(place.config.store.with_name("site.sqlite.lock")) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.03, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        timer.start()
        place.store().close()
        timer.join()
