"""Remove the directories of jobs that have been settled for long, as the store knows them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Final

from attrs import Factory, define, field

from edgecore import commands
from edgecore.batch import job_directory
from edgecore.clock import Clock, SteadyClock
from edgecore.config import SiteConfig
from edgecore.models import Job
from edgecore.reader import Reader
from edgecore.states import SETTLED
from edgecore.store import REPEATED_WITHIN_US, Change, Store

__all__ = ["Cleaning"]

log = logging.getLogger(__name__)

_EVERY_S: Final = 3600.0
_ANSWER_S: Final = 2.0
_MOST_AT_ONCE: Final = 100
_REMOVAL_S: Final = 3600.0
_DAY_US: Final = 86_400_000_000


def _at_once(job: Job, make: Callable[[Job], Change | None]) -> Future[None]:
    make(job)
    done: Future[None] = Future()
    done.set_result(None)
    return done


@define(eq=False, kw_only=True)
class Cleaning:
    """Clean up once an hour. Rows stay; a directory whose job is not settled is never touched.

    A directory is first moved aside, which nothing can come between, and then removed at leisure.
    """

    config: SiteConfig
    store: Store
    clock: Clock = field(factory=Clock)
    change: Callable[[Job, Callable[[Job], Change | None]], Future[None]] = _at_once
    """Has something done to a job while nothing else is: `Engine.change`."""
    _steady: SteadyClock = field(
        init=False, default=Factory(lambda self: SteadyClock(self.clock), takes_self=True)
    )
    _stop: threading.Event = field(init=False, factory=threading.Event)

    def start(self) -> threading.Thread:
        """Begin, on a thread of its own. Raises StoreUnusable."""
        reader = Reader(self.config.store)
        thread = threading.Thread(target=self._run, args=(reader,), name="edgecore-cleaning", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Make the thread end soon."""
        self._stop.set()

    def _run(self, reader: Reader) -> None:
        with reader:
            while not self._stop.wait(_EVERY_S):
                try:
                    self.clean(reader)
                except Exception:
                    log.exception("cleaning failed; it is tried again later")

    def clean(self, reader: Reader) -> int:
        """Remove what is old enough; answers how many directories went."""
        now = self._steady.earliest()  # a clock that was set for a moment must not make anything old
        self._empty_aside()  # what a former round could not finish
        self.store.forget_identities(now - 2 * REPEATED_WITHIN_US)
        retention = self.config.retention
        gone = self._remove(reader, now - round(retention.keep_failed_days * _DAY_US), failed=True)
        return gone + self._remove(reader, now - round(retention.keep_days * _DAY_US), failed=False)

    def _remove(self, reader: Reader, before: int, *, failed: bool) -> int:
        removed = 0
        while not self._stop.is_set():
            job_ids = reader.to_clean(before, _MOST_AT_ONCE, failed=failed)
            aside = [job_id for job_id in job_ids if self._set_aside(reader, job_id)]
            self._empty_aside()
            self.store.forget_directories(aside).result()
            removed += len(aside)
            if not aside or len(job_ids) < _MOST_AT_ONCE:
                break
        if removed:
            log.info("removed the directories of %d settled jobs", removed)
        return removed

    def _set_aside(self, reader: Reader, job_id: int) -> bool:
        """Move a job's directory to where no retry finds it; False where the job is not settled any more."""
        job = reader.job(job_id)
        wanted, moved = True, False
        lock = threading.Lock()

        def move(now: Job) -> None:
            nonlocal moved
            with lock:
                if not wanted or now.state not in SETTLED:
                    return
                directory = job_directory(self.config.work_directory, job_id)
                with contextlib.suppress(FileNotFoundError):
                    self._aside.mkdir(0o700, exist_ok=True)
                    directory.rename(self._aside / directory.name)
                moved = True

        if job is not None and wait([done := self.change(job, move)], _ANSWER_S).done:
            done.result()
        with lock:  # a job that something works on for long is not settled: it is left for another round
            wanted = False
            return moved

    @property
    def _aside(self) -> Path:
        return self.config.work_directory / ".removed"

    def _empty_aside(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._aside):
                _remove_tree(self._aside / name)


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
