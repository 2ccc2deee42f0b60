"""Definitions on their way from the sender to a job: identity, refusals, and answers to the sender."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import pytest
from attrs import evolve
from scripted import Edge

from edgecore import hookimpl
from edgecore.builtin.queue import SqliteMessaging
from edgecore.clock import Clock
from edgecore.config import Defaults, Limits
from edgecore.errors import BrokerUnavailable
from edgecore.models import Delivery, Job, Verdict
from edgecore.models import JobState as S
from edgecore.reader import Reader


def statuses(edge: Edge) -> list[dict[str, Any]]:
    return [json.loads(message.body) for message in edge.broker.sent]


def dead_letters(edge: Edge) -> list[tuple[str, bytes]]:
    driver = SqliteMessaging(url=edge.config.messaging.url)
    driver.open(edge.config.context)
    refused = driver.receive(queue=f"{edge.config.queue}.rejected", limit=100, timeout_s=0)
    letters = [(letter.reason, letter.body) for letter in refused]
    driver.close()
    return letters


def deliver(edge: Edge, document: dict[str, Any] | bytes, **more: Any) -> None:
    """Hand a delivery to a running service as its broker would, with any identity."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    edge.broker.extra.append(Delivery(token="", queue=edge.config.queue, body=body, **more))


def settled(edge: Edge, count: int) -> list[tuple[Verdict, str]]:
    """Wait until *count* such deliveries are settled; answers how."""
    edge.until(lambda: len(edge.broker.settled) >= count)
    return edge.broker.settled


# ----------------------------------------------------------------------------------- identity


def test_the_same_job_id_from_one_owner_is_one_job(edge: Edge) -> None:
    edge.start()
    for _ in range(3):
        deliver(edge, edge.site.job(application="quick", job_id="mine"), message_id=None)
    assert [(Verdict.ACCEPT, "")] * 3 == settled(edge, 3)
    edge.wait("job", S.JOB_FINISHED)
    assert 1 == len(edge.site.jobs())
    edge.restart()
    deliver(edge, edge.site.job(application="quick", job_id="mine"))
    settled(edge, 4)
    assert 1 == len(edge.site.jobs())


def test_a_number_and_its_text_are_one_job_id(edge: Edge) -> None:
    edge.start()
    deliver(edge, edge.site.job(application="quick", job_id=7))
    deliver(edge, edge.site.job(application="quick", job_id="7"))
    settled(edge, 2)
    assert 1 == len(edge.site.jobs())


@pytest.mark.slow
def test_listeners_are_asked_only_about_jobs_that_there_are(edge: Edge) -> None:
    unknown: set[int] = set()

    class Curious:
        @hookimpl
        def job_changing(self, before: Job, after: Job) -> None:
            with Reader(edge.config.store) as reader:
                if reader.job(before.id) is None:
                    unknown.add(before.id)

    edge.plugins.append(Curious())
    edge.start()
    for _ in range(3):
        deliver(edge, edge.site.job(application="quick", job_id="mine"))
    settled(edge, 3)
    edge.wait("job", S.JOB_FINISHED)
    assert set() == unknown


def test_two_owners_may_use_one_job_id(edge: Edge) -> None:
    edge.start()
    for owner in ("alice", "bob"):
        deliver(edge, edge.site.job(application="quick", job_id="1"), sender=owner)
    settled(edge, 2)
    assert {"alice", "bob"} == {job.owner for job in edge.site.jobs()}


def test_without_a_job_id_the_message_id_tells_a_redelivery(edge: Edge) -> None:
    edge.start()
    for message_id in ("m1", "m1", "m2"):
        deliver(edge, edge.site.job(application="quick"), message_id=message_id)
    settled(edge, 3)
    assert 2 == len(edge.site.jobs())


@pytest.mark.parametrize("message_id", [None, ""])
def test_without_any_id_only_what_is_flagged_as_redelivered_is_taken_for_a_repetition(
    edge: Edge, message_id: str | None
) -> None:
    edge.start()
    document = edge.site.job(application="quick")
    deliver(edge, document, message_id=message_id)
    deliver(edge, document, message_id=message_id)
    settled(edge, 2)
    assert 2 == len(edge.site.jobs())
    deliver(edge, document, message_id=message_id, redelivered=True)
    settled(edge, 3)
    assert 2 == len(edge.site.jobs())


