"""Hold the checks of drivers' answers to it: every wrong answer is found, with its place, and no right one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from attrs import evolve

from edgecore.builtin.copy import FileTransfer
from edgecore.errors import SchedulerUnavailable, TransferInterrupted, TransferRefused, TransferStopped
from edgecore.hookspecs import Messaging, Scheduling, Transfer, hookimpl
from edgecore.models import (
    Answer,
    Between,
    Closed,
    Declared,
    Delivery,
    Finding,
    Group,
    Level,
    MessagingProfile,
    Name,
    NativeState,
    Observation,
    OutgoingMessage,
    ProbeReport,
    Queue,
    Reference,
    Refusal,
    Refused,
    SchedulingProfile,
    SendReport,
    Settled,
    SiteContext,
    Submission,
    Submitted,
    Topology,
    TransferProfile,
    TransferProgress,
    TransferReport,
    TransferUpdate,
    Value,
    Verdict,
)
from edgecore.relays import MessagingRelay, SchedulingRelay, TransferRelay
from edgecore.selection import Selection
from edgecore.testing.checks import CheckedProgress, TypeChecked, WrongAnswer
from edgecore.testing.typed import breaches

HERE = Path("/nowhere")
SITE = SiteContext(site="theta", work_directory=HERE)
NOW = time.time_ns() // 1000
SEEN = Observation(state=NativeState.ENDED, native_state="CD", batch_id="17", exit_code=0)
REPORT = TransferReport(files=2, size_bytes=10, verified="size")
FOUND = Finding("server", Level.WARNING, "it is slow", "look at its load")
DELIVERY = Delivery(token="t1", queue="theta", body=b"{}")


def but(value: Any, **fields: Any) -> Any:
    """Return *value* with other fields, of whatever types."""
    return evolve(value, **fields)


def give(answer: object) -> Any:
    """Return *answer*, or raise it."""
    if isinstance(answer, BaseException):
        raise answer
    return answer


class Batch(Scheduling):
    """Answer every hook with what a test says, else rightly."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers

    def say(self, hook: str, right: object) -> Any:
        return give(self.answers.get(hook, right))

    @hookimpl
    def open(self, site: SiteContext) -> SchedulingProfile:
        return self.say("open", SchedulingProfile(batch_id_text="$PBS_JOBID"))  # type: ignore[no-any-return]

    @hookimpl
    def submit(self, group: Group) -> Mapping[str, Any]:
        return self.say("submit", {"e1a1": Submitted(batch_id="17")})  # type: ignore[no-any-return]

    @hookimpl
    def observe(self, references: Sequence[Reference]) -> Mapping[str, Observation]:
        return self.say("observe", {"e1a1": SEEN})  # type: ignore[no-any-return]

    @hookimpl
    def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        return self.say("find", {"e1a1": [SEEN]})  # type: ignore[no-any-return]

    @hookimpl
    def cancel(self, references: Sequence[Reference]) -> Answer:
        return self.say("cancel", Answer(accepted=("e1a1",)))  # type: ignore[no-any-return]

    @hookimpl
    def hold(self, references: Sequence[Reference]) -> Answer:
        return self.say("hold", Answer(refused={"e1a1": "it runs"}))  # type: ignore[no-any-return]

    @hookimpl
    def release(self, references: Sequence[Reference]) -> Answer:
        return self.say("release", Answer(accepted=("e1a1",)))  # type: ignore[no-any-return]

    @hookimpl
    def diagnose(self) -> Sequence[Finding]:
        return self.say("diagnose", [FOUND])  # type: ignore[no-any-return]

    @hookimpl
    def close(self) -> Closed:
        return self.say("close", Closed())  # type: ignore[no-any-return]


