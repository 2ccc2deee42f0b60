"""Stage a job's input in and its output out, each by the driver that its URL's prefix names.

Both may be done again after a crash at any point: drivers skip what is right and resume what is partial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from attrs import define

from edgecore.clock import Clock
from edgecore.config import SiteConfig
from edgecore.drivers import TransferRelay
from edgecore.errors import ActionFailed, TransferRefused, TransferStopped
from edgecore.manifest import MANIFEST, Stocktaking
from edgecore.models import Job, JobState, TransferProgress, TransferReport, TransferUpdate
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

    def stage_in(self, job: Job) -> Change:
        """Bring the job's input."""
        self.place.check_in_time(job)
        url = job.definition.input_url
        assert url is not None
        data = self.place.data(job)
        begun = self.clock.now()
        report = self._relay(url).fetch(url=url, directory=data, progress=self._progress(job, "staging in"))
        moved = job.moved(S.STAGED_IN, self.clock.now(), _summary(report))
        return Change(job, (moved,), transfer=self._record("in", url, begun, report))

    def stage_out(self, job: Job) -> Change:
        """Bring the job's output to where it belongs."""
        return self._deliver(job, S.STAGED_OUT)

    def stage_out_failed(self, job: Job) -> Change:
        """Bring home what a failed job left: its output so far and what it said."""
        return self._deliver(job, S.JOB_FAILED)

    def _deliver(self, job: Job, state: JobState) -> Change:
        url = job.definition.output_url
        assert url is not None
        begun, relay, data = self.clock.now(), self._relay(url), self.place.data(job)
        wanted = self._wanted(job)
        selection = Selection((*wanted, *_PRINTED) if wanted else ())
        stock = Stocktaking.begin(data, lambda: self._check_wanted(job, "staging out"), selection)
        report = relay.deliver(
            directory=data, url=url, progress=self._progress(job, "staging out"), selection=selection
        )
        digest = stock.write(
            self.place.run(job).path / MANIFEST, report.checksums, compute=self.config.manifest.checksums
        )
        message = job.message
        if state is not S.JOB_FAILED:
            nothing = ", ".join(stock.unmatched(wanted))
            missed = f"; nothing fits {nothing}" if nothing else ""
            listed = f"manifest run/{self.place.run(job).path.name}/{MANIFEST} sha256:{digest}"
            message = f"{_summary(report)}{missed}; {listed}"
        moved = job.moved(state, self.clock.now(), message)
        return Change(job, (moved,), transfer=self._record("out", url, begun, report))

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

    def _check_wanted(self, job: Job, doing: str) -> None:
        if self.unwanted(job.id):
            raise TransferStopped(f"job {job.id}: stopped while {doing}")

    def _progress(self, job: Job, doing: str) -> TransferProgress:
        noted = self.clock.monotonic()

        def progress(update: TransferUpdate) -> None:
            nonlocal noted
            self._check_wanted(job, doing)
            size, limit = (
                max(update.size_bytes, update.total_bytes or 0),
                self.config.limits.max_transfer_bytes,
            )
            if limit is not None and size > limit:
                raise ActionFailed(
                    f"{doing} {_bytes(size)}; this site allows {_bytes(limit)} (max_transfer_bytes)"
                )
            if self.clock.monotonic() - noted >= _NOTE_EVERY_S:
                noted = self.clock.monotonic()
                total = f" of {_bytes(update.total_bytes)}" if update.total_bytes else ""
                self.note(job, f"{doing}: {update.files} files, {_bytes(update.size_bytes)}{total}")

        return progress

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


def _summary(report: TransferReport) -> str:
    skipped = f", {report.skipped_files} of them were there already" if report.skipped_files else ""
    return f"{report.files} files, {_bytes(report.size_bytes)}{skipped}"


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
