"""Script a batch system, transfers and a broker's moods, and run a service over them in this process.

`ScriptedScheduling` is a whole batch system in memory: it really runs the batch scripts, and a test says
what it answers, forgets, refuses or invents. An `Edge` is a Balsam on a thread that talks to it;
both outlive a restart of the service, as a real batch system does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import define, evolve, field
from sites import Site, make_site, wait_for

from edgecore.clock import Clock
from edgecore.config import Retry, SiteConfig
from edgecore.desk import Desk
from edgecore.drivers import SchedulingRelay, TransferRelay, open_transfer
from edgecore.errors import BrokerUnavailable, SchedulerUnavailable
from edgecore.hookspecs import Lifecycle, Scheduling, Transfer, hookimpl
from edgecore.models import (
    Answer,
    Application,
    Closed,
    Delivery,
    Group,
    Job,
    JobState,
    NativeState,
    Observation,
    OutgoingMessage,
    ProbeReport,
    Reference,
    Refusal,
    Refused,
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
    TransferUpdate,
    Verdict,
)
from edgecore.reader import Reader
from edgecore.selection import Selection
from edgecore.service import Balsam

__all__ = ["BrokerMood", "Edge", "Entry", "Heard", "ScriptedScheduling", "ScriptedTransfer", "edge"]

T = TypeVar("T")
LONG_S = 20.0
"""How long a test waits for what should come at once: a deadline, not a pause."""


# ------------------------------------------------------------------------------ batch system


@define(eq=False)
class Entry:
    """One job in the scripted batch system."""

    batch_id: str
    group: Group
    submission: Submission
    state: NativeState = NativeState.QUEUED
    listed: bool = True
    reason: str = ""
    never_starts: bool = False
    exit_code: int | None = None
    started: int | None = None
    ended: int | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def tag(self) -> str:
        return self.submission.tag


def _now() -> int:
    return time.time_ns() // 1000


@define(eq=False)
class ScriptedScheduling(Scheduling):
    """Be a batch system whose every answer a test can choose."""

    auto: bool = True
    """Start what is submitted at once; else a test calls `start`."""
    max_group: int = 1
    parallel_submits: int = 1
    can_hold: bool = True
    down: str = ""
    """Why no question is answered; empty while it answers."""
    blind: bool = False
    """Answer, and list nothing."""
    deaf: set[str] = field(factory=set)
    """Hooks that alone are not answered, and do nothing."""
    lost: set[str] = field(factory=set)
    """Of cancel, hold and release: those that do what is asked once, and break off before the answer."""
    enforces_walltime: bool = True
    entries: list[Entry] = field(factory=list)
    calls: list[tuple[str, tuple[str, ...]]] = field(factory=list)
    """Hook and tags, in order."""
    submits: deque[Callable[[Group], Mapping[str, SubmissionAnswer]]] = field(factory=deque)
    """What the next submissions come to; when empty, they are taken."""
    open_gate: threading.Event = field(factory=threading.Event)
    """While it is not set, `submit` does not return."""
    at_gate: threading.Semaphore = field(factory=lambda: threading.Semaphore(0))
    """Released when a call of `submit` comes to the gate."""
    may_look: threading.Event = field(factory=threading.Event)
    """While it is not set, a listing does not return."""
    _arrived: threading.Event = field(factory=threading.Event)
    _number: int = 1000
    _lock: threading.RLock = field(factory=threading.RLock)

    def __attrs_post_init__(self) -> None:
        self.open_gate.set()
        self.may_look.set()

    # ------------------------------------------------------------------------ what a test says

    def start(self, entry: Entry, batch_id: str | None = None) -> None:
        """Run the batch script as an execution under *batch_id*; by default the entry's own."""
        with self._lock:
            entry.process = self._run(entry, batch_id or entry.batch_id)
            entry.state, entry.started = NativeState.RUNNING, _now()

    def run_again(self, entry: Entry, batch_id: str | None = None) -> int:
        """Run the batch script to its end beside all bookkeeping; answers its exit code."""
        return self._run(entry, batch_id or entry.batch_id).wait(LONG_S)

    def end(self, entry: Entry, reason: str = "", exit_code: int | None = None) -> None:
        """End an entry natively; what runs is killed without a word, as by a failing node."""
        with self._lock:
            _kill(entry.process)
            entry.state, entry.ended = NativeState.ENDED, _now()
            entry.reason, entry.exit_code = reason, exit_code

    def refuse(self, kind: Refusal, reason: str, times: int = 1) -> None:
        """Refuse the next submissions."""

        def refused(group: Group) -> Mapping[str, SubmissionAnswer]:
            return {s.tag: Refused(kind=kind, reason=reason) for s in group.submissions}

        self.submits.extend([refused] * times)

    def lose_answer(self) -> None:
        """Take the next submission, and break off before the answer."""

        def taken(group: Group) -> Mapping[str, SubmissionAnswer]:
            self.take(group)
            raise SchedulerUnavailable("sbatch gave no answer within 30 s")

        self.submits.append(taken)

    def lose_request(self) -> Entry:
        """Break off before the next submission arrives; the answered entry can be run late."""
        lost = Entry("late", None, None)  # type: ignore[arg-type]

        def lose(group: Group) -> Mapping[str, SubmissionAnswer]:
            lost.group, lost.submission = group, group.submissions[0]
            raise SchedulerUnavailable("sbatch: error: Socket timed out")

        self.submits.append(lose)
        return lost

    def take(self, group: Group) -> dict[str, SubmissionAnswer]:
        """Queue a group as an ordinary batch system does."""
        answers: dict[str, SubmissionAnswer] = {}
        with self._lock:
            self._number += 1
            for submission in group.submissions:
                index = "" if submission.index is None else f"_{submission.index}"
                entry = Entry(f"{self._number}{index}", group, submission)
                self.entries.append(entry)
                answers[submission.tag] = Submitted(batch_id=entry.batch_id)
                if self.auto:
                    self.start(entry)
        return answers

    @contextlib.contextmanager
    def pause_looks(self) -> Iterator[threading.Event]:
        """Keep listings from returning; the event says that one has come."""
        self.may_look.clear()
        arrived = self._arrived = threading.Event()
        try:
            yield arrived
        finally:
            self.may_look.set()

    def kill_all(self) -> None:
        """Leave no process behind."""
        for entry in self.entries:
            _kill(entry.process)

    def count(self, hook: str) -> int:
        """Tell how often *hook* was called."""
        return sum(name == hook for name, _ in self.calls)

    # ------------------------------------------------------------------------- what is asked

    @hookimpl
    def open(self, site: SiteContext) -> SchedulingProfile:
        return SchedulingProfile(
            batch_id_text="$SCRIPTED_ID",
            can_hold=self.can_hold,
            max_group=self.max_group,
            poll_interval_s=0.05,
            parallel_submits=self.parallel_submits,
            enforces_walltime=self.enforces_walltime,
        )

    @hookimpl
    def submit(self, group: Group) -> Mapping[str, SubmissionAnswer]:
        self.at_gate.release()
        assert self.open_gate.wait(LONG_S)
        self._asked("submit", [submission.tag for submission in group.submissions])
        return self.submits.popleft()(group) if self.submits else self.take(group)

    @hookimpl
    def observe(self, references: Sequence[Reference]) -> Mapping[str, Observation]:
        self._asked("observe", [reference.tag for reference in references])
        self._arrived.set()
        assert self.may_look.wait(LONG_S)
        with self._lock:
            listed = {entry.batch_id: entry for entry in self._listed()}
            answers = {}
            for reference in references:
                entry = listed.get(reference.batch_id or "")
                if entry is not None and entry.tag == reference.tag:
                    answers[reference.tag] = _observation(entry)
            return answers

    @hookimpl
    def find(self, tags: Sequence[str]) -> Mapping[str, Sequence[Observation]]:
        self._asked("find", tags)
        with self._lock:
            found: dict[str, list[Observation]] = {}
            for entry in self._listed():
                if entry.group.tag in tags:
                    found.setdefault(entry.group.tag, []).append(_observation(entry))
            return found

    @hookimpl
    def cancel(self, references: Sequence[Reference]) -> Answer:
        def cancel(entry: Entry) -> None:
            if entry.state is NativeState.RUNNING:
                assert entry.process is not None
                entry.process.terminate()
            elif entry.state is not NativeState.ENDED:
                self.end(entry, "CANCELLED by 1000")

        return self._each("cancel", references, cancel)

    @hookimpl
    def hold(self, references: Sequence[Reference]) -> Answer:
        return self._each("hold", references, lambda entry: _change(entry, NativeState.HELD))

    @hookimpl
    def release(self, references: Sequence[Reference]) -> Answer:
        return self._each("release", references, lambda entry: _change(entry, NativeState.QUEUED))

    @hookimpl
    def close(self) -> Closed:
        return Closed()

    def _asked(self, hook: str, tags: Sequence[str]) -> None:
        self.calls.append((hook, tuple(tags)))
        if self.down or hook in self.deaf:
            raise SchedulerUnavailable(self.down or f"{hook}: nobody listens")

    def _each(self, hook: str, references: Sequence[Reference], change: Callable[[Entry], None]) -> Answer:
        tags = [reference.tag for reference in references]
        self._asked(hook, tags)
        if hook == "hold" and not self.can_hold:
            return Answer(refused=dict.fromkeys(tags, "this batch system cannot hold"))
        with self._lock:
            for entry in self.entries:
                if entry.tag in tags and entry.listed:
                    change(entry)
        if hook in self.lost:
            self.lost.discard(hook)
            raise SchedulerUnavailable(f"{hook} gave no answer within 30 s")
        return Answer(accepted=tuple(tags))

    def _listed(self) -> list[Entry]:
        for entry in self.entries:
            ended = entry.process is not None and entry.process.poll() is not None
            if entry.state is NativeState.RUNNING and ended:
                assert entry.process is not None
                entry.state, entry.ended = NativeState.ENDED, _now()
                entry.exit_code = entry.process.returncode
        return [] if self.blind else [entry for entry in self.entries if entry.listed]

    def _run(self, entry: Entry, batch_id: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["/bin/sh", str(entry.submission.script)],
            env={"PATH": os.defpath, "SCRIPTED_ID": batch_id},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _observation(entry: Entry) -> Observation:
    return Observation(
        state=entry.state,
        native_state=entry.state.upper(),
        batch_id=entry.batch_id,
        name=entry.tag,
        index=entry.submission.index,
        exit_code=entry.exit_code,
        reason=entry.reason,
        never_starts=entry.never_starts,
        started=entry.started,
        ended=entry.ended,
    )


def _change(entry: Entry, state: NativeState) -> None:
    if entry.state in (NativeState.QUEUED, NativeState.HELD):
        entry.state = state


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(LONG_S)


# --------------------------------------------------------------------------------- transfers


@define(eq=False)
class ScriptedTransfer(Transfer):
    """Move nothing, and fail or take long as a test says."""

    errors: deque[Exception] = field(factory=deque)
    """What the next transfers come to; when empty, they succeed."""
    fetched: list[str] = field(factory=list)
    delivered: list[str] = field(factory=list)
    slow: bool = False
    """Move bytes for ever, until told to stop."""
    moving: threading.Event = field(factory=threading.Event)
    """Set once a slow transfer has begun."""

    @hookimpl
    def open(self, site: SiteContext) -> TransferProfile:
        return TransferProfile()

    @hookimpl
    def fetch(self, url: str, directory: Path, progress: TransferProgress) -> TransferReport:
        return self._move(self.fetched, url, progress)

    @hookimpl
    def deliver(
        self, directory: Path, url: str, progress: TransferProgress, selection: Selection
    ) -> TransferReport:
        return self._move(self.delivered, url, progress)

    @hookimpl
    def probe(self, url: str) -> ProbeReport:
        return ProbeReport(ok=True, message="")

    @hookimpl
    def close(self) -> Closed:
        return Closed()

    def _move(self, moved: list[str], url: str, progress: TransferProgress) -> TransferReport:
        moved.append(url)
        if self.errors:
            raise self.errors.popleft()
        deadline = time.monotonic() + LONG_S
        while self.slow and time.monotonic() < deadline:
            progress(TransferUpdate(files=0, size_bytes=1))
            self.moving.set()
            time.sleep(0.01)  # a transfer's own pace
        return TransferReport(files=1, size_bytes=1)


# --------------------------------------------------------------------------------- messaging


@define(eq=False)
class BrokerMood:
    """Wrap the real message driver of a site, and be away when a test says so."""

    down: str = ""
    unroutable: Callable[[OutgoingMessage], bool] = lambda message: False
    """Which messages no queue takes."""
    error: Exception | None = None
    """What a broken driver raises."""
    sent: list[OutgoingMessage] = field(factory=list)
    sender: str | None = None
    """Whom the broker vouches for."""
    extra: deque[Delivery] = field(factory=deque)
    """Deliveries that come without a queue, with any identity that a test wants."""
    answers: bool = False
    """Take everything, also answers to keys that no queue of the real broker is bound to."""
    offered: list[OutgoingMessage] = field(factory=list)
    """Everything that was to be sent, whatever became of it."""
    settled: list[tuple[Verdict, str]] = field(factory=list)
    acknowledged: int = 0
    """How many deliveries of the real queue were settled."""
    on_settle: Callable[[], object] = lambda: None

    @hookimpl(wrapper=True)
    def declare(self, topology: Topology) -> Generator[None, T, T]:
        self._check()
        return (yield)

    @hookimpl(wrapper=True)
    def send(self, messages: Sequence[OutgoingMessage]) -> Generator[None, SendReport, SendReport]:
        self._check()
        self.offered.extend(messages)
        report = yield
        lost = {m.message_id: "no queue is bound" for m in messages if self.unroutable(m)}
        unroutable = {**({} if self.answers else report.unroutable), **lost}
        self.sent.extend(m for m in messages if m.message_id not in unroutable)
        return evolve(report, unroutable=unroutable)

    @hookimpl(wrapper=True)
    def receive(
        self, queue: str, limit: int, timeout_s: float
    ) -> Generator[None, Sequence[Delivery], Sequence[Delivery]]:
        self._check()
        deliveries = yield
        named = [evolve(d, sender=self.sender) if self.sender else d for d in deliveries]
        while self.extra:
            named.append(self.extra.popleft())
        return named

    @hookimpl(wrapper=True)
    def settle(
        self, deliveries: Sequence[Delivery], verdict: Verdict, reason: str
    ) -> Generator[None, Settled, Settled]:
        self._check()
        self.on_settle()
        answer = yield
        self.settled.extend([(verdict, reason)] * len(deliveries))
        self.acknowledged += answer.count
        return answer

    def _check(self) -> None:
        if self.down:
            raise BrokerUnavailable(self.down)
        if self.error is not None:
            raise self.error


# --------------------------------------------------------------------------------- listening


@define(eq=False)
class Heard(Lifecycle):
    """Remember what a service tells its listeners, and wait for it."""

    jobs: list[Job] = field(factory=list)
    """Every status, in the order heard."""
    alarms: list[tuple[str, str]] = field(factory=list)
    cleared: list[tuple[str, str]] = field(factory=list)
    service: list[str] = field(factory=list)
    news: threading.Condition = field(factory=threading.Condition)

    @hookimpl
    def job_changed(self, job: Job) -> None:
        self._note(self.jobs, job)

    @hookimpl
    def alarm_raised(self, subject: str, message: str) -> None:
        self._note(self.alarms, (subject, message))

    @hookimpl
    def alarm_cleared(self, subject: str, message: str) -> None:
        self._note(self.cleared, (subject, message))

    @hookimpl
    def service_started(self, site: str) -> None:
        self._note(self.service, "started")

    @hookimpl
    def service_stopped(self, site: str) -> None:
        self._note(self.service, "stopped")

    def _note(self, notes: list[T], what: T) -> None:
        with self.news:
            notes.append(what)
            self.news.notify_all()

    def wait(self, condition: Callable[[], bool], why: Callable[[], object], timeout_s: float) -> None:
        with self.news:
            assert self.news.wait_for(condition, timeout_s), f"not within {timeout_s} s: {why()}"


# -------------------------------------------------------------------------------- the service


@define(eq=False)
class Edge:
    """A site with a scripted batch system, and the Balsam that runs it."""

    site: Site
    config: SiteConfig
    scheduling: ScriptedScheduling = field(factory=ScriptedScheduling)
    transfer: ScriptedTransfer | None = None
    """In place of the site's real transfer driver."""
    broker: BrokerMood = field(factory=BrokerMood)
    heard: Heard = field(factory=Heard)
    plugins: list[object] = field(factory=list)
    failure: BaseException | None = None
    """What `Balsam.run` raised."""
    clock: Clock = field(factory=Clock)
    _balsam: Balsam | None = None
    _thread: threading.Thread | None = None

    @property
    def balsam(self) -> Balsam:
        assert self._balsam is not None
        return self._balsam

    def start(self, *, wait: bool = True) -> None:
        """Run the service, and wait until it works."""
        started = threading.Event()
        self.failure = None
        self._balsam = balsam = Balsam(
            self.config, [self.heard, self.broker, *self.plugins], clock=self.clock
        )

        def run() -> None:
            try:
                balsam.run(started.set)
            except BaseException as error:
                self.failure = error
            finally:
                started.set()

        self._thread = threading.Thread(target=run, name="balsam")
        self._thread.start()
        if wait:
            assert started.wait(LONG_S)
            assert self.failure is None, self.failure

    def stop(self) -> None:
        """Drain the service as SIGTERM does, and wait until `run` has returned."""
        if self._thread is not None:
            self.balsam.stop()
            self._thread.join(LONG_S)
            assert not self._thread.is_alive(), "the service did not stop"
            self._thread = None

    def restart(self) -> None:
        self.stop()
        self.start()

    # ------------------------------------------------------------------------------- orders

    def register(self, name: str, *, seconds: float = 0, code: int = 0, **more: Any) -> None:
        """Add an application that notes itself, sleeps and exits."""
        program = self.site.base / "ledger.sh"
        arguments = (str(self.site.ledger), str(seconds), str(code))
        self.site.add(
            Application(**{"name": name, "executable": str(program), "arguments": arguments, **more})
        )

    def program(self, name: str, text: str) -> str:
        """Write a program of the operator's."""
        path = self.site.base / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def send(self, name: str = "job", application: str = "quick", **more: Any) -> None:
        """Send one definition to the site's queue."""
        self.site.send(self.site.job(name=name, application=application, **more))

    def input(self, name: str, **settings: object) -> dict[str, Any]:
        """Lay input for a job out; answers the URLs and the config_file for its definition."""
        place = self.site.base / "data" / name
        place.mkdir()
        (place / "app.cfg").write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        return {"input_url": f"file://{place}", "output_url": self.output(name), "config_file": "app.cfg"}

    def output(self, name: str) -> str:
        return f"file://{self.site.base}/data/out-{name}"

    def ask(self, command: str, name: str = "job", **more: Any) -> None:
        """Ask for something as an operator does."""
        Desk(self.config.store).request(command, self.job(name).id, asked_by="operator", now=1, **more)

    def tell(self, command: str, job_id: str | int, **more: Any) -> None:
        """Ask for something as the sender of a job does."""
        self.site.send({"command": command, "job_id": job_id, **more})

    # ------------------------------------------------------------------------------ looking

    def job(self, name: str = "job") -> Job:
        """Return the latest job of that name as it is in the store, once there is one."""

        def found() -> list[Job]:
            with Reader(self.config.store) as reader:
                return [job for job in reader.latest(1000) if job.name == name]

        self.until(lambda: bool(found()))
        return found()[0]

    def states(self, name: str = "job") -> list[str]:
        return [str(state) for state in self.site.states(self.job(name).id)]

    def messages(self, name: str = "job") -> list[str]:
        with Reader(self.config.store) as reader:
            return [entry.message for entry in reader.history(self.job(name).id)]

    def wait(self, name: str, state: JobState, times: int = 1, timeout_s: float = LONG_S) -> Job:
        """Wait until the job has come to *state* so many times; answers it as it was then."""

        def came() -> list[Job]:
            return [job for job in self.heard.jobs if job.name == name and job.state is state]

        self.heard.wait(lambda: len(came()) >= times, self.diagnosis, timeout_s)
        return came()[times - 1]

    def wait_alarm(self, subject: str, *, cleared: bool = False, timeout_s: float = LONG_S) -> str:
        """Wait for an alarm about *subject*; answers its words."""
        notes = self.heard.cleared if cleared else self.heard.alarms
        self.heard.wait(lambda: any(subject == s for s, _ in notes), self.diagnosis, timeout_s)
        return next(message for s, message in notes if s == subject)

    def wait_entry(self, count: int = 1) -> Entry:
        """Wait until so many jobs have entered the batch system; answers the last of them."""
        self.until(lambda: len(self.scheduling.entries) >= count)
        return self.scheduling.entries[count - 1]

    def wait_looks(self, count: int = 3) -> None:
        """Wait until the batch system was looked at so many times more."""
        asked = self.scheduling.calls
        before = len(asked)
        self.until(lambda: sum(hook in ("observe", "find") for hook, _ in asked[before:]) >= count)

    def until(self, condition: Callable[[], bool]) -> None:
        wait_for(condition, LONG_S, self.diagnosis)

    def diagnosis(self) -> object:
        heard = [(job.name, str(job.state), job.message) for job in self.heard.jobs][-20:]
        return heard, self.heard.alarms, self.scheduling.calls[-5:], self.failure


def make_edge(base: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Edge:
    """Lay out a site with fast timing, and put scripted drivers in place of what it names."""
    site = make_site(base)
    timing = evolve(
        site.config.timing,
        poll_interval_s=0.03,
        grace_s=0.15,
        lost_after_s=0.15,
        alarm_after_s=0.15,
        drain_s=5.0,
    )
    retry = Retry(first_s=0.03, longest_s=0.2, tries=3)
    edge = Edge(site, evolve(site.config, timing=timing, retry=retry), **more)

    def open_scripted(*_: Any, layers: Sequence[object], **__: Any) -> SchedulingRelay:
        return SchedulingRelay(edge.scheduling, edge.config.context, layers=layers)

    def open_scripted_transfer(*given: Any, **named: Any) -> TransferRelay:
        if edge.transfer is None:
            return open_transfer(*given, **named)
        return TransferRelay(edge.transfer, edge.config.context, layers=named["layers"])

    monkeypatch.setattr("edgecore.partners.open_scheduling", open_scripted)
    monkeypatch.setattr("edgecore.partners.open_transfer", open_scripted_transfer)
    monkeypatch.setattr("edgecore.intake._WAIT_S", 0.05)  # how long a stop may take
    edge.register("quick")
    edge.register("fails", code=3)
    edge.register("long", seconds=60)
    return edge


@pytest.fixture
def edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edge]:
    """A site whose batch system a test scripts; nothing of it is left behind."""
    made = make_edge(tmp_path / "site", monkeypatch)
    try:
        yield made
    finally:
        made.scheduling.open_gate.set()
        made.scheduling.may_look.set()
        try:
            made.stop()
        finally:
            made.scheduling.kill_all()  # after the service, which might submit another one
