"""A permission that is lost in the middle of a tree refuses the rest, by name, and spoils nothing.

The server serves an account that a mode can keep out, which is not root.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from edgecore_scp import ScpTransfer, deliver, work
from scp_helpers import carry
from testbed.sshd import Sshd, missing_openssh
from testbed.stall import Proxy

from edgecore.errors import TransferRefused
from edgecore.models import SiteContext
from edgecore.testing.trees import content_of
from edgecore.trees import Plan

pytestmark = pytest.mark.slow

_FILES: Final = 12
_CARRIED: Final = 8
"""How many of them have arrived when the permission goes."""


class _Confined(Sshd):
    """A server that lets in nobody, by files alone."""

    @property
    def user(self) -> str:
        return "nobody" if os.geteuid() == 0 else super().user


@pytest.fixture(scope="module")
def server() -> Iterator[_Confined]:
    if words := missing_openssh():
        if "CI" in os.environ:
            pytest.fail(words)
        pytest.skip(words)
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # the account reads its authorized_keys there
        server = _Confined(Path(name), ["ForceCommand internal-sftp"])
        server.make().start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def proxy(server: _Confined) -> Iterator[Proxy]:
    proxy = Proxy(server.port).start()
    yield proxy
    proxy.close()


@pytest.fixture
def driver(server: _Confined, proxy: Proxy, tmp_path: Path) -> Iterator[ScpTransfer]:
    (tmp_path / "known_hosts").write_text(server.known_as(proxy.port))
    made = ScpTransfer(
        user=server.user,
        key_file=str(server.key),
        known_hosts=str(tmp_path / "known_hosts"),
        ssh_config="none",
        agent=False,
        streams=1,
    )
    made.open(site=SiteContext(site="theta", work_directory=tmp_path))
    yield made
    made.close()


@pytest.fixture
def far(server: _Confined) -> Iterator[Path]:
    """A directory of this account, which it can reach."""
    account = pwd.getpwnam(server.user)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "sub").mkdir()
        for each in (name, Path(name) / "sub"):
            os.chown(each, account.pw_uid, account.pw_gid)
        yield Path(name)


@pytest.fixture
def near(tmp_path: Path) -> Path:
    """A directory here."""
    (tmp_path / "near" / "sub").mkdir(parents=True)
    return tmp_path / "near"


def _plant(directory: Path) -> None:
    for number in range(_FILES):
        (directory / "sub" / f"{number:02}").write_bytes(b"%02d" % number * 50_000)


def _losing(monkeypatch: pytest.MonkeyPatch, take: Callable[[], None]) -> None:
    """Have *take* done after the first batch of the first transfer."""
    pieces, taken = work.Trip.pieces, list[int]()

    def some(trip: work.Trip, plan: Plan) -> Iterator[list[work.Piece]]:
        for number, batch in enumerate(pieces(trip, plan)):
            if number == 1 and not taken:
                taken.append(number)
                take()
            yield batch

    monkeypatch.setattr(work, "_BATCH_FILES", _CARRIED)
    monkeypatch.setattr(work.Trip, "pieces", some)


@pytest.mark.parametrize("way", ["fetch", "deliver"])
def test_a_permission_that_is_lost_there_refuses_the_rest_which_is_gone_on_with(
    way: str, driver: ScpTransfer, proxy: Proxy, far: Path, near: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = (far, near) if way == "fetch" else (near, far)
    _plant(source)
    _losing(monkeypatch, lambda: (far / "sub").chmod(0 if way == "fetch" else 0o500))
    with pytest.raises(TransferRefused, match=r"cannot (read|write) .*sub/.*: Permission denied"):
        carry(driver, way, source, target, proxy)
    named = [path for path in (target / "sub").iterdir() if not path.name.startswith(".")]
    assert [100_000] * _CARRIED == [path.stat().st_size for path in named]
    (far / "sub").chmod(0o700)
    report = carry(driver, way, source, target, proxy)
    assert (_FILES, _CARRIED) == (report.files, report.skipped_files)
    assert content_of(source, modes=False, times=False) == content_of(target, modes=False, times=False)


def test_a_file_here_that_we_may_not_read_is_refused(
    driver: ScpTransfer, proxy: Proxy, far: Path, near: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trying again would not help; root, who may run this test, can read everything."""

    def enter(root: int, parts: tuple[str, ...]) -> int:
        raise PermissionError(13, "Permission denied")

    _plant(near)
    monkeypatch.setattr(deliver, "enter", enter)
    with pytest.raises(TransferRefused, match=r"cannot read .*near/sub/00: Permission denied"):
        carry(driver, "deliver", near, far, proxy)
