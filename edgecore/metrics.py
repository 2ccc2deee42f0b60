"""Count what a service does, and write it for Prometheus into a text file that its node exporter reads.

Nothing listens on a socket. Counting is done from outside: as a listener of the life of jobs and as a layer
around the three drivers; states and the backlog are read from the store when the file is written. Counters
begin at 0 with each start of the service, as Prometheus expects. prometheus-client is imported
only where a site asks for metrics.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

from attrs import define, field

from edgecore.clock import Clock
from edgecore.config import SiteConfig
from edgecore.errors import ConfigurationError, Problem
from edgecore.hookspecs import hookimpl
from edgecore.models import (
    Delivery,
    Group,
    Job,
    JobState,
    Observation,
    Refused,
    SendReport,
    Settled,
    SubmissionAnswer,
    TransferReport,
    Verdict,
)
from edgecore.reader import Reader
from edgecore.store_file import last_beat

__all__ = ["Metrics", "open_metrics"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_COUNTED: Final = 1_000_000
"""A backlog is counted no further, so that a look at it stays cheap."""
_COMMANDS_S: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
_TRANSFERS_S: Final = (0.1, 1, 10, 60, 600, 3_600, 36_000)
_OPERATIONS: Final = (1, 2, 5, 10, 50, 100, 500)


def open_metrics(config: SiteConfig, clock: Clock) -> Metrics | None:
    """Return the metrics that a site asks for, or None where it asks for none. Raises ConfigurationError."""
    table = config.metrics
    if table.file is None:
        return None
    source, found = str(config.source), str(table.file)
    try:
        import prometheus_client  # noqa: F401 - whether it is there
    except ImportError as error:
        advice = f"prometheus-client cannot be imported ({error}): pip install 'edgecore[metrics]'"
        raise ConfigurationError(source, [Problem("metrics.file", found, advice)]) from error
    if not os.access(table.file.parent, os.W_OK | os.X_OK):
        advice = f"the service cannot write in {table.file.parent}; make it, or choose another place"
        raise ConfigurationError(source, [Problem("metrics.file", found, advice)])
    return Metrics(
        site=config.site, file=table.file, interval_s=table.interval_s, store_path=config.store, clock=clock
    )


class _Numbers:
    """The metrics themselves, in a registry of their own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

        self.registry = CollectorRegistry()

        def make(kind: type[T], name: str, text: str, labels: Sequence[str] = (), **more: Any) -> T:
            return kind(f"edgecore_{name}", text, labels, registry=self.registry, **more)  # type: ignore[call-arg]

        make(Info, "build", "The software").info(
            {"version": version("edgecore"), "python": platform.python_version()}
        )
        self.up = make(Gauge, "up", "1 while the service works, 0 after a stop in good order")
        self.jobs = make(Gauge, "jobs", "Jobs in the store by state", ["state"])
        self.transitions = make(Counter, "transitions", "Changes of state, by the new one", ["state"])
        self.attempts = make(Counter, "attempts", "Attempts that were begun")
        self.failures = make(Counter, "failures", "Steps that failed for good", ["step"])
        self.deliveries = make(Counter, "deliveries", "Messages received from the site's queue")
        self.settled = make(Counter, "deliveries_settled", "Messages by what became of them", ["verdict"])
        self.published = make(Counter, "messages_published", "Messages that the broker confirmed")
        self.unroutable = make(Counter, "messages_unroutable", "Messages that no queue took")
        self.outbox = make(Gauge, "outbox_messages", "Messages that the broker has not confirmed")
        self.listings = make(
            Histogram, "listing_seconds", "Looks at the batch system", ["hook"], buckets=_COMMANDS_S
        )
        self.listing_failures = make(Counter, "listing_failures", "Looks that were not answered", ["hook"])
        self.submissions = make(Counter, "submissions", "Submitted attempts by their answer", ["answer"])
        self.submit_seconds = make(
            Histogram, "submit_seconds", "Submissions of groups of attempts", buckets=_COMMANDS_S
        )
        self.transfers = make(
            Histogram, "transfer_seconds", "Transfers that succeeded", ["direction"], buckets=_TRANSFERS_S
        )
        self.transfer_failures = make(
            Counter, "transfer_failures", "Transfers that failed or were stopped", ["direction"]
        )
        self.transferred_bytes = make(Counter, "transferred_bytes", "Bytes that arrived", ["direction"])
        self.credentials = make(
            Gauge,
            "credential_expires_seconds",
            "Until it cannot be used any more; 0 where it cannot",
            ["name"],
        )
        self.alarms = make(Counter, "alarms", "Alarms that were raised")
        self.alarms_active = make(Gauge, "alarms_active", "Alarms whose reason is not gone")
        self.last = make(
            Gauge, "last_success_timestamp_seconds", "When something last succeeded, Unix time", ["what"]
        )
        self.commits = make(
            Histogram, "store_commit_operations", "Operations per transaction", buckets=_OPERATIONS
        )


