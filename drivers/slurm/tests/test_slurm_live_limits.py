"""What a real Slurm with accounts, QOS and limits refuses, and what it takes and never starts, is told as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

import pytest
from attrs import evolve
from slurm_live import LiveSlurm
from testbed.slurm import Slurm

from edgecore.errors import SchedulerUnavailable
from edgecore.models import (
    Group,
    Observation,
    Refusal,
    Refused,
    Submission,
    SubmissionAnswer,
    Submitted,
)
from edgecore.testing.client import Client, references_of
from edgecore.testing.site import DEADLINE_S, wait_for

pytestmark = pytest.mark.slow

_IN_THE_WAY: Final[Mapping[str, Mapping[str, Any]]] = {
    "AssocGrpJobsLimit": {"project": "serial"},
    "PartitionDown": {"queue": "down"},
    "QOSMaxCpuPerUserLimit": {"options": {"qos": "gold"}, "processes_per_node": 4},
}
_Answer = TypeVar("_Answer", Submitted, Refused)


@pytest.fixture(scope="module")
def opened(slurm_strict: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client("slurm", LiveSlurm(slurm_strict), tmp_path_factory.mktemp("client"))
    yield client
    client.relay.close()


@pytest.fixture
def client(opened: Client, slurm_strict: Slurm) -> Iterator[Client]:
    """The driver on a cluster without jobs."""
    yield opened
    opened.system.resume()
    slurm_strict.clear()


def _submit(client: Client, **more: Any) -> Submitted | Refused:
    group = client.group(**more)
    answer = client.relay.submit(group=group)[group.tag]
    assert isinstance(answer, Submitted | Refused)
    return answer


def _waits(client: Client, *reasons: str, **more: Any) -> Observation:
    """Submit what will wait, and return what is seen of it when it does so for one of *reasons*."""
    group = client.group(**more)
    answer = client.relay.submit(group=group)[group.tag]
    assert isinstance(answer, Submitted), answer
    reference = evolve(references_of(group)[0], batch_id=answer.batch_id)
    found: list[Observation] = []

    def waits() -> bool:
        seen = client.see(reference)
        found[:] = [] if seen is None else [seen]
        return seen is not None and any(reason in seen.reason for reason in reasons)

    wait_for(waits, DEADLINE_S, lambda: found)
    return found[0]


def _of(
    group: Group, answers: Mapping[str, SubmissionAnswer], kind: type[_Answer]
) -> list[tuple[Submission, _Answer]]:
    """Return the members of a group whose answer is of one *kind*, with it."""
    found = ((each, answers[each.tag]) for each in group.submissions)
    return [(each, answer) for each, answer in found if isinstance(answer, kind)]


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        pytest.param({"project": "nosuch"}, "Invalid account or account/partition combination", id="account"),
        pytest.param({"project": "atlas", "options": {"qos": "nosuch"}}, "Invalid qos", id="QOS"),
        pytest.param({"project": "thin", "options": {"qos": "gold"}}, "Invalid qos", id="QOS of others"),
        pytest.param({"queue": "nosuch"}, "Invalid partition name specified", id="partition"),
        pytest.param(
            {"options": {"mem": "999G"}}, "Requested node configuration is not available", id="memory"
        ),
        pytest.param({"options": {"constraint": "nosuch"}}, "Invalid feature specification", id="feature"),
        pytest.param({"options": {"gres": "gpu:1"}}, "Invalid generic resource", id="gres"),
        pytest.param({"options": {"licenses": "nosuch:1"}}, "Invalid license specification", id="license"),
        pytest.param({"options": {"reservation": "nosuch"}}, "reservation is invalid", id="reservation"),
    ],
)
def test_what_is_wrong_with_a_job_is_refused_for_good_in_slurms_words(
    client: Client, wishes: Mapping[str, Any], words: str
) -> None:
    answer = _submit(client, **wishes)
    assert isinstance(answer, Refused)
    assert Refusal.PERMANENT is answer.kind
    assert words in answer.reason


@pytest.mark.parametrize(
    ("account", "room", "words"),
    [("small", 2, "AssocGrpSubmitJobsLimit"), ("narrow", 1, "AssocMaxSubmitJobLimit")],
)
def test_what_is_too_much_at_present_is_refused_for_now(
    client: Client, account: str, room: int, words: str
) -> None:
    client.system.pause()
    answers = [_submit(client, project=account) for _ in range(room + 1)]
    assert [Submitted] * room + [Refused] == [type(answer) for answer in answers]
    refused = answers[-1]
    assert isinstance(refused, Refused)
    assert Refusal.TRANSIENT is refused.kind
    assert words in refused.reason


def test_a_partition_that_takes_nothing_at_present_refuses_for_now(client: Client) -> None:
    answer = _submit(client, queue="gone")
    assert isinstance(answer, Refused)
    assert Refusal.TRANSIENT is answer.kind
    assert "Required partition not available" in answer.reason


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        pytest.param({"project": "brief"}, "AssocMaxWallDurationPerJobLimit", id="time of the account"),
        pytest.param(
            {"project": "thin", "num_nodes": 2}, "AssocMaxNodePerJobLimit", id="nodes of the account"
        ),
        pytest.param({"queue": "closed"}, "not permitted to use this partition", id="partition of others"),
        pytest.param({"num_nodes": 9}, "PartitionConfig", id="nodes"),
        pytest.param({"processes_per_node": 9}, "PartitionConfig", id="processors"),
        pytest.param({"wall_time_minutes": 9000}, "PartitionTimeLimit", id="time of the partition"),
    ],
)
def test_what_is_taken_and_will_never_run_says_so(
    client: Client, wishes: Mapping[str, Any], reason: str
) -> None:
    assert _waits(client, reason, **wishes).never_starts


def test_what_waits_for_others_may_start_yet(client: Client) -> None:
    client.submit(text="sleep 100", project="serial")
    found = {reason: _waits(client, reason, **wishes).never_starts for reason, wishes in _IN_THE_WAY.items()}
    assert dict.fromkeys(_IN_THE_WAY, False) == found


def test_a_dependency_that_will_never_be_met_says_so(client: Client, slurm_strict: Slurm) -> None:
    failed = slurm_strict.run("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "exit 1")
    wait_for(lambda: "" == slurm_strict.run("squeue", "-h"), DEADLINE_S, lambda: slurm_strict.run("squeue"))
    never = {"dependency": f"afterok:{failed}"}
    assert _waits(client, "DependencyNeverSatisfied", options=never).never_starts
    held = slurm_strict.run("sbatch", "--parsable", "-H", "-o", "/dev/null", "--wrap", "exit 0")
    assert not _waits(client, "Dependency", options={"dependency": f"afterok:{held}"}).never_starts


def test_of_an_array_beyond_maxarraysize_is_taken_what_fits(client: Client) -> None:
    client.system.pause()
    group = client.group(60)
    answers = client.relay.submit(group=group)
    taken = {each.index: answer.batch_id for each, answer in _of(group, answers, Submitted)}
    refused = {each.index: answer for each, answer in _of(group, answers, Refused)}
    assert (set(range(51)), set(range(51, 60))) == (set(taken), set(refused))
    assert {Refusal.TRANSIENT} == {answer.kind for answer in refused.values()}
    assert all(batch_id.endswith(f"_{index}") for index, batch_id in taken.items())
    references = [
        evolve(reference, batch_id=taken[reference.index])
        for reference in references_of(group)
        if reference.index in taken
    ]
    assert {reference.tag for reference in references} == set(client.relay.observe(references=references))
    (again,) = {type(answer) for answer in client.relay.submit(group=client.group(len(refused))).values()}
    assert again is Submitted, "what was refused goes in a group of its own, whose indexes begin with 0"


def test_of_an_array_beyond_a_limit_is_taken_what_fits(client: Client) -> None:
    client.system.pause()
    answers = client.relay.submit(group=client.group(4, project="small"))
    taken = [answer for answer in answers.values() if isinstance(answer, Submitted)]
    refused = [answer for answer in answers.values() if isinstance(answer, Refused)]
    assert (2, 2) == (len(taken), len(refused))
    assert {Refusal.TRANSIENT} == {answer.kind for answer in refused}


def test_without_munge_nothing_is_known_and_nothing_was_decided(client: Client, slurm_strict: Slurm) -> None:
    client.system.pause()
    (reference,) = client.submit()
    before = len(client.system.jobs())
    slurm_strict.munged.stop()
    try:
        for ask in (
            lambda: client.relay.observe(references=[reference]),
            lambda: client.relay.cancel(references=[reference]),
            lambda: client.relay.submit(group=client.group()),
        ):
            with pytest.raises(SchedulerUnavailable, match=r"[Mm]unge"):
                ask()
    finally:
        slurm_strict.munged.start()
    assert before == len(client.system.jobs())
    assert client.see(reference) is not None
