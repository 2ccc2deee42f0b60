"""Status messages: kept until the broker has them, in order, and never in each other's way."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

import pytest
from scripted import Edge

import edgecore.outbox
from edgecore.backoff import Backoff
from edgecore.models import Delivery, OutgoingMessage
from edgecore.models import JobState as S
from edgecore.reader import OutboxEntry, Reader

INIT = edgecore.outbox.Outbox.__init__


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the outbox wait for a broker as impatiently as tests do."""
    patient(monkeypatch, 0.05, 0.2)


def patient(monkeypatch: pytest.MonkeyPatch, first_s: float, longest_s: float) -> None:
    def init(self: edgecore.outbox.Outbox, **more: object) -> None:
        INIT(self, **more, backoff=Backoff(first_s=first_s, longest_s=longest_s))  # type: ignore[arg-type]

    monkeypatch.setattr(edgecore.outbox.Outbox, "__init__", init)


def about(edge: Edge, name: str, messages: list[OutgoingMessage] | None = None) -> list[int]:
    """Return the sequence numbers of what was sent about a job, in the order sent."""
    bodies = [json.loads(message.body) for message in (edge.broker.sent if messages is None else messages)]
    return [body["sequence"] for body in bodies if body["name"] == name]


def names(job: str) -> object:
    """Return what tells messages about that job."""
    return lambda message: json.loads(message.body)["name"] == job


def empty(edge: Edge) -> bool:
    with Reader(edge.config.store) as reader:
        return not reader.outbox(0, 1)


def test_what_the_broker_has_is_forgotten(edge: Edge) -> None:
    edge.start()
    edge.send()
    edge.wait("job", S.JOB_FINISHED)
    edge.until(lambda: empty(edge))
    assert edge.site.statuses()[-1]["state"] == "JOB_FINISHED"


def test_messages_carry_exchange_key_and_an_id_of_their_own(edge: Edge) -> None:
    edge.start()
    edge.send()
    finished = edge.wait("job", S.JOB_FINISHED)
    edge.until(lambda: len(edge.broker.sent) == finished.sequence)
    assert {("hpc", "balsam_job_status")} == {(m.exchange, m.key) for m in edge.broker.sent}
    assert finished.sequence == len({message.message_id for message in edge.broker.sent})


