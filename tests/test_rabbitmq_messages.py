"""Messages that are large, many, monstrous or unwelcome go through RabbitMQ, or are told apart."""

from __future__ import annotations

import logging
import os
import struct
from functools import partial
from typing import Any

import pika
import pika.data
import pytest
from rabbitmq_helpers import (
    SITE,
    accept,
    connected,
    message,
    operator,
    rest,
    server,
    site,
    stranger,
    taken,
)
from testbed.rabbitmq import PASSWORD, RabbitMQ

from edgecore.models import Queue, Topology, Verdict
from edgecore.relays import MessagingRelay

__all__ = ["operator", "server", "site"]

pytestmark = pytest.mark.slow


def test_a_message_of_20_megabytes_goes_both_ways(operator: MessagingRelay, site: MessagingRelay) -> None:
    body = os.urandom(20_000_000)
    assert 2 == operator.send(messages=[message("large", body=body), message("small")]).sent
    large, small = taken(site, 2)
    assert body == large.body
    assert 1 == site.settle(deliveries=[large], verdict=Verdict.REFUSE, reason="too large").count
    assert 1 == accept(site, [small])
    (letter,) = taken(operator, 1, "theta.rejected")
    assert (body, "too large") == (letter.body, letter.reason)


def test_large_messages_that_wait_come_once_each_however_many_are_sent_ahead(
    operator: MessagingRelay, site: MessagingRelay
) -> None:
    """More than the driver keeps in its memory: it stops the broker, and goes on when there is room."""
    names = [f"{number:02}" for number in range(16)]
    operator.send(messages=[message(name, body=bytes(4 * 1024 * 1024)) for name in names])
    first = taken(site, 1)
    got = [*first, *taken(site, len(names) - 1)]
    assert names == [each.message_id for each in got]
    assert len(names) == accept(site, got)
    assert [] == list(rest(site))


def test_an_exchange_that_is_deleted_is_made_again(server: RabbitMQ, operator: MessagingRelay) -> None:
    fresh = Topology(exchanges=("fresh",), queues=(Queue(name="fresh", exchange="fresh", keys=("#",)),))
    operator.declare(topology=fresh)
    to_fresh = partial(message, key="any", exchange="fresh")
    assert {} == operator.send(messages=[to_fresh("a")]).unroutable
    with stranger(server, "operator") as channel:
        channel.exchange_delete("fresh")
    assert {} == operator.send(messages=[to_fresh("b"), message("c")]).unroutable
    assert ["a", "b"] == [each.message_id for each in taken(operator, 2, "fresh")]
    with stranger(server, "operator") as channel:
        channel.queue_delete("fresh")
        channel.exchange_delete("fresh")


def test_no_password_is_logged(server: RabbitMQ, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="pika")  # which a service silences
    with connected(server.plain_settings(quorum=True)) as relay:
        relay.declare(topology=SITE)
        assert 1 == relay.send(messages=[message("a")]).sent
    assert caplog.records
    assert PASSWORD not in caplog.text


def test_a_message_that_the_broker_finds_too_large_does_not_hold_up_the_rest(
    operator: MessagingRelay,
) -> None:
    large = message("large", body=bytes(140_000_000))
    report = operator.send(messages=[message("a"), large, message("b")])
    assert {"large"} == set(report.unroutable)
    assert "larger than configured max size" in report.unroutable["large"]
    assert {"a", "b"} == {each.message_id for each in rest(operator)}


def test_properties_that_cannot_be_read_spoil_only_themselves(
    server: RabbitMQ, site: MessagingRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's date that no calendar has, alone and deep inside, and an id that is no text."""
    date = (b"T", 2**62)
    monstrous: dict[str, Any] = {"date": date, "deep": {"list": [1, date]}}

    def encode(pieces: list[bytes], value: Any) -> int:
        if isinstance(value, tuple):
            packed = struct.pack(">cQ", *value)
            pieces.append(packed)
            return len(packed)
        return int(plain(pieces, value))

    plain = pika.data.encode_value
    with stranger(server, "physicist") as channel:
        publish = partial(channel.basic_publish, "hpc", "theta")
        publish(b"first", pika.BasicProperties(message_id="first"))
        with monkeypatch.context() as patch:
            patch.setattr(pika.data, "encode_value", encode)
            for name, value in monstrous.items():
                publish(name.encode(), pika.BasicProperties(message_id=name, headers={"x": value}))
        publish(b"text", pika.BasicProperties(message_id=b"\xff\xfe", reply_to="\N{SNOWMAN}"))
        publish(
            b"long", pika.BasicProperties(message_id=b"\xff" * 255, headers={"edgecore-reason": "forged"})
        )
        publish(b"last", pika.BasicProperties(message_id="last"))
    got = taken(site, 6)
    assert [b"first", b"date", b"deep", b"text", b"long", b"last"] == [each.body for each in got]
    assert ["first", None, None, "\\xff\\xfe", "\\xff" * 255, "last"] == [each.message_id for each in got]
    assert {""} == {each.reason for each in got}
    assert 6 == site.settle(deliveries=got, verdict=Verdict.REFUSE, reason="r" * 200_000).count
    letters = taken(site, 6, "theta.rejected")
    assert [each.body for each in got] == [each.body for each in letters]
    assert {"r" * 8_000} == {each.reason for each in letters}


def test_names_that_the_protocol_cannot_carry_are_unroutable(operator: MessagingRelay) -> None:
    report = operator.send(
        messages=[message("m" * 256), message("key", "k" * 256), message("a"), message("odd", "\udcff")]
    )
    assert {"m" * 256, "key", "odd"} == set(report.unroutable)
    assert ["a"] == [each.message_id for each in taken(operator, 1)]


@pytest.mark.parametrize("total", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_any_number_of_messages_that_waited_come_once_each(
    server: RabbitMQ, operator: MessagingRelay, total: int
) -> None:
    for first in range(0, total, 10_000):
        assert 10_000 == operator.send(messages=[message(str(n)) for n in range(first, first + 10_000)]).sent
    got: list[str | None] = []
    with connected(server.settings("theta", may_declare=False, prefetch=500)) as site:
        while len(got) < total:
            deliveries = (
                taken(site, 1)
                if len(got) > total - 200
                else site.receive(queue="theta", limit=200, timeout_s=20)
            )
            assert len(deliveries) == accept(site, deliveries)
            got += [each.message_id for each in deliveries]
        assert [] == list(rest(site))
    assert [str(n) for n in range(total)] == got
