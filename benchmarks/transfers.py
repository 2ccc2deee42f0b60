"""Measure ways to bring a directory from here to there beside each other; for the benchmarks of transfer drivers.

Rounds are interleaved and each has an order of its own, since who comes after whom makes a difference of a quarter; the first warms up
and is not counted. All that is to be written is on the disk before a way begins. The wall clock is ours to lose on a busy machine, so that beside it stands the processor time of this
side: the tool's, or the driver's with that of the tools which it uses. What the server takes is in neither.

A driver ends a fetch when what came is on the disk, and bare tools when the kernel has it. So each of them is measured twice:
as it is, and with what `fsync` of all its files and directories takes after it.

One long copy is removed at once. Many small ones stay until the last round has ended: for seconds after a thousand files
were removed, ext4 makes new ones many times slower, and that would be measured.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from attrs import frozen

from benchmarks.common import children_s, cpu_s, spread

__all__ = ["Case", "Claim", "Spent", "Way", "chosen_cases", "measure", "show", "transfer_arguments"]

_MEBIBYTE: Final = 1024 * 1024
_TARGET: Final = 0.9
_SYNCED: Final = ", then fsync"

Way: TypeAlias = Callable[[Path, Path], None]
"""Bring the content of one directory to another one, which does not exist yet."""


@frozen
class Case:
    """What is carried."""

    name: str
    files: int
    size_bytes: int
    """Of each file."""


@frozen
class Spent:
    """What one way took once."""

    wall_s: float
    cpu_s: float


@frozen
class Claim:
    """That one way of ours is about as fast as the best of others."""

    ours: str
    others: Sequence[str]


Found: TypeAlias = Mapping[str, Sequence[Spent]]
"""What each way took, round by round."""


def transfer_arguments(description: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line: `quick`, `only`, `rounds`, `directory`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller files, three rounds")
    parser.add_argument("--only", choices=("long", "many"), help="one long file, or many small ones")
    parser.add_argument("--rounds", type=int, help="how many interleaved rounds (default: 5)")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where to copy (default: here)")
    chosen = parser.parse_args(arguments)
    chosen.rounds = chosen.rounds or (3 if chosen.quick else 5)
    return chosen


def chosen_cases(chosen: argparse.Namespace) -> Sequence[Case]:
    """Return what is to be carried: one long file, and many small ones."""
    long, many = (128, 200) if chosen.quick else (1024, 1000)
    cases = {
        "long": Case(f"1 x {long} MiB", 1, long * _MEBIBYTE),
        "many": Case(f"{many:,} x 100 kB", many, 100_000),
    }
    return [case for name, case in cases.items() if chosen.only in (None, name)]


# --------------------------------------------------------------------------------- measuring


def measure(
    case: Case, direction: str, place: Path, ways: Mapping[str, Way], durable: Sequence[str], rounds: int
) -> Found:
    """Try every way *rounds* times below *place*. Those in *durable* sync what they fetch by themselves."""
    source, copies, found = place / "source", place / "copies", dict[str, list[Spent]]()
    _make(case, source)
    copies.mkdir()
    for number in range(-1, rounds):
        names = random.sample(list(ways), len(ways))
        for name in names:
            target = copies / f"{number}-{names.index(name)}"
            os.sync()
            spent = dict(
                _spent(name, ways[name], source, target, synced=direction == "get" and name not in durable)
            )
            if number >= 0:
                for label, each in spent.items():
                    found.setdefault(label, []).append(each)
            assert case.files == sum(1 for path in target.rglob("file*") if path.is_file()), name
            if case.files == 1:
                shutil.rmtree(target)
    shutil.rmtree(source)
    shutil.rmtree(copies)
    return {name: found[name] for way in ways for name in (way, way + _SYNCED) if name in found}


def _make(case: Case, source: Path) -> None:
    source.mkdir()
    for number in range(case.files):
        with (source / f"file{number}").open("wb") as file:
            for start in range(0, case.size_bytes, _MEBIBYTE):
                file.write(os.urandom(min(_MEBIBYTE, case.size_bytes - start)))


def _spent(name: str, way: Way, source: Path, target: Path, *, synced: bool) -> Iterator[tuple[str, Spent]]:
    begun, used = time.perf_counter(), _used_s()
    way(source, target)
    yield name, Spent(time.perf_counter() - begun, _used_s() - used)
    if synced:
        for path in (target, *target.rglob("*")):
            opened = os.open(path, os.O_RDONLY)
            os.fsync(opened)
            os.close(opened)
        yield name + _SYNCED, Spent(time.perf_counter() - begun, _used_s() - used)


def _used_s() -> float:
    return cpu_s() + children_s()


# ----------------------------------------------------------------------------------- showing


def show(case: Case, direction: str, found: Found, ours: Sequence[str], claims: Sequence[Claim]) -> bool:
    """Print a line for each way and a verdict for each claim; tell whether all were met."""
    walls = {name: statistics.median(each.wall_s for each in spent) for name, spent in found.items()}
    print(f"\n{direction} {case.name}, load {os.getloadavg()[0]:.1f}: ours is " + " | ".join(ours))
    print(f"{'how':34} {'seconds':>22} {'CPU here':>9} {'MB/s':>6}   its time / ours")
    for name, spent in found.items():
        cpu = statistics.median(each.cpu_s for each in spent)
        rate = case.files * case.size_bytes / 1e6 / walls[name]
        ratios = " | ".join(f"{walls[name] / walls[one]:.2f}" for one in ours) if name not in ours else ""
        wall = spread([each.wall_s for each in spent], ".2f")
        print(f"{name:34} {wall:>22} {cpu:9.2f} {rate:6.0f}   {ratios}".rstrip())
    met = True
    for claim in claims:
        ratio = min(walls[name] for name in claim.others) / walls[claim.ours]
        met &= ratio >= _TARGET
        verdict = "met" if ratio >= _TARGET else "MISSED"
        print(
            f"{claim.ours} beside the best of {', '.join(claim.others)}: {ratio:.2f}, target {_TARGET}: {verdict}"
        )
        durable = [walls[name + _SYNCED] for name in claim.others if name + _SYNCED in walls]
        if durable:
            print(f"    beside the best that is on the disk, too: {min(durable) / walls[claim.ours]:.2f}")
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    return met