class Mover(Transfer):
    """As `Batch`; an answer that can be called is given the *progress*."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers

    def say(self, hook: str, right: object, progress: object = None) -> Any:
        answer = self.answers.get(hook, right)
        return answer(progress) if callable(answer) else give(answer)

    @hookimpl
    def open(self, site: SiteContext) -> TransferProfile:
        return self.say("open", TransferProfile())  # type: ignore[no-any-return]

    @hookimpl
    def fetch(self, url: str, directory: Path, progress: TransferProgress) -> TransferReport:
        return self.say("fetch", REPORT, progress)  # type: ignore[no-any-return]

    @hookimpl
    def deliver(
        self, directory: Path, url: str, progress: TransferProgress, selection: Selection
    ) -> TransferReport:
        return self.say("deliver", REPORT, progress)  # type: ignore[no-any-return]

    @hookimpl
    def probe(self, url: str) -> ProbeReport:
        return self.say("probe", ProbeReport(ok=False, message="no such host"))  # type: ignore[no-any-return]

    @hookimpl
    def close(self) -> Closed:
        return self.say("close", Closed())  # type: ignore[no-any-return]


class Post(Messaging):
    """As `Batch`."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers

    def say(self, hook: str, right: object) -> Any:
        return give(self.answers.get(hook, right))

    @hookimpl
    def open(self, site: SiteContext) -> MessagingProfile:
        return self.say("open", MessagingProfile(broker="a broker"))  # type: ignore[no-any-return]

    @hookimpl
    def declare(self, topology: Topology) -> Declared:
        return self.say("declare", Declared(queues=("theta",)))  # type: ignore[no-any-return]

    @hookimpl
    def send(self, messages: Sequence[OutgoingMessage]) -> SendReport:
        return self.say("send", SendReport(sent=1, unroutable={"b": "no queue"}))  # type: ignore[no-any-return]

    @hookimpl
    def receive(self, queue: str, limit: int, timeout_s: float) -> Sequence[Delivery]:
        return self.say("receive", [DELIVERY])  # type: ignore[no-any-return]

    @hookimpl
    def settle(self, deliveries: Sequence[Delivery], verdict: Verdict, reason: str) -> Settled:
        return self.say("settle", Settled(count=1))  # type: ignore[no-any-return]

    @hookimpl
    def close(self) -> Closed:
        return self.say("close", Closed())  # type: ignore[no-any-return]


def reference(tag: str) -> Reference:
    return Reference(tag=tag, group_tag=tag, index=None, batch_id="17", directory=HERE, submitted=NOW)


def submission(tag: str) -> Submission:
    return Submission(tag=tag, script=HERE / "s", directory=HERE, comment="")


def batch(hook: str, **answers: object) -> object:
    """Ask one hook of a batch system that answers as a test says, through the checks."""
    relay = SchedulingRelay(Batch(**answers), SITE, layers=[TypeChecked()])
    members = (submission("e1a1"), submission("e2a1"))
    group = Group(tag="e1a1", submissions=members, num_nodes=1, processes_per_node=1, wall_time_minutes=1)
    one = [reference("e1a1")]
    asked: dict[str, Callable[[], object]] = {
        "submit": lambda: relay.submit(group=group),
        "observe": lambda: relay.observe(references=one),
        "find": lambda: relay.find(tags=["e1a1"]),
        "cancel": lambda: relay.cancel(references=one),
        "hold": lambda: relay.hold(references=one),
        "release": lambda: relay.release(references=one),
        "close": relay.close,
        "diagnose": relay.diagnose,
    }
    return asked[hook]()


def mover(hook: str, progress: TransferProgress | None = None, /, **answers: object) -> object:
    relay = TransferRelay(Mover(**answers), SITE, layers=[TypeChecked()])
    told = progress or CheckedProgress()
    asked: dict[str, Callable[[], object]] = {
        "fetch": lambda: relay.fetch(url="x://y", directory=HERE, progress=told),
        "deliver": lambda: relay.deliver(url="x://y", directory=HERE, progress=told),
        "probe": lambda: relay.probe(url="x://y"),
        "close": relay.close,
    }
    return asked[hook]()


