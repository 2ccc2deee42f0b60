"""Look for trouble with the client, the proxy and the authorities, without asking any server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

from edgecore.certificates import utc
from edgecore.models import Finding, Level
from edgecore_gridftp.client import INSTALL, PROGRAM, Client
from edgecore_gridftp.gsi import Credential

__all__ = ["findings"]

_SOON_US: Final = 6 * 3600 * 1_000_000
_RENEW: Final = "make it with grid-proxy-init, voms-proxy-init or myproxy-logon"


def findings(client: Client, credential: Credential | None) -> Sequence[Finding]:
    """Return what is right and what is wrong on this side."""
    found = [*_program(client)]
    if credential is not None:
        found += [*_proxy(credential), *_authorities(credential)]
    return found


def _program(client: Client) -> Iterator[Finding]:
    if client.program:
        yield Finding("GridFTP client", Level.OK, f"{client.program} carries the content of files")
    else:
        yield Finding(
            "GridFTP client", Level.FAILURE, f"{PROGRAM} is not installed, or not on the PATH", INSTALL
        )


def _proxy(credential: Credential) -> Iterator[Finding]:
    found, now = credential.judged(), time.time_ns() // 1000
    if reason := found.reason(now):
        words = found.trouble or f"{credential.proxy}: {reason}"
        yield Finding("grid proxy", Level.FAILURE, f"cannot be used: {words}", _RENEW)
    elif found.expires - now <= _SOON_US:
        words = f"{credential.proxy} expires soon, at {utc(found.expires)}"
        yield Finding("grid proxy", Level.WARNING, words, _RENEW)
    else:
        yield Finding("grid proxy", Level.OK, f"{credential.proxy} is good until {utc(found.expires)}")


def _authorities(credential: Credential) -> Iterator[Finding]:
    try:
        names = set(os.listdir(credential.authorities))
    except OSError as error:
        words = f"cannot read {credential.authorities}: {error.strerror}; no server will be believed"
        yield Finding(
            "authorities",
            Level.FAILURE,
            words,
            "install the authorities of your grid, or name their place (authorities)",
        )
        return
    found = {name.removesuffix(".0") for name in names if name.endswith(".0")}
    bare = sorted(name for name in found if f"{name}.signing_policy" not in names)
    if not found:
        words = f"{credential.authorities} holds no certificate of an authority (<hash>.0)"
        yield Finding("authorities", Level.FAILURE, words, "install the authorities of your grid")
    elif bare:
        words = f"{bare[0]}.0 in {credential.authorities} has no {bare[0]}.signing_policy: {PROGRAM} will not believe it"
        yield Finding("authorities", Level.WARNING, words, "install the policy beside the certificate")
    else:
        yield Finding("authorities", Level.OK, f"{len(found)} in {credential.authorities}")
