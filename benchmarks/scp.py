"""Measure transfers over SSH beside ``scp``, ``sftp`` and ``rsync -e ssh``: ``python -m benchmarks.scp [--quick]``.

All of them talk to one private sshd on loopback, with the same key, and each with the cipher that is its
default; the driver prefers one that processors compute by themselves, and ``sftp gcm`` shows what that alone is worth.
The driver also syncs what it writes and, unless only sizes are asked for, has both sides compute SHA-256: what that costs is shown.
Without OpenSSH it is held against paramiko at its best: AES-GCM, its own window (a larger one makes it slower), several files at once.
``sftp://`` is measured apart from ``scp://``, though they are one driver. A ratio is the other's time divided by ours: 1 means
as fast, more means faster. Client and server share the processors of one machine, which no real transfer does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import paramiko
from edgecore_scp import ScpTransfer

from benchmarks.transfers import Case, Claim, Way, chosen_cases, measure, show, transfer_arguments
from edgecore.models import SiteContext
from edgecore.selection import EVERYTHING

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the server is the test suite's

from testbed.sshd import Sshd, missing_openssh, running_sshd

__all__ = ["main"]

_GCM: Final = "aes128-gcm@openssh.com"
_CHECKED: Final = "scp://"
_SIZES: Final = "scp:// sizes only"
_SFTP: Final = "sftp:// sizes only"
_ALONE: Final = "scp:// sizes only, no OpenSSH"
_OURS: Final = (_CHECKED, _SIZES, _SFTP, _ALONE)
_PARAMIKO: Final = "paramiko gcm"
_CHANNELS: Final = 4


def main(arguments: Sequence[str] | None = None) -> bool:
    """Run the cases and print the tables; tell whether the target was met."""
    chosen = transfer_arguments("Measure transfers over SSH beside scp, sftp and rsync.", arguments)
    if words := missing_openssh():
        print(words)
        return True
    met = True
    with (
        tempfile.TemporaryDirectory(dir=chosen.directory, prefix="scp-") as name,
        running_sshd(_made(Path(name) / "sshd")) as server,
    ):
        place = Path(name)
        (place / "known_hosts").write_text(server.known_as(server.port))
        for case in chosen_cases(chosen):
            for direction in ("put", "get"):
                met &= _compare(case, direction, place, server, chosen.rounds)
    return met


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _compare(case: Case, direction: str, place: Path, server: Sshd, rounds: int) -> bool:
    with _ways(direction, place, server) as ways:
        found = measure(case, direction, place, ways, _OURS, rounds)
        tools = [name for name in ways if name not in (*_OURS, _PARAMIKO)]
    claims = [Claim(_SIZES, tools), Claim(_SFTP, tools), Claim(_ALONE, [_PARAMIKO])]
    return show(case, direction, found, _OURS, claims)


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
    checked, sizes = _driver(place, server), _driver(place, server, checksums=False)
    alone = _driver(place, server, checksums=False, openssh=False)
    for name, driver, scheme in (
        (_CHECKED, checked, "scp"),
        (_SIZES, sizes, "scp"),
        (_SFTP, sizes, "sftp"),
        (_ALONE, alone, "scp"),
    ):
        ways[name] = _way(driver, direction, f"{scheme}://{host}:{port}")
    with closing(checked), closing(sizes), closing(alone):
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