def post(hook: str, **answers: object) -> object:
    relay = MessagingRelay(Post(**answers), SITE, layers=[TypeChecked()])
    queue = Queue(name="theta", exchange="hpc", keys=("theta",))
    messages = [OutgoingMessage(exchange="hpc", key="k", body=b"", message_id=name) for name in "ab"]
    asked: dict[str, Callable[[], object]] = {
        "declare": lambda: relay.declare(topology=Topology(exchanges=("hpc",), queues=(queue,))),
        "send": lambda: relay.send(messages=messages),
        "receive": lambda: relay.receive(queue="theta", limit=1, timeout_s=0.0),
        "settle": lambda: relay.settle(deliveries=[DELIVERY], verdict=Verdict.ACCEPT, reason=""),
        "close": relay.close,
    }
    return asked[hook]()


# ------------------------------------------------------------------------------- right answers


@pytest.mark.parametrize(
    "hook", ["submit", "observe", "find", "cancel", "hold", "release", "diagnose", "close"]
)
def test_a_right_answer_of_a_scheduling_driver_passes_as_it_is(hook: str) -> None:
    assert batch(hook) is not None


@pytest.mark.parametrize("hook", ["fetch", "deliver", "probe", "close"])
def test_a_right_answer_of_a_transfer_driver_passes_as_it_is(hook: str) -> None:
    assert mover(hook) is not None


@pytest.mark.parametrize("hook", ["declare", "send", "receive", "settle", "close"])
def test_a_right_answer_of_a_messaging_driver_passes_as_it_is(hook: str) -> None:
    assert post(hook) is not None


# ------------------------------------------------------------------------------- wrong answers


def spoilt(**fields: Any) -> dict[str, Observation]:
    return {"e1a1": but(SEEN, **fields)}


