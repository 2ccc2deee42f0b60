"""Examine the store without standing in the way of its service."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from edgecore import locks, migrations
from edgecore.clock import iso
from edgecore.config import SiteConfig
from edgecore.directories import NETWORK_FILE_SYSTEMS, file_system_of, size_words
from edgecore.doctor.checks import Check, findings_of
from edgecore.errors import StoreError
from edgecore.grounds import look_for_store
from edgecore.models import Finding, Level
from edgecore.processes import user_name
from edgecore.reader import Reader
from edgecore.store_file import connect, holder, is_running, quick_check, stands_still, whole

__all__ = ["store_checks"]

_QUICK_CHECK_S: Final = 60.0
_AHEAD_US: Final = 60_000_000
_RESTORE: Final = (
    "stop the service, save a copy, and restore the store from a backup or with 'sqlite3 FILE .recover'"
)


def store_checks(config: SiteConfig) -> Iterator[Check]:
    """Return what is looked at in the store's file and beside it."""
    for subject, find in (("service", _service), ("place", _place), ("file", _file), ("content", _content)):
        yield Check(title="store", subject=subject, find=partial(find, config))
    yield Check(
        title="store",
        subject="integrity",
        find=partial(_integrity, config, _QUICK_CHECK_S),
        limit_s=_QUICK_CHECK_S + 20.0,
    )


def _service(config: SiteConfig) -> Iterator[Finding]:
    who = holder(config.store)
    if still := stands_still(config.store):
        remedy = "look into its log and at its disks; kill -9 loses nothing, and it can be started again after that"
        yield Finding("service", Level.FAILURE, f"is running ({who or 'unknown'}), but {still}", remedy)
        return
    if is_running(config.store):
        yield Finding("service", Level.OK, f"is running ({who or 'unknown'}); it is not disturbed")
        return
    host, here = locks.host_in(who), os.uname().nodename
    if host not in ("", here) and file_system_of(config.store.parent) in NETWORK_FILE_SYSTEMS:
        words = f"the last one was {who}; from {here} it cannot be seen whether it still runs"
        yield Finding("service", Level.WARNING, words, f"look on {host} before one is started here")
        return
    yield Finding("service", Level.OK, "is not running on this host")


def _place(config: SiteConfig) -> Iterator[Finding]:
    if not os.path.isdir(config.store.parent):
        return  # said of the directory
    kind = file_system_of(config.store.parent)
    if kind in NETWORK_FILE_SYSTEMS and config.store_mode == "wal":
        words = f'{config.store} is on a network file system ({kind}), where store_mode = "wal" is not safe'
        yield Finding("place", Level.FAILURE, words, 'put it on a local disk, or set store_mode = "rollback"')
    else:
        yield Finding(
            "place", Level.OK, f'{kind or "unknown file system"}, store_mode = "{config.store_mode}"'
        )


def _file(config: SiteConfig) -> Iterator[Finding]:
    path = config.store
    if not path.exists():
        try:
            look_for_store(config)
        except StoreError as error:
            yield from findings_of("file", error, "start no service before")
            return
        words, remedy = f"{path} is not there yet; the first start makes it", ""
        if path.is_symlink():
            words, remedy = f"{path} is a link to nowhere", "remove it, or mount what it leads to"
        yield Finding("file", Level.FAILURE if remedy else Level.OK, words, remedy)
        return
    about = path.stat()
    if not path.is_file():
        yield Finding("file", Level.FAILURE, f"{path} is no file", "name another place for the store")
    elif about.st_size == 0:
        words = f"{path} is empty, which a store never is: something has cut it off"
        remedy = "restore it from a backup, or remove it to begin with an empty store"
        yield Finding("file", Level.FAILURE, words, remedy)
    elif not os.access(path, os.R_OK | os.W_OK):
        words = f"{path} belongs to {user_name(about.st_uid)}; {user_name()} may not read and write it"
        yield Finding(
            "file", Level.FAILURE, words, f"run this as {user_name(about.st_uid)}, or give the file over"
        )
    elif about.st_uid != os.geteuid():
        words = f"{path} belongs to {user_name(about.st_uid)}, and this is {user_name()}"
        yield Finding(
            "file", Level.WARNING, words, f"run the service, and this, as {user_name(about.st_uid)}"
        )
    elif about.st_mode & stat.S_IWOTH:
        words = f"{path} can be written by every account of this host"
        yield Finding("file", Level.WARNING, words, f"chmod o-w {path}: who writes it gives orders")
    else:
        journal = path.with_name(f"{path.name}-wal")
        size = size_words(about.st_size + (journal.stat().st_size if journal.exists() else 0))
        yield Finding("file", Level.OK, f"{path}: {size}")


