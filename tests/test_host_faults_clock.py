"""The wall clock is set by hours, while a service runs and between two runs."""

from __future__ import annotations

from contextlib import closing

import pytest
from attrs import define, evolve
from scripted import Edge

from edgecore.cleaning import Cleaning
from edgecore.clock import Clock, SteadyClock
from edgecore.models import Delivery, NativeState, Refusal
from edgecore.models import JobState as S
from edgecore.reader import Reader
from edgecore.store import Store

pytestmark = pytest.mark.slow

HOUR_US = 3_600_000_000
JUMPS = [5 * HOUR_US, -5 * HOUR_US]


@define(eq=False)
class Set(Clock):
    """A clock that a test sets, whose monotonic part goes on as ever."""

    by_us: int = 0

    def now(self) -> int:
        return super().now() + self.by_us


@define(eq=False)
class Still(Clock):
    """A clock that goes only where a test moves it."""

    wall: int = 1_000 * HOUR_US
    up_s: float = 0.0

    def now(self) -> int:
        return self.wall

    def monotonic(self) -> float:
        return self.up_s

    def pass_s(self, seconds: float, drift_us: int = 0) -> None:
        self.wall += round(seconds * 1e6) + drift_us
        self.up_s += seconds


@pytest.fixture
def clock(edge: Edge) -> Set:
    edge.clock = clock = Set()
    return clock


# ----------------------------------------------------------------------------- steady clock


@pytest.mark.parametrize("jump", JUMPS)
def test_a_steady_clock_follows_no_jump_and_every_slow_correction(jump: int) -> None:
    clock = Still()
    steady = SteadyClock(clock)
    begun = steady.now()
    clock.pass_s(60)
    assert begun + 60_000_000 == steady.now()
    clock.wall += jump
    assert (begun + 60_000_000, jump) == (steady.now(), steady.jumped_us)
    for _ in range(100):
        clock.pass_s(60, drift_us=1_000_000)
        steady.now()
    assert begun + 60_000_000 + 100 * 61_000_000 == steady.now()
    assert min(clock.wall, steady.now()) == steady.earliest()


def missed(edge: Edge) -> bool:
    """Tell whether the service knows that a listing did not show its one job."""
    engine = edge.balsam._engine
    assert engine is not None
    return any(job.attempt is not None and job.attempt.missed is not None for job in engine.jobs.values())


# -------------------------------------------------------------------------------------- ids


def test_ids_ascend_and_stay_unique_whatever_the_clock_does(edge: Edge, clock: Set) -> None:
    edge.start()
    names = []
    for number, by in enumerate([0, 5, -5, 24 * 365, -24 * 365, 0]):
        clock.by_us = by * HOUR_US
        for place in range(3):
            names.append(f"job-{number}-{place}")
            edge.send(names[-1])
            edge.wait(names[-1], S.JOB_FINISHED)
        if number % 2:
            edge.restart()
    ids = [edge.job(name).id for name in names]
    assert sorted(set(ids)) == ids
    assert dict.fromkeys(ids, 1) == edge.site.starts()


# ----------------------------------------------------------------------------- no evidence


@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_makes_no_running_job_lost_however_long_it_is_not_listed_for_a_moment(
    edge: Edge, clock: Set, jump: int
) -> None:
    edge.config = evolve(edge.config, timing=evolve(edge.config.timing, lost_after_s=600))
    edge.start()
    edge.send(application="long", wall_time_minutes=1)
    edge.wait("job", S.RUNNING)
    edge.scheduling.blind = True
    edge.until(lambda: missed(edge))
    clock.by_us = jump
    edge.wait_looks(5)
    assert S.RUNNING is edge.job().state
    assert [] == edge.heard.alarms
    edge.scheduling.blind = False
    edge.scheduling.end(edge.wait_entry())
    edge.wait("job", S.EXECUTION_FAILED)


@pytest.mark.parametrize("jump", JUMPS)
def test_patience_ends_after_its_time_although_the_clock_was_set_meanwhile(
    edge: Edge, clock: Set, jump: int
) -> None:
    edge.config = evolve(edge.config, timing=evolve(edge.config.timing, lost_after_s=1.0))
    edge.start()
    edge.send(application="long")
    edge.wait("job", S.RUNNING)
    edge.scheduling.blind = True
    edge.until(lambda: missed(edge))
    clock.by_us = jump
    edge.wait("job", S.LOST)  # after a second, not hours later


