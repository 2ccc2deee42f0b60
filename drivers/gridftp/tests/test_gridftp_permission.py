"""A permission that is lost in the middle of a tree refuses the rest, in the server's words, and spoils nothing.

The server serves as an account that a mode can keep out, which is not root.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest
from attrs import evolve
from edgecore_gridftp import GridFtpTransfer
from edgecore_gridftp.client import Client, Load
from testbed.grid import Grid
from testbed.gridftp import GridFtp, gridftp_needed, running_gridftp

from edgecore.carrying import Tally
from edgecore.errors import TransferRefused
from edgecore.models import SiteContext, TransferUpdate
from edgecore.selection import EVERYTHING
from edgecore.testing.trees import content_of

__all__ = ["gridftp_needed"]

pytestmark = pytest.mark.slow

_FILES: Final = 12
_CARRIED: Final = 8
"""How many of them the client has carried when the permission goes."""


@pytest.fixture(scope="module")
def account() -> pwd.struct_passwd:
    """Whom the server serves."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


@pytest.fixture(scope="module")
def open_grid(gridftp_needed: None) -> Iterator[Grid]:
    """A grid whose authorities this account can read."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Grid(Path(name) / "grid")


@pytest.fixture(scope="module")
def server(
    open_grid: Grid, account: pwd.struct_passwd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GridFtp]:
    """A server that becomes this account for who logs in."""
    with running_gridftp(tmp_path_factory.mktemp("gridftp"), open_grid) as server:
        table = server.directory / "map"
        table.write_text(f"{table.read_text().rpartition(' ')[0]} {account.pw_name}\n")
        yield server


@pytest.fixture
def far(account: pwd.struct_passwd) -> Iterator[Path]:
    """A directory of this account, which it can reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, account.pw_uid, account.pw_gid)
        yield Path(name)


@pytest.fixture
def near(tmp_path: Path) -> Path:
    """A directory here."""
    (tmp_path / "near").mkdir()
    return tmp_path / "near"


@pytest.fixture
def driver(server: GridFtp, open_grid: Grid, tmp_path: Path) -> Iterator[GridFtpTransfer]:
    """Compare by checksums."""
    made = GridFtpTransfer(
        proxy=str(server.proxy), authorities=str(open_grid.authorities), options=("-dcstack", server.stack)
    )
    made.open(site=SiteContext(site="theta", work_directory=tmp_path))
    yield made
    made.close()


def _planted(directory: Path) -> None:
    (directory / "sub").mkdir()
    for number in range(_FILES):
        (directory / "sub" / f"{number:02}").write_bytes(b"%02d" % number * 50_000)


def _ignored(update: TransferUpdate) -> None:
    """Take no notice."""


def _losing(monkeypatch: pytest.MonkeyPatch, take: Callable[[], None]) -> list[int]:
    """Let the client, the first time, do *take* in the middle of its files; return how many it is given each time."""
    carried, given = Client.carry, list[int]()

    def carry(self: Client, load: Load, tally: Tally, watch: Callable[[], None]) -> None:
        given.append(len(load.pairs))
        if len(given) == 1:
            carried(self, evolve(load, pairs=load.pairs[:_CARRIED]), tally, watch)
            load = evolve(load, pairs=load.pairs[_CARRIED:])
            take()
        carried(self, load, tally, watch)

    monkeypatch.setattr(Client, "carry", carry)
    return given


def _halves(directory: Path) -> list[str]:
    return [
        path.name
        for path in (directory / "sub").iterdir()
        if not path.name.startswith(".") and path.stat().st_size != 100_000
    ]


def test_a_directory_there_that_may_no_longer_be_written_refuses_the_rest_and_is_gone_on_with(
    driver: GridFtpTransfer, server: GridFtp, far: Path, near: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _planted(near)
    url = server.url + quote(str(far))
    given = _losing(monkeypatch, lambda: (far / "sub").chmod(0o500))

    with pytest.raises(TransferRefused, match=r"cannot write .*/sub/.*globus-url-copy: .*Permission denied"):
        driver.deliver(directory=near, url=url, progress=_ignored, selection=EVERYTHING)
    halves = _halves(far)
    (far / "sub").chmod(0o700)
    report = driver.deliver(directory=near, url=url, progress=_ignored, selection=EVERYTHING)

    assert [] == halves
    assert (_FILES, [_FILES, _FILES - _CARRIED]) == (report.files, given)
    assert content_of(near, times=False) == content_of(far, times=False)


def test_a_directory_there_in_which_nothing_may_be_renamed_any_more_leaves_no_final_name(
    driver: GridFtpTransfer, server: GridFtp, far: Path, near: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _planted(near)
    url = server.url + quote(str(far))
    carried = Client.carry

    def carry(self: Client, *arguments: object) -> None:
        carried(self, *arguments)  # type: ignore[arg-type]
        (far / "sub").chmod(0o500)

    monkeypatch.setattr(Client, "carry", carry)

    with pytest.raises(TransferRefused, match=r"cannot rename to .*/sub/.*Permission denied"):
        driver.deliver(directory=near, url=url, progress=_ignored, selection=EVERYTHING)

    assert {True} == {path.name.startswith(".") for path in (far / "sub").iterdir()}
    (far / "sub").chmod(0o700)


def test_a_directory_there_that_may_no_longer_be_read_refuses_the_rest_and_is_gone_on_with(
    driver: GridFtpTransfer,
    server: GridFtp,
    far: Path,
    near: Path,
    account: pwd.struct_passwd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _planted(far)
    os.chown(far / "sub", account.pw_uid, account.pw_gid)
    url = server.url + quote(str(far))
    given = _losing(monkeypatch, lambda: (far / "sub").chmod(0))

    with pytest.raises(TransferRefused, match=r"cannot read .*/sub/.*globus-url-copy: .*Permission denied"):
        driver.fetch(url=url, directory=near, progress=_ignored)
    halves = _halves(near)
    (far / "sub").chmod(0o755)
    report = driver.fetch(url=url, directory=near, progress=_ignored)

    assert [] == halves
    assert (_FILES, [_FILES, _FILES - _CARRIED]) == (report.files, given)
    assert content_of(far, times=False) == content_of(near, times=False)
