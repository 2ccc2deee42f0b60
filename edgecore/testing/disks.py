"""Make a disk that is full after a moment, where this machine lets us."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["small_disk"]


@contextmanager
def small_disk(directory: Path, size: str = "512k") -> Iterator[None]:
    """Lay an empty disk of *size* over a directory; skip the test where only root may, but fail it where root cannot and `CI` is set."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        words = f"cannot mount a small disk here: {mounted.stderr.strip()}"
        if "CI" in os.environ and os.geteuid() == 0:
            pytest.fail(words)
        pytest.skip(words)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)  # noqa: S607 - its place differs
