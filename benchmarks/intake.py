"""Measure how fast definitions are taken in: read, validated, durable in the store, acknowledged.

Two figures. *Intake alone*: the service's own intake, store and admission over a queue that was filled
before, in this process, with an engine that is told of every job and does not run. *The whole
service*: a real one, in a process of its own, that finds the filled queue when it starts and
also begins to move the jobs on meanwhile.

The bare loop receives and acknowledges the same messages, in batches of the same size, and keeps nothing.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping, Sequence

from benchmarks.common import (
    BenchSite,
    Row,
    Run,
    Service,
    cpu_s,
    make_site,
    pairs,
    place,
    ratio_of,
    show,
    spread,
    wait_until,
)
from edgecore.admission import Admission
from edgecore.balsam import Actions
from edgecore.builtin.queue import SqliteMessaging
from edgecore.control import Control
from edgecore.drivers import Listeners, open_scheduling
from edgecore.engine import Engine
from edgecore.intake import Intake
from edgecore.models import Delivery, Settled, Verdict
from edgecore.partners import topology
from edgecore.reader import Reader
from edgecore.relays import MessagingRelay
from edgecore.store import Route, Store

__all__ = ["Counting", "alone", "definition", "run"]

_BATCH = 200
_RATE = 2000.0
_RATIO = 0.5
_HELD_BACK = "[limits]\nmax_queued = 1\n"


def run(*, quick: bool) -> bool:
    """Measure and print; tell whether the targets were met."""
    jobs, rounds = (2_000, 3) if quick else (10_000, 5)
    with place() as base:
        numbers = iter(range(1000))

        def filled(more: str = "") -> BenchSite:
            site = make_site(base / f"site{next(numbers)}", more=more)
            site.send([definition(site, number) for number in range(jobs)])
            return site

        def emptied() -> Run:
            site = filled()
            return alone(site, jobs, _relay(site))

        by_itself = pairs(emptied, lambda: _bare(filled(), jobs), rounds)
        whole = pairs(lambda: _whole(filled(_HELD_BACK), jobs), lambda: _bare(filled(), jobs), rounds)
    rows = [*_rows("intake alone", by_itself), *_rows("the whole service", whole)]
    return show(f"intake: {jobs:,} definitions from sqlite://, in batches of {_BATCH}", rows)


def _rows(what: str, measured: Sequence[tuple[Run, Run]]) -> list[Row]:
    rates = [our.value for our, _ in measured]
    ratio, words = ratio_of(measured)
    ours, bare = (statistics.median(half.cpu_ms for half in halves) for halves in zip(*measured, strict=True))
    bare_rate = statistics.median(other.value for _, other in measured)
    return [
        Row(
            what=f"{what}: definitions per second",
            found=spread(rates, ",.0f"),
            target=f"{_RATE:,.0f}",
            met=statistics.median(rates) >= _RATE,
        ),
        Row(
            what=f"{what}: beside the bare loop",
            found=f"{statistics.median(rates):,.0f}",
            bare=f"{bare_rate:,.0f}",
            ratio=words,
            cpu=f"{ours:.3f} / {bare:.3f} ms each",
            target=f"{_RATIO}",
            met=ratio >= _RATIO,
        ),
    ]


def definition(site: BenchSite, number: int) -> Mapping[str, object]:
    """Return a job as a production system sends it."""
    return site.job(
        name=f"zmumu-{number}",
        description="a job to run",
        job_id=f"{number}",
        argo_job_id=1507945011064986 + number,
        wall_time_minutes=30,
        num_nodes=1,
        processes_per_node=1,
        input_url=None,
        output_url=None,
    )


class Counting(MessagingRelay):
    """Tell when so many deliveries were acknowledged."""

    left = 0
    done = threading.Event()

    def expect(self, count: int) -> threading.Event:
        """Return what is set when *count* more were acknowledged."""
        self.left, self.done = count, threading.Event()
        return self.done

    def settle(self, *, deliveries: Sequence[Delivery], verdict: Verdict, reason: str) -> Settled:
        settled = super().settle(deliveries=deliveries, verdict=verdict, reason=reason)
        self.left -= settled.count
        if self.left <= 0:
            self.done.set()
        return settled


def _relay(site: BenchSite) -> Counting:
    relay = Counting(SqliteMessaging(url=site.config.messaging.url), site.config.context)
    relay.declare(topology=topology(site.config))
    return relay


def alone(site: BenchSite, jobs: int, relay: Counting) -> Run:
    """Let intake, store and admission empty a queue in this process; *relay* is closed in the end."""
    config = site.config
    store = Store(config.store, site=config.site, route=Route("hpc", "balsam_job_status"))
    done = relay.expect(jobs)
    intake = _intake(site, store, relay)
    cpu, begun = cpu_s(), time.perf_counter()
    thread = intake.start()
    if not done.wait(120):
        raise TimeoutError("the queue was not emptied")
    run_ = Run(jobs / (time.perf_counter() - begun), (cpu_s() - cpu) * 1000 / jobs)
    intake.stop()
    thread.join()
    with Reader(config.store) as reader:
        assert sum(reader.counts().values()) == jobs
    relay.close()
    store.close()
    return run_


def _intake(site: BenchSite, store: Store, relay: MessagingRelay) -> Intake:
    config = site.config
    config.work_directory.mkdir(parents=True, exist_ok=True)
    scheduling = open_scheduling(
        config.scheduling.driver, config.scheduling.settings, config.context, source="benchmark", layers=()
    )
    actions = Actions(
        config=config, store=store, scheduling=scheduling, transfers={}, catalogue=lambda name: None
    )
    engine = Engine(store=store, graph=actions.graph(), lanes=actions.lanes(), listeners=Listeners())
    scheduling.close()
    reader = Reader(config.store)
    return Intake(
        queue=config.queue,
        messaging=relay,
        admission=Admission(config=config, applications=reader.application_names),
        store=store,
        store_path=config.store,
        engine=engine,
        control=Control(engine=engine, store=store, retry=actions.retry, fence=actions.fence),
        owner=config.owner,
    )


def _whole(site: BenchSite, jobs: int) -> Run:
    with Service(site) as service, Reader(site.config.store) as reader:
        wait_until(lambda: bool(reader.find(str(jobs - 1))), "the last job is in the store", every_s=0.005)
        ended_us, cpu_ms = time.time_ns() / 1000, service.cpu_s * 1000
        begun_us = reader.find("0")[0].id  # our ids are times: the first was read just after it was received
        return Run(jobs / (ended_us - begun_us) * 1e6, cpu_ms / jobs)


def _bare(site: BenchSite, jobs: int) -> Run:
    relay = _relay(site)
    cpu, begun = cpu_s(), time.perf_counter()
    left = jobs
    while left:
        deliveries = relay.receive(queue=site.config.queue, limit=_BATCH, timeout_s=1.0)
        relay.settle(deliveries=deliveries, verdict=Verdict.ACCEPT, reason="")
        left -= len(deliveries)
    run_ = Run(jobs / (time.perf_counter() - begun), (cpu_s() - cpu) * 1000 / jobs)
    relay.close()
    return run_
