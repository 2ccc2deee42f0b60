"""Examine the credentials that a site's file names, as its service will."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial

from edgecore.certificates import judge, utc
from edgecore.config import CredentialTable, SiteConfig
from edgecore.doctor.checks import Check
from edgecore.models import Finding, Level

__all__ = ["credential_checks"]


def credential_checks(config: SiteConfig) -> Iterator[Check]:
    """Return what is looked at; no command is run."""
    for table in config.credential:
        yield Check(title="credentials", subject=table.name, find=partial(_examine, table))
        if table.renew:
            yield Check(
                title="credentials", subject=f"{table.name}: renew", find=partial(_program, config, table)
            )


def _examine(table: CredentialTable) -> Iterator[Finding]:
    remedy = f"put a new one there ({table.file}): it is used without a restart"
    if table.renew:
        remedy = "start the service, which renews it; if it runs, its alarms say why that fails"
    try:
        found = judge(table.file, table.key)
    except ImportError as error:
        words = f"cryptography cannot be imported ({error})"
        yield Finding(table.name, Level.FAILURE, words, "pip install 'edgecore[credentials]'")
        return
    now = time.time_ns() // 1000
    if reason := found.reason(now):
        waits = f"; until then these wait: {', '.join(table.needed_by)}" if table.needed_by else ""
        yield Finding(table.name, Level.FAILURE, f"cannot be used: {reason}", f"{remedy}{waits}")
        return
    what = "proxy" if found.is_proxy else "certificate"
    words = f"a {what} for {found.subject}, until {utc(found.expires)}, in {table.file}"
    near = found.expires - now < table.warn_minutes * 60e6
    yield Finding(table.name, Level.WARNING if near else Level.OK, words, remedy if near else "")


def _program(config: SiteConfig, table: CredentialTable) -> Iterator[Finding]:
    """Look for the command that renews, as every start does; it is not run."""
    path = config.context.environment.get("PATH", os.defpath)
    subject, program = f"{table.name}: renew", table.renew[0]
    if shutil.which(program, path=path) is None:
        words = (
            f"there is no program {program} that the service can execute, on PATH={path} or as a whole path"
        )
        yield Finding(subject, Level.FAILURE, words, "correct renew, or install the program")
    else:
        yield Finding(subject, Level.OK, program)