@pytest.mark.parametrize(
    ("hook", "answer", "words"),
    [
        ("submit", None, r"submit: answer: found None, expected Mapping"),
        ("submit", ["17"], r"answer: found .*\(list\), expected Mapping"),
        ("submit", {"e1a1": "17"}, r"answer\['e1a1'\]: found '17' \(str\), expected Submitted or Refused"),
        ("submit", {"e1a1": Submitted(batch_id=17)}, r"answer\['e1a1'\]\.batch_id: found 17 \(int\), expected str"),  # type: ignore[arg-type]
        ("submit", {1: Submitted(batch_id="17")}, r"the key 1 of answer: found 1 \(int\), expected str"),
        ("submit", {"e9a1": Submitted(batch_id="17")}, r"answer: found 'e9a1', expected only what was asked for"),
        ("submit", {"e1a1": Submitted(batch_id="")}, r"batch_id: found '', expected 1 to 255 printable"),
        ("submit", {"e1a1": Submitted(batch_id="17\n")}, r"batch_id: found '17\\n', expected .* one line"),
        ("submit", dict.fromkeys(("e1a1", "e2a1"), Submitted(batch_id="17")), r"found '17' twice, expected each once"),
        ("submit", {"e1a1": Refused(kind="permanent", reason="x")}, r"\.kind: found .*\(str\), expected Refusal"),  # type: ignore[arg-type]
        ("submit", {"e1a1": Refused(kind=Refusal.PERMANENT, reason=" ")}, r"\.reason: found ' ', expected words"),
        ("observe", None, r"observe: answer: found None"),
        ("observe", {"e1a1": None}, r"answer\['e1a1'\]: found None, expected Observation"),
        ("observe", {"e2a1": SEEN}, r"found 'e2a1', expected only what was asked for"),
        ("observe", spoilt(state="ended"), r"\.state: found 'ended' \(str\), expected NativeState"),
        ("observe", spoilt(exit_code="0"), r"\.exit_code: found '0' \(str\), expected int or None"),
        ("observe", spoilt(exit_code=True), r"\.exit_code: found True \(bool\), expected int or None"),
        ("observe", spoilt(exit_code=256), r"\.exit_code: found 256, expected at least 0 and at most 255"),
        ("observe", spoilt(exit_code=-9), r"\.exit_code: found -9"),
        ("observe", spoilt(signal=0), r"\.signal: found 0, expected at least 1"),
        ("observe", spoilt(name=None), r"\.name: found None, expected str"),
        ("observe", spoilt(reason=b"x"), r"\.reason: found b'x' \(bytes\), expected str"),
        ("observe", spoilt(index=-1), r"\.index: found -1, expected at least 0"),
        ("observe", spoilt(started=NOW / 1e6), r"\.started: found .* \(float\), expected int or None"),
        ("observe", spoilt(ended=NOW // 1_000_000), r"\.ended: found \d+, expected microseconds UTC"),
        ("observe", spoilt(ended=NOW + 3_600_000_000), r"\.ended: found \d+, expected microseconds UTC"),
        ("observe", spoilt(started=NOW, ended=NOW - 1), r"\.ended: found .*before started"),
        ("observe", spoilt(state=NativeState.RUNNING), r"\.exit_code: found 0, expected None, since the attempt is running"),
        ("observe", spoilt(native_state=""), r"\.native_state: found ''"),
        ("find", None, r"find: answer: found None"),
        ("find", {"e1a1": SEEN}, r"answer\['e1a1'\]: found .* \(Observation\), expected Sequence\[Observation\]"),
        ("find", {"e1a1": "CD"}, r"answer\['e1a1'\]: found 'CD' \(str\), expected Sequence"),
        ("find", {"e1a1": [SEEN, 1]}, r"answer\['e1a1'\]\[1\]: found 1 \(int\), expected Observation"),
        ("find", {"e1a1": []}, r"found no observation, expected the tag left out"),
        ("find", {"e3a1": [SEEN]}, r"found 'e3a1'"),
        ("cancel", None, r"cancel: answer: found None, expected Answer"),
        ("cancel", Answer(), r"found nothing on 'e1a1', expected each accepted or refused"),
        ("cancel", Answer(accepted=["e1a1"]), r"\.accepted: found .* \(list\), expected tuple\[str\]"),  # type: ignore[arg-type]
        ("hold", Answer(accepted=("e1a1",), refused={"e1a1": "x"}), r"found 'e1a1' twice"),
        ("release", Answer(refused={"e1a1": ""}), r"refused\['e1a1'\]: found '', expected words"),
        ("release", Answer(accepted=("e1a1", "x")), r"found 'x', expected only what was asked for"),
        ("diagnose", [but(FOUND, remedy="")], r"answer\[0\]\.remedy: found '', expected words"),
        ("diagnose", [but(FOUND, level="ok")], r"answer\[0\]\.level: found 'ok' \(str\), expected Level"),
        ("close", None, r"close: answer: found None, expected Closed"),
    ],
)  # fmt: skip
def test_a_wrong_answer_of_a_scheduling_driver_is_named_by_its_place(
    hook: str, answer: object, words: str
) -> None:
    with pytest.raises(WrongAnswer, match=words):
        batch(hook, **{hook: answer})


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (SchedulingProfile(batch_id_text='"$X"'), "fit for double quotes"),
        (SchedulingProfile(batch_id_text="$X", max_group=0), r"max_group: found 0"),
        (SchedulingProfile(batch_id_text="$X", poll_interval_s=float("nan")), r"poll_interval_s: found nan"),
        (SchedulingProfile(batch_id_text="$X", poll_interval_s=-1), r"more than 0 seconds"),
        (SchedulingProfile(batch_id_text="$X", can_hold=1), r"can_hold: found 1 \(int\), expected bool"),  # type: ignore[arg-type]
        ("a profile", r"open: answer: found 'a profile'"),
        (KeyError("PBS_SERVER"), r"raised: found KeyError"),
    ],
)
def test_a_wrong_profile_keeps_a_driver_from_being_opened(profile: object, words: str) -> None:
    with pytest.raises(Exception, match=words):
        batch("close", open=profile)


