"""How people ask for something about a job: by message, as its sender, or through the store, as an operator."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import pytest
from scripted import Edge

from edgecore.desk import Desk
from edgecore.models import Intent
from edgecore.models import JobState as S
from edgecore.reader import Reader

# ----------------------------------------------------------------------------- control messages


@pytest.mark.parametrize("by", ["the sender's id", "our id"])
def test_a_sender_cancels_by_message(edge: Edge, by: str) -> None:
    edge.start()
    edge.send(application="long", **({"job_id": "mine"} if by == "the sender's id" else {}))
    job = edge.wait("job", S.RUNNING)
    edge.tell("cancel", job.public_id)
    edge.wait("job", S.JOB_CANCELLED)


def test_a_request_reaches_only_jobs_of_its_own_sender(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.broker.sender = "alice"
    edge.start()
    edge.send(application="long", job_id="hers")
    job = edge.wait("job", S.RUNNING)
    assert "alice" == job.owner
    edge.broker.sender = "mallory"
    for public_id in ("hers", job.id):
        edge.tell("cancel", public_id)
        edge.until(lambda wanted=public_id: f"mallory asked to cancel job {wanted}, of which" in caplog.text)  # type: ignore[misc]
    assert Intent.RUN is edge.job().intent


def test_two_owners_may_use_one_job_id_and_each_reaches_their_own(edge: Edge) -> None:
    edge.start()
    for owner in ("alice", "bob"):
        edge.broker.sender = owner
        edge.send(f"job-of-{owner}", "long", job_id="1")
        edge.wait(f"job-of-{owner}", S.RUNNING)
    edge.tell("cancel", "1")
    edge.wait("job-of-bob", S.JOB_CANCELLED)
    assert Intent.RUN is edge.job("job-of-alice").intent


def test_a_report_sends_the_present_status_again_under_its_number(edge: Edge) -> None:
    edge.start()
    edge.send(job_id="mine")
    finished = edge.wait("job", S.JOB_FINISHED)
    edge.until(lambda: len(edge.broker.sent) == finished.sequence)
    edge.tell("report", "mine")
    edge.until(lambda: len(edge.broker.sent) == finished.sequence + 1)
    again, last = (json.loads(message.body) for message in edge.broker.sent[-2:])
    assert last == again


def test_a_request_follows_the_accepted_job_and_not_a_later_rejected_one(edge: Edge) -> None:
    edge.start()
    edge.send(application="long", job_id="mine")
    edge.wait("job", S.RUNNING)
    edge.send("broken", "no-such-application", job_id="mine")
    edge.until(lambda: edge.job("broken").state is S.JOB_REJECTED)
    edge.tell("cancel", "mine")
    edge.wait("job", S.JOB_CANCELLED)


def test_a_request_is_acknowledged_only_when_it_is_durable(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.start()
    edge.send(application="long", job_id="mine")
    edge.wait("job", S.RUNNING)
    order: list[str] = []
    store_class = type(edge.balsam._engine.store)  # type: ignore[union-attr]
    set_intent = store_class.set_intent

    def slow(self: Any, job_id: int, intent: Intent, *, revive: bool) -> Future[None]:
        future = set_intent(self, job_id, intent, revive=revive)
        future.add_done_callback(lambda _: order.append("durable"))
        return future

    monkeypatch.setattr(store_class, "set_intent", slow)
    edge.broker.on_settle = lambda: order.append("settled")
    edge.tell("cancel", "mine")
    edge.wait("job", S.JOB_CANCELLED)
    edge.until(lambda: "settled" in order)
    assert ["durable", "settled"] == order


# ------------------------------------------------------------------------- operators' requests


def test_requests_made_while_the_service_is_away_are_carried_out_at_its_start(edge: Edge) -> None:
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.stop()
    edge.ask("cancel")
    edge.start()
    edge.wait("job", S.JOB_CANCELLED)
    with Reader(edge.config.store) as reader:
        assert () == reader.requests(0)


def test_a_request_about_no_job_is_logged_and_forgotten(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.start()
    Desk(edge.config.store).request("cancel", 42, asked_by="alice", now=1)
    edge.until(lambda: "alice asked to cancel job 42, which there is not" in caplog.text)


def test_a_request_that_cannot_be_carried_out_keeps_no_other_back_and_is_kept(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.send("odd", "no-such-application")
    odd = edge.wait("odd", S.JOB_REJECTED)
    with closing(sqlite3.connect(edge.config.store)) as connection, connection:
        connection.execute(
            "UPDATE jobs SET definition = json_set(definition, '$.of_a_newer_edgecore', 1) WHERE id = ?",
            (odd.id,),
        )
        live = connection.execute("SELECT id FROM jobs WHERE name = 'job'").fetchone()[0]
    for command, job_id in (("report", odd.id), ("cancel", live)):
        Desk(edge.config.store).request(command, job_id, asked_by="alice", now=1)
    edge.wait("job", S.JOB_CANCELLED)
    assert f"alice asked to report job {odd.id}, which failed and will be tried again" in caplog.text

    def left() -> list[str]:
        with Reader(edge.config.store) as reader:
            return [request.command for request in reader.requests(0)]

    edge.until(lambda: left() == ["report"])


def test_a_cancel_survives_a_kill_of_the_service(edge: Edge) -> None:
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.scheduling.down = "away"
    edge.ask("cancel")
    edge.until(lambda: edge.job().intent is Intent.CANCELLED)
    edge.restart()
    edge.scheduling.down = ""
    edge.wait("job", S.JOB_CANCELLED)
