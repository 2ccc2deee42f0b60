"""Measure transfers over SSH beside ``scp``, ``sftp`` and ``rsync -e ssh``: ``python -m benchmarks.scp [--quick]``.

All of them talk to one private sshd on loopback, with the same key, and each with the cipher that is its
default; the driver prefers one that processors compute by themselves, and ``sftp gcm`` shows what that alone is worth.
The driver also syncs what it writes and, unless only sizes are asked for, has both sides compute SHA-256: what that costs is shown.
Without OpenSSH it is held against paramiko at its best: AES-GCM, its own window (a larger one makes it slower), several files at once.
Rounds are interleaved and their order turns. A ratio is the other's time divided by ours: 1 means as fast, more
means faster. Client and server share the processors of one machine, which no real transfer does.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import paramiko
from attrs import frozen
from edgecore_scp import ScpTransfer

from edgecore.models import SiteContext
from edgecore.selection import EVERYTHING

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the server is the test suite's

from testbed.sshd import Sshd, missing_openssh, running_sshd

__all__ = ["main"]

_MEBIBYTE: Final = 1024 * 1024
_GCM: Final = "aes128-gcm@openssh.com"
_TARGET: Final = 0.9
_OURS: Final = ("edgecore", "edgecore, sizes only", "edgecore, no OpenSSH")
_PARAMIKO: Final = "paramiko gcm"
_CHANNELS: Final = 4

Way = Callable[[Path, Path], None]


@frozen
class _Case:
    name: str
    files: int
    size_bytes: int


def main(arguments: Sequence[str] | None = None) -> bool:
    """Run the cases and print the table; tell whether the target was met."""
    parser = argparse.ArgumentParser(description="Measure transfers over SSH beside scp, sftp and rsync.")
    parser.add_argument("--quick", action="store_true", help="smaller files, three rounds")
    parser.add_argument("--rounds", type=int, help="how many interleaved rounds (default: 5)")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where to copy (default: here)")
    chosen = parser.parse_args(arguments)
    if words := missing_openssh():
        print(words)
        return True
    big = (128 if chosen.quick else 1024) * _MEBIBYTE
    many = 200 if chosen.quick else 1000
    cases = [_Case(f"1 x {big // _MEBIBYTE} MiB", 1, big), _Case(f"{many:,} x 100 kB", many, 100_000)]
    print(f"{'what':18} {'how':22} {'seconds':>24} {'MB/s':>7} {'its time / ours':>18}")
    met = True
    with (
        tempfile.TemporaryDirectory(dir=chosen.directory, prefix="scp-") as place,
        running_sshd(_made(Path(place) / "sshd")) as server,
    ):
        for case in cases:
            for direction in ("put", "get"):
                rounds = chosen.rounds or (3 if chosen.quick else 5)
                met &= _measure(case, direction, Path(place), server, rounds)
    return met


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _measure(case: _Case, direction: str, place: Path, server: Sshd, rounds: int) -> bool:
    source = _made(place / "source")
    for number in range(case.files):
        with (source / f"file{number}").open("wb") as file:
            for start in range(0, case.size_bytes, _MEBIBYTE):
                file.write(os.urandom(min(_MEBIBYTE, case.size_bytes - start)))
    (place / "known_hosts").write_text(server.known_as(server.port))
    times: dict[str, list[float]] = {}
    with _ways(direction, place, server) as ways:
        for number in range(-1, rounds):  # the first warms up
            names = list(ways)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                target = place / "target"
                os.sync()
                begun = time.perf_counter()
                ways[name](source, target)
                if number >= 0:
                    times.setdefault(name, []).append(time.perf_counter() - begun)
                assert case.files == sum(1 for path in target.rglob("file*") if path.is_file()), name
                shutil.rmtree(target)
    shutil.rmtree(source)
    return _show(case, direction, times)


def _show(case: _Case, direction: str, times: Mapping[str, Sequence[float]]) -> bool:
    medians = {name: statistics.median(found) for name, found in times.items()}
    best = min(median for name, median in medians.items() if name not in (*_OURS, _PARAMIKO))
    for name, found in times.items():
        median = medians[name]
        rate = case.files * case.size_bytes / 1e6 / median
        ratios = [f"{median / medians[one]:.2f}" for one in _OURS] if name not in _OURS else []
        seconds = f"{median:.2f} ({min(found):.2f} to {max(found):.2f})"
        print(f"{direction} {case.name:14} {name:22} {seconds:>24} {rate:7.0f} {' | '.join(ratios):>18}")
    met = True
    for ours, other, bare in ((_OURS[1], "the best", best), (_OURS[2], _PARAMIKO, medians[_PARAMIKO])):
        ratio = bare / medians[ours]
        met &= ratio >= _TARGET
        verdict = "met" if ratio >= _TARGET else "MISSED"
        print(f"{direction} {case.name:14} {ours} beside {other}: {ratio:.2f}, target {_TARGET}: {verdict}")
    cost = medians[_OURS[0]] / medians[_OURS[1]]
    print(
        f"{direction} {case.name:14} checksums on both sides take {cost:.2f} times the time without",
        flush=True,
    )
    return met


@contextmanager
def _ways(direction: str, place: Path, server: Sshd) -> Iterator[Mapping[str, Way]]:
    """Give every way to bring a directory from here to there, or back."""
    options = [
        "-i", str(server.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={place / 'known_hosts'}", "-F", "none",
    ]  # fmt: skip
    host, port = f"{server.user}@127.0.0.1", str(server.port)

    def scp(source: Path, target: Path) -> None:
        pair = [str(source), f"{host}:{target}"] if direction == "put" else [f"{host}:{source}", str(target)]
        _run(["scp", "-q", "-r", *options, "-P", port, *pair])

    def sftp(source: Path, target: Path, *more: str) -> None:
        batch = f"{direction} -r {source} {target}\n"
        _run(["sftp", "-q", "-b", "-", *more, *options, "-P", port, host], batch)

    def rsync(source: Path, target: Path) -> None:
        shell = " ".join(["ssh", "-p", port, *options])
        pair = (
            [f"{source}/", f"{host}:{target}/"] if direction == "put" else [f"{host}:{source}/", f"{target}/"]
        )
        _run(["rsync", "-a", "-e", shell, *pair])

    ways: dict[str, Way] = {
        "scp": scp,
        "sftp": sftp,
        "sftp gcm": lambda source, target: sftp(source, target, "-c", _GCM),
    }
    if shutil.which("rsync"):
        ways["rsync"] = rsync
    ways[_PARAMIKO] = lambda source, target: _paramiko(server, direction, source, target)
    drivers = {
        _OURS[0]: _driver(place, server),
        _OURS[1]: _driver(place, server, checksums=False),
        _OURS[2]: _driver(place, server, checksums=False, openssh=False),
    }
    for name, driver in drivers.items():
        ways[name] = _way(driver, direction, f"scp://{host}:{port}")
    with closing(drivers[_OURS[0]]), closing(drivers[_OURS[1]]), closing(drivers[_OURS[2]]):
        yield ways


def _driver(place: Path, server: Sshd, **more: bool) -> ScpTransfer:
    driver = ScpTransfer(
        key_file=str(server.key),
        known_hosts=str(place / "known_hosts"),
        ssh_config="none",
        agent=False,
        **more,  # type: ignore[arg-type]
    )
    driver.open(site=SiteContext(site="bench", work_directory=place))
    return driver


def _way(driver: ScpTransfer, direction: str, root: str) -> Way:
    def carry(source: Path, target: Path) -> None:
        if direction == "put":
            driver.deliver(
                directory=source, url=f"{root}{target}", progress=lambda update: None, selection=EVERYTHING
            )
        else:
            driver.fetch(url=f"{root}{source}", directory=target, progress=lambda update: None)

    return carry


def _paramiko(server: Sshd, direction: str, source: Path, target: Path) -> None:
    """Bring a directory of files by paramiko alone, several at once over one connection."""
    key = paramiko.PKey.from_path(server.key)
    with closing(paramiko.Transport(("127.0.0.1", server.port))) as transport:
        transport.get_security_options().ciphers = (_GCM,)
        transport.connect(username=server.user, pkey=key)
        names = sorted(os.listdir(source))
        clients = [_client(transport) for _ in range(min(_CHANNELS, len(names)))]
        if direction == "put":
            clients[0].mkdir(str(target))
        else:
            target.mkdir()

        def carry(number: int) -> None:
            client = clients[number]
            for name in names[number :: len(clients)]:
                if direction == "put":
                    client.put(str(source / name), str(target / name), confirm=False)
                else:
                    client.get(str(source / name), str(target / name))

        with ThreadPoolExecutor(len(clients)) as pool:
            list(pool.map(carry, range(len(clients))))


def _client(transport: paramiko.Transport) -> paramiko.SFTPClient:
    client = paramiko.SFTPClient.from_transport(transport)
    assert client is not None
    return client


def _run(command: Sequence[str], stdin: str = "") -> None:
    subprocess.run(command, input=stdin.encode(), check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
