"""Ids, routing keys and batch options that somebody forges reach nothing that is not theirs."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from attrs import evolve
from hostile_files import FILES
from scripted import Edge

from edgecore import serial
from edgecore.cli.common import find_job
from edgecore.errors import DefinitionError
from edgecore.models import Delivery, Intent, Option, Verdict, WorkflowDefinition
from edgecore.models import JobState as S
from edgecore.reader import Reader

KEYS = (
    *("#", "*", "status.#", "status.*", "status.a.#", "balsam_job_status", "argo_job", "testsite", "hpc", ""),
    *(
        "status.",
        "status",
        "Status.me",
        "status.me ",
        "status.me\n",
        "\nstatus.me",
        "status.a b",
        "status.a/b",
    ),
    *(
        "status.m\u0435",
        "status\uff0eme",
        "status.me\0",
        "status." + "x" * 101,
        "mystatus.me",
        "status.\ud800",
    ),
)
"""Routing keys that lead to others, or that only look like one's own."""


@pytest.mark.parametrize("key", KEYS)
def test_a_workflow_cannot_name_the_routing_key_of_others(key: str) -> None:
    document = {"name": "w", "subjobs": [], "job_status_routing_key": key}
    with pytest.raises(DefinitionError, match=r"job_status_routing_key: found .* must be a routing key"):
        serial.structure(WorkflowDefinition, document, source="x", error=DefinitionError)


@pytest.mark.slow
def test_an_answer_goes_to_no_key_of_others(edge: Edge) -> None:
    edge.broker.answers = True
    edge.start()
    for key in (*KEYS, "status.me"):
        edge.broker.extra.append(
            Delivery(token="", queue=edge.config.queue, body=b"{", message_id=key, reply_to=key)
        )
    edge.until(lambda: len(edge.broker.settled) == len(KEYS) + 1)
    edge.until(lambda: len(edge.broker.sent) == len(KEYS) + 2)
    assert {Verdict.REFUSE} == {verdict for verdict, _ in edge.broker.settled}
    assert {"balsam_job_status", "status.me"} == {message.key for message in edge.broker.offered}
    assert [1] == [1 for message in edge.broker.offered if message.key == "status.me"]


@pytest.mark.slow
def test_a_name_that_no_text_can_hold_does_not_come_for_ever(edge: Edge) -> None:
    """Nor does it keep others from being taken, nor are two such names one."""
    edge.start()
    job = json.dumps(edge.site.job(application="quick")).encode()
    for name in ("\ud800", "\udfff", "a\0b", "a\tb", "\u202e", "x" * 10_000):
        for body in (job, b"{"):
            edge.broker.extra.append(
                Delivery(token="", queue=edge.config.queue, body=body, message_id=name, sender=f"me{name}")
            )
    edge.until(lambda: len(edge.broker.settled) == 12)
    assert {Verdict.ACCEPT: 6, Verdict.REFUSE: 6} == Counter(verdict for verdict, _ in edge.broker.settled)
    edge.until(
        lambda: Counter(job.state for job in edge.site.jobs()) == {S.JOB_FINISHED: 6, S.JOB_REJECTED: 6}
    )


@pytest.mark.slow
def test_no_forged_id_reaches_the_job_of_somebody_else(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.broker.sender = "alice"
    edge.start()
    edge.send("hers", "long", job_id="hers")
    job = edge.wait("hers", S.RUNNING)
    assert job.attempt is not None
    tag = job.attempt.tag
    edge.broker.sender = "mallory"
    # A job whose id is that of hers in our books, and one with her own id for it.
    edge.send("forged", "long", job_id=job.id)
    edge.send("again", "long", job_id="hers")
    edge.wait("forged", S.RUNNING)
    edge.wait("again", S.RUNNING)
    with Reader(edge.config.store) as reader:
        assert job.id == find_job(reader, str(job.id)).id  # an operator means ours
    ids = (
        job.id,
        str(job.id),
        f"0{job.id}",
        job.id + 1,
        "hers",
        "Hers",
        "..",
        0,
        2**53 - 1,
        "-1",
        tag,
    )
    for wanted in ids:
        edge.tell("cancel", wanted)
    edge.wait("forged", S.JOB_CANCELLED)
    edge.wait("again", S.JOB_CANCELLED)
    edge.until(lambda: "mallory asked to cancel job -1, of which" in caplog.text)
    assert (S.RUNNING, Intent.RUN) == (edge.job("hers").state, edge.job("hers").intent)
    edge.broker.sender = "alice"
    edge.tell("cancel", job.id)  # whatever others call theirs
    edge.wait("hers", S.JOB_CANCELLED)


@pytest.mark.slow
def test_a_batch_option_reaches_the_driver_as_the_literal_text(edge: Edge) -> None:
    options = {
        "constraint": Option(type="string", pattern="[a-z|&]+", required=False),
        "reservation": Option(type="string", required=False),
    }
    edge.config = evolve(edge.config, scheduling=evolve(edge.config.scheduling, options=options))
    edge.start()
    cases = [case for case in FILES if case.options]
    assert len(cases) > 3
    for number, case in enumerate(cases):
        place = edge.site.base / "data" / f"in-{number}"
        place.mkdir()
        ((name, text),) = case.files.items()
        (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        edge.send(f"job-{number}", scheduler_config=name, input_url=f"file://{place}")
        edge.wait(f"job-{number}", S.JOB_FINISHED)
    asked = [dict(entry.group.options) for entry in edge.scheduling.entries]
    assert [dict(case.options) for case in cases] == asked
