"""How a driver and its layers are bound into one relay."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import Factory, define

from edgecore.errors import DriverUnusable, SchedulerUnavailable, TransferRefused
from edgecore.hookspecs import Messaging, Scheduling, Transfer, hookimpl
from edgecore.models import (
    Answer,
    Closed,
    Declared,
    Delivery,
    Finding,
    Group,
    Job,
    Level,
    MessagingProfile,
    Observation,
    OutgoingMessage,
    ProbeReport,
    Reference,
    SchedulingProfile,
    SendReport,
    Settled,
    SiteContext,
    Submission,
    SubmissionAnswer,
    Submitted,
    Topology,
    TransferProfile,
    TransferProgress,
    TransferReport,
    Verdict,
)
from edgecore.relays import Listeners, MessagingRelay, SchedulingRelay, TransferRelay, layers_for
from edgecore.selection import Selection

SITE = SiteContext(site="here", work_directory=Path("/nowhere"))
GROUP = Group(
    tag="e1",
    submissions=(Submission(tag="e1", script=Path("/s"), directory=Path("/d"), comment=""),),
    num_nodes=1,
    processes_per_node=1,
    wall_time_minutes=1,
)


@define(eq=False)
class Batch(Scheduling):
    calls: list[str] = Factory(list)

    @hookimpl
    def open(self, site: SiteContext) -> SchedulingProfile:
        return SchedulingProfile(batch_id_text="$ID", version=site.site)

    @hookimpl(tryfirst=True)
    def submit(self, group: Group) -> Mapping[str, SubmissionAnswer]:
        self.calls.append("driver")
        return {one.tag: Submitted(batch_id="1") for one in group.submissions}

    @hookimpl
    def observe(self, references: Sequence[Reference]) -> Mapping[str, Observation]:
        raise SchedulerUnavailable("silent")

    @hookimpl
    def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        raise ZeroDivisionError("a fault of the driver")

    @hookimpl
    def cancel(self, references: Sequence[Reference]) -> Answer:
        return None  # type: ignore[return-value]

    @hookimpl
    def hold(self, references: Sequence[Reference]) -> Answer:
        return Answer(refused={one.tag: "no" for one in references})

    @hookimpl
    def release(self, references: Sequence[Reference]) -> Answer:
        return Answer(accepted=tuple(one.tag for one in references))

    @hookimpl
    def close(self) -> Closed:
        return Closed(message="bye")


class TestScheduling:
    def test_making_the_relay_opens_the_driver(self) -> None:
        assert SchedulingRelay(Batch(), SITE).profile.version == "here"

    def test_each_hook_is_asked_by_name_and_answers(self) -> None:
        relay = SchedulingRelay(Batch(), SITE)
        reference = Reference(
            tag="e1", group_tag="e1", index=None, batch_id="1", directory=Path("/d"), submitted=1
        )
        assert relay.submit(group=GROUP) == {"e1": Submitted(batch_id="1")}
        assert relay.hold(references=(reference,)).refused == {"e1": "no"}
        assert relay.release(references=(reference,)).accepted == ("e1",)
        assert relay.close().message == "bye"

    def test_an_edge_error_passes_as_it_is(self) -> None:
        with pytest.raises(SchedulerUnavailable, match=r"^silent$") as raised:
            SchedulingRelay(Batch(), SITE).observe(references=())
        assert getattr(raised.value, "__notes__", []) == []

    def test_any_other_exception_passes_with_a_note_that_names_the_driver(self) -> None:
        relay = SchedulingRelay(Batch(), SITE, source="scheduling driver 'b' of edgecore-b 1.0")
        with pytest.raises(ZeroDivisionError) as raised:
            relay.find(tags=("e1",))
        assert raised.value.__notes__ == ["in the hook find of the scheduling driver 'b' of edgecore-b 1.0"]

    def test_an_exception_that_is_raised_again_is_noted_once(self) -> None:
        error = RuntimeError("the same")

        class Fails(Batch):
            @hookimpl
            def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
                raise error

        relay = SchedulingRelay(Fails(), SITE)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                relay.find(tags=())
        assert len(error.__notes__) == 1

    def test_no_answer_is_a_fault_that_names_driver_and_hook(self) -> None:
        with pytest.raises(DriverUnusable, match=r"test_relays\.Batch.*: cancel: found None"):
            SchedulingRelay(Batch(), SITE).cancel(references=())

    def test_a_driver_that_fails_while_it_is_opened_is_unusable(self) -> None:
        class Fails(Batch):
            @hookimpl
            def open(self, site: SiteContext) -> SchedulingProfile:
                raise KeyError("HOME")

        with pytest.raises(DriverUnusable, match="open: found KeyError: 'HOME'"):
            SchedulingRelay(Fails(), SITE)

    def test_a_driver_that_opens_with_something_else_than_a_profile_is_unusable(self) -> None:
        class Odd(Batch):
            @hookimpl
            def open(self, site: SiteContext) -> SchedulingProfile:
                return {}  # type: ignore[return-value]

        with pytest.raises(DriverUnusable, match="open: found dict; must answer SchedulingProfile"):
            SchedulingRelay(Odd(), SITE)


class TestTheHookThatMayBeLeftOut:
    def test_a_driver_without_it_has_nothing_to_tell(self) -> None:
        assert () == SchedulingRelay(Batch(), SITE).diagnose()

    def test_a_driver_with_it_is_asked(self) -> None:
        assert ("slots",) == tuple(one.subject for one in SchedulingRelay(Telling(), SITE).diagnose())

    def test_a_layer_may_add_to_it_and_does_not_stand_for_the_driver(self) -> None:
        class Adds(Scheduling):
            @hookimpl(wrapper=True)
            def diagnose(self) -> Generator[None, Sequence[Finding], Sequence[Finding]]:  # type: ignore[override]
                return (*(yield), Finding("policy", Level.OK, "kept"))

        def subjects(driver: Batch) -> list[str]:
            return [one.subject for one in SchedulingRelay(driver, SITE, layers=(Adds(),)).diagnose()]

        assert ["slots", "policy"] == subjects(Telling())
        assert [] == subjects(Batch())

    def test_no_answer_is_a_fault_here_too(self) -> None:
        class Silent(Batch):
            @hookimpl
            def diagnose(self) -> Sequence[Finding]:
                return None  # type: ignore[return-value]

        with pytest.raises(DriverUnusable, match="diagnose: found None"):
            SchedulingRelay(Silent(), SITE).diagnose()


class TestCopiesFromServerToServer:
    def test_a_driver_without_the_hook_refuses_with_the_way_that_there_is(self) -> None:
        relay = TransferRelay(Files(), SITE)
        assert not relay.copies
        with pytest.raises(
            TransferRefused, match="cannot bring x:1 to x:2 from server to server: fetch it, and deliver it"
        ):
            relay.copy(source="x:1", target="x:2", progress=lambda update: None)

    def test_a_driver_with_it_is_asked(self) -> None:
        class Copies(Files):
            @hookimpl
            def copy(self, source: str, target: str, progress: TransferProgress) -> TransferReport:
                return TransferReport(files=1, size_bytes=2, verified=f"{source} {target}")

        relay = TransferRelay(Copies(), SITE)
        assert relay.copies
        assert "x:1 x:2" == relay.copy(source="x:1", target="x:2", progress=lambda update: None).verified


@define(eq=False)
class Telling(Batch):
    @hookimpl
    def diagnose(self) -> Sequence[Finding]:
        return (Finding("slots", Level.OK, "4 slots"),)


class TestRefusedDrivers:
    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("def find(self, tags): return {}", "find: the hook is not answered: its method is not marked"),
            ("@hookimpl(wrapper=True)\n def find(self): return (yield)", "find: the hook is not answered"),
            (
                "@hookimpl\n def find(self, *, tags): return {}",
                "find: takes (self, tags), where tags does not",
            ),
            ("@hookimpl\n def find(self, *tags): return {}", "find: takes (self, tags), where tags does not"),
            (
                "@hookimpl\n def find(self, tags=()): return {}",
                "find: takes (self, tags), where tags does not",
            ),
            ("@hookimpl\n async def find(self, tags): return {}", "find: must not be async"),
            ("@hookimpl\n def find(self, tags): yield {}", "find: must return an answer, not yield"),
            ("@staticmethod\n @hookimpl\n def find(tags): return {}", "find: must be a plain method"),
            ("def diagnose(self): return ()", "diagnose: the hook is not answered: its method is not marked"),
            ("@hookimpl\n def diagnose(self, deep): return ()", "diagnose: takes (self, deep), where deep"),
            ("@hookimpl\n def serach(self, tags): return {}", "serach: is no hook of scheduling"),
            ("@hookimpl\n def job_changed(self, job): pass", "job_changed: is no hook of scheduling"),
        ],
    )
    def test_a_hook_that_could_not_be_called_as_specified_is_refused(self, body: str, words: str) -> None:
        namespace: dict[str, Any] = {"Batch": Batch, "hookimpl": hookimpl}
        exec(f"class Driver(Batch):\n {body}\n", namespace)
        driver = namespace["Driver"]()
        with pytest.raises(DriverUnusable) as raised:
            SchedulingRelay(driver, SITE)
        assert words in str(raised.value)

    def test_a_driver_of_another_role_is_refused(self) -> None:
        with pytest.raises(DriverUnusable, match=r"must subclass edgecore\.hookspecs\.Transfer"):
            TransferRelay(Batch(), SITE)

    def test_all_problems_are_told_at_once(self) -> None:
        class Bare(Scheduling):
            pass

        with pytest.raises(DriverUnusable) as raised:
            SchedulingRelay(Bare(), SITE)
        assert len(raised.value.problems) == 8

    def test_a_driver_may_leave_out_arguments_that_it_does_not_need(self) -> None:
        namespace: dict[str, Any] = {"Batch": Batch, "hookimpl": hookimpl}
        exec("class Driver(Batch):\n @hookimpl\n def find(self): return {}\n", namespace)
        assert SchedulingRelay(namespace["Driver"](), SITE).find(tags=("e1",)) == {}


@define(eq=False)
class Around:
    """A layer that writes down when it was passed."""

    name: str
    calls: list[str]

    @hookimpl(wrapper=True)
    def submit(self) -> Generator[None, Any, Any]:
        self.calls.append(f"{self.name} in")
        answer = yield
        self.calls.append(f"{self.name} out")
        return answer


@define(eq=False)
class Policy:
    """A layer that may answer instead of the driver."""

    calls: list[str]
    answer: Mapping[str, SubmissionAnswer] | None = None

    @hookimpl
    def submit(self, group: Group) -> Mapping[str, SubmissionAnswer] | None:
        self.calls.append("policy")
        return self.answer


class TestLayers:
    def test_the_first_layer_is_the_outermost(self) -> None:
        calls: list[str] = []
        relay = SchedulingRelay(Batch(calls), SITE, layers=(Around("a", calls), Around("b", calls)))
        relay.submit(group=GROUP)
        assert calls == ["a in", "b in", "driver", "b out", "a out"]

    def test_a_driver_cannot_put_itself_before_a_layer(self) -> None:
        calls: list[str] = []
        answer = {"e1": Submitted(batch_id="policy")}
        relay = SchedulingRelay(Batch(calls), SITE, layers=(Policy(calls, answer),))
        assert relay.submit(group=GROUP) == answer
        assert calls == ["policy"]

    def test_a_layer_that_has_no_answer_leaves_it_to_the_driver(self) -> None:
        calls: list[str] = []
        relay = SchedulingRelay(Batch(calls), SITE, layers=(Policy(calls),))
        assert relay.submit(group=GROUP) == {"e1": Submitted(batch_id="1")}
        assert calls == ["policy", "driver"]

    def test_layers_and_listeners_of_other_roles_are_left_out(self) -> None:
        @define(eq=False)
        class Watch:
            @hookimpl
            def send(self, messages: Sequence[OutgoingMessage]) -> None:
                raise AssertionError("not for scheduling")

        class Hears:
            @hookimpl
            def job_changed(self, job: Job) -> None:
                raise AssertionError("not for scheduling")

        around, watch, hears = Around("a", []), Watch(), Hears()
        assert layers_for("scheduling", (around, watch, hears)) == (around,)
        assert layers_for("messaging", (around, watch, hears)) == (watch,)
        assert SchedulingRelay(Batch(), SITE, layers=(around, watch, hears)).submit(group=GROUP)

    def test_one_plugin_may_be_a_layer_of_two_roles_and_a_listener(self) -> None:
        heard: list[str] = []

        class Many:
            @hookimpl(wrapper=True)
            def submit(self) -> Generator[None, Any, Any]:
                heard.append("submit")
                return (yield)

            @hookimpl(wrapper=True)
            def fetch(self) -> Generator[None, Any, Any]:
                return (yield)

            @hookimpl
            def service_started(self, site: str) -> None:
                heard.append(site)

        many = Many()
        assert layers_for("scheduling", (many,)) == layers_for("transfer", (many,)) == (many,)
        SchedulingRelay(Batch(), SITE, layers=(many,)).submit(group=GROUP)
        Listeners((many,)).service_started(site="here")
        assert heard == ["submit", "here"]

    def test_a_wrapper_that_drops_the_answer_is_named_with_the_driver(self) -> None:
        class Forgets:
            @hookimpl(wrapper=True)
            def submit(self) -> Generator[None, Any, None]:
                yield

        with pytest.raises(DriverUnusable, match=r"Batch under .*Forgets: submit: found None"):
            SchedulingRelay(Batch(), SITE, layers=(Forgets(),)).submit(group=GROUP)

    def test_a_layer_with_a_wrong_hook_is_refused_by_name(self) -> None:
        class Wrong:
            @hookimpl(wrapper=True)
            def submit(self, groups: Group) -> Generator[None, Any, Any]:
                return (yield)

        with pytest.raises(DriverUnusable, match=r"layer .*Wrong: submit: takes \(self, groups\)"):
            SchedulingRelay(Batch(), SITE, layers=(Wrong(),))


@define(eq=False)
class Files(Transfer):
    @hookimpl
    def open(self, site: SiteContext) -> TransferProfile:
        return TransferProfile(version="t")

    @hookimpl
    def fetch(self, url: str, directory: Path, progress: TransferProgress) -> TransferReport:
        return TransferReport(files=1, size_bytes=len(url))

    @hookimpl
    def deliver(
        self, directory: Path, url: str, progress: TransferProgress, selection: Selection
    ) -> TransferReport:
        return TransferReport(files=2, size_bytes=len(url))

    @hookimpl
    def probe(self, url: str) -> ProbeReport:
        return ProbeReport(ok=True, message=url)

    @hookimpl
    def close(self) -> Closed:
        return Closed()


@define(eq=False)
class Broker(Messaging):
    @hookimpl
    def open(self, site: SiteContext) -> MessagingProfile:
        return MessagingProfile(broker="b")

    @hookimpl
    def declare(self, topology: Topology) -> Declared:
        return Declared(queues=tuple(queue.name for queue in topology.queues))

    @hookimpl
    def send(self, messages: Sequence[OutgoingMessage]) -> SendReport:
        return SendReport(sent=len(messages))

    @hookimpl
    def receive(self, queue: str, limit: int, timeout_s: float) -> Sequence[Delivery]:
        return ()

    @hookimpl
    def settle(self, deliveries: Sequence[Delivery], verdict: Verdict, reason: str) -> Settled:
        return Settled(count=len(deliveries))

    @hookimpl
    def close(self) -> Closed:
        return Closed()


def test_a_transfer_relay_asks_each_hook_by_name() -> None:
    relay = TransferRelay(Files(), SITE)
    assert relay.profile.version == "t"
    assert relay.fetch(url="x", directory=Path("/d"), progress=print).files == 1
    assert relay.deliver(url="x", directory=Path("/d"), progress=print).files == 2
    assert relay.probe(url="x").message == "x"
    assert relay.close() == Closed()


def test_a_messaging_relay_asks_each_hook_by_name_and_an_empty_answer_is_an_answer() -> None:
    relay = MessagingRelay(Broker(), SITE)
    assert relay.profile.broker == "b"
    assert relay.declare(topology=Topology(exchanges=(), queues=())) == Declared(queues=())
    assert relay.send(messages=()) == SendReport(sent=0)
    assert relay.receive(queue="q", limit=1, timeout_s=0.0) == ()
    assert relay.settle(deliveries=(), verdict=Verdict.ACCEPT, reason="") == Settled(count=0)
    assert relay.close() == Closed()


@pytest.mark.slow
def test_a_type_checker_refuses_calls_by_position_and_wrong_types(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(
        textwrap.dedent(
            """
            from edgecore.drivers import SchedulingRelay
            from edgecore.models import Group

            def use(relay: SchedulingRelay, group: Group) -> None:
                reveal_type(relay.profile)
                reveal_type(relay.submit(group=group))
                relay.submit(group)
                relay.find(tags=[1])
            """
        )
    )
    cache = f"--cache-dir={tmp_path / 'cache'}"
    mypy = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            cache,
            "--follow-imports=silent",
            "--no-pretty",
            str(user),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = [line.partition("user.py:")[2] for line in mypy.stdout.splitlines()]
    revealed = [line.split(":")[0] for line in said if "Revealed type" in line]
    errors = [line.split(":")[0] for line in said if "error: " in line]
    assert (revealed, errors) == (["6", "7"], ["8", "9"]), mypy.stdout + mypy.stderr
    assert "SchedulingProfile" in mypy.stdout
    assert "Mapping[str, " in mypy.stdout
    assert "Too many positional arguments" in mypy.stdout