def _has_content(path: Path) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) > 0


def _content(config: SiteConfig) -> Iterator[Finding]:
    if not _has_content(config.store):
        return
    try:
        with contextlib.closing(connect(config.store, read_only=True)) as connection:
            yield from _version(connection, config.store)
    except StoreError as error:
        yield from findings_of("content", error)
    except sqlite3.Error as error:
        yield Finding("content", Level.FAILURE, f"{config.store}: {error}", _RESTORE)


def _version(connection: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    found, known = whole(path, lambda: migrations.version(connection)), migrations.VERSION
    if found > known:
        words = f"{path} was written by a newer edgecore (schema {found}, this one knows {known})"
        yield Finding("version", Level.FAILURE, words, "upgrade edgecore")
    elif found < known:
        yield Finding("version", Level.OK, f"schema {found}; the next start upgrades it to {known}")
    else:
        yield Finding("version", Level.OK, f"schema {found}")
        yield from _counts(connection)
        with Reader(path) as reader:
            for alarm in reader.alarms():
                words = f"since {iso(alarm.raised)[:19]}Z: {alarm.message}"
                yield Finding(f"alarm: {alarm.subject}", Level.WARNING, words, "see to what it names")


def _counts(connection: sqlite3.Connection) -> Iterator[Finding]:
    (active,) = connection.execute("SELECT count(*) FROM jobs WHERE settled = 0").fetchone()
    (unsent,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    (latest,) = connection.execute("SELECT max(id) FROM jobs").fetchone()
    yield Finding(
        "content", Level.OK, f"{active:,} active jobs, {unsent:,} status messages not yet confirmed"
    )
    ahead_us = (latest or 0) - time.time_ns() // 1000
    if ahead_us > _AHEAD_US:
        words = f"the newest job was made {ahead_us // 1_000_000:,} s in the future, by this host's clock"
        yield Finding(
            "clock", Level.WARNING, words, "see whether the clock was set back, or was wrong before"
        )


def _integrity(config: SiteConfig, limit_s: float) -> Iterator[Finding]:
    """Have SQLite read through its structure; given up after *limit_s* seconds, which is no fault."""
    path = config.store
    if not _has_content(path):
        return
    if config.store_mode != "wal" and is_running(path):
        words = (
            f'not checked: with store_mode = "{config.store_mode}" that would keep the service from writing'
        )
        yield Finding("integrity", Level.OK, words)
        return
    try:
        said = _quick_check(path, limit_s)
    except TimeoutError:
        words = f"the check was given up after {limit_s:g} s: the store is large, or the disk slow"
        remedy = f"let it take its time: sqlite3 -readonly {path} 'PRAGMA quick_check'"
        yield Finding("integrity", Level.WARNING, words, remedy)
        return
    except StoreError as error:
        yield from findings_of("integrity", error)
        return
    except sqlite3.Error as error:
        said = str(error)
    if said == "ok":
        yield Finding("integrity", Level.OK, "quick_check finds nothing")
    else:
        yield Finding("integrity", Level.FAILURE, f"{path} is damaged: {said}", _RESTORE)


def _quick_check(path: Path, limit_s: float) -> str:
    """Return what SQLite says, ``ok`` or what is wrong. Raises TimeoutError, StoreError and sqlite3.Error."""
    with contextlib.closing(connect(path, read_only=True)) as connection:
        return whole(path, lambda: quick_check(connection, limit_s))
