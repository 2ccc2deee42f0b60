"""Trees to copy, and what to look at after a copy."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from edgecore.builtin.copy import FileTransfer
from edgecore.models import TransferReport, TransferUpdate
from edgecore.selection import EVERYTHING
from edgecore.testing.trees import MEBIBYTE, content_of, planted_tree

__all__ = [
    "MEBIBYTE",
    "bytes_written",
    "content_of",
    "deliver",
    "fetch",
    "planted_tree",
    "silent",
    "url_of",
]


def url_of(path: Path) -> str:
    """Write a path as URL; bytes of all kinds are allowed in it."""
    return "file://" + quote(os.fsencode(path))


def silent(update: TransferUpdate) -> None:
    """Take an update and say nothing."""


def fetch(source: Path, directory: Path) -> TransferReport:
    """Fetch with the driver as it comes."""
    return FileTransfer().fetch(url=url_of(source), directory=directory, progress=silent)


def deliver(directory: Path, target: Path) -> TransferReport:
    """Deliver with the driver as it comes."""
    return FileTransfer().deliver(
        directory=directory, url=url_of(target), progress=silent, selection=EVERYTHING
    )


def bytes_written() -> int:
    """Return how many bytes this process has written to files so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise AssertionError("/proc/self/io has no wchar")
