"""Own a site's work directory while its service runs, and notice when it is gone or another one.

Two sites in one directory could give the same id, and so the same directory, to two jobs: the one that comes second
is refused. A directory whose file system was unmounted leaves an empty one in its place, in which nothing must be
begun: a job's token would be hidden as soon as the right one is back.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Final

from attrs import define

from edgecore import locks
from edgecore.config import SiteConfig
from edgecore.errors import ConfigurationError, Problem, StoreLocked, StoreUnusable
from edgecore.processes import user_name

__all__ = ["Grounds", "look_for_store", "look_for_stranger", "take_grounds"]

log = logging.getLogger(__name__)

_LOCK: Final = ".edgecore.lock"


@define(eq=False)
class Grounds:
    """The work directory of this service."""

    path: Path
    _lock: int | None
    _identity: tuple[int, int]

    def check(self) -> None:
        """Raise OSError where the directory is not what it was at the start, or cannot be written."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise OSError(errno.ESTALE, "the work directory is gone", str(self.path)) from None
        if (found.st_dev, found.st_ino) != self._identity:
            words = "the work directory is not the one of the start: another file system, or made anew"
            raise OSError(errno.ESTALE, words, str(self.path))
        if os.statvfs(self.path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self.path))
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise OSError(errno.ESTALE, "the work directory cannot be written any more", str(self.path))

    def close(self) -> None:
        """Give the directory up."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def take_grounds(config: SiteConfig) -> Grounds:
    """Make and lock the work directory. Raises ConfigurationError, and StoreUnusable where its store has vanished."""
    path = config.work_directory
    try:
        path.mkdir(parents=True, exist_ok=True)
        look_for_store(config)
        lock = _hold(config)
        found = os.stat(path)
    except OSError as error:
        allowed = (
            f"must be a directory that {user_name()} can write: {error.strerror} ({error.filename}); "
            "look at its permissions, the mount and the space, or name another"
        )
        problem = Problem("work_directory", repr(str(path)), allowed)
        raise ConfigurationError(str(config.source), [problem]) from error
    return Grounds(path, lock, (found.st_dev, found.st_ino))


def look_for_store(config: SiteConfig) -> None:
    """Raise StoreUnusable where the store is not there, and a service has worked with it."""
    file = config.work_directory / _LOCK
    note = locks.note_in(file)
    if not config.store.exists() and _worked_with(config.store, note):
        raise StoreUnusable(
            f"{config.store} is not there, and a service has worked with it ({note}): mount its file system or "
            f"restore it from a backup; to begin with an empty store, which knows no job, remove {file}"
        )


def look_for_stranger(config: SiteConfig) -> None:
    """Raise ConfigurationError where the service of another store works in the work directory."""
    file = config.work_directory / _LOCK
    note = locks.note_in(file)
    try:
        held = locks.is_held(file)
    except OSError as error:
        if error.errno not in locks.NO_LOCKS:
            raise
        return  # who starts there is warned
    if held and not _worked_with(config.store, note):
        raise _works_there(config, note)


def _works_there(config: SiteConfig, note: str) -> ConfigurationError:
    allowed = f"another service works there ({note}); every site needs a work directory of its own"
    problem = Problem("work_directory", repr(str(config.work_directory)), allowed)
    return ConfigurationError(str(config.source), [problem])


def _worked_with(store: Path, note: str) -> bool:
    return f", store {store}, " in note


def _hold(config: SiteConfig) -> int | None:
    """Lock the directory; None where its file system has no locks."""
    file = config.work_directory / _LOCK
    try:
        return locks.hold(file, f"site {config.site}, store {config.store}, {locks.this_process()}")
    except locks.Taken as taken:
        if _worked_with(config.store, taken.note):
            words = f"{config.store} belongs to a running service ({taken.note}); stop it first"
            raise StoreLocked(words) from None
        raise _works_there(config, taken.note) from None
    except OSError as error:
        if error.errno not in locks.NO_LOCKS:
            raise
        log.warning("%s cannot be locked (%s): see that no other site works there", file, error.strerror)
        return None
