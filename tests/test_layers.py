"""What the layers promise: a bounded rate, and a run that submits nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from attrs import Factory, define

from edgecore.clock import Clock
from edgecore.errors import ConfigurationError, SchedulerUnavailable
from edgecore.hookspecs import Scheduling, hookimpl
from edgecore.layers import DryRun, Pacing
from edgecore.models import (
    Answer,
    Closed,
    Group,
    Observation,
    Reference,
    Refusal,
    Refused,
    SchedulingProfile,
    SiteContext,
    Submission,
    SubmissionAnswer,
    Submitted,
)
from edgecore.relays import SchedulingRelay
from edgecore.serial import structure

SITE = SiteContext(site="here", work_directory=Path("/nowhere"))
REFERENCE = Reference(tag="e1", group_tag="e1", index=None, batch_id="1", directory=Path("/d"), submitted=1)


class Hours(Clock):
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@define(eq=False)
class Batch(Scheduling):
    """A driver that writes down what reaches it."""

    reached: list[str] = Factory(list)

    @hookimpl
    def open(self, site: SiteContext) -> SchedulingProfile:
        return SchedulingProfile(batch_id_text="$ID")

    @hookimpl
    def submit(self, group: Group) -> Mapping[str, SubmissionAnswer]:
        self.reached.append("submit")
        return {one.tag: Submitted(batch_id="1") for one in group.submissions}

    @hookimpl
    def observe(self, references: Sequence[Reference]) -> Mapping[str, Observation]:
        self.reached.append("observe")
        return {}

    @hookimpl
    def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        self.reached.append("find")
        return {}

    @hookimpl
    def cancel(self, references: Sequence[Reference]) -> Answer:
        self.reached.append("cancel")
        return Answer()

    @hookimpl
    def hold(self, references: Sequence[Reference]) -> Answer:
        self.reached.append("hold")
        return Answer()

    @hookimpl
    def release(self, references: Sequence[Reference]) -> Answer:
        self.reached.append("release")
        return Answer()

    @hookimpl
    def close(self) -> Closed:
        self.reached.append("close")
        return Closed()


class Patient(Pacing):
    """Pacing on a clock of its own, where waiting takes no time."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.clock = self.hours = Hours()
        self.waited: list[float] = []

    def wait(self, wait_s: float) -> bool:
        self.waited.append(wait_s)
        self.hours.seconds += wait_s
        return False


def group(size: int) -> Group:
    members = tuple(
        Submission(tag=f"e{number}", script=Path("/s"), directory=Path("/d"), comment="")
        for number in range(size)
    )
    return Group(tag="e0", submissions=members, num_nodes=1, processes_per_node=1, wall_time_minutes=1)


def paced(**settings: float) -> tuple[SchedulingRelay, Patient]:
    layer = structure(Patient, settings, source="test")
    return SchedulingRelay(Batch(), SITE, layers=(layer,)), layer


class TestPacing:
    def test_calls_wait_for_their_turn(self) -> None:
        relay, layer = paced(scheduling_calls_per_minute=30, burst=1)
        for _ in range(4):
            relay.observe(references=())
        assert layer.waited == [2.0, 2.0, 2.0]

    def test_a_pause_allows_a_burst_and_no_more(self) -> None:
        relay, layer = paced(scheduling_calls_per_minute=60, burst=3)
        for _ in range(3):
            relay.observe(references=())
        assert layer.waited == []
        relay.observe(references=())
        assert layer.waited == [1.0]
        layer.hours.seconds += 3600
        for _ in range(4):
            relay.observe(references=())
        assert layer.waited == [1.0, 1.0]

    def test_every_kind_of_call_counts_except_open_and_close(self) -> None:
        relay, layer = paced(scheduling_calls_per_minute=60, burst=1)
        relay.submit(group=group(1))
        relay.observe(references=())
        relay.find(tags=())
        relay.cancel(references=())
        relay.hold(references=())
        relay.release(references=())
        relay.close()
        assert layer.waited == [1.0] * 5

    def test_a_group_counts_as_many_submissions_as_it_has(self) -> None:
        relay, layer = paced(scheduling_calls_per_minute=60_000, submissions_per_minute=60, burst=2)
        assert len(relay.submit(group=group(10))) == 10
        assert layer.waited == []
        relay.submit(group=group(1))
        assert layer.waited == [9.0]

    def test_looking_is_not_held_up_by_submissions(self) -> None:
        relay, layer = paced(scheduling_calls_per_minute=60_000, submissions_per_minute=1, burst=2)
        relay.submit(group=group(10))
        relay.observe(references=())
        assert layer.waited == []

    def test_the_bound_holds_for_many_threads_at_once(self) -> None:
        layer = structure(Patient, {"scheduling_calls_per_minute": 60, "burst": 1}, source="test")
        waits: list[float] = []
        layer.wait = lambda wait_s: bool(waits.append(wait_s))  # type: ignore[method-assign, func-returns-value]
        relay = SchedulingRelay(Batch(), SITE, layers=(layer,))
        threads = [threading.Thread(target=relay.observe, kwargs={"references": ()}) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(waits) == [float(number) for number in range(1, 20)]

    def test_closing_ends_the_wait_and_nothing_is_asked(self) -> None:
        waits = threading.Event()

        class Slow(Pacing):
            def wait(self, wait_s: float) -> bool:
                waits.set()
                return super().wait(wait_s)

        driver = Batch()
        layer = structure(Slow, {"scheduling_calls_per_minute": 0.1, "burst": 1}, source="test")
        relay = SchedulingRelay(driver, SITE, layers=(layer,))
        relay.observe(references=())
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                relay.observe(references=())
            except SchedulerUnavailable as error:
                raised.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(10)
        relay.close()
        thread.join(10)
        assert not thread.is_alive()
        assert [str(error) for error in raised] == [
            "the service stops; nothing was asked of the batch system"
        ]
        assert driver.reached == ["observe", "close"]

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"burst": 0}, "burst: found 0; must be from 1 to 1,000,000"),
            ({"submissions_per_minute": 0}, "submissions_per_minute: found 0; must be from 0.1"),
            ({"submissions_per_hour": 9}, "submissions_per_hour: unknown key"),
            ({"clock": {}}, "clock: unknown key"),
        ],
    )
    def test_impossible_settings_are_refused(self, settings: dict[str, object], words: str) -> None:
        with pytest.raises(ConfigurationError) as raised:
            structure(Pacing, settings, source="test")
        assert words in str(raised.value)


class TestDryRun:
    def test_nothing_is_submitted_and_every_member_says_why(self) -> None:
        driver = Batch()
        answers = SchedulingRelay(driver, SITE, layers=(DryRun(),)).submit(group=group(2))
        refused = Refused(kind=Refusal.DISABLED, reason="dry run: nothing is submitted")
        assert answers == {"e0": refused, "e1": refused}
        assert driver.reached == []

    def test_cancel_hold_and_release_are_accepted_without_reaching_the_driver(self) -> None:
        driver = Batch()
        relay = SchedulingRelay(driver, SITE, layers=(DryRun(),))
        accepted = Answer(accepted=("e1",))
        assert relay.cancel(references=(REFERENCE,)) == accepted
        assert relay.hold(references=(REFERENCE,)) == accepted
        assert relay.release(references=(REFERENCE,)) == accepted
        assert driver.reached == []

    def test_what_only_looks_reaches_the_driver(self) -> None:
        driver = Batch()
        relay = SchedulingRelay(driver, SITE, layers=(DryRun(),))
        relay.observe(references=())
        relay.find(tags=())
        relay.close()
        assert driver.reached == ["observe", "find", "close"]
