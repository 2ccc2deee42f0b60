"""Measure in interleaved pairs beside a bare baseline, and print what came of it as a table.

A ratio is taken within each pair, whose two halves ran one after the other under the same load; the
order within a pair turns. What counts is the median of the ratios, with the smallest and the largest
beside it. On a noisy machine the CPU milliseconds decide.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from edgecore.config import SiteConfig, read_site
from edgecore.desk import Desk
from edgecore.models import Application, OutgoingMessage
from edgecore.partners import open_broker
from edgecore.relays import MessagingRelay

__all__ = [
    "BenchSite",
    "Row",
    "Run",
    "Service",
    "children_s",
    "cpu_s",
    "make_site",
    "pairs",
    "place",
    "ratio_of",
    "show",
    "spread",
    "wait_for_rest",
    "wait_until",
]

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


# -------------------------------------------------------------------------------- numbers


@frozen
class Run:
    """What one half of a pair took, or how much it did per second or per job."""

    value: float
    cpu_ms: float


def pairs(ours: Callable[[], Run], bare: Callable[[], Run], count: int) -> list[tuple[Run, Run]]:
    """Run both *count* times in turns, the order turning too; answers (ours, bare)."""
    found = []
    for number in range(count):
        if number % 2:
            second = bare()
            found.append((ours(), second))
        else:
            first = ours()
            found.append((first, bare()))
    return found


def spread(values: Sequence[float], shape: str = ".1f") -> str:
    """Return the median, with the smallest and the largest beside it."""
    ordered = sorted(values)
    median = statistics.median(ordered)
    return f"{median:{shape}} ({ordered[0]:{shape}} to {ordered[-1]:{shape}})"


def ratio_of(measured: Sequence[tuple[Run, Run]]) -> tuple[float, str]:
    """Return the median ratio of ours to the bare one, and in words with its spread."""
    ratios = [our.value / bare.value for our, bare in measured]
    return statistics.median(ratios), spread(ratios, ".2f")


def cpu_s(pid: int | str = "self") -> float:
    """Return the user and system time of a process so far, in seconds; its children's apart from it."""
    if pid == "self":
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def children_s() -> float:
    """Return the user and system time of all commands that this process ran and waited for, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---------------------------------------------------------------------------------- table


@frozen(kw_only=True)
class Row:
    """One line of the table; *met* is None where there is no target."""

    what: str
    found: str
    bare: str = ""
    ratio: str = ""
    cpu: str = ""
    target: str = ""
    met: bool | None = None


def show(title: str, rows: Sequence[Row]) -> bool:
    """Print a table; tell whether every target was met."""
    verdicts = {True: "met", False: "MISSED", None: ""}
    lines = [("what", "measured", "bare", "ratio", "CPU", "target", "")]
    lines += [(r.what, r.found, r.bare, r.ratio, r.cpu, r.target, verdicts[r.met]) for r in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    sys.stdout.flush()
    return all(row.met is not False for row in rows)


# ---------------------------------------------------------------------------------- sites

_SITE: Final = """
site = "bench"
work_directory = "work"
store = "store.sqlite"

[messaging]
{messaging}

[scheduling]
{scheduling}
{more}
"""


@contextmanager
def place() -> Iterator[Path]:
    """Give a fresh directory on the disk that the present directory is on."""
    path = Path(tempfile.mkdtemp(prefix="benchmark-", dir=Path.cwd()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@frozen
class BenchSite:
    """A site's files, and what a submitter does with them."""

    base: Path
    config: SiteConfig

    def job(self, **more: Any) -> dict[str, Any]:
        """Return a definition of a job that does nothing."""
        return {"name": "job", "site": "bench", "application": "nothing", "num_nodes": 1, **more}

    def broker(self) -> MessagingRelay:
        """Open the site's broker."""
        return open_broker(self.config)

    def outgoing(self, documents: Sequence[Mapping[str, Any]]) -> list[OutgoingMessage]:
        """Return messages that ask for these jobs."""
        return [
            OutgoingMessage(
                exchange="hpc",
                key=self.config.queue,
                body=json.dumps(document).encode(),
                message_id=uuid.uuid4().hex,
            )
            for document in documents
        ]

    def send(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Put definitions into the site's queue."""
        broker = self.broker()
        for start in range(0, len(documents), 1000):
            broker.send(messages=self.outgoing(documents[start : start + 1000]))
        broker.close()


def make_site(
    base: Path, *, slots: int = 2, messaging: str = "", scheduling: str = "", more: str = ""
) -> BenchSite:
    """Lay out a site with an application that does nothing; on SQLite and fork, or what these tables say."""
    base.mkdir(parents=True)
    file = base / "site.toml"
    messaging = messaging or f'url = "sqlite://{base}/queues.sqlite"'
    scheduling = scheduling or f'driver = "fork"\nslots = {slots}\nidle_s = 2'
    file.write_text(_SITE.format(messaging=messaging, scheduling=scheduling, more=more))
    config = read_site(file)
    Desk(config.store).add_application(Application(name="nothing", executable="/bin/true"), now=1)
    return BenchSite(base, config)


_RUN: Final = (
    "import sys, logging; logging.basicConfig(level='WARNING'); from edgecore.service import run_site; "
    "run_site(sys.argv[1], started=lambda: print('started', flush=True))"
)


class Service:
    """A site's service in a process of its own, ready when made; drained on leaving the context."""

    def __init__(self, site: BenchSite) -> None:
        begun = time.perf_counter()
        with (site.base / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUN, str(site.config.source)], stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"started\n":
            raise RuntimeError(f"the service did not start: {(site.base / 'service.log').read_text()}")
        self.start_s = time.perf_counter() - begun
        self.start_cpu_ms = cpu_s(self.process.pid) * 1000

    @property
    def cpu_s(self) -> float:
        """User and system time of the service since it was ready, in seconds."""
        return cpu_s(self.process.pid) - self.start_cpu_ms / 1000

    def memory_mb(self, key: str) -> float:
        """Return ``VmRSS`` or ``VmHWM`` of the service in megabytes of 1,000,000 bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == key:
                return int(rest.split()[0]) * 1024 / 1e6
        raise KeyError(key)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def wait_until(
    condition: Callable[[], bool], what: str, *, timeout_s: float = 300, every_s: float = 0.1
) -> None:
    """Look until *condition* holds; raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(every_s)


def wait_for_rest(pid: int) -> None:
    """Wait until a process has used no CPU for a while, longer than a poll of the fork batch system."""
    used = -1.0
    while used != (used := cpu_s(pid)):
        time.sleep(1.2)
