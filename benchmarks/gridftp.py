"""Measure transfers with GridFTP beside bare ``globus-url-copy``: ``python -m benchmarks.gridftp [--quick]``.

Both talk to one private server on loopback, as the same person. The bare client is asked in the best way that is known
for each case: for one long file with one stream or four, for many small ones with ``-r -fast``; ``-r`` alone shows
what that is worth. It neither compares nor renames nor syncs; ``-sync-level`` and ``-verify-checksum`` are left out, the
latter having its own line. The driver syncs what it fetches, writes beside the final names and renames; "sizes only" is
without checksums. Rounds are interleaved and their order turns. A ratio is the other's time divided by ours:
1 means as fast, more means faster. Client and server share the processors of one machine, which no real transfer does.
Copies of many files are removed after the last round only: for seconds after a thousand files were removed, ext4 makes
new ones many times slower, and that would be measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen
from edgecore_gridftp import GridFtpTransfer

from edgecore.models import SiteContext
from edgecore.selection import EVERYTHING

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the server is the test suite's

from testbed.grid import Grid
from testbed.gridftp import GridFtp, missing_gridftp, running_gridftp

__all__ = ["main"]

_MEBIBYTE: Final = 1024 * 1024
_TARGET: Final = 0.9
_OURS: Final = ("edgecore", "edgecore, sizes only")
_VERIFIED: Final = "-verify-checksum"

Way = Callable[[Path, Path], None]


@frozen
class _Case:
    name: str
    files: int
    size_bytes: int
    bare: Mapping[str, Sequence[str]]
    """Name -> options of the bare client."""


def main(arguments: Sequence[str] | None = None) -> bool:
    """Run the cases and print the table; tell whether the target was met."""
    parser = argparse.ArgumentParser(description="Measure transfers with GridFTP beside globus-url-copy.")
    parser.add_argument("--quick", action="store_true", help="smaller files, three rounds")
    parser.add_argument("--only", choices=("long", "many"), help="one long file, or many small ones")
    parser.add_argument("--rounds", type=int, help="how many interleaved rounds (default: 5)")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where to copy (default: here)")
    chosen = parser.parse_args(arguments)
    if words := missing_gridftp():
        print(words)
        return True
    big = (128 if chosen.quick else 1024) * _MEBIBYTE
    many = 200 if chosen.quick else 1000
    checked = ("-verify-checksum", "-checksum-alg", "SHA256")
    cases = [
        _Case(
            f"1 x {big // _MEBIBYTE} MiB",
            1,
            big,
            {"one stream": (), "-p 4": ("-p", "4"), _VERIFIED: checked},
        ),
        _Case(f"{many:,} x 100 kB", many, 100_000, {"-r -fast": ("-fast",), _VERIFIED: ("-fast", *checked)}),
    ]
    cases = {"long": cases[:1], "many": cases[1:], None: cases}[chosen.only]
    print(f"{'what':20} {'how':22} {'seconds':>24} {'MB/s':>7} {'ours / it':>14}")
    met = True
    with tempfile.TemporaryDirectory(dir=chosen.directory, prefix="gridftp-") as name:
        place = Path(name)
        with running_gridftp(place / "server", Grid(place / "grid")) as server:
            for case in cases:
                for direction in ("put", "get"):
                    met &= _measure(
                        case, direction, place, server, chosen.rounds or (3 if chosen.quick else 5)
                    )
    return met


def _measure(case: _Case, direction: str, place: Path, server: GridFtp, rounds: int) -> bool:
    source, copies = place / "source", place / "copies"
    source.mkdir()
    copies.mkdir()
    for number in range(case.files):
        with (source / f"file{number}").open("wb") as file:
            for start in range(0, case.size_bytes, _MEBIBYTE):
                file.write(os.urandom(min(_MEBIBYTE, case.size_bytes - start)))
    times: dict[str, list[float]] = {}
    ways = dict(_ways(case, direction, place, server))
    for number in range(-1, rounds):  # the first warms up
        names = list(ways)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            target = copies / f"{number} {names.index(name)}"
            os.sync()
            begun = time.perf_counter()
            ways[name](source, target)
            if number >= 0:
                times.setdefault(name, []).append(time.perf_counter() - begun)
            assert case.files == sum(1 for path in target.rglob("file*") if path.is_file()), name
            if case.files == 1:
                shutil.rmtree(target)
    shutil.rmtree(source)
    shutil.rmtree(copies)
    return _show(case, direction, times)


def _show(case: _Case, direction: str, times: Mapping[str, Sequence[float]]) -> bool:
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, found in times.items():
        rate = case.files * case.size_bytes / 1e6 / medians[name]
        ratios = [] if name in _OURS else [f"{medians[name] / medians[one]:.2f}" for one in _OURS]
        seconds = f"{medians[name]:.2f} ({min(found):.2f} to {max(found):.2f})"
        print(f"{direction} {case.name:16} {name:22} {seconds:>24} {rate:7.0f} {' | '.join(ratios):>14}")
    best = min(median for name, median in medians.items() if name not in (*_OURS, _VERIFIED))
    ratio = best / medians[_OURS[1]]
    verdict = "met" if ratio >= _TARGET else "MISSED"
    print(
        f"{direction} {case.name:16} {_OURS[1]} beside the best: {ratio:.2f}, target {_TARGET}: {verdict}",
        flush=True,
    )
    return ratio >= _TARGET


def _ways(case: _Case, direction: str, place: Path, server: GridFtp) -> Iterator[tuple[str, Way]]:
    """Yield every way to bring a directory from here to there, or back."""
    for name, options in case.bare.items():
        yield name, _bare(options, direction, server)
    for name, checksum in zip(_OURS, ("sha256", "none"), strict=True):
        yield name, _driven(checksum, direction, place, server)


def _bare(options: Sequence[str], direction: str, server: GridFtp) -> Way:
    assert server.grid is not None
    environment = {
        "PATH": os.environ["PATH"],
        "X509_USER_PROXY": str(server.proxy),
        "X509_CERT_DIR": str(server.grid.authorities),
    }

    def carry(source: Path, target: Path) -> None:
        here, there = ("file://", server.url) if direction == "put" else (server.url, "file://")
        command = ["globus-url-copy", "-r", "-cd", "-dcstack", server.stack, *options]
        subprocess.run([*command, f"{here}{source}/", f"{there}{target}/"], env=environment, check=True)

    return carry


def _driven(checksum: str, direction: str, place: Path, server: GridFtp) -> Way:
    assert server.grid is not None
    driver = GridFtpTransfer(
        proxy=str(server.proxy),
        authorities=str(server.grid.authorities),
        checksum=checksum,  # type: ignore[arg-type]
        options=("-dcstack", server.stack),
    )
    driver.open(site=SiteContext(site="bench", work_directory=place))

    def carry(source: Path, target: Path) -> None:
        if direction == "put":
            driver.deliver(
                directory=source,
                url=f"{server.url}{target}",
                progress=lambda update: None,
                selection=EVERYTHING,
            )
        else:
            driver.fetch(url=f"{server.url}{source}", directory=target, progress=lambda update: None)

    return carry


if __name__ == "__main__":
    main()