class Calendar(Clock):
    """Tell the time some days ahead."""

    days = 0.0

    def now(self) -> int:
        return super().now() + round(self.days * 86_400_000_000)

    def monotonic(self) -> float:
        return super().monotonic() + self.days * 86_400


@pytest.mark.parametrize("body", [None, b"hello"], ids=["job", "rejected"])
def test_without_any_id_nothing_repeats_what_was_taken_more_than_a_day_ago(
    edge: Edge, body: bytes | None
) -> None:
    edge.clock = calendar = Calendar()
    edge.start()
    document = body or edge.site.job(application="quick")
    expected = []
    for days, jobs in ((0.0, 1), (0.9, 1), (1.1, 2), (2.0, 2)):
        calendar.days = days
        deliver(edge, document, redelivered=True)
        expected.append(jobs)
        settled(edge, len(expected))
        assert jobs == len(edge.site.jobs())


def test_a_repetition_is_logged_with_the_job_that_it_repeats(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgecore")
    edge.start()
    deliver(edge, edge.site.job(application="quick", job_id="mine"), message_id="m1")
    settled(edge, 1)
    assert "repeats job" not in caplog.text
    deliver(edge, edge.site.job(application="quick", job_id="mine"), message_id="m2")
    settled(edge, 2)
    assert f"message m2 repeats job {edge.job().id}" in caplog.text


def test_a_first_sight_that_is_flagged_as_redelivered_is_a_job(edge: Edge) -> None:
    edge.start()
    deliver(edge, edge.site.job(application="quick"), redelivered=True)
    edge.wait("job", S.JOB_FINISHED)


def test_a_job_belongs_to_the_sites_default_owner_when_the_broker_vouches_for_nobody(edge: Edge) -> None:
    edge.config = evolve(edge.config, owner="operator")
    edge.start()
    edge.send()
    assert "operator" == edge.wait("job", S.JOB_FINISHED).owner


def test_the_sites_defaults_are_kept_with_the_job(edge: Edge) -> None:
    edge.config = evolve(edge.config, defaults=Defaults(queue="debug", wall_time_minutes=5))
    edge.start()
    edge.send(wall_time_minutes=6)
    definition = edge.wait("job", S.JOB_FINISHED).definition
    assert ("debug", 6) == (definition.queue, definition.wall_time_minutes)
    assert "debug" == edge.scheduling.entries[0].group.queue


# ----------------------------------------------------------------------------------- refusals


def test_a_refusal_gives_all_reasons_at_once_and_is_visible_everywhere(edge: Edge) -> None:
    edge.config = evolve(edge.config, limits=Limits(max_nodes=100))
    edge.start()
    edge.send(
        "broken",
        "ledgre",
        site="elsewhere",
        num_nodes=1000,
        input_url="file:///etc/",
        wall_time=7,
        job_id="mine",
        argo_job_id=77,
    )
    rejected = edge.wait("broken", S.JOB_REJECTED)
    for words in ("ledger", "testsite", "at most 100", "file:///etc/", "wall_time_minutes"):
        assert words in rejected.message
    edge.until(lambda: len(edge.broker.sent) == 1)
    (status,) = statuses(edge)
    assert ("JOB_REJECTED", "mine", 77, "broken", 1) == (
        *(status["state"], status["job_id"], status["argo_job_id"], status["name"], status["sequence"]),
    )
    assert rejected.message == status["message"]
    assert "sha256" in status["message"]
    edge.stop()
    ((reason, body),) = dead_letters(edge)
    assert "wall_time_minutes" in reason
    assert "ledgre" == json.loads(body)["application"]
    with Reader(edge.config.store) as reader:
        kept = reader.rejection(rejected.id)
    assert kept is not None
    assert (body.decode(), len(body)) == (kept.excerpt, kept.size_bytes)
    assert hashlib.sha256(body).hexdigest() == kept.sha256
    assert reason == "; ".join(kept.reasons)
    assert S.JOB_REJECTED is edge.job("broken").state


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b"[1, 2]", b'{"name": "a",}', b"\xff\xfe", b'{"name": NaN}', b"[" * 10_000],
    ids=["empty", "text", "list", "comma", "bytes", "nan", "deep"],
)
def test_what_is_no_definition_is_refused_and_what_follows_is_taken(edge: Edge, body: bytes) -> None:
    edge.start()
    deliver(edge, body, message_id="strange")
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    assert "message id strange" in edge.wait("unknown", S.JOB_REJECTED).message
    assert any(verdict is Verdict.REFUSE and reason for verdict, reason in settled(edge, 2))


