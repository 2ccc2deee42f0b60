"""Look for trouble with keys, known hosts, the agent and OpenSSH, without asking any host."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import SSHCertificate, load_ssh_public_identity

from edgecore.models import Finding, Level
from edgecore_scp.bulk import Bulk
from edgecore_scp.hosts import Login

__all__ = ["findings"]

_SOON_S: Final = 7 * 86_400
_FOR_EVER: Final = 2**40
"""OpenSSH writes the largest number of 64 bits; a day so far off has no name."""


def findings(login: Login, bulk: Bulk | None, *, wanted: bool) -> Sequence[Finding]:
    """Return what is right and what is wrong on this side."""
    return [
        *_key(login),
        *_certificate(login),
        *_known_hosts(login),
        *_agent(login),
        *_openssh(bulk, wanted=wanted),
    ]


def _key(login: Login) -> Iterator[Finding]:
    if not login.key_file:
        return
    path = Path(login.key_file).expanduser()
    try:
        mode = path.stat().st_mode
        paramiko.PKey.from_path(path)
    except paramiko.PasswordRequiredException:
        words = f"{path} is protected by a passphrase, and nobody is there to type it"
        yield Finding("key", Level.WARNING, words, "add it to the agent of the service, or use a key without")
        return
    except (OSError, ValueError, paramiko.SSHException) as error:
        words = f"cannot use {path}: {getattr(error, 'strerror', None) or error}"
        yield Finding("key", Level.FAILURE, words, "make it with ssh-keygen, readable by this account alone")
        return
    except Exception as error:  # what cryptography says of a damaged key is not one kind of error
        yield Finding("key", Level.FAILURE, f"cannot use {path}: {error}", "make it with ssh-keygen")
        return
    if stat.S_IMODE(mode) & 0o077:
        words = f"{path} may be read by others (mode {stat.S_IMODE(mode):04o}); OpenSSH will not use it"
        yield Finding("key", Level.FAILURE, words, f"chmod 600 {path}")
    else:
        yield Finding("key", Level.OK, f"{path} can be read by this account alone")


def _certificate(login: Login) -> Iterator[Finding]:
    """Look at the certificate beside a key, where there is one: what is out of date lets nobody in."""
    path = Path(f"{login.key_file}-cert.pub").expanduser()
    if not login.key_file or not path.exists():
        return
    remedy = "have the authority of your site sign the key anew"
    try:
        found = load_ssh_public_identity(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        words = f"cannot use {path}: {getattr(error, 'strerror', None) or error}"
        yield Finding("certificate", Level.FAILURE, words, f"{remedy}, or remove it")
        return
    if not isinstance(found, SSHCertificate):
        yield Finding("certificate", Level.FAILURE, f"{path} holds no certificate", f"{remedy}, or remove it")
        return
    now, end = time.time(), found.valid_before
    if end >= _FOR_EVER:
        yield Finding("certificate", Level.OK, f"{path} does not expire")
    elif now >= end:
        yield Finding("certificate", Level.FAILURE, f"{path} expired on {_day(end)}", remedy)
    elif now < found.valid_after:
        yield Finding(
            "certificate", Level.FAILURE, f"{path} is not valid before {_day(found.valid_after)}", remedy
        )
    else:
        level = Level.WARNING if end - now < _SOON_S else Level.OK
        yield Finding(
            "certificate", level, f"{path} expires on {_day(end)}", "" if level is Level.OK else remedy
        )


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _known_hosts(login: Login) -> Iterator[Finding]:
    if not login.known_hosts:
        return
    path = Path(login.known_hosts).expanduser()
    if not os.access(path, os.R_OK):
        words = f"{path} is missing or may not be read: no host will be believed"
        yield Finding(
            "known hosts", Level.FAILURE, words, "add the hosts' keys, after comparing fingerprints"
        )
    elif stat.S_IMODE(path.stat().st_mode) & 0o022:
        words = f"others may write into {path}"
        yield Finding("known hosts", Level.WARNING, words, f"chmod go-w {path}")
    else:
        yield Finding("known hosts", Level.OK, f"{path} can be read")


def _agent(login: Login) -> Iterator[Finding]:
    socket = os.environ.get("SSH_AUTH_SOCK")
    if not login.agent or not socket:
        return
    agent = paramiko.Agent()
    try:
        keys = len(agent.get_keys())
    finally:
        agent.close()
    if keys:
        yield Finding("agent", Level.OK, f"{socket} has {keys} keys")
    elif not login.key_file:
        words = f"the agent at {socket} has no key, or does not answer"
        yield Finding("agent", Level.WARNING, words, "ssh-add the key, or name a key_file")


def _openssh(bulk: Bulk | None, *, wanted: bool) -> Iterator[Finding]:
    if not wanted:
        return
    if bulk is None:
        words = "ssh and sftp are not installed, or not on the PATH: long files move several times slower"
        yield Finding(
            "OpenSSH", Level.WARNING, words, "install openssh-client, or set PATH in [environment] set"
        )
    else:
        yield Finding("OpenSSH", Level.OK, f"long files are handed to {bulk.program}")
