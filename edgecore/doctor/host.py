"""Examine the host and the account: versions, rights, the clock, room for files."""

from __future__ import annotations

import os
import platform
import resource
import sqlite3
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from edgecore.clock import Clock
from edgecore.config import SiteConfig
from edgecore.directories import DirectoryCheck
from edgecore.doctor.checks import Check, findings_of
from edgecore.errors import ConfigurationError
from edgecore.grounds import look_for_stranger
from edgecore.metrics import open_metrics
from edgecore.models import Finding, Level
from edgecore.processes import user_name
from edgecore.store_file import OLDEST_SQLITE

__all__ = ["account_check", "host_checks"]

_OLDEST_PYTHON: Final = (3, 11)
_NEWEST_PYTHON: Final = (3, 13)
_FEW_FILES: Final = 256
_LITTLE_BYTES: Final = 64 * 1024**2
_WRITTEN: Final = 1_760_000_000
"""October 2025: no clock that is right shows less."""


def host_checks(config: SiteConfig) -> Iterator[Check]:
    """Return what is looked at without asking anybody else."""
    yield Check(title="host", subject="site file", find=partial(_site_file, config))
    yield account_check(config)
    for subject, find in (
        ("python", _python),
        ("sqlite", _sqlite),
        ("umask", _umask),
        ("host name", _host_name),
        ("clock", _clock),
        ("open files", _open_files),
        ("environment", partial(_environment, config)),
    ):
        yield Check(title="host", subject=subject, find=find)
    work = DirectoryCheck(subject="work directory", path=config.work_directory, made=True)
    yield Check(title="directories", subject="work directory", find=work.findings)
    yield Check(title="directories", subject="other service", find=partial(_stranger, config))
    store = DirectoryCheck(subject="store directory", path=config.store.parent)
    yield Check(title="directories", subject="store directory", find=store.findings)
    for subject, file in (("log directory", config.log.file), ("metrics directory", config.metrics.file)):
        if file is not None:
            place = DirectoryCheck(subject=subject, path=file.parent, low_bytes=_LITTLE_BYTES)
            yield Check(title="directories", subject=subject, find=place.findings)
    if config.metrics.file is not None:
        yield Check(title="directories", subject="metrics", find=partial(_metrics, config))


def account_check(config: SiteConfig) -> Check:
    """Return the check that fails under another account than that of the site's service."""
    return Check(title="host", subject="account", find=partial(_account, config))


def _stranger(config: SiteConfig) -> Iterator[Finding]:
    """Look whether the service of another site works in the work directory, which a start refuses."""
    try:
        look_for_stranger(config)
    except ConfigurationError as error:
        yield from findings_of("other service", error)


def _metrics(config: SiteConfig) -> Iterator[Finding]:
    """Look for what writes metrics, as every start does."""
    assert config.metrics.file is not None
    if not os.access(config.metrics.file.parent, os.W_OK | os.X_OK):
        return  # said of the directory
    try:
        open_metrics(config, Clock())
    except ConfigurationError as error:
        yield from findings_of("metrics", error)


def _site_file(config: SiteConfig) -> Iterator[Finding]:
    path = config.source
    if os.path.isfile(path) and path.stat().st_mode & 0o002:
        words = f"{path} can be written by every account of this host"
        yield Finding(
            "site file", Level.WARNING, words, f"chmod o-w {path}: who writes it decides what is run"
        )
    else:
        yield Finding("site file", Level.OK, f"{path}: site {config.site}")


def _python() -> Iterator[Finding]:
    running, words = sys.version_info[:2], f"Python {platform.python_version()}"
    if running < _OLDEST_PYTHON:
        yield Finding("python", Level.FAILURE, f"{words} is too old", "install Python 3.11, 3.12 or 3.13")
    elif running > _NEWEST_PYTHON:
        yield Finding("python", Level.WARNING, f"{words} is not tested with edgecore", "use Python 3.13")
    else:
        yield Finding("python", Level.OK, words)


def _sqlite() -> Iterator[Finding]:
    words = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        needed = ".".join(map(str, OLDEST_SQLITE))
        remedy = f"use a Python that was built with SQLite {needed} or later"
        yield Finding("sqlite", Level.FAILURE, f"{words} is too old", remedy)
    else:
        yield Finding("sqlite", Level.OK, words)


def _account(config: SiteConfig) -> Iterator[Finding]:
    uid, owned = os.geteuid(), _property_of_another(config)
    if owned is not None:
        owner = user_name(owned.stat().st_uid)
        words = f"this is {user_name(uid)}, and {owned} belongs to {owner}; drivers are not opened"
        remedy = f"run this as {owner}: what a driver makes for another account, the service could not use"
        yield Finding("account", Level.FAILURE, words, remedy)
    elif uid == 0:
        remedy = "run the service, and this, under an account of its own: jobs run as the same account"
        yield Finding("account", Level.WARNING, "this is root", remedy)
    else:
        yield Finding("account", Level.OK, f"{user_name(uid)} ({uid})")


def _property_of_another(config: SiteConfig) -> Path | None:
    """Return what shows that the site's service runs under another account than this process, if anything does."""
    for path in (config.store, config.work_directory):
        if os.path.exists(path):  # False, too, where we may not look: that is said of the directory
            return path if path.stat().st_uid != os.geteuid() else None
    return None


def _environment(config: SiteConfig) -> Iterator[Finding]:
    missing = [name for name in config.environment.inherit if name not in os.environ]
    if missing:
        words = f"[environment] pass names what is not set here: {', '.join(missing)}"
        yield Finding(
            "environment", Level.WARNING, words, "set it where the service is started, too, or remove it"
        )


def _umask() -> Iterator[Finding]:
    umask = _present_umask()
    words = f"{umask:04o}"
    if umask & 0o700:
        remedy = "set umask 0027 where the service is started"
        words += ": the service could not use the files that it makes"
        yield Finding("umask", Level.FAILURE, words, remedy)
    elif not umask & 0o002:
        remedy = "set umask 0027 where the service is started"
        words += ": every account of this host could write new files of the service"
        yield Finding("umask", Level.WARNING, words, remedy)
    else:
        yield Finding("umask", Level.OK, words)


def _present_umask() -> int:
    """Read the mask from the kernel: setting it, to get the former one, would disturb other threads."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    raise OSError("/proc/self/status does not tell the umask")


def _host_name() -> Iterator[Finding]:
    name = os.uname().nodename
    if not name or name.split(".")[0] in ("localhost", "(none)"):
        remedy = "give this host a name: the store's lock and operators tell hosts apart by it"
        yield Finding("host name", Level.WARNING, f"this host is called {name!r}", remedy)
    else:
        yield Finding("host name", Level.OK, name)


def _clock() -> Iterator[Finding]:
    now = time.time()
    words = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _WRITTEN:
        remedy = "set the clock, and keep it right with chrony or ntpd"
        yield Finding("clock", Level.FAILURE, f"it is not {words}: the clock is wrong", remedy)
    else:
        yield Finding("clock", Level.OK, words)


def _open_files() -> Iterator[Finding]:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < _FEW_FILES:
        words = f"a process may open {allowed} files at once"
        yield Finding(
            "open files", Level.WARNING, words, "raise it: ulimit -n 1024, or LimitNOFILE= in a unit"
        )
    else:
        shown = "any number" if allowed == resource.RLIM_INFINITY else f"{allowed:,}"
        yield Finding("open files", Level.OK, f"{shown} at once")
