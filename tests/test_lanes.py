"""Lanes: alone at once while a thread is free, together when all are busy, never more than there is room for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from attrs import define, field
from sites import wait_for

from edgecore.lanes import Lane


@define(eq=False)
class Work:
    """Note groups, and hold them until released."""

    groups: list[list[str]] = field(factory=list)
    gate: threading.Event = field(factory=threading.Event)
    lane: Lane[str] = field(init=False)
    """Set by who makes the lane."""

    def __call__(self, items: Sequence[str]) -> None:
        self.groups.append(list(items))
        assert self.gate.wait(10)
        self.lane.done(items)

    def begun(self, count: int) -> list[list[str]]:
        wait_for(lambda: len(self.groups) >= count, 10, lambda: self.groups)
        return self.groups


Make = Callable[..., Work]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Work] = []

    def make(threads: int = 1, room: Callable[[Sequence[str]], int] | None = None) -> Work:
        work = Work()
        work.lane = Lane("test", threads, work, room)
        made.append(work)
        return work

    yield make
    for work in made:
        work.gate.set()
        work.lane.stop()
        wait_for(lambda work=work: not work.lane.busy, 10)  # type: ignore[misc]


def test_what_comes_together_goes_to_as_many_threads_as_there_are_groups(make: Make) -> None:
    work = make(3)
    work.lane.put(["a", "b", "c", "d", "e"], "x", 2)
    assert [["a", "b"], ["c", "d"], ["e"]] == sorted(work.begun(3))


def test_no_thread_is_started_before_there_is_work(make: Make) -> None:
    before = threading.active_count()
    work = make(4)
    assert before == threading.active_count()
    work.lane.put(["a"], "a")
    work.begun(1)
    assert before + 1 == threading.active_count()


def test_what_comes_to_a_free_thread_goes_alone(make: Make) -> None:
    work = make(2)
    work.lane.put(["a"], "like", 10)
    work.begun(1)
    work.lane.put(["b"], "like", 10)
    assert [["a"], ["b"]] == work.begun(2)


def test_what_gathers_while_all_threads_are_busy_goes_together_up_to_the_largest(make: Make) -> None:
    work = make()
    work.lane.put(["first"], "like", 3)
    work.begun(1)
    for item in "abcde":
        work.lane.put([item], "like", 3)
    work.gate.set()
    assert [["first"], ["a", "b", "c"], ["d", "e"]] == work.begun(3)


def test_unlike_things_do_not_mix_and_the_first_come_goes_first(make: Make) -> None:
    work = make()
    work.lane.put(["first"], "x", 10)
    work.begun(1)
    for item in ("a1", "b1", "a2", "b2"):
        work.lane.put([item], item[0], 10)
    work.gate.set()
    assert [["first"], ["a1", "a2"], ["b1", "b2"]] == work.begun(3)


def test_no_more_threads_work_than_were_allowed(make: Make) -> None:
    work = make(2)
    for item in "abcd":
        work.lane.put([item], item)
    work.begun(2)
    assert 2 == len(work.groups)
    work.gate.set()
    work.begun(4)


def test_a_group_is_cut_to_the_room_that_there_is(make: Make) -> None:
    limit = [2]
    work = make(1, lambda at_work: limit[0] - len(at_work))
    work.lane.put(["a", "b", "c"], "like", 10)
    assert [["a", "b"]] == work.begun(1)
    work.gate.set()
    assert [["a", "b"], ["c"]] == work.begun(2)


def test_what_found_no_room_goes_when_somebody_says_that_there_is_more(make: Make) -> None:
    limit = [0]
    asked = threading.Semaphore(0)

    def room(at_work: Sequence[str]) -> int:
        asked.release()
        return limit[0] - len(at_work)

    work = make(1, room)
    work.lane.put(["a"], "a")
    assert asked.acquire(timeout=10)
    assert [] == work.groups
    limit[0] = 1
    work.lane.look_again()
    work.begun(1)


def test_things_count_as_being_worked_on_until_they_are_done(make: Make) -> None:
    returned = threading.Event()
    begun: list[Sequence[str]] = []

    def work(items: Sequence[str]) -> None:
        begun.append(items)
        returned.set()

    lane = Lane[str]("test", 1, work, lambda at_work: 1 - len(at_work))
    lane.put(["a"], "a")
    assert returned.wait(10)
    lane.put(["b"], "b")
    assert lane.busy
    assert [["a"]] == begun
    lane.done(["a"])
    wait_for(lambda: len(begun) == 2, 10)
    lane.done(["b"])
    assert not lane.busy
    lane.stop()


def test_a_stopped_lane_finishes_what_it_began_and_drops_the_rest(make: Make) -> None:
    work = make()
    work.lane.put(["a"], "a")
    work.lane.put(["b"], "b")
    work.begun(1)
    work.lane.stop()
    assert work.lane.busy
    work.gate.set()
    wait_for(lambda: not work.lane.busy, 10)
    work.lane.put(["c"], "c")
    assert [["a"]] == work.groups


def test_what_nobody_wants_any_more_is_taken_out_of_those_that_wait(make: Make) -> None:
    work = make()
    work.lane.put(["first"], "like", 3)
    work.begun(1)
    work.lane.put(["a", "b"], "like", 3)
    work.lane.put(["c"], "other")
    work.lane.put(["d"], "last")
    assert work.lane.withdraw("like", lambda item: item == "a")
    assert work.lane.withdraw("other", lambda item: item == "c")  # nothing of its kind is left
    assert not work.lane.withdraw("like", lambda item: item == "a")
    work.gate.set()
    assert [["first"], ["b"], ["d"]] == work.begun(3)


def test_what_has_begun_or_never_came_cannot_be_taken_out(make: Make) -> None:
    work = make()
    work.lane.put(["first"], "like", 3)
    work.begun(1)
    assert not work.lane.withdraw("like", lambda item: True)
    assert not work.lane.withdraw("unheard of", lambda item: True)
    assert work.lane.busy


def test_a_key_of_which_more_waits_goes_to_the_end_of_the_line(make: Make) -> None:
    work = make()
    work.lane.put(["first"], "x")
    work.begun(1)
    work.lane.put(["a1", "a2", "a3"], "a", 2)
    work.lane.put(["b"], "b")
    work.gate.set()
    assert [["first"], ["a1", "a2"], ["b"], ["a3"]] == work.begun(4)


def test_a_key_that_is_always_refilled_keeps_no_other_out() -> None:
    begun: list[str] = []
    filled, over = threading.Event(), threading.Event()

    def work(items: Sequence[str]) -> None:
        assert filled.wait(10)
        begun.extend(items)
        if items == ["again"] and len(begun) < 100:
            lane.put(["again"], "greedy")
        lane.done(items)
        if items == ["other"]:
            over.set()

    lane = Lane[str]("test", 1, work)
    lane.put(["again"], "greedy")
    lane.put(["again", "again"], "greedy")
    lane.put(["other"], "modest")
    filled.set()
    assert over.wait(10)
    lane.stop()
    assert "other" in begun[:3]


def test_a_thread_that_cannot_be_started_delays_work_and_loses_none(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    work = make()
    work.gate.set()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refused)
        work.lane.put(["a"], "a")
        work.lane.look_again()
        work.lane.put(["b"], "b")
    assert "lane test: can't start new thread; its work waits" in caplog.text
    assert [] == work.groups
    work.lane.look_again()
    assert [["a"], ["b"]] == work.begun(2)


def test_a_thread_that_could_not_be_started_is_started_later_though_others_work(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    work = make(2)
    work.lane.put(["long"], "long")
    work.begun(1)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refused)
        work.lane.put(["short"], "short")
    assert 1 == len(work.groups)
    work.lane.look_again()
    assert [["long"], ["short"]] == work.begun(2)
