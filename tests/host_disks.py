"""Give a site small disks of its own that a test fills, makes read-only, or takes away."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

from attrs import evolve
from scripted import Edge
from sites import Site

from edgecore.config import MessagingTable
from edgecore.testing.disks import small_disk

__all__ = ["disk", "fill", "moved", "read_only"]


@contextlib.contextmanager
def disk(directory: Path, size: str = "4m") -> Iterator[Path]:
    """Lay a small disk over a directory, made where it is not there."""
    directory.mkdir(exist_ok=True)
    with small_disk(directory, size):
        yield directory


@contextlib.contextmanager
def fill(directory: Path) -> Iterator[None]:
    """Take every byte that a disk has left, and give them back at the end."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Have a directory read-only for a while, as a kernel makes a disk that fails.

    What is open for writing goes on to be: a read-only mount is laid over it.
    """
    subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(directory)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def moved(
    edge: Edge, *, work: Path | None = None, store: Path | None = None, queue: Path | None = None
) -> None:
    """Have parts of a site in other places, with the applications of before."""
    config = edge.config
    if work is not None:
        config = evolve(config, work_directory=work)
    if store is not None:
        config = evolve(config, store=store)
    if queue is not None:
        config = evolve(config, messaging=MessagingTable(url=f"sqlite://{queue}"))
    edge.config = config
    edge.site = Site(edge.site.base, config)
    edge.register("quick")
    edge.register("long", seconds=60)
