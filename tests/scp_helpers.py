"""Open the driver for SSH against a server behind a proxy, as several modules of its tests need it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
from edgecore_scp import ScpTransfer
from testbed.sshd import Sshd
from testbed.stall import Proxy

from edgecore.errors import TransferRefused
from edgecore.models import SiteContext, TransferProgress, TransferReport, TransferUpdate
from edgecore.selection import EVERYTHING

__all__ = [
    "MEBIBYTE",
    "WAIT_S",
    "Opener",
    "carry",
    "opened",
    "proxy",
    "refusal",
    "silent",
    "telling",
    "url_of",
]

MEBIBYTE: Final = 1024 * 1024
WAIT_S: Final = 20.0

Opener = Callable[..., ScpTransfer]


def silent(update: TransferUpdate) -> None:
    """Take an update and say nothing."""


@pytest.fixture
def proxy(sshd: Sshd) -> Iterator[Proxy]:
    proxy = Proxy(sshd.port).start()
    yield proxy
    proxy.close()


@pytest.fixture
def opened(sshd: Sshd, proxy: Proxy, tmp_path: Path) -> Iterator[Opener]:
    """Give a way to open drivers, which are closed in the end."""
    drivers: list[ScpTransfer] = []
    known_hosts = tmp_path / "known hosts"  # OpenSSH splits at spaces what is not quoted
    known_hosts.write_text(sshd.known_as(proxy.port))

    def open_one(*, environment: Mapping[str, str] | None = None, **settings: Any) -> ScpTransfer:
        given = {
            "key_file": str(sshd.key),
            "known_hosts": str(known_hosts),
            "ssh_config": "none",
            "agent": False,
            **settings,
        }
        driver = ScpTransfer(**given)
        driver.open(site=SiteContext(site="theta", work_directory=tmp_path, environment=environment or {}))
        drivers.append(driver)
        return driver

    yield open_one
    for driver in drivers:
        driver.close()


def url_of(path: Path, proxy: Proxy) -> str:
    return f"scp://127.0.0.1:{proxy.port}{quote(os.fsencode(path))}"


def telling(moving: threading.Event) -> TransferProgress:
    """Take updates, and set *moving* when something has moved."""
    return lambda update: moving.set() if update.size_bytes else None


def carry(
    driver: ScpTransfer,
    way: str,
    source: Path,
    target: Path,
    proxy: Proxy,
    progress: TransferProgress = silent,
) -> TransferReport:
    if way == "fetch":
        return driver.fetch(url=url_of(source, proxy), directory=target, progress=progress)
    return driver.deliver(
        directory=source, url=url_of(target, proxy), progress=progress, selection=EVERYTHING
    )


def refusal(driver: ScpTransfer, url: str, directory: Path) -> str:
    with pytest.raises(TransferRefused) as caught:
        driver.fetch(url=url, directory=directory, progress=silent)
    assert not driver.probe(url=url).ok
    return str(caught.value)