@define(eq=False, kw_only=True)
class Metrics:
    """Listen to a service, and write numbers about it from time to time."""

    site: str
    file: Path
    interval_s: float
    store_path: Path
    clock: Clock = field(factory=Clock)
    _numbers: _Numbers = field(init=False, factory=_Numbers)
    _alarms: set[str] = field(init=False, factory=set)
    _stop: threading.Event = field(init=False, factory=threading.Event)
    _written: bool = field(init=False, default=True)

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own. Raises StoreUnusable."""
        reader = Reader(self.store_path)
        thread = threading.Thread(target=self._run, args=(reader,), name="edgecore-metrics", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Write once more, then end."""
        self._stop.set()

    def _run(self, reader: Reader) -> None:
        with reader:
            self._numbers.up.set(1)
            self._write(reader)
            while not self._stop.wait(self.interval_s):
                self._write(reader)
            self._numbers.up.set(0)
            self._write(reader)

    def _write(self, reader: Reader) -> None:
        """Write the file as a whole; where that fails, say so once and go on counting."""
        from prometheus_client import write_to_textfile

        try:
            counts = reader.counts()
            for state in JobState:
                self._numbers.jobs.labels(state).set(counts.get(state, 0))
            self._numbers.outbox.set(reader.backlog(_MOST_COUNTED))
            self._numbers.last.labels("engine").set(last_beat(self.store_path) or 0)
            write_to_textfile(str(self.file), self._numbers.registry)
        except Exception as error:
            if self._written:
                log.warning("metrics cannot be written to %s, which is tried again: %s", self.file, error)
            self._written = False
        else:
            self._written = True

    def committed(self, operations: int) -> None:
        """Count a transaction of the store."""
        self._numbers.commits.observe(operations)

    def watch_credential(self, name: str, left_s: Callable[[], float]) -> None:
        """Write for how long a credential can be used, too."""
        self._numbers.credentials.labels(name).set_function(left_s)

    def _succeeded(self, what: str) -> None:
        self._numbers.last.labels(what).set(self.clock.now() / 1e6)

    # -------------------------------------------------------------------------- as a listener

    @hookimpl
    def job_changed(self, job: Job) -> None:
        """Count a status."""
        self._numbers.transitions.labels(job.state).inc()
        if job.state is JobState.SUBMITTING:
            self._numbers.attempts.inc()
        elif job.state.endswith("_FAILED") and job.state is not JobState.JOB_FAILED:
            self._numbers.failures.labels(job.state.removesuffix("_FAILED").lower()).inc()

    @hookimpl
    def alarm_raised(self, subject: str) -> None:
        """Count an alarm."""
        self._alarms.add(subject)
        self._numbers.alarms.inc()
        self._numbers.alarms_active.set(len(self._alarms))

    @hookimpl
    def alarm_cleared(self, subject: str) -> None:
        """Count an alarm less."""
        self._alarms.discard(subject)
        self._numbers.alarms_active.set(len(self._alarms))

    # ---------------------------------------------------------------------- around messaging

    @hookimpl(wrapper=True)
    def receive(self) -> Generator[None, Sequence[Delivery], Sequence[Delivery]]:
        """Count what was received."""
        deliveries = yield
        self._numbers.deliveries.inc(len(deliveries))
        self._succeeded("receive")
        return deliveries

    @hookimpl(wrapper=True)
    def settle(self, verdict: Verdict) -> Generator[None, Settled, Settled]:
        """Count what became of it."""
        settled = yield
        self._numbers.settled.labels(verdict.replace(" ", "_")).inc(settled.count)
        return settled

    @hookimpl(wrapper=True)
    def send(self) -> Generator[None, SendReport, SendReport]:
        """Count what was published."""
        report = yield
        self._numbers.published.inc(report.sent)
        self._numbers.unroutable.inc(len(report.unroutable))
        self._succeeded("publish")
        return report

    # --------------------------------------------------------------------- around scheduling

    @hookimpl(wrapper=True)
    def submit(
        self, group: Group
    ) -> Generator[None, Mapping[str, SubmissionAnswer], Mapping[str, SubmissionAnswer]]:
        """Count attempts by what the batch system said to them."""
        answers: Mapping[str, SubmissionAnswer] = {}
        try:
            with self._numbers.submit_seconds.time():
                answers = yield
        finally:
            for submission in group.submissions:
                answer = answers.get(submission.tag)
                said = "unclear" if answer is None else "submitted"
                said = answer.kind if isinstance(answer, Refused) else said
                self._numbers.submissions.labels(said).inc()
        return answers

    @hookimpl(wrapper=True)
    def observe(self) -> Generator[None, Mapping[str, Observation], Mapping[str, Observation]]:
        """Time a look at the batch system."""
        with self._look("observe"):
            return (yield)

    @hookimpl(wrapper=True)
    def find(
        self,
    ) -> Generator[None, Mapping[str, Sequence[Observation]], Mapping[str, Sequence[Observation]]]:
        """Time a search in the batch system."""
        with self._look("find"):
            return (yield)

    @contextmanager
    def _look(self, hook: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        except BaseException:
            self._numbers.listing_failures.labels(hook).inc()
            raise
        self._numbers.listings.labels(hook).observe(time.perf_counter() - begun)
        self._succeeded("listing")

    # ---------------------------------------------------------------------- around transfers

    @hookimpl(wrapper=True)
    def fetch(self) -> Generator[None, TransferReport, TransferReport]:
        """Time a transfer, and count its bytes."""
        begun = time.perf_counter()
        with self._transfer("in"):
            report = yield
        return self._moved("in", begun, report)

    @hookimpl(wrapper=True)
    def deliver(self) -> Generator[None, TransferReport, TransferReport]:
        """Time a transfer, and count its bytes."""
        begun = time.perf_counter()
        with self._transfer("out"):
            report = yield
        return self._moved("out", begun, report)

    @contextmanager
    def _transfer(self, direction: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._numbers.transfer_failures.labels(direction).inc()
            raise

    def _moved(self, direction: str, begun: float, report: TransferReport) -> TransferReport:
        self._numbers.transfers.labels(direction).observe(time.perf_counter() - begun)
        self._numbers.transferred_bytes.labels(direction).inc(report.size_bytes)
        return report