@pytest.mark.parametrize(
    ("hook", "answer", "words"),
    [
        ("fetch", None, r"fetch: answer: found None, expected TransferReport"),
        ("fetch", but(REPORT, skipped_files=3), r"skipped_files: found 3, expected at least 0 and at most 2"),
        ("deliver", but(REPORT, size_bytes=-1), r"size_bytes: found -1"),
        ("deliver", but(REPORT, verified=""), r"verified: found ''"),
        ("deliver", but(REPORT, checksums={"a": "abc"}), r"checksums\['a'\]: found 'abc'"),
        ("deliver", but(REPORT, files=2.0), r"files: found 2\.0 \(float\), expected int"),
        ("deliver", FileNotFoundError("x"), r"found FileNotFoundError: x, expected only TransferRefused and"),
        ("fetch", TransferInterrupted(""), r"found TransferInterrupted without words"),
        ("probe", TransferRefused("no such host"), r"raised: found TransferRefused: no such host, expected no error"),
        ("probe", ProbeReport(ok=1, message="x"), r"\.ok: found 1 \(int\), expected bool"),  # type: ignore[arg-type]
        ("probe", ProbeReport(ok=True, message=""), r"\.message: found ''"),
    ],
)  # fmt: skip
def test_a_wrong_answer_of_a_transfer_driver_is_named_by_its_place(
    hook: str, answer: object, words: str
) -> None:
    with pytest.raises(WrongAnswer, match=words):
        mover(hook, None, **{hook: answer})


@pytest.mark.parametrize(
    ("hook", "answer", "words"),
    [
        ("declare", Declared(queues=()), r"found no 'theta', expected every queue asked for"),
        ("send", SendReport(sent=2, unroutable={"b": "none"}), r"found 2 sent and 1 unroutable, expected 2 messages in all"),
        ("send", SendReport(sent=2, unroutable={"c": "none"}), r"answer\.unroutable: found 'c'"),
        ("send", SendReport(sent=1, unroutable={"b": ""}), r"unroutable\['b'\]: found '', expected words"),
        ("send", SendReport(sent=2, unroutable=()), r"unroutable: found .* \(tuple\), expected Mapping\[str, str\]"),  # type: ignore[arg-type]
        ("receive", None, r"receive: answer: found None, expected Sequence\[Delivery\]"),
        ("receive", iter([DELIVERY]), r"answer: found .*list_iterator"),
        ("receive", [DELIVERY, but(DELIVERY, token="t2")], r"found 2 deliveries, expected at most 1"),
        ("receive", [DELIVERY, DELIVERY], r"found 't1' twice"),
        ("receive", [but(DELIVERY, queue="cori")], r"answer\[0\]\.queue: found 'cori', expected 'theta'"),
        ("receive", [but(DELIVERY, body="{}")], r"answer\[0\]\.body: found '{}' \(str\), expected bytes"),
        ("receive", [but(DELIVERY, token=7)], r"answer\[0\]\.token: found 7 \(int\), expected str"),
        ("receive", [but(DELIVERY, redelivered=1)], r"\.redelivered: found 1 \(int\), expected bool"),
        ("receive", ConnectionError("gone"), r"raised: found ConnectionError: gone, expected only BrokerUnavailable"),
        ("settle", Settled(count=2), r"answer\.count: found 2, expected at most 1"),
        ("settle", 1, r"answer: found 1 \(int\), expected Settled"),
        ("open", MessagingProfile(broker="amqp://me:secret@host"), r"a URL with a password"),
    ],
)  # fmt: skip
def test_a_wrong_answer_of_a_messaging_driver_is_named_by_its_place(
    hook: str, answer: object, words: str
) -> None:
    with pytest.raises(Exception, match=words) as raised:
        post("close" if hook == "open" else hook, **{hook: answer})
    assert isinstance(raised.value, WrongAnswer) or hook == "open"


def test_an_error_that_the_hook_may_raise_passes_as_it_is() -> None:
    error = SchedulerUnavailable("qstat: cannot connect to server")
    with pytest.raises(SchedulerUnavailable) as raised:
        batch("observe", observe=error)
    assert error is raised.value


def test_everything_that_is_wrong_is_said_at_once_up_to_a_bound() -> None:
    many = {f"e{n}a1": Submitted(batch_id="") for n in range(14)}
    with pytest.raises(WrongAnswer) as raised:
        batch("submit", submit=many)
    assert len(raised.value.problems) == 14
    assert str(raised.value).splitlines()[10:] == ["and 4 more"]


