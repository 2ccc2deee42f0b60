"""Tell trouble of this host, which no job is to blame for, from trouble of one job; and say what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Final

__all__ = ["of_host"]

_ADVICE: Final[Mapping[int, str]] = {
    errno.ENOSPC: "the disk is full: make room there",
    errno.EDQUOT: "the quota of this account is used up: remove files there, or have it raised",
    errno.EROFS: "the disk is mounted read-only: see the system's log, and mount it anew",
    errno.EIO: "the disk does not work: see the system's log",
    errno.ESTALE: "see that the file system is mounted and this account may write there",
    errno.ENOTCONN: "see that the file system is mounted and its server answers",
    errno.EHOSTDOWN: "see that the file server answers",
    errno.ETIMEDOUT: "see that the file server answers",
    errno.EMFILE: "this process may open no more files: raise its limit (ulimit -n)",
    errno.ENFILE: "this host may open no more files: look for what keeps so many",
    errno.ENOMEM: "this host has no memory left: look for what uses it",
    errno.EAGAIN: "this account may start no more processes: look for what runs, or raise its limit (ulimit -u)",
}


def of_host(error: BaseException | None) -> str:
    """Say what this host cannot do at present and what to do; empty where *error* is no trouble of the host."""
    if not isinstance(error, OSError) or (advice := _ADVICE.get(error.errno or 0)) is None:
        return ""
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}; {advice}; it goes on by itself"
