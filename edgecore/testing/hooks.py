"""Every hook of the scheduling role by itself, on a batch system in good order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from edgecore.models import NativeState, Reference, Submitted
from edgecore.testing.batch_system import BatchSystem, Command
from edgecore.testing.client import MARK, Client, started_processes
from edgecore.testing.contract import SchedulingTests
from edgecore.testing.site import DEADLINE_S, wait_for

__all__ = ["HookTests"]

_LARGEST_GROUP_TRIED = 2_000
_STRANGERS = 300
_LONG_LISTING = 2_000
"""So many jobs take more than the 64 KiB that a pipe holds, at 33 bytes each."""


@pytest.mark.slow
class HookTests(SchedulingTests):
    """Ask the driver in this process; its answers' types are checked as well."""

    @pytest.fixture
    def client(self, tmp_path: Path, batch_system: BatchSystem) -> Iterator[Client]:
        """Open the driver."""
        client = Client(self.driver, batch_system, tmp_path / "client")
        yield client
        client.relay.close()

    # ------------------------------------------------------------------------------------ open

    def test_opening_says_what_the_batch_system_can_do(self, client: Client) -> None:
        profile = client.relay.profile
        assert profile.batch_id_text
        assert not set(profile.batch_id_text) & set("\"`\\\n'"), "it must fit between double quotes"
        assert profile.max_group >= 1
        assert profile.parallel_submits >= 1
        assert profile.poll_interval_s > 0

    # ---------------------------------------------------------------------------------- submit

    def test_what_is_submitted_runs_once_under_the_name_of_its_tag(self, client: Client) -> None:
        (reference,) = client.submit(text="echo ran >>ran.txt")
        wait_for((reference.directory / "ran.txt").exists, DEADLINE_S)
        (native,) = client.system.jobs()
        assert (reference.batch_id, 1) == (native.batch_id, native.executions)
        assert reference.tag == native.name

    def test_a_script_knows_the_id_that_was_answered(self, client: Client) -> None:
        text = f'printf %s "{client.relay.profile.batch_id_text}" >id.new; mv id.new id.txt'
        alone = client.submit(text=text)
        together = self._some(client, text)
        for reference in (*alone, *together):
            wait_for((reference.directory / "id.txt").exists, DEADLINE_S, client.system.jobs)
            assert reference.batch_id == (reference.directory / "id.txt").read_text()

    def test_members_of_a_group_run_their_own_scripts_under_ids_of_their_own(self, client: Client) -> None:
        references = self._some(client, "touch mine.txt")
        assert len(references) == len({reference.batch_id for reference in references})
        for reference in references:
            wait_for((reference.directory / "mine.txt").exists, DEADLINE_S, client.system.jobs)
        assert len(references) == sum(job.executions for job in client.system.jobs())

    def test_a_group_that_is_too_large_is_split_or_refused_and_every_member_answered(
        self, client: Client
    ) -> None:
        largest = client.relay.profile.max_group
        if largest > _LARGEST_GROUP_TRIED:
            pytest.skip(f"groups of {largest} are more than a test makes")
        client.system.pause()
        group = client.group(largest + 1)
        answers = client.relay.submit(group=group)
        assert {each.tag for each in group.submissions} == set(answers)
        assert len({type(answer) for answer in answers.values()}) == 1, "taken as a whole, or refused"
        taken = [answer.batch_id for answer in answers.values() if isinstance(answer, Submitted)]
        assert sorted(taken) == sorted(job.batch_id for job in client.system.jobs())

    def test_what_a_group_asks_for_is_taken(self, client: Client) -> None:
        if not self.accepted:
            pytest.skip("the contract class names nothing that a group may ask for: see `accepted`")
        (reference,) = client.submit(text="touch ran.txt", **self.accepted)
        wait_for((reference.directory / "ran.txt").exists, DEADLINE_S, client.system.jobs)

    @pytest.mark.parametrize("restartable", [False, True])
    def test_the_batch_system_is_asked_for_what_the_group_asks_for(
        self, client: Client, restartable: bool
    ) -> None:
        client.system.pause()
        shape: dict[str, Any] = {
            "num_nodes": 2,
            "processes_per_node": 3,
            "wall_time_minutes": 17,
            **self.accepted,
        }
        group = client.group(1, "exit 0", restartable=restartable, **shape)
        answer = client.relay.submit(group=group)[group.tag]
        assert isinstance(answer, Submitted), f"{answer}; a contract class names what is taken in `accepted`"
        (native,) = client.system.jobs()
        if native.request is None:
            pytest.skip("this batch system does not tell what it was asked for")
        comment = group.submissions[0].comment
        options = {key: str(value) for key, value in shape.pop("options", {}).items()}
        wanted = {**shape, "comment": comment, "restartable": restartable}
        known = {key: value for key, value in wanted.items() if key in native.request}
        assert known == {key: native.request[key] for key in known}
        if "options" in native.request:
            assert options.items() <= native.request["options"].items()

    def test_a_run_directory_may_have_any_name(self, tmp_path: Path, batch_system: BatchSystem) -> None:
        client = Client(self.driver, batch_system, tmp_path / 'it\'s a $directory, "né"')
        references = [*client.submit(text="touch ran.txt"), *self._some(client, "touch ran.txt")]
        for reference in references:
            wait_for((reference.directory / "ran.txt").exists, DEADLINE_S, batch_system.jobs)
        assert {one.batch_id for one in references} == {job.batch_id for job in batch_system.jobs()}
        client.relay.close()

    # --------------------------------------------------------------------------------- observe

    def test_a_job_is_seen_waiting_then_running_then_ended(self, client: Client) -> None:
        client.system.pause()
        (reference,) = client.submit(text="until [ -e end ]; do sleep 0.05; done; exit 3")
        seen = client.wait_state(NativeState.QUEUED, reference)[reference.tag]
        assert reference.batch_id == seen.batch_id
        client.system.resume()
        seen = client.wait_state(NativeState.RUNNING, reference)[reference.tag]
        assert reference.batch_id == seen.batch_id
        (reference.directory / "end").touch()

        def over() -> bool:
            seen = client.see(reference)
            return seen is None or seen.state is NativeState.ENDED

        wait_for(over, DEADLINE_S, lambda: client.see(reference))
        last = client.see(reference)
        if last is not None:  # else its own record tells the end
            assert last.exit_code in (3, None)

    def test_one_look_at_many_jobs_takes_few_commands(self, client: Client) -> None:
        client.system.pause()
        references = [client.submit()[0] for _ in range(3)]
        (example, *_) = references
        strangers = [
            evolve(example, tag=f"estranger{number:04}", batch_id=str(900_000 + number))
            for number in range(_STRANGERS)
        ]
        before = self._asked(client)
        seen = client.relay.observe(references=[*strangers, *references])
        assert self._asked(client) - before <= self.most_commands
        assert {reference.tag for reference in references} == set(seen)

    def test_a_listing_that_is_longer_than_a_pipe_holds_is_read_whole(self, client: Client) -> None:
        each = min(client.relay.profile.max_group, _LARGEST_GROUP_TRIED)
        if each < _LONG_LISTING // 4:
            pytest.skip(f"groups of {each} are too small to fill a listing with")
        client.system.pause()
        references = [one for _ in range(-(-_LONG_LISTING // each)) for one in client.submit(each)]
        assert {one.tag for one in references} == set(client.relay.observe(references=references))

    def test_jobs_that_nobody_knows_are_not_listed(self, client: Client) -> None:
        client.system.pause()
        (mine,) = client.submit()
        other_name = evolve(mine, tag="enobody000001", group_tag="enobody000001")
        other_id = evolve(mine, batch_id="987654321")
        for stranger in (other_name, other_id, evolve(other_name, batch_id="987654321")):
            assert {} == client.relay.observe(references=[stranger])
        assert {} == client.relay.observe(references=[])

    # ------------------------------------------------------------------------------------ find

    def test_jobs_are_found_by_tag_and_by_the_tag_of_their_group(self, client: Client) -> None:
        client.system.pause()
        (alone,) = client.submit()
        together = self._some(client, "exit 0")
        leader = together[0].group_tag
        found = client.relay.find(tags=[alone.tag, leader, "enobody000001"])
        assert {alone.tag, leader} == set(found)
        assert [(alone.batch_id, None)] == [(one.batch_id, one.index) for one in found[alone.tag]]
        expected = sorted((each.batch_id, each.index) for each in together)
        assert expected == sorted((one.batch_id, one.index) for one in found[leader])
        assert {} == client.relay.find(tags=[])

    def test_what_ended_is_found_as_long_as_it_is_observed(self, client: Client) -> None:
        (ended,) = client.submit(text="exit 0")
        native = client.system.jobs
        wait_for(lambda: native()[0].state is NativeState.ENDED, DEADLINE_S, native)
        if client.see(ended) is None:
            pytest.skip("this batch system forgets what has ended")
        found = client.relay.find(tags=[ended.tag])
        assert [ended.batch_id] == [one.batch_id for one in found.get(ended.tag, ())]

    # --------------------------------------------------------------------- cancel, hold, release

    def test_a_waiting_job_that_is_cancelled_never_runs(self, client: Client) -> None:
        client.system.pause()
        unwanted, wanted = (client.submit()[0] for _ in range(2))
        assert (unwanted.tag,) == client.relay.cancel(references=[unwanted]).accepted
        client.system.resume()
        client.wait_executions(1)
        ran = {job.batch_id for job in client.system.jobs() if job.executions}
        assert {wanted.batch_id} == ran

    def test_a_running_job_that_is_cancelled_ends(self, client: Client) -> None:
        (reference,) = client.submit(text="sleep 100")
        client.wait_state(NativeState.RUNNING, reference)
        client.relay.cancel(references=[reference])
        wait_for(
            lambda: client.system.jobs()[0].state is NativeState.ENDED or client.see(reference) is None,
            DEADLINE_S,
            client.system.jobs,
        )

    def test_a_job_that_is_gone_can_be_cancelled_held_and_released_without_an_error(
        self, client: Client
    ) -> None:
        client.system.pause()
        (gone,) = client.submit()
        client.system.lose(str(gone.batch_id))
        assert (gone.tag,) == client.relay.cancel(references=[gone]).accepted
        for ask in (client.relay.hold, client.relay.release):
            answer = ask(references=[gone])
            assert {gone.tag} == {*answer.accepted, *answer.refused}
        assert 1 == len(client.system.jobs())

    def test_a_job_that_is_held_does_not_start_until_it_is_released(self, client: Client) -> None:
        client.system.pause()
        held, free = (client.submit()[0] for _ in range(2))
        answer = client.relay.hold(references=[held])
        if not client.relay.profile.can_hold:
            assert {held.tag} == set(answer.refused)
            return
        assert (held.tag,) == answer.accepted
        client.wait_state(NativeState.HELD, held)
        client.system.resume()
        client.wait_executions(1)
        assert {free.batch_id} == {job.batch_id for job in client.system.jobs() if job.executions}
        assert (held.tag,) == client.relay.release(references=[held]).accepted
        client.wait_executions(2)

    @pytest.mark.fault(8)
    @pytest.mark.parametrize("hook", ["cancel", "hold", "release"])
    def test_an_id_that_now_is_somebody_elses_is_left_alone(self, client: Client, hook: str) -> None:
        client.system.pause()
        (lost,) = client.submit()
        client.system.lose(str(lost.batch_id))
        client.system.give_away(str(lost.batch_id))
        assert {} == client.relay.observe(references=[lost])
        assert {} == client.relay.find(tags=[lost.tag])
        getattr(client.relay, hook)(references=[lost])
        assert client.system.stranger_is_alive(str(lost.batch_id))

    @pytest.mark.fault(8)
    def test_a_job_of_our_own_under_another_name_is_neither_cancelled_nor_held_nor_released(
        self, client: Client
    ) -> None:
        client.system.pause()
        waits, held = (client.submit()[0] for _ in range(2))
        can_hold = client.relay.profile.can_hold
        if can_hold:
            client.relay.hold(references=[held])
            client.wait_state(NativeState.HELD, held)
        others = [
            evolve(mine, tag=f"enobody{number:06}", group_tag=f"enobody{number:06}")
            for number, mine in enumerate((waits, held))
        ]
        client.relay.hold(references=others[:1])
        client.relay.release(references=others[1:])
        client.relay.cancel(references=others)
        expected = [NativeState.QUEUED, NativeState.HELD if can_hold else NativeState.QUEUED]
        assert expected == [job.state for job in client.system.jobs()]

    # ------------------------------------------------------------------------ what is remembered

    def test_a_new_driver_object_knows_what_the_old_one_submitted(self, client: Client) -> None:
        client.system.pause()
        references = [*client.submit(), *self._some(client, "exit 0")]
        before = client.relay.observe(references=references)
        client.relay.close()
        client.open()
        assert {each.tag: each.batch_id for each in references} == {
            tag: seen.batch_id for tag, seen in client.relay.observe(references=references).items()
        }
        assert set(before) == {each.tag for each in references}
        client.relay.cancel(references=references)
        client.system.resume()
        (last,) = client.submit()
        client.wait_executions(1)
        assert {last.batch_id} == {job.batch_id for job in client.system.jobs() if job.executions}

    # ----------------------------------------------------------------------------- how it works

    def test_commands_get_the_environment_that_is_handed_over_and_nothing_else(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EDGECORE_OF_THE_SERVICE", "secret")
        with started_processes() as environments:
            (reference,) = client.submit(text="env >env.new; mv env.new env.txt")
            client.relay.observe(references=[reference])
            client.relay.find(tags=[reference.tag])
            client.relay.cancel(references=[reference])
        for environment in environments:
            assert environment is not None, "a command inherited the service's environment"
            assert "EDGECORE_OF_THE_SERVICE" not in environment
            assert environment.get("LC_ALL") == "C"
        if self._asked(client):
            assert environments
            assert all(environment and environment.get(MARK) == client.mark for environment in environments)

    def test_threads_may_share_a_driver(self, client: Client) -> None:
        client.system.pause()
        references: list[Reference] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                for _ in range(3):
                    (reference,) = client.submit()
                    references.append(reference)
                    assert client.see(reference) is not None
                    assert reference.tag in client.relay.find(tags=[reference.tag])
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [] == errors
        assert 12 == len({reference.batch_id for reference in references}) == len(client.system.jobs())

    # ------------------------------------------------------------------------------------ helpers

    def _some(self, client: Client, text: str) -> list[Reference]:
        """Submit a group, as large as is taken, up to three."""
        return client.submit(min(3, client.relay.profile.max_group), text)

    def _asked(self, client: Client) -> int:
        return sum(client.system.asked(command) for command in Command)
