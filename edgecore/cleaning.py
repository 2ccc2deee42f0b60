"""Remove the directories of jobs that have been settled for long, as the store knows them."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

from attrs import define, field

from edgecore import commands
from edgecore.batch import job_directory
from edgecore.clock import Clock
from edgecore.config import SiteConfig
from edgecore.reader import Reader
from edgecore.store import REPEATED_WITHIN_US, Store

__all__ = ["Cleaning"]

log = logging.getLogger(__name__)

_EVERY_S: Final = 3600.0
_MOST_AT_ONCE: Final = 100
_REMOVAL_S: Final = 3600.0
_DAY_US: Final = 86_400_000_000


@define(eq=False, kw_only=True)
class Cleaning:
    """Clean up once an hour. Rows stay; a directory whose job is not settled is never touched."""

    config: SiteConfig
    store: Store
    clock: Clock = field(factory=Clock)
    _stop: threading.Event = field(init=False, factory=threading.Event)

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own."""
        thread = threading.Thread(target=self._run, name="edgecore-cleaning", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Make the thread end soon."""
        self._stop.set()

    def _run(self) -> None:
        with Reader(self.config.store) as reader:
            while not self._stop.wait(_EVERY_S):
                try:
                    self.clean(reader)
                except Exception:
                    log.exception("cleaning failed; it is tried again later")

    def clean(self, reader: Reader) -> int:
        """Remove what is old enough; answers how many directories went."""
        self.store.forget_identities(self.clock.now() - 2 * REPEATED_WITHIN_US)
        retention = self.config.retention
        failed_before = self.clock.now() - round(retention.keep_failed_days * _DAY_US)
        gone = self._remove(reader, failed_before, failed=True)
        before = self.clock.now() - round(retention.keep_days * _DAY_US)
        return gone + self._remove(reader, before, failed=False)

    def _remove(self, reader: Reader, before: int, *, failed: bool) -> int:
        removed = 0
        while not self._stop.is_set():
            job_ids = reader.to_clean(before, _MOST_AT_ONCE, failed=failed)
            for job_id in job_ids:
                _remove_tree(job_directory(self.config.work_directory, job_id))
            self.store.forget_directories(job_ids).result()
            removed += len(job_ids)
            if len(job_ids) < _MOST_AT_ONCE:
                break
        if removed:
            log.info("removed the directories of %d settled jobs", removed)
        return removed


def _remove_tree(directory: Path) -> None:
    """Remove a directory with all in it, however deep, also where staged modes forbid to write.

    The system's own tools do it: they need no stack for depth, and follow no links on the way.
    """
    _tool("rm", "-rf", "--", str(directory))
    if directory.exists():
        _tool("chmod", "-R", "u+rwX", "--", str(directory))
        _tool("rm", "-rf", "--", str(directory))
    if directory.exists():
        log.warning("%s could not be removed as a whole", directory)


def _tool(*arguments: str) -> None:
    commands.run(arguments, timeout_s=_REMOVAL_S)