def test_a_message_that_is_too_large_is_refused(edge: Edge) -> None:
    edge.config = evolve(edge.config, limits=Limits(max_message_bytes=1000))
    edge.start()
    edge.send(description="x" * 1001)
    assert "1,000" in edge.wait("unknown", S.JOB_REJECTED).message


def test_a_workflow_is_refused_with_words(edge: Edge) -> None:
    edge.start()
    deliver(edge, {"name": "flow", "subjobs": [edge.site.job(application="quick")]})
    assert "a workflow is for Argo" in edge.wait("flow", S.JOB_REJECTED).message


def test_a_request_with_an_unknown_command_is_refused(edge: Edge) -> None:
    edge.start()
    deliver(edge, {"command": "destroy", "job_id": 1})
    assert "destroy" in edge.wait("request", S.JOB_REJECTED).message


def test_a_faulty_request_is_not_told_of_the_job_that_it_names(edge: Edge) -> None:
    edge.start()
    edge.send("mine", job_id="w2")
    edge.wait("mine", S.JOB_FINISHED)
    deliver(edge, {"command": "cancel", "job_id": "w2", "reason": "changed my mind"})
    refused = edge.wait("request", S.JOB_REJECTED)
    assert "reason: unknown key" in refused.message
    assert refused.id == refused.public_id


def test_a_corrected_definition_under_the_same_job_id_is_accepted(edge: Edge) -> None:
    edge.start()
    edge.send("first", "no-such-application", job_id="mine")
    edge.wait("first", S.JOB_REJECTED)
    edge.send("second", job_id="mine")
    edge.wait("second", S.JOB_FINISHED)


def test_a_refusal_that_is_delivered_again_is_told_once(edge: Edge) -> None:
    edge.start()
    deliver(edge, b"hello", message_id="m")
    deliver(edge, b"hello", message_id="m", redelivered=True)
    settled(edge, 2)
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    assert 1 == sum(job.state is S.JOB_REJECTED for job in edge.site.jobs())


def test_a_refusal_goes_also_to_where_the_sender_wants_its_answer(edge: Edge) -> None:
    edge.start()
    deliver(edge, b"hello", reply_to="status.alice")
    edge.broker.unroutable = lambda message: False
    edge.until(lambda: len(edge.broker.offered) >= 2)
    keys = [message.key for message in edge.broker.offered]
    assert {"balsam_job_status", "status.alice"} == set(keys)
    bodies = {message.body for message in edge.broker.offered}
    assert 1 == len(bodies)


@pytest.mark.parametrize("key", ["testsite", "balsam_job_status", "status.", "status.a b", "#"])
def test_an_answer_goes_to_no_other_key_than_status_names(edge: Edge, key: str) -> None:
    edge.start()
    deliver(edge, b"hello", reply_to=key)
    edge.wait("unknown", S.JOB_REJECTED)
    edge.send()
    finished = edge.wait("job", S.JOB_FINISHED)
    edge.until(lambda: len(edge.broker.sent) >= finished.sequence + 1)
    assert {"balsam_job_status"} == {message.key for message in edge.broker.offered}


# --------------------------------------------------------------------------- a broker that fails


def test_what_could_not_be_acknowledged_comes_again_and_changes_nothing(edge: Edge) -> None:
    lost: list[int] = []

    def lose_once() -> None:
        if not lost:
            lost.append(1)
            raise BrokerUnavailable("connection reset")

    edge.broker.on_settle = lose_once
    edge.start()
    edge.send(job_id="mine")
    edge.wait("job", S.JOB_FINISHED)
    edge.restart()  # a former connection's deliveries come again
    edge.until(lambda: edge.broker.acknowledged >= 1)
    assert 1 == len(edge.site.jobs())
    assert {edge.job().id: 1} == edge.site.starts()
