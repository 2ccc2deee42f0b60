"""Measure the driver for RabbitMQ over TLS, on quorum queues: confirmed sending, and definitions taken in.

The bare baselines are pika's own `BlockingConnection` over the same server: publishing persistent messages without
confirms, until the broker has them all; and consuming with acknowledgements of as many messages at once. They promise
nothing: what such a sender has sent may be lost.

The server is the private one of the tests, on this machine, so that it takes processor time from both halves.
"""

from __future__ import annotations

import ssl
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.common import BenchSite, Row, Run, cpu_s, make_site, pairs, place, ratio_of, show, spread
from benchmarks.intake import Counting, alone, definition
from edgecore.models import OutgoingMessage, Verdict
from edgecore.partners import topology

__all__ = ["run"]

_SEND_RATIO: Final = 0.6
_INTAKE_RATIO: Final = 0.5
_BATCH: Final = 500
_ACKNOWLEDGED: Final = 200
_BODY: Final = bytes(1024)


def run(*, quick: bool) -> bool:
    """Measure and print; tell whether the targets were met."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from testbed.rabbitmq import RabbitMQ, why_missing

    if missing := why_missing():
        print(f"\nrabbitmq: {missing}")
        return True
    count, rounds = (5_000, 5) if quick else (20_000, 7)
    with place() as base:
        server = RabbitMQ(base / "server")
        try:
            server.start()
            return _measure(base, server, count, rounds)
        finally:
            server.close()


def _measure(base: Path, server: Any, count: int, rounds: int) -> bool:
    numbers = iter(range(1000))

    def fresh() -> BenchSite:
        site = make_site(base / f"site{next(numbers)}")
        with _relay(site, server):
            pass  # makes the queues
        server.control("purge_queue", site.config.queue)
        return site

    def filled() -> BenchSite:
        site = fresh()
        with _relay(site, server) as relay:
            relay.send(messages=site.outgoing([definition(site, number) for number in range(count)]))
        return site

    sending = pairs(lambda: _send(fresh(), server, count), lambda: _send_bare(fresh(), server, count), rounds)
    receiving = pairs(
        lambda: _receive(filled(), server, count), lambda: _take_bare(filled(), server, count), rounds
    )
    taking = pairs(
        lambda: _take(filled(), server, count), lambda: _take_bare(filled(), server, count), rounds
    )
    rows = [
        _row("confirmed sending, beside publishing without confirms", sending, _SEND_RATIO),
        _row("received and acknowledged, beside a bare loop that does the same", receiving, _INTAKE_RATIO),
        _row("definitions taken in, beside a loop that acknowledges", taking, _INTAKE_RATIO),
    ]
    return show(f"rabbitmq: {count:,} messages over TLS, quorum queues, per second", rows)


def _row(what: str, measured: Sequence[tuple[Run, Run]], target: float) -> Row:
    ratio, words = ratio_of(measured)
    ours, bare = (statistics.median(half.cpu_ms for half in halves) for halves in zip(*measured, strict=True))
    return Row(
        what=what,
        found=spread([our.value for our, _ in measured], ",.0f"),
        bare=f"{statistics.median(other.value for _, other in measured):,.0f}",
        ratio=words,
        cpu=f"{ours:.3f} / {bare:.3f} ms each",
        target=f"{target}",
        met=ratio >= target,
    )


@contextmanager
def _relay(site: BenchSite, server: Any) -> Iterator[Counting]:
    from edgecore.builtin.rabbitmq import RabbitMessaging

    relay = Counting(RabbitMessaging(**server.settings()), site.config.context)
    try:
        relay.declare(topology=topology(site.config))
        yield relay
    finally:
        relay.close()


@contextmanager
def _channel(server: Any) -> Iterator[Any]:
    import pika

    context = ssl.create_default_context(cafile=str(server.authority.file))
    credential = server.credentials["operator"]
    context.load_cert_chain(credential.certificate, credential.key)
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(
            "localhost",
            server.tls,
            credentials=pika.credentials.ExternalCredentials(),
            ssl_options=pika.SSLOptions(context, "localhost"),
        )
    )
    yield connection.channel()
    connection.close()


def _timed(count: int, begun: float, cpu: float) -> Run:
    return Run(count / (time.perf_counter() - begun), (cpu_s() - cpu) * 1000 / count)


def _send(site: BenchSite, server: Any, count: int) -> Run:
    key = site.config.queue
    messages = [
        OutgoingMessage(exchange="hpc", key=key, body=_BODY, message_id=str(number))
        for number in range(count)
    ]
    with _relay(site, server) as relay:
        cpu, begun = cpu_s(), time.perf_counter()
        for first in range(0, count, _BATCH):
            relay.send(messages=messages[first : first + _BATCH])
        return _timed(count, begun, cpu)


def _send_bare(site: BenchSite, server: Any, count: int) -> Run:
    import pika

    key = site.config.queue
    with _channel(server) as channel:
        cpu, begun = cpu_s(), time.perf_counter()
        for number in range(count):
            found = pika.BasicProperties(delivery_mode=2, message_id=str(number))
            channel.basic_publish("hpc", key, _BODY, found)
        while channel.queue_declare(key, passive=True).method.message_count < count:
            time.sleep(0.001)
        return _timed(count, begun, cpu)


def _receive(site: BenchSite, server: Any, count: int) -> Run:
    got = 0
    with _relay(site, server) as relay:
        cpu, begun = cpu_s(), time.perf_counter()
        while got < count:
            deliveries = relay.receive(queue=site.config.queue, limit=_ACKNOWLEDGED, timeout_s=10.0)
            got += relay.settle(deliveries=deliveries, verdict=Verdict.ACCEPT, reason="").count
        return _timed(count, begun, cpu)


def _take(site: BenchSite, server: Any, count: int) -> Run:
    with _relay(site, server) as relay:
        return alone(site, count, relay)


def _take_bare(site: BenchSite, server: Any, count: int) -> Run:
    got = 0
    with _channel(server) as channel:
        channel.basic_qos(prefetch_count=_BATCH)
        cpu, begun = cpu_s(), time.perf_counter()
        for method, _, _ in channel.consume(site.config.queue):
            got += 1
            if got % _ACKNOWLEDGED == 0 or got == count:
                channel.basic_ack(method.delivery_tag, multiple=True)
            if got == count:
                break
        run_ = _timed(count, begun, cpu)
        channel.cancel()
        return run_
