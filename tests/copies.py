"""Trees to copy, and what to look at after a copy."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import quote

from edgecore.builtin.copy import FileTransfer
from edgecore.models import TransferReport, TransferUpdate

MEBIBYTE = 1024 * 1024


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
    return FileTransfer().deliver(directory=directory, url=url_of(target), progress=silent)


def bytes_written() -> int:
    """Return how many bytes this process has written to files so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    raise AssertionError("/proc/self/io has no wchar")


def content_of(root: Path) -> dict[bytes, object]:
    """Describe a tree: bytes of paths -> content, mode and time, or the target of a link."""
    found: dict[bytes, object] = {}
    top = os.fsencode(root)
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            key = os.path.relpath(path, top)
            if stat.S_ISLNK(info.st_mode):
                found[key] = ("link", os.readlink(path), info.st_mtime_ns)
            elif stat.S_ISDIR(info.st_mode):
                found[key] = ("directory", info.st_mode, info.st_mtime_ns)
            else:
                with open(path, "rb") as file:
                    found[key] = (file.read(), info.st_mode, info.st_mtime_ns)
    return found


def planted_tree(root: Path) -> Path:
    """Make a small tree with all that a copy must keep."""
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "empty directory").mkdir()
    (root / "empty").touch()
    (root / "a").write_bytes(b"alpha")
    (root / "sub" / "b").write_bytes(os.urandom(3 * MEBIBYTE + 17))
    (root / "sub" / "deeper" / "run.sh").write_text("#!/bin/sh\n")
    (root / "sub" / "deeper" / "run.sh").chmod(0o751)
    (root / "sub" / "up").symlink_to("../a")
    (root / "sub" / "dangling").symlink_to("not yet here")
    os.utime(root / "a", ns=(1, 1_234_567_891_234_567_891))
    os.utime(root / "sub", ns=(1, 1_111_111_111_222_222_222))
    return root
