"""A whole Balsam works over TLS with RabbitMQ, and goes on while the broker is away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rabbitmq_helpers import SITE, again, connected, message, rest, service_settings, taken
from sites import Site, make_site, wait_for
from test_sockets import sockets
from testbed.rabbitmq import RabbitMQ

from edgecore.models import JobState, Verdict
from edgecore.relays import MessagingRelay

pytestmark = pytest.mark.slow


def take(relay: MessagingRelay, queue: str) -> list[Any]:
    deliveries = again(lambda: rest(relay, queue))
    relay.settle(deliveries=deliveries, verdict=Verdict.ACCEPT, reason="")
    return list(deliveries)


@pytest.fixture
def operator(rabbitmq: RabbitMQ) -> Iterator[MessagingRelay]:
    with connected(rabbitmq.settings()) as earlier:  # closed again: who has received, goes on being sent to
        earlier.declare(topology=SITE)
        for queue in ("theta", "theta.rejected", "balsam_job_status"):
            take(earlier, queue)
    with connected(rabbitmq.settings()) as relay:
        yield relay


@pytest.fixture
def site(rabbitmq: RabbitMQ, tmp_path: Path) -> Site:
    """A site whose broker is RabbitMQ, where it has no more permissions than it needs."""
    return make_site(tmp_path / "site", messaging=service_settings(rabbitmq))


def test_jobs_run_once_each_while_the_broker_is_killed(
    site: Site, rabbitmq: RabbitMQ, operator: MessagingRelay
) -> None:
    site.add_ledger("waits", waits=True)
    before, after = [f"job{n}" for n in range(6)], [f"late{n}" for n in range(4)]

    def ask(*names: str, application: str) -> None:
        bodies = {
            name: json.dumps(site.job(name=name, application=application, job_id=name)) for name in names
        }
        messages = [message(name, body=body.encode()) for name, body in bodies.items()]
        with connected(rabbitmq.settings("physicist", may_declare=False)) as submitter:
            assert len(names) == again(lambda: submitter.send(messages=messages)).sent

    ask(*before, application="waits")
    with connected(rabbitmq.settings("physicist", may_declare=False)) as submitter:
        submitter.send(messages=[message("bad", body=b"{")])
    with site.service() as process:
        wait_for(lambda: site.starts(), 60, site.diagnosis)
        assert not [each for each in sockets(process.pid) if "listening" in each]
        wait_for(lambda: 2 == sockets(process.pid).count("tcp connected"), 60, lambda: sockets(process.pid))
        rabbitmq.kill()
        site.let_end(*before)
        wait_for(lambda: len(site.starts()) == len(before), 60, site.diagnosis)
        rabbitmq.start()
        ask(*after, application="ledger")
        jobs = site.wait_settled(len(before) + len(after) + 1, 120)
        site.wait_published(60)
        letters = list(again(lambda: taken(operator, 1, "theta.rejected")))
    assert {1} == set(site.starts().values())
    states = {job.name: job.state for job in jobs if job.name in {*before, *after}}
    assert dict.fromkeys([*before, *after], JobState.JOB_FINISHED) == states
    assert {"physicist"} == {job.owner for job in jobs if job.name in states} - {"local"}
    # A kill between the letter and the settling of what it repeats brings both again.
    for letter in [*letters, *take(operator, "theta.rejected")]:
        assert (b"{", "bad") == (letter.body, letter.message_id)
        assert "line 1" in letter.reason
    told: dict[str, list[int]] = {}
    unfinished = set(states)
    while unfinished:  # all of it is at the broker, which may take its time
        for each in [
            *again(lambda: taken(operator, 1, "balsam_job_status")),
            *take(operator, "balsam_job_status"),
        ]:
            assert "theta" == each.sender, "status tells who sent it, and the broker vouches for that"
            status = json.loads(each.body)
            told.setdefault(status["name"], []).append(status["sequence"])
            if status["state"] == JobState.JOB_FINISHED:
                unfinished.discard(status["name"])
    for name in states:
        first_time = list(dict.fromkeys(told[name]))
        assert list(range(1, len(first_time) + 1)) == first_time