def test_what_becomes_durable_soon_after_a_sending_goes_together(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, sendings = edgecore.outbox.Outbox._send, []

    def counted(outbox: edgecore.outbox.Outbox, entries: Sequence[OutboxEntry]) -> Mapping[str, str]:
        sendings.append(entries)
        return send(outbox, entries)

    monkeypatch.setattr(edgecore.outbox.Outbox, "_send", counted)
    monkeypatch.setattr(edgecore.outbox, "_GATHER_S", 60.0)
    edge.start()
    edge.send()
    finished = edge.wait("job", S.JOB_FINISHED)
    edge.stop()  # which sends what is there
    assert len(sendings) <= 2
    assert list(range(1, finished.sequence + 1)) == about(edge, "job")


def test_a_broker_that_goes_away_stops_nothing_but_messages_which_come_later_in_order(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    edge.wait("job", S.QUEUED)
    edge.until(lambda: empty(edge))
    edge.broker.down = "connection to broker:5671 lost"
    edge.scheduling.start(edge.wait_entry())
    finished = edge.wait("job", S.JOB_FINISHED)  # monitoring and staging go on
    assert "connection to broker:5671 lost" in edge.wait_alarm("message broker")
    assert not empty(edge)
    edge.broker.down = ""
    edge.wait_alarm("message broker", cleared=True)
    edge.until(lambda: empty(edge))
    assert list(range(1, finished.sequence + 1)) == about(edge, "job")
    assert 1 == len([r for r in caplog.records if "takes no messages" in r.message])


def test_messages_outlive_a_restart_without_a_broker(edge: Edge) -> None:
    edge.start()
    edge.broker.error = None
    edge.send()
    edge.wait("job", S.CREATED)
    edge.broker.down = "away"
    finished = edge.wait("job", S.JOB_FINISHED)
    edge.stop()
    assert not empty(edge)
    edge.broker.down = ""
    edge.start()
    edge.until(lambda: empty(edge))
    assert list(range(1, finished.sequence + 1)) == about(edge, "job")


def test_an_unroutable_status_is_set_apart_with_its_job_and_delays_no_other(edge: Edge) -> None:
    edge.broker.unroutable = names("odd")  # type: ignore[assignment]
    edge.start()
    edge.send("odd")
    edge.wait("odd", S.JOB_FINISHED)
    edge.wait_alarm("status messages")
    edge.send("even")
    even = edge.wait("even", S.JOB_FINISHED)
    edge.until(lambda: len(about(edge, "even")) == even.sequence)
    assert [] == about(edge, "odd")
    edge.broker.unroutable = lambda message: False
    edge.until(lambda: empty(edge))
    assert list(range(1, edge.job("odd").sequence + 1)) == about(edge, "odd")
    edge.wait_alarm("status messages", cleared=True)


def test_what_was_set_apart_goes_when_its_own_way_is_free_whatever_becomes_of_the_others(edge: Edge) -> None:
    nowhere = {"odd", "strange"}
    edge.broker.unroutable = lambda message: json.loads(message.body)["name"] in nowhere
    edge.start()
    for name in ("odd", "strange"):
        edge.send(name, "no-such-application")
        edge.wait(name, S.JOB_REJECTED)
        edge.until(lambda wanted=name: about(edge, wanted, edge.broker.offered) != [])  # type: ignore[misc]
    for free in ("odd", "strange"):
        assert [] == about(edge, free)
        nowhere.discard(free)
        edge.until(lambda wanted=free: about(edge, wanted) == [1])  # type: ignore[misc]
    edge.until(lambda: empty(edge))


def test_one_unroutable_message_alone_is_no_reason_to_wait(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first message of all leads nowhere: those that come next go at once, not after a back-off."""
    patient(monkeypatch, 600, 600)
    edge.broker.unroutable = names("odd")  # type: ignore[assignment]
    edge.start()
    edge.send("odd", "no-such-application")
    edge.wait("odd", S.JOB_REJECTED)
    edge.until(lambda: len(edge.broker.offered) >= 1)
    edge.send("even")
    even = edge.wait("even", S.JOB_FINISHED)
    edge.until(lambda: len(about(edge, "even")) == even.sequence)


def test_an_answer_that_leads_nowhere_delays_no_other_answer(edge: Edge) -> None:
    def gone(message: OutgoingMessage) -> bool:
        return message.key == "status.gone"

    edge.broker.unroutable = gone
    edge.broker.answers = True
    edge.start()
    for key in ("status.gone", "status.alice", "status.bob"):
        edge.broker.extra.append(Delivery(token="", queue="testsite", body=key.encode(), reply_to=key))
        edge.until(lambda wanted=key: wanted in {m.key for m in edge.broker.offered})  # type: ignore[misc]
    edge.until(lambda: {"status.alice", "status.bob"} <= {m.key for m in edge.broker.sent})


def test_answers_that_lead_nowhere_are_forgotten_and_keep_no_status_back(edge: Edge) -> None:
    edge.broker.unroutable = lambda message: message.key == "status.nobody"
    edge.start()
    for number in range(30):
        delivery = Delivery(token="", queue="testsite", body=b"%d" % number, reply_to="status.nobody")
        edge.broker.extra.append(delivery)
    edge.until(lambda: sum(job.state is S.JOB_REJECTED for job in edge.site.jobs()) == 30)
    edge.send("even")
    even = edge.wait("even", S.JOB_FINISHED)
    edge.until(lambda: len(about(edge, "even")) == even.sequence)
    edge.until(lambda: empty(edge))


def test_a_broker_to_which_nothing_leads_is_waited_for_with_an_alarm(edge: Edge) -> None:
    edge.broker.unroutable = lambda message: True
    edge.start()
    edge.site.send(*(edge.site.job(name=f"job-{number}", application="quick") for number in range(3)))
    for number in range(3):
        edge.wait(f"job-{number}", S.JOB_FINISHED)
    assert "no queue is bound" in edge.wait_alarm("status messages")
    edge.broker.unroutable = lambda message: False
    edge.until(lambda: empty(edge))
    for number in range(3):
        sequence = edge.job(f"job-{number}").sequence
        assert list(range(1, sequence + 1)) == list(dict.fromkeys(about(edge, f"job-{number}")))


def test_a_driver_that_fails_in_its_own_way_is_asked_again(edge: Edge) -> None:
    edge.start()
    edge.send()
    edge.wait("job", S.CREATED)
    edge.broker.error = ValueError("bad frame")
    finished = edge.wait("job", S.JOB_FINISHED)
    edge.broker.error = None
    edge.until(lambda: empty(edge))
    assert finished.sequence == about(edge, "job")[-1]
