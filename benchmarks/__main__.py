"""Measure what is claimed about speed: ``python -m benchmarks [--quick] [NAME...]``.

Each benchmark prints a table with its targets. Files are written below the present directory, so be
on the kind of disk that the store will be on. The exit code is 0 whether targets were met or not:
a busy machine is no failure of the program.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Mapping
from typing import Final

from benchmarks import big_store, copies, gridftp, intake, latency, rabbitmq, scp, slurm, trivial_job

__all__ = ["main"]


def _copies(*, quick: bool) -> bool:
    print("\ncopies: file:// beside cp -r")
    copies.main(["--quick"] if quick else [])
    return True  # its table says more than one word


def _scp(*, quick: bool) -> bool:
    print("\nscp: scp:// beside scp, sftp and rsync")
    return scp.main(["--quick"] if quick else [])


def _gridftp(*, quick: bool) -> bool:
    print("\ngridftp: gsiftp:// beside globus-url-copy")
    return gridftp.main(["--quick"] if quick else [])


_ALL: Final[Mapping[str, Callable[..., bool]]] = {
    "trivial_job": trivial_job.run,
    "latency": latency.run,
    "intake": intake.run,
    "big_store": big_store.run,
    "copies": _copies,
    "rabbitmq": rabbitmq.run,
    "scp": _scp,
    "gridftp": _gridftp,
    "slurm": slurm.run,
}


def main() -> None:
    """Run the benchmarks that were named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure what is claimed about speed."
    )
    parser.add_argument("--quick", action="store_true", help="less of everything; for a first look")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(_ALL)} (default: all)"
    )
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.names) - set(_ALL)):
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(_ALL)}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, load {load} before the start")
    missed = [name for name in chosen.names or _ALL if not _ALL[name](quick=chosen.quick)]
    print(f"\ntargets missed in: {', '.join(missed)}" if missed else "\nno target of the tables was missed")


if __name__ == "__main__":
    main()
