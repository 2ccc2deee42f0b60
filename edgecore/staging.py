"""Stage a job's input in and its output out, each by the driver that its URL's prefix names.

Both may be done again after a crash at any point: drivers skip what is right and resume what is partial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from attrs import define

from edgecore.clock import Clock
from edgecore.config import SiteConfig
from edgecore.drivers import TransferRelay
from edgecore.errors import ActionFailed, TransferRefused, TransferStopped
from edgecore.manifest import MANIFEST, Stocktaking
from edgecore.models import Job, JobState, TransferReport, TransferUpdate
from edgecore.progress import Direction, Teller, sized
from edgecore.rows import TransferRecord
from edgecore.selection import Selection
from edgecore.store import Change
from edgecore.workplace import Workplace

__all__ = ["Staging"]

S = JobState

_NOTE_EVERY_S: Final = 5.0
_PRINTED: Final = ("stdout.*.txt", "stderr.*.txt")
"""What a job has said always goes: by it its sender learns why."""


@define(eq=False, kw_only=True)
class Staging:
    """Move what jobs bring and leave."""

    config: SiteConfig
    place: Workplace
    transfers: Mapping[str, TransferRelay]
    """Prefix -> the driver that is configured for it."""
    clock: Clock
    unwanted: Callable[[int], bool]
    """Tells of a job id that nobody wants its action to go on."""
    note: Callable[[Job, str], object]
    """Notes for people what a job is doing."""
    why_failed: Callable[[Job], str]
    """Returns why the execution of a job failed."""

    def stage_in(self, job: Job) -> Change:
        """Bring the job's input."""
        self.place.check_in_time(job)
        url = job.definition.input_url
        assert url is not None
        begun, data = self.clock.now(), self.place.data(job)
        with self._underway(job, "in") as underway:
            report = self._relay(url).fetch(url=url, directory=data, progress=underway.progress)
        moved = job.moved(S.STAGED_IN, self.clock.now(), _summary(report))
        return Change(job, (moved,), transfer=self._record("in", url, begun, report))

    def stage_out(self, job: Job) -> Change:
        """Bring the job's output to where it belongs."""
        report, transfer = self._deliver(job)
        return Change(job, (job.moved(S.STAGED_OUT, self.clock.now(), report),), transfer=transfer)

    def stage_out_failed(self, job: Job) -> Change:
        """Bring home what a failed job left: its output so far and what it said."""
        _, transfer = self._deliver(job)
        moved = job.moved(S.JOB_FAILED, self.clock.now(), self.why_failed(job))
        return Change(job, (moved,), transfer=transfer)

    def _deliver(self, job: Job) -> tuple[str, TransferRecord]:
        """Deliver what is wanted and list it; answers what there is to say of it."""
        url = job.definition.output_url
        assert url is not None
        begun, relay, data = self.clock.now(), self._relay(url), self.place.data(job)
        wanted = self._wanted(job)
        selection = Selection((*wanted, *_PRINTED) if wanted else ())
        run = self.place.run(job).path
        with self._underway(job, "out") as underway:
            stock = Stocktaking.begin(data, underway.check, selection)
            report = relay.deliver(directory=data, url=url, progress=underway.progress, selection=selection)
            digest = stock.write(run / MANIFEST, report.checksums, compute=self.config.manifest.checksums)
        nothing = ", ".join(stock.unmatched(wanted))
        missed = f"; nothing fits {nothing}" if nothing else ""
        listed = f"manifest run/{run.name}/{MANIFEST} sha256:{digest}"
        return f"{_summary(report)}{missed}; {listed}", self._record("out", url, begun, report)

    @contextmanager
    def _underway(self, job: Job, direction: Direction) -> Iterator[_Underway]:
        teller = Teller(self.place.directory(job), direction, self.clock)
        try:
            yield _Underway(self, job, f"staging {direction}", teller, self.clock.monotonic())
        finally:
            teller.close()

    def _wanted(self, job: Job) -> tuple[str, ...]:
        """Return the patterns of what goes; none for everything, also of an application that is not registered any more."""
        application = self.place.catalogue(job.definition.application)
        return application.stage_out if application is not None else ()

    def _relay(self, url: str) -> TransferRelay:
        for entry in self.config.transfer:
            if entry.allows(url):
                return self.transfers[entry.prefix]
        prefixes = ", ".join(entry.prefix for entry in self.config.transfer) or "none"
        raise TransferRefused(f"{url} is not below a prefix that this site allows ({prefixes})")

    def _record(self, direction: str, url: str, begun: int, report: TransferReport) -> TransferRecord:
        return TransferRecord(
            direction=direction,
            url=url,
            started=begun,
            ended=self.clock.now(),
            files=report.files,
            size_bytes=report.size_bytes,
            verified=report.verified,
        )


@define(eq=False)
class _Underway:
    """One transfer, as its driver tells of it."""

    staging: Staging
    job: Job
    doing: str
    teller: Teller
    noted: float

    def check(self) -> None:
        """Raise TransferStopped when nobody wants it any more; else note that it lives."""
        if self.staging.unwanted(self.job.id):
            raise TransferStopped(f"job {self.job.id}: stopped while {self.doing}")
        self.teller.still()

    def progress(self, update: TransferUpdate) -> None:
        """Hear how far it is. Raises TransferStopped, and ActionFailed when it is too much."""
        self.teller.tell(update)
        self.check()
        size = max(update.size_bytes, update.total_bytes or 0)
        limit = self.staging.config.limits.max_transfer_bytes
        if limit is not None and size > limit:
            raise ActionFailed(
                f"{self.doing} {sized(size)}; this site allows {sized(limit)} (max_transfer_bytes)"
            )
        now = self.staging.clock.monotonic()
        if now - self.noted >= _NOTE_EVERY_S:
            self.noted = now
            total = f" of {sized(update.total_bytes)}" if update.total_bytes else ""
            words = f"{self.doing}: {update.files} files, {sized(update.size_bytes)}{total}"
            self.staging.note(self.job, words)


def _summary(report: TransferReport) -> str:
    skipped = f", {report.skipped_files} of them were there already" if report.skipped_files else ""
    return f"{report.files} files, {sized(report.size_bytes)}{skipped}"
