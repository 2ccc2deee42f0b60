"""Make trees that a transfer must carry, and describe trees so that two can be compared."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path

__all__ = ["MEBIBYTE", "ODD_NAMES", "content_of", "planted_tree", "random_bytes"]

MEBIBYTE = 1024 * 1024
_SHORT_BYTES = 4096

ODD_NAMES = {
    "spaces": b" with  spaces ",
    "quotes": b'it\'s "quoted"',
    "newline": b"new\nline",
    "leading dash": b"-rf",
    "non-ASCII": "grüße".encode(),
    "non-UTF-8": b"\xff\xfe",
    "percent": b"%41",
    "URL characters": b"a?b#c;d&e=f@g:h",
    "glob": b"*[a-z]{b,c}?",
    "backslash": b"a\\b",
    "shell": b"$(touch x)`id`|~root",
    "dots": b"...",
    "255 bytes": b"x" * 255,
}
"""What the name of a file can look like; the keys are for declarations and messages."""


def content_of(root: Path, *, modes: bool = True, times: bool = True) -> dict[bytes, object]:
    """Describe a tree: bytes of paths -> content, mode and time, or the target of a link."""
    found: dict[bytes, object] = {}
    top = os.fsencode(root)
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            kept = (info.st_mode if modes else None, info.st_mtime_ns if times else None)
            key = os.path.relpath(path, top)
            if stat.S_ISLNK(info.st_mode):
                found[key] = ("link", os.readlink(path), kept[1])
            elif stat.S_ISDIR(info.st_mode):
                found[key] = ("directory", *kept)
            else:
                found[key] = (_content(path, info.st_size), *kept)
    return found


def _content(path: bytes, size: int) -> bytes:
    """Return what a file holds, or of a long one what tells it from others: differences are printed, after all."""
    with open(path, "rb") as file:
        if size <= _SHORT_BYTES:
            return file.read()
        return b"%d bytes, sha256 %b" % (size, hashlib.file_digest(file, "sha256").hexdigest().encode())


def planted_tree(root: Path, *, links: bool = True, large_bytes: int = 3 * MEBIBYTE + 17) -> Path:
    """Make a small tree with all that a transfer must keep."""
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "empty directory").mkdir()
    (root / "empty").touch()
    (root / "a").write_bytes(b"alpha")
    (root / "sub" / "b").write_bytes(os.urandom(large_bytes))
    (root / "sub" / "deeper" / "run.sh").write_text("#!/bin/sh\n")
    (root / "sub" / "deeper" / "run.sh").chmod(0o751)
    if links:
        (root / "sub" / "up").symlink_to("../a")
        (root / "sub" / "dangling").symlink_to("not yet here")
    os.utime(root / "a", ns=(1, 1_234_567_891_234_567_891))
    os.utime(root / "sub", ns=(1, 1_111_111_111_222_222_222))
    return root


def random_bytes(size: int, seed: int = 1) -> bytes:
    """Return bytes that no compression makes fewer, the same for each *seed*."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - not a secret
