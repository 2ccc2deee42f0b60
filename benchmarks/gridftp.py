"""Measure transfers with GridFTP beside bare ``globus-url-copy``: ``python -m benchmarks.gridftp [--quick]``.

Both talk to private servers on loopback, as the same person: one to put and to get, two to copy from one to the other. The bare client is asked in the best way that is known
for each case: for one long file with one stream or four, for many small ones with ``-r -fast``; ``-r`` alone shows
what that is worth. It neither compares nor renames nor syncs; ``-sync-level`` and ``-verify-checksum`` are left out, the
latter having its own line. The driver syncs what it fetches, writes beside the final names and renames; "sizes only" is
without checksums. A ratio is the other's time divided by ours: 1 means as fast, more means faster. Client and server share
the processors of one machine, which no real transfer does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from edgecore_gridftp import GridFtpTransfer

from benchmarks.transfers import Case, Claim, Way, chosen_cases, measure, show, transfer_arguments
from edgecore.models import SiteContext, TransferUpdate
from edgecore.selection import EVERYTHING

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the server is the test suite's

from testbed.grid import Grid
from testbed.gridftp import GridFtp, missing_gridftp, running_gridftp

__all__ = ["main"]

_OURS: Final = ("edgecore", "edgecore, sizes only")
_VERIFIED: Final = "-verify-checksum"
_CHECKED: Final = ("-verify-checksum", "-checksum-alg", "SHA256")
_LONG: Final[Mapping[str, Sequence[str]]] = {"one stream": (), "-p 4": ("-p", "4"), _VERIFIED: _CHECKED}
"""Name -> options of the bare client."""
_MANY: Final[Mapping[str, Sequence[str]]] = {"-r -fast": ("-fast",), _VERIFIED: ("-fast", *_CHECKED)}

Servers: TypeAlias = tuple[GridFtp, GridFtp]


def main(arguments: Sequence[str] | None = None) -> bool:
    """Run the cases and print the tables; tell whether the target was met."""
    chosen = transfer_arguments("Measure transfers with GridFTP beside globus-url-copy.", arguments)
    if words := missing_gridftp():
        print(words)
        return True
    met = True
    with tempfile.TemporaryDirectory(dir=chosen.directory, prefix="gridftp-") as name:
        place = Path(name)
        grid = Grid(place / "grid")
        with running_gridftp(place / "one", grid) as one, running_gridftp(place / "other", grid) as other:
            shutil.copy(one.directory / "map", other.directory / "map")
            for case in chosen_cases(chosen):
                for direction in ("put", "get", "copy"):
                    met &= _compare(case, direction, place, (one, other), chosen.rounds)
    return met


def _compare(case: Case, direction: str, place: Path, servers: Servers, rounds: int) -> bool:
    bare = _LONG if case.files == 1 else _MANY
    ways = dict(_ways(bare, direction, place, servers))
    found = measure(case, direction, place, ways, _OURS, rounds)
    return show(
        case, direction, found, _OURS, [Claim(_OURS[1], [name for name in bare if name != _VERIFIED])]
    )


def _ways(
    bare: Mapping[str, Sequence[str]], direction: str, place: Path, servers: Servers
) -> Iterator[tuple[str, Way]]:
    """Yield every way to bring a directory from here to there, or back."""
    for name, options in bare.items():
        yield name, _bare(options, direction, servers)
    for name, checksum in zip(_OURS, ("sha256", "none"), strict=True):
        yield name, _driven(checksum, direction, place, servers)


def _bare(options: Sequence[str], direction: str, servers: Servers) -> Way:
    one, other = servers
    assert one.grid is not None
    environment = {
        "PATH": os.environ["PATH"],
        "X509_USER_PROXY": str(one.proxy),
        "X509_CERT_DIR": str(one.grid.authorities),
    }

    ends = {"put": ("file://", one.url), "get": (one.url, "file://"), "copy": (one.url, other.url)}

    def carry(source: Path, target: Path) -> None:
        here, there = ends[direction]
        command = ["globus-url-copy", "-r", "-cd", "-dcstack", one.stack, *options]
        subprocess.run([*command, f"{here}{source}/", f"{there}{target}/"], env=environment, check=True)

    return carry


def _driven(checksum: str, direction: str, place: Path, servers: Servers) -> Way:
    one, other = servers
    assert one.grid is not None
    driver = GridFtpTransfer(
        proxy=str(one.proxy),
        authorities=str(one.grid.authorities),
        checksum=checksum,  # type: ignore[arg-type]
        options=("-dcstack", one.stack),
    )
    driver.open(site=SiteContext(site="bench", work_directory=place))

    def carry(source: Path, target: Path) -> None:
        if direction == "put":
            driver.deliver(
                directory=source,
                url=f"{one.url}{target}",
                progress=_ignored,
                selection=EVERYTHING,
            )
        elif direction == "get":
            driver.fetch(url=f"{one.url}{source}", directory=target, progress=_ignored)
        else:
            driver.copy(source=f"{one.url}{source}", target=f"{other.url}{target}", progress=_ignored)

    return carry


def _ignored(update: TransferUpdate) -> None:
    """Take no notice."""


if __name__ == "__main__":
    main()
