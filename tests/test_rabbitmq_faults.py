"""What goes wrong around RabbitMQ loses nothing, doubles nothing unseen, and is told in words."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pika
import pika.data
import pytest
from rabbitmq_helpers import (
    DEADLINE_S,
    SITE,
    accept,
    again,
    connected,
    message,
    operator,
    rest,
    server,
    site,
    stranger,
    taken,
)
from testbed.certificates import Authority
from testbed.rabbitmq import RabbitMQ
from testbed.stall import Proxy

from edgecore.errors import BrokerUnavailable, ConfigurationError
from edgecore.models import Level, Queue, Topology, Verdict
from edgecore.relays import MessagingRelay

__all__ = ["operator", "server", "site"]

pytestmark = pytest.mark.slow


# ------------------------------------------------------------------------------- broken servers


def test_a_broker_killed_while_messages_are_sent_and_taken_loses_none(
    server: RabbitMQ, operator: MessagingRelay
) -> None:
    confirmed: list[str] = []
    sent: Counter[str] = Counter()
    came: list[tuple[str, bool]] = []
    done = threading.Event()

    def produce() -> None:
        for call in range(300):
            names = [f"{call}.{n}" for n in range(20)]

            def send(names: list[str] = names) -> None:
                sent.update(names)
                operator.send(messages=[message(name) for name in names])

            again(send)
            confirmed.extend(names)
        done.set()

    def consume(site: MessagingRelay) -> None:
        deadline = time.monotonic() + 3 * DEADLINE_S
        while not (done.is_set() and {name for name, _ in came} >= set(confirmed)):
            assert time.monotonic() < deadline
            deliveries = again(lambda: site.receive(queue="theta", limit=50, timeout_s=0.2))
            came.extend((each.message_id or "", each.redelivered) for each in deliveries)
            if deliveries:
                try:
                    accept(site, deliveries)
                except BrokerUnavailable:
                    continue  # they come again

    with connected(server.settings("theta", may_declare=False)) as site, ThreadPoolExecutor(2) as pool:
        working = [pool.submit(produce), pool.submit(consume, site)]
        while len(came) < 500 and not done.is_set():
            done.wait(0.01)
        server.kill()
        assert not done.is_set(), "it was killed too late for this test"
        server.start()
        for each in working:
            each.result(4 * DEADLINE_S)
        accept(site, rest(site))
    assert 6000 == len(set(confirmed))
    assert set(confirmed) == {name for name, _ in came}
    unflagged = Counter(name for name, flagged in came if not flagged)
    assert all(count <= sent[name] for name, count in unflagged.items()), (
        "what came twice unflagged was sent twice"
    )


def test_a_connection_that_falls_silent_is_given_up_and_made_anew(
    server: RabbitMQ, operator: MessagingRelay
) -> None:
    proxy = Proxy(server.tls).start()
    try:
        settings = server.settings("theta", may_declare=False, heartbeat_s=2, connect_timeout_s=2.0)
        settings["url"] = f"amqps://localhost:{proxy.port}/"
        with connected(settings) as site:
            assert [] == list(site.receive(queue="theta", limit=1, timeout_s=0.1))
            with proxy.stall():
                with pytest.raises(BrokerUnavailable, match=r"silent|did not answer"):
                    site.receive(queue="theta", limit=1, timeout_s=DEADLINE_S)
                with pytest.raises(BrokerUnavailable):
                    again_until_silent(site)
            operator.send(messages=[message("a")])
            got = again(lambda: taken(site, 1))
            assert ["a"] == [each.message_id for each in got]
            assert 1 == accept(site, got)
            assert 1 == again(lambda: site.send(messages=[message("s", "balsam_job_status")])).sent
    finally:
        proxy.close()


def again_until_silent(site: MessagingRelay) -> None:
    """Send over a silent connection: it must not hang."""
    site.send(messages=[message("x", "balsam_job_status")])


def test_a_frozen_broker_hangs_nobody(server: RabbitMQ) -> None:
    with connected(
        server.settings("theta", may_declare=False, answer_timeout_s=1.0, connect_timeout_s=1.0)
    ) as site:
        server.freeze()
        try:
            begun = time.monotonic()
            with pytest.raises(BrokerUnavailable, match="did not"):
                site.send(messages=[message("x", "balsam_job_status")])
            with pytest.raises(BrokerUnavailable):
                site.receive(queue="theta", limit=1, timeout_s=0.1)
            assert time.monotonic() - begun < 15
        finally:
            server.thaw()
        assert 1 == again(lambda: site.send(messages=[message("x", "balsam_job_status")])).sent


def test_a_full_memory_holds_up_sending_in_words_and_nothing_else(
    server: RabbitMQ, operator: MessagingRelay
) -> None:
    operator.send(messages=[message("a"), message("bad"), message("c")])
    with connected(server.settings("theta", may_declare=False, blocked_timeout_s=1.0)) as site:
        one, bad, other = taken(site, 3)
        server.alarm(on=True)
        try:
            with pytest.raises(BrokerUnavailable, match="takes no messages"):
                site.send(messages=[message("x", "balsam_job_status")])
            assert 1 == accept(site, [one]), "acknowledgements do not wait with the messages"
            with pytest.raises(BrokerUnavailable):
                site.settle(deliveries=[bad], verdict=Verdict.REFUSE, reason="bad")
            (bad,) = taken(site, 1)
            assert ("bad", True) == (bad.message_id, bad.redelivered), "it went back"
        finally:
            server.alarm(on=False)
        again(lambda: site.send(messages=[message("x", "balsam_job_status")]))
        assert 1 == site.settle(deliveries=[bad], verdict=Verdict.REFUSE, reason="why").count
        assert 1 == accept(site, [other])
        letters = {(each.message_id, each.reason) for each in rest(operator, "theta.rejected")}
        assert ("bad", "why") in letters
        assert letters <= {("bad", "why"), ("bad", "bad")}, (
            "what was not confirmed may have arrived all the same"
        )


def test_a_queue_that_is_deleted_is_told_and_made_again(server: RabbitMQ, operator: MessagingRelay) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(operator.receive, queue="theta", limit=1, timeout_s=DEADLINE_S)
        server.control("delete_queue", "theta")
        with pytest.raises(BrokerUnavailable, match="deleted"):
            waiting.result(DEADLINE_S)
    assert [] == list(operator.receive(queue="theta", limit=1, timeout_s=0.1))
    assert {} == operator.send(messages=[message("a")]).unroutable
    assert ["a"] == [each.message_id for each in taken(operator, 1)]


def test_a_missing_queue_of_dead_letters_keeps_the_refused_message(
    server: RabbitMQ, operator: MessagingRelay, site: MessagingRelay
) -> None:
    operator.send(messages=[message("bad")])
    held = taken(site, 1)
    server.control("delete_queue", "theta.rejected")
    with pytest.raises(BrokerUnavailable, match="dead letters"):
        site.settle(deliveries=held, verdict=Verdict.REFUSE, reason="why")
    held = taken(site, 1)
    assert [("bad", True)] == [(each.message_id, each.redelivered) for each in held]
    operator.declare(topology=SITE)
    assert 1 == site.settle(deliveries=held, verdict=Verdict.REFUSE, reason="why").count
    assert ["why"] == [each.reason for each in taken(operator, 1, "theta.rejected")]


def test_the_next_broker_of_the_list_is_used(server: RabbitMQ) -> None:
    url = "amqps://127.0.0.1:1/"
    with connected({**server.settings(), "url": url, "hosts": (f"localhost:{server.tls}",)}) as relay:
        assert f"RabbitMQ at localhost:{server.tls}" == relay.profile.broker


# ---------------------------------------------------------------------------------- permissions


def test_what_the_broker_forbids_does_not_hold_up_the_rest(
    site: MessagingRelay, operator: MessagingRelay
) -> None:
    keys = {
        "a": "balsam_job_status",
        "b": "cori",
        "c": "balsam_job_status",
        "d": "theta",
        "e": "balsam_job_status",
    }
    report = site.send(messages=[message(name, key) for name, key in keys.items()])
    assert {"b", "d"} == set(report.unroutable)
    assert all("ACCESS_REFUSED" in why for why in report.unroutable.values())
    assert {"a", "c", "e"} == {each.message_id for each in rest(operator, "balsam_job_status")}
    report = site.send(messages=[message("queue", "theta", exchange=""), message("f", "balsam_job_status")])
    assert {"queue"} == set(report.unroutable)


def test_a_site_cannot_read_another_sites_queue_nor_declare(
    server: RabbitMQ, site: MessagingRelay, operator: MessagingRelay
) -> None:
    with pytest.raises(ConfigurationError, match=r"cori.*ACCESS_REFUSED.*operator"):
        site.receive(queue="cori", limit=1, timeout_s=0)
    with (
        connected(server.settings("theta")) as declaring,
        pytest.raises(ConfigurationError, match=r"ACCESS_REFUSED.*may_declare = false"),
    ):
        declaring.declare(topology=SITE)
    missing = Topology(exchanges=(), queues=(Queue(name="nowhere", exchange="", keys=()),))
    with pytest.raises(ConfigurationError, match=r"nowhere.*NOT_FOUND"):
        site.declare(topology=missing)
    with pytest.raises(ConfigurationError, match=r"nowhere.*declared"):
        operator.receive(queue="nowhere", limit=1, timeout_s=0)


def test_a_queue_that_was_made_otherwise_is_told_with_what_differs(server: RabbitMQ) -> None:
    with (
        connected(server.settings(quorum=False)) as relay,
        pytest.raises(ConfigurationError, match=r"queue theta.*inequivalent arg 'x-queue-type'.*set quorum"),
    ):
        relay.declare(topology=SITE)


def test_a_submitter_forges_neither_status_nor_a_name(server: RabbitMQ, site: MessagingRelay) -> None:
    with connected(server.settings("physicist", may_declare=False)) as submitter:
        report = submitter.send(messages=[message("s", "balsam_job_status"), message("job", "theta")])
        assert {"s"} == set(report.unroutable)
    with (
        stranger(server, "physicist") as channel,
        pytest.raises(pika.exceptions.ChannelClosedByBroker, match="user_id"),
    ):
        channel.basic_publish("hpc", "theta", b"{}", pika.BasicProperties(user_id="operator"))
    with stranger(server, "physicist") as channel:
        channel.basic_publish("hpc", "theta", b"{}")
    assert [("job", "physicist"), (None, None)] == [(each.message_id, each.sender) for each in taken(site, 2)]
    assert site.profile.validates_sender


def test_a_name_that_is_not_ours_is_told(server: RabbitMQ) -> None:
    with (
        connected({**server.settings("theta", may_declare=False), "user": "operator"}) as relay,
        pytest.raises(BrokerUnavailable, match="set user in"),
    ):
        relay.send(messages=[message("x", "balsam_job_status")])


# --------------------------------------------------------------------------------- certificates


def test_every_trouble_with_certificates_is_told_in_words(server: RabbitMQ, tmp_path: Path) -> None:
    good, other = server.authority, Authority(tmp_path / "other")
    nobody = good.client("nobody")
    cases: dict[str, dict[str, Any]] = {
        r"our certificate expired|expired on": server.files(
            good.client("theta", "expired", begins=-timedelta(days=9), lasts=-timedelta(days=1))
        ),
        r"does not know the authority|hung up at once": {
            **server.files(other.client("theta")),
            "authority": str(good.file),
        },
        r"does not let us in": server.files(nobody),
        r"not signed by our authority": {**server.settings(), "authority": str(other.file)},
        r"wants a certificate|hung up at once": {
            "authority": str(good.file),
            "user": "guest",
            "password_file": str(server.base / "password"),
        },
    }
    for words, settings in cases.items():
        with (
            pytest.raises(BrokerUnavailable, match=words),
            connected({"url": f"amqps://localhost:{server.tls}/", **settings}),
        ):
            pass
    with (
        pytest.raises(BrokerUnavailable, match="another host name"),
        connected(server.settings(url=f"amqps://127.1:{server.tls}/")),
    ):
        pass
    lax = server.settings(url=f"amqps://127.1:{server.tls}/", verify_host_name=False)
    with connected(lax) as relay:
        assert relay.profile.validates_sender


def test_other_refusals_to_connect_are_told_in_words(server: RabbitMQ, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("wrong")
    cases: dict[str, dict[str, Any]] = {
        "does not let us in": server.plain_settings(password_file=str(wrong)),
        "does not speak TLS": server.settings(url=f"amqps://localhost:{server.plain}/"),
        "virtual host": server.settings(url=f"amqps://localhost:{server.tls}/elsewhere"),
        "nobody listens": server.settings(url="amqps://localhost:1/"),
        "no such host": server.settings(url="amqps://no-such-host.invalid/"),
    }
    for words, settings in cases.items():
        with pytest.raises(BrokerUnavailable, match=words), connected(settings):
            pass


def test_a_renewed_certificate_is_used_without_anybody_noticing(
    server: RabbitMQ, operator: MessagingRelay, caplog: pytest.LogCaptureFixture
) -> None:
    credential = server.authority.client("theta", "renewed", lasts=timedelta(days=2))
    settings = {
        **server.settings(),
        **server.files(credential),
        "certificate_look_s": 0.1,
        "may_declare": False,
    }
    caplog.set_level(logging.INFO, "edgecore")
    with connected(settings) as site, ThreadPoolExecutor(1) as pool:
        assert any("expires in 2 days" in each.getMessage() for each in caplog.records)
        assert [] == list(site.receive(queue="theta", limit=1, timeout_s=0)), "now there are two connections"
        waiting = pool.submit(site.receive, queue="theta", limit=1, timeout_s=DEADLINE_S)
        server.authority.client("theta", "renewed")
        deadline = time.monotonic() + DEADLINE_S
        while sum("is new" in each.getMessage() for each in caplog.records) < 2:
            assert time.monotonic() < deadline, "both connections take the new one"
            time.sleep(0.05)
        operator.send(messages=[message("a")])
        (delivery,) = waiting.result(DEADLINE_S)
        assert 1 == accept(site, [delivery])
        again(lambda: site.send(messages=[message("s", "balsam_job_status")]))
    assert not [each for each in caplog.records if "is lost" in each.getMessage()]


def test_what_the_driver_finds_about_itself(server: RabbitMQ, operator: MessagingRelay) -> None:
    credential = server.authority.client("theta", "found", lasts=timedelta(days=3))
    credential.key.chmod(0o644)
    operator.send(messages=[message("bad")])
    settings = {**server.settings(), **server.files(credential), "may_declare": False}
    with connected(settings) as site:
        site.declare(topology=SITE)
        site.settle(deliveries=taken(site, 1), verdict=Verdict.REFUSE, reason="x")
        found = {each.subject: (each.level, each.message) for each in site.diagnose()}
    assert {"key", "certificate", "messages", "dead letters"} == set(found)
    assert Level.WARNING is found["key"][0]
    assert (Level.WARNING, True) == (found["certificate"][0], "expires in 3 days" in found["certificate"][1])
    assert "1 refused messages wait in theta.rejected" in found["dead letters"][1]
