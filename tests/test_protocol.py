"""Explore the exactly-once protocol: every interleaving, within bounds, of everything that can go wrong.

The bounds of the suite visit some 250,000 states; those of ``pytest -m long`` several million. The last
part switches single rules of the protocol off and demands that the exploration finds the harm: a model that
cannot fail would prove nothing.
"""

from __future__ import annotations

from functools import partial

import pytest
from protocol.explorer import Exploration, explore
from protocol.state import Bounds, Rules, State
from protocol.world import World

ONE = partial(Bounds, attempts=1, submissions=1)
TWICE = partial(Bounds, attempts=1, submitted_twice=True, starts=1)

SHORT = {
    "two attempts": Bounds(),
    "two attempts, cancelled": Bounds(starts=1, cancel=True),
    "two attempts, restartable": Bounds(starts=1, restartable=True, ids_again=True),
    "a retry after a failure": Bounds(starts=1, retries=1),
    "a file server that lies": Bounds(starts=1, lost_replies=True, stale_directory=True),
    "one attempt, every fault": ONE(
        cancel=True, restartable=True, lost_replies=True, stale_directory=True, stale_end=True
    ),
    "one attempt, every fault, token first": ONE(
        cancel=True,
        restartable=True,
        lost_replies=True,
        stale_directory=True,
        stale_end=True,
        look_first=True,
    ),
    "given up": ONE(give_up=True, restartable=True, lost_replies=True, stale_end=True),
    "given up, two attempts": Bounds(starts=1, give_up=True, retries=1),
    "submitted twice": TWICE(),
    "submitted twice, cancelled, restartable": TWICE(cancel=True, restartable=True),
}

LONG = {
    "two attempts, restartable, cancelled": Bounds(restartable=True, cancel=True),
    "two attempts, token first": Bounds(look_first=True, cancel=True),
    "a retry after a failure, cancelled": Bounds(retries=1, cancel=True),
    "ids given again": Bounds(ids_again=True, restartable=True, cancel=True),
    "a file server that lies": Bounds(
        lost_replies=True, stale_directory=True, stale_end=True, restartable=True
    ),
    "given up, cancelled": ONE(
        give_up=True, cancel=True, restartable=True, lost_replies=True, stale_directory=True, stale_end=True
    ),
    "given up, two attempts, cancelled": Bounds(
        starts=1, give_up=True, cancel=True, restartable=True, ids_again=True
    ),
    "given up, submitted twice": TWICE(give_up=True, cancel=True, restartable=True),
    "submitted twice": Bounds(attempts=1, submitted_twice=True, restartable=True, cancel=True),
    "submitted twice in each of two attempts": Bounds(submissions=3, submitted_twice=True, starts=1),
}


def cases(bounds: dict[str, Bounds]) -> pytest.MarkDecorator:
    """Run a test once for each of *bounds*."""
    return pytest.mark.parametrize("bounds", bounds.values(), ids=bounds.keys())


def assert_nothing_goes_wrong(bounds: Bounds) -> None:
    """Explore, and show the shortest way to whatever goes wrong."""
    found = explore(World(bounds=bounds))
    assert found.violations == {}, _story(found)
    assert found.stuck == []
    assert found.needs_operator == []


def _story(found: Exploration[State]) -> str:
    return "\n".join("\n  ".join([broken, *way]) for broken, way in found.violations.items())


@pytest.mark.slow
@cases(SHORT)
def test_no_interleaving_runs_twice_reports_falsely_or_never_ends(bounds: Bounds) -> None:
    assert_nothing_goes_wrong(bounds)


@pytest.mark.long
@cases(LONG)
def test_no_interleaving_of_the_larger_world_runs_twice_reports_falsely_or_never_ends(bounds: Bounds) -> None:
    assert_nothing_goes_wrong(bounds)


@pytest.mark.parametrize("restartable", [False, True])
def test_where_no_walltime_ends_an_execution_it_ends_or_is_lost_with_an_alarm(restartable: bool) -> None:
    world = World(bounds=ONE(walltime=False, restartable=restartable, cancel=True))
    found = explore(world)
    assert found.violations == {}, _story(found)
    assert found.stuck == []
    assert found.needs_operator != []  # a node that vanished without a word
    assert [state for state in found.needs_operator if not world.is_lost(state)] == []


ABLATIONS = {
    "gives an attempt up without a rename": (
        Rules(revokes=False), Bounds(starts=1), "two executions at once",
    ),
    "cancels without a rename": (
        Rules(revokes=False), ONE(cancel=True), "a start after JOB_CANCELLED",
    ),
    "takes back what waits without a rename": (
        Rules(revokes=False), ONE(give_up=True), "a start after JOB_FAILED",
    ),
    "calls an execution over without a rename": (
        Rules(fences=False), ONE(restartable=True), "a start after JOB_FAILED",
    ),
    "calls an execution over although it wrote its end": (
        Rules(fences=False), ONE(restartable=True), "a failure reported although an end was recorded",
    ),
    "submits the same attempt again": (
        Rules(new_attempt=False), Bounds(attempts=1, starts=1, restartable=True, ids_again=True),
        "a second submission runs the application",
    ),
    "goes on after a requeue by what it read": (
        Rules(restarts_by_rename=False), ONE(restartable=True), "a start after JOB_FAILED",
    ),
    "starts again after the end": (
        Rules(heeds_ends=False), ONE(restartable=True), "a start after JOB_FINISHED",
    ),
    "starts again after the end, with another exit code": (
        Rules(heeds_ends=False), ONE(restartable=True), "a false exit code",
    ),
    "takes the token of another batch id": (
        Rules(heeds_batch_id=False), TWICE(restartable=True), "two executions at once",
    ),
    "believes an answer about another batch id": (
        Rules(tells_batch_ids_apart=False), TWICE(), "'JOB_FAILED' reported while the application runs",
    ),
    "believes an answer about a former execution": (
        Rules(tells_executions_apart=False), ONE(restartable=True, stale_end=True),
        "'JOB_FAILED' reported while the application runs",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "bounds", "harm"), ABLATIONS.values(), ids=ABLATIONS.keys())
def test_without_the_rule_the_exploration_finds_the_harm(rules: Rules, bounds: Bounds, harm: str) -> None:
    assert harm in explore(World(bounds=bounds, rules=rules), until=harm).violations
