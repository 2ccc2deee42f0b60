"""Every hook of the scheduling role by itself, on a batch system that misbehaves.

What the fault matrix shows through a whole service is looked at here from near: which answer or which
error comes back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve

from edgecore.errors import SchedulerUnavailable
from edgecore.models import NativeState, Reference, Refusal, Refused, Submitted
from edgecore.testing.batch_system import Command, Ending, Garbling, SubmitFault, Word
from edgecore.testing.client import MARK, Client, references_of
from edgecore.testing.hooks import HookTests
from edgecore.testing.site import DEADLINE_S, wait_for

__all__ = ["HookFaults"]

_ASK: Final[dict[str, Callable[[Client, Reference], object]]] = {
    "submit": lambda client, _: client.relay.submit(group=client.group()),
    "observe": lambda client, reference: client.relay.observe(references=[reference]),
    "find": lambda client, reference: client.relay.find(tags=[reference.tag]),
    "cancel": lambda client, reference: client.relay.cancel(references=[reference]),
    "hold": lambda client, reference: client.relay.hold(references=[reference]),
    "release": lambda client, reference: client.relay.release(references=[reference]),
}
_EACH_HOOK = pytest.mark.parametrize("hook", sorted(_ASK))


@pytest.mark.slow
class HookFaults(HookTests):
    """Ask the driver in this process while its batch system is spoiled."""

    @_EACH_HOOK
    @pytest.mark.fault(2, "for an hour")
    def test_a_batch_system_that_is_down_is_unavailable_and_nothing_else(
        self, client: Client, hook: str
    ) -> None:
        client.system.pause()
        (reference,) = client.submit()
        with client.system.failing(*Command), pytest.raises(SchedulerUnavailable) as error:
            _ASK[hook](client, reference)
        assert str(error.value)
        seen = client.see(reference)
        assert seen is not None
        assert NativeState.QUEUED is seen.state

    @pytest.mark.fault(3)
    def test_a_command_that_hangs_is_given_up_and_leaves_no_process(self, client: Client) -> None:
        """Whatever hook needs it; all are asked at once, as the lanes of a service do."""
        client.system.pause()
        (reference,) = client.submit()

        def ask(hook: str) -> object:
            try:
                return _ASK[hook](client, reference)
            except Exception as error:
                return error

        begun = time.monotonic()
        with client.system.hanging(*Command), ThreadPoolExecutor(len(_ASK)) as pool:
            answers = dict(zip(_ASK, pool.map(ask, _ASK), strict=True))
            assert {SchedulerUnavailable} == {type(each) for each in answers.values()}, answers
            assert time.monotonic() - begun < self.longest_s
            wait_for(lambda: not _marked(client.mark), DEADLINE_S, lambda: _marked(client.mark))

    @pytest.mark.fault(4, "behind")
    def test_what_is_queued_again_counts_more_than_the_end_that_accounting_remembers(
        self, client: Client
    ) -> None:
        (reference,) = client.submit(text="sleep 100", restartable=True)
        client.wait_state(NativeState.RUNNING, reference)
        client.system.pause()
        client.system.interrupt(str(reference.batch_id), Ending.NODE_FAILURE)
        with client.system.accounting_behind():
            client.system.requeue(str(reference.batch_id))
            seen = client.see(reference)
        assert seen is not None
        assert NativeState.QUEUED is seen.state

    @pytest.mark.fault(5)
    def test_an_unknown_state_word_is_an_unknown_state_of_that_job_alone(self, client: Client) -> None:
        client.system.pause()
        odd, plain = (client.submit()[0] for _ in range(2))
        with client.system.showing(str(odd.batch_id), Word.UNKNOWN):
            seen = client.relay.observe(references=[odd, plain])
        assert [NativeState.UNKNOWN, NativeState.QUEUED] == [seen[each.tag].state for each in (odd, plain)]
        assert seen[odd.tag].native_state

    @pytest.mark.fault(6)
    def test_the_first_word_of_a_decorated_state_decides(self, client: Client) -> None:
        (reference,) = client.submit(text="sleep 100")
        client.wait_state(NativeState.RUNNING, reference)
        with client.system.showing(str(reference.batch_id), Word.DECORATED):
            seen = client.see(reference)
        assert seen is not None
        assert NativeState.RUNNING is seen.state

    @pytest.mark.parametrize(
        "how",
        [
            pytest.param(how, marks=pytest.mark.fault(7, how), id=how.name)
            for how in Garbling
            if how is not Garbling.EMPTY
        ],
    )
    def test_a_damaged_line_costs_its_own_job_at_most(self, client: Client, how: Garbling) -> None:
        client.system.pause()
        first, victim, last = (client.submit()[0] for _ in range(3))
        with client.system.garbling(str(victim.batch_id), how):
            seen = client.relay.observe(references=[first, victim, last])
        assert {first.tag, last.tag} <= set(seen)
        for reference in (first, last):
            assert NativeState.QUEUED is seen[reference.tag].state
            assert reference.batch_id == seen[reference.tag].batch_id
        if victim.tag in seen:
            assert seen[victim.tag].state in (NativeState.QUEUED, NativeState.UNKNOWN)

    @pytest.mark.fault(7, "noise")
    def test_what_commands_say_beside_their_answer_hides_no_answer(self, client: Client) -> None:
        client.system.pause()
        with client.system.noisy():
            (reference,) = client.submit()
            assert [reference.batch_id] == [job.batch_id for job in client.system.jobs()]
            seen = client.see(reference)
            assert seen is not None
            assert NativeState.QUEUED is seen.state
            assert {reference.tag} == set(client.relay.find(tags=[reference.tag]))
            client.relay.cancel(references=[reference])
        assert [NativeState.ENDED] == [job.state for job in client.system.jobs()]

    @pytest.mark.fault(9)
    def test_an_id_that_was_printed_counts_whatever_the_exit_code(self, client: Client) -> None:
        with client.system.spoil_submit(SubmitFault.FAILS_WITH_ID):
            (reference,) = client.submit()
        assert [reference.batch_id] == [job.batch_id for job in client.system.jobs()]

    @pytest.mark.parametrize(
        "fault",
        [
            pytest.param(fault, marks=pytest.mark.fault(10, fault), id=fault.name)
            for fault in (SubmitFault.DIES, SubmitFault.HANGS)
        ],
    )
    def test_a_submission_without_an_answer_is_found_by_its_tag(
        self, client: Client, fault: SubmitFault
    ) -> None:
        client.system.pause()
        groups = [client.group(size) for size in sorted({1, min(3, client.relay.profile.max_group)})]
        for group in groups:
            with client.system.spoil_submit(fault):
                try:
                    answers = client.relay.submit(group=group)
                except SchedulerUnavailable:
                    answers = {}
            assert {} == answers, "the outcome is not known"
        found = client.relay.find(tags=[group.tag for group in groups])
        ids = {one.index: one.batch_id for group in groups for one in found[group.tag]}
        assert sorted(ids.values()) == sorted(job.batch_id for job in client.system.jobs())
        references = [reference for group in groups for reference in references_of(group)]
        assert {reference.index for reference in references} == set(ids)
        client.relay.cancel(references=[evolve(each, batch_id=ids[each.index]) for each in references])
        client.system.resume()
        (last,) = client.submit()
        client.wait_executions(1)
        assert {last.batch_id} == {job.batch_id for job in client.system.jobs() if job.executions}

    @pytest.mark.parametrize(
        "kind",
        [
            pytest.param(Refusal.TRANSIENT, marks=pytest.mark.fault(16)),
            pytest.param(Refusal.PERMANENT, marks=pytest.mark.fault(16, "for good")),
        ],
    )
    def test_a_refusal_is_told_by_its_kind_and_in_the_batch_systems_words(
        self, client: Client, kind: Refusal
    ) -> None:
        with client.system.refusing(kind) as words:
            group = client.group()
            answer = client.relay.submit(group=group)[group.tag]
        assert isinstance(answer, Refused), answer
        assert kind is answer.kind
        assert words.lower() in answer.reason.lower()
        assert [] == client.system.jobs()

    @pytest.mark.fault(19)
    def test_what_can_never_run_says_so_with_the_reason(self, client: Client) -> None:
        with client.system.spoil_submit(SubmitFault.NEVER_RUNS):
            group = client.group()
            answer = client.relay.submit(group=group)[group.tag]
            assert isinstance(answer, Submitted), answer
            (reference,) = references_of(group)
            seen = client.see(evolve(reference, batch_id=answer.batch_id))
        assert seen is not None
        assert seen.never_starts
        assert seen.reason

    @pytest.mark.parametrize(
        "ending",
        [pytest.param(ending, marks=pytest.mark.fault(13, ending), id=ending.name) for ending in Ending],
    )
    def test_an_end_by_the_batch_system_has_its_reason(self, client: Client, ending: Ending) -> None:
        (reference,) = client.submit(text="sleep 100")
        client.wait_state(NativeState.RUNNING, reference)
        client.system.interrupt(str(reference.batch_id), ending)
        seen = client.wait_state(NativeState.ENDED, reference)[reference.tag]
        assert self.words[ending] in seen.reason.lower().replace("_", " ")
        assert seen.exit_code != 0


def _marked(mark: str) -> list[str]:
    """Return the processes that have *mark* in their environment."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            place = Path("/proc", name)
            if f"{MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(f"{name} {(place / 'cmdline').read_bytes()!r}")
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found