# ---------------------------------------------------------------------------------- progress


def telling(*updates: object) -> Callable[[Any], TransferReport]:
    def work(progress: Any) -> TransferReport:
        for update in updates:
            progress(update)
        return REPORT

    return work


@pytest.mark.parametrize(
    ("updates", "words"),
    [
        ([TransferUpdate(files=2, size_bytes=1), TransferUpdate(files=1, size_bytes=1)], "progress.files: .*never becomes less"),
        ([TransferUpdate(files=0, size_bytes=11)], "progress.size_bytes: found 11, expected no more than the report's 10"),
        ([TransferUpdate(files=0, size_bytes=5, total_bytes=4)], r"update\[0\]\.size_bytes: found 5, .* at most 4"),
        ([None], r"update\[0\]: found None, expected TransferUpdate"),
    ],
)  # fmt: skip
def test_wrong_progress_is_found(updates: list[object], words: str) -> None:
    with pytest.raises(WrongAnswer, match=words):
        mover("fetch", fetch=telling(*updates))


def test_a_silence_of_more_than_a_second_is_found() -> None:
    def work(progress: Any) -> TransferReport:
        time.sleep(0.05)
        return REPORT

    with pytest.raises(WrongAnswer, match="expected a call at least every second"):
        mover("deliver", CheckedProgress(tolerance_s=-0.97), deliver=work)


def test_what_progress_raises_must_come_out_as_it_is() -> None:
    stopped = TransferStopped("drain")

    def then(update: TransferUpdate) -> None:
        raise stopped

    def swallow(progress: Any) -> TransferReport:
        try:
            progress(TransferUpdate(files=0, size_bytes=0))
        except TransferStopped:
            return REPORT
        raise AssertionError

    def disguise(progress: Any) -> TransferReport:
        try:
            progress(TransferUpdate(files=0, size_bytes=0))
        except TransferStopped as error:
            raise TransferInterrupted("stopped") from error
        raise AssertionError

    with pytest.raises(TransferStopped) as raised:
        mover("fetch", CheckedProgress(then), fetch=telling(TransferUpdate(files=0, size_bytes=0)))
    assert stopped is raised.value
    for work, words in ((swallow, "found nothing"), (disguise, "found TransferInterrupted")):
        with pytest.raises(WrongAnswer, match=rf"{words}.* the TransferStopped that progress raised"):
            mover("fetch", CheckedProgress(then), fetch=work)


def test_a_real_driver_under_the_checks_works_as_without(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"alpha")
    relay = TransferRelay(FileTransfer(), SITE, layers=[TypeChecked()])
    progress = CheckedProgress()
    report = relay.fetch(url=f"file://{tmp_path}/a", directory=tmp_path / "here", progress=progress)
    assert (1, 5) == (report.files, progress.updates[-1].size_bytes)


# ------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, float), (1, int | None), (None, int | None), ("a", Name), (True, Value), (1.5, Value),
        ({"a": (1, 2)}, Mapping[str, Value | tuple[Value, ...]]), ("cancel", Literal["cancel", "hold"]),
        (5, Annotated[int, Between(1, 5)]), (HERE, Path), (print, Callable[[], None]),
    ],
)  # fmt: skip
def test_a_value_of_the_type_has_no_breach(value: object, kind: Any) -> None:
    assert [] == list(breaches(value, kind))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int), (True, float), (1.0, int), (float("inf"), float), ("a b", Name), (None, Value),
        ({"a": [1, 2]}, Mapping[str, Value | tuple[Value, ...]]), ("retry", Literal["cancel", "hold"]),
        (6, Annotated[int, Between(1, 5)]), ("/nowhere", Path), (NativeState.ENDED, str), (bytearray(b""), bytes),
        (b"ab", Sequence[int]), ((1, "2"), tuple[int, ...]), (1, Callable[[], None]),
    ],
)  # fmt: skip
def test_a_value_of_another_type_has_one_breach(value: object, kind: Any) -> None:
    assert 1 == len(list(breaches(value, kind)))
