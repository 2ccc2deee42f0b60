"""Measure copies by ``file://`` beside ``cp -r``: ``python -m benchmarks.copies [--quick] [--directory D]``.

Each round makes the same copy by ``cp -r``, by ``cp -r`` with a sync of the file system, and by the
driver, which also syncs every file and, unless only sizes are asked for, reads everything back and
compares it. Rounds are interleaved and their order turns. A ratio is the other's time divided by ours:
1 means as fast, more means faster. On a noisy machine the CPU milliseconds decide.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from attrs import frozen

from edgecore.builtin.copy import FileTransfer
from edgecore.selection import EVERYTHING

__all__ = ["main"]

_MEBIBYTE: Final = 1024 * 1024


@frozen
class _Case:
    name: str
    files: int
    size_bytes: int
    target: float


@frozen
class _Run:
    wall_s: float
    cpu_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases and print the table; *arguments* are those of the command line unless given."""
    parser = argparse.ArgumentParser(description="Measure copies by file:// beside cp -r.")
    parser.add_argument("--quick", action="store_true", help="smaller files, three rounds")
    parser.add_argument("--rounds", type=int, help="how many interleaved rounds (default: 7)")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where to copy (default: here)")
    chosen = parser.parse_args(arguments)
    rounds = chosen.rounds or (3 if chosen.quick else 7)
    big = 128 * _MEBIBYTE if chosen.quick else 1024 * _MEBIBYTE
    cases = [
        _Case(f"1 x {big // _MEBIBYTE} MiB", 1, big, 0.9),
        _Case(
            "200 x 100 kB" if chosen.quick else "1,000 x 100 kB", 200 if chosen.quick else 1000, 100_000, 0.4
        ),
    ]
    print(f"{'copy':16} {'ours':10} {'beside':16} {'ours s':>8} {'its s':>8} {'ratio':>6} {'spread':>12} {'target':>6} "
          f"{'our CPU ms':>10} {'its CPU ms':>10} {'CPU ratio':>9}")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=chosen.directory, prefix="copies-") as place:
        for case in cases:
            _measure(case, Path(place), rounds)


def _measure(case: _Case, place: Path, rounds: int) -> None:
    source = place / "source"
    _plant(source, case)
    ways: dict[str, Callable[[Path], None]] = {
        "cp -r": lambda target: _cp(source, target, sync=False),
        "cp -r && sync -f": lambda target: _cp(source, target, sync=True),
        "compared": lambda target: _ours(source, target, compare=True),
        "sizes only": lambda target: _ours(source, target, compare=False),
    }
    runs: dict[str, list[_Run]] = {name: [] for name in ways}
    for number in range(-1, rounds):  # the first warms up
        names = list(ways)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            run = _timed(ways[name], place / f"{number}-{name.replace(' ', '')}", keep=case.files > 1)
            if number >= 0:
                runs[name].append(run)
    for ours in ("compared", "sizes only"):
        for theirs in ("cp -r", "cp -r && sync -f"):
            _print_row(case, (ours, theirs), runs[theirs], runs[ours])
    shutil.rmtree(place)
    place.mkdir()


def _plant(source: Path, case: _Case) -> None:
    source.mkdir()
    for number in range(case.files):
        with (source / f"file {number}").open("wb") as file:
            for start in range(0, case.size_bytes, _MEBIBYTE):
                file.write(os.urandom(min(_MEBIBYTE, case.size_bytes - start)))


def _cp(source: Path, target: Path, *, sync: bool) -> None:
    subprocess.run(["cp", "-r", "--", source, target], check=True)
    if sync:
        subprocess.run(["sync", "-f", "--", target], check=True)


def _ours(source: Path, target: Path, *, compare: bool) -> None:
    report = FileTransfer(compare=compare).deliver(
        directory=source,
        url="file://" + quote(os.fsencode(target)),
        progress=lambda update: None,
        selection=EVERYTHING,
    )
    assert report.verified == ("bytes" if compare else "size")


def _timed(copy: Callable[[Path], None], target: Path, *, keep: bool) -> _Run:
    os.sync()
    cpu, begun = _cpu_s(), time.perf_counter()
    copy(target)
    run = _Run(time.perf_counter() - begun, (_cpu_s() - cpu) * 1000)
    if not keep:  # ext4 is slow to create files just after many were removed
        shutil.rmtree(target)
    return run


def _cpu_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _print_row(case: _Case, names: tuple[str, str], theirs: list[_Run], ours: list[_Run]) -> None:
    ratios = sorted(their.wall_s / our.wall_s for their, our in zip(theirs, ours, strict=True))
    cpu = statistics.median(their.cpu_ms / our.cpu_ms for their, our in zip(theirs, ours, strict=True))
    target = f"{case.target:.1f}" if names == ("compared", "cp -r") else ""
    print(
        f"{case.name:16} {names[0]:10} {names[1]:16} {statistics.median(run.wall_s for run in ours):8.3f} "
        f"{statistics.median(run.wall_s for run in theirs):8.3f} {statistics.median(ratios):6.2f} "
        f"{ratios[0]:5.2f}-{ratios[-1]:<6.2f} {target:>6} "
        f"{statistics.median(run.cpu_ms for run in ours):10.0f} "
        f"{statistics.median(run.cpu_ms for run in theirs):10.0f} {cpu:9.2f}"
    )


if __name__ == "__main__":
    main()