@pytest.mark.parametrize("jump", JUMPS)
def test_what_waits_in_the_batch_system_is_not_given_up_for_a_jump(edge: Edge, clock: Set, jump: int) -> None:
    timing = evolve(edge.config.timing, overdue_after_s=600, stuck_after_s=600)
    edge.config = evolve(edge.config, timing=timing)
    edge.scheduling.auto = False
    edge.start()
    edge.send()
    entry = edge.wait_entry()
    entry.reason, entry.never_starts = "AssocGrpNodeLimit", True
    edge.wait_alarm(f"job {edge.job().id}")
    clock.by_us = jump
    edge.wait_looks(5)
    assert S.QUEUED is edge.job().state
    assert NativeState.QUEUED is entry.state
    entry.never_starts = False
    edge.scheduling.start(entry)
    edge.wait("job", S.JOB_FINISHED)


# ---------------------------------------------------------------------------------- retries


def test_a_retry_is_not_stuck_after_the_clock_was_set_back(edge: Edge, clock: Set) -> None:
    clock.by_us = 5 * HOUR_US
    edge.scheduling.refuse(Refusal.TRANSIENT, "QOSMaxSubmitJobPerUserLimit")
    edge.scheduling.auto = False
    edge.start()
    edge.send("first")
    edge.wait("first", S.PREPROCESSED, times=2)
    clock.by_us = 0
    edge.send("second")
    edge.wait("second", S.QUEUED)
    edge.wait("first", S.QUEUED)
    # A wait that seems to last for hours must not make it be asked for again and again either.
    assert edge.scheduling.count("submit") <= 4


def test_a_wait_that_was_noted_by_a_clock_ahead_is_over_after_a_restart(edge: Edge, clock: Set) -> None:
    clock.by_us = 5 * HOUR_US
    edge.scheduling.refuse(Refusal.TRANSIENT, "QOSMaxSubmitJobPerUserLimit", times=3)
    edge.start()
    edge.send()
    edge.wait("job", S.PREPROCESSED, times=2)
    edge.stop()
    clock.by_us = 0
    edge.start()
    edge.wait("job", S.JOB_FINISHED)


# ------------------------------------------------------------------------------- deliveries


def test_an_equal_message_after_the_clock_was_set_back_is_another_job(edge: Edge, clock: Set) -> None:
    clock.by_us = 5 * HOUR_US
    edge.start()
    document = edge.site.job(application="quick")
    edge.site.send(document, message_ids=False)
    edge.wait("job", S.JOB_FINISHED)
    clock.by_us = 0
    edge.site.send(document, message_ids=False)
    edge.wait("job", S.JOB_FINISHED, times=2)


def test_a_message_that_comes_again_after_the_clock_was_set_forward_makes_no_second_job(
    edge: Edge, clock: Set
) -> None:
    edge.start()
    edge.send("first")
    edge.wait("first", S.JOB_FINISHED)
    body = b'{"name": "job", "site": "testsite", "application": "quick"}'
    edge.broker.extra.append(_delivery(body, redelivered=False))
    edge.wait("job", S.JOB_FINISHED)
    clock.by_us = 48 * HOUR_US
    edge.broker.extra.append(_delivery(body, redelivered=True))
    edge.send("last")
    edge.wait("last", S.JOB_FINISHED)
    assert ["first", "job", "last"] == [job.name for job in reversed(edge.site.jobs())]


def _delivery(body: bytes, *, redelivered: bool) -> Delivery:
    return Delivery(token="none", queue="testsite", body=body, redelivered=redelivered)


# --------------------------------------------------------------------------------- cleaning


def test_nothing_is_removed_for_a_clock_that_was_set_forward(edge: Edge, clock: Set) -> None:
    edge.start()
    edge.send()
    job = edge.wait("job", S.JOB_FINISHED)
    edge.stop()
    with closing(Store(edge.config.store, site="testsite", clock=clock)) as store:
        cleaning = Cleaning(config=edge.config, store=store, clock=clock)
        clock.by_us = 24 * 365 * HOUR_US
        with Reader(edge.config.store) as reader:
            assert 0 == cleaning.clean(reader)
            assert list(edge.config.work_directory.glob(f"*/{job.id}"))
            later = Cleaning(config=edge.config, store=store, clock=clock)  # a year has passed for this one
            assert 1 == later.clean(reader)
