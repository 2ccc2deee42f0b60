"""What is wrong with a proxy, or with the authorities, is said before any server is asked, and holds nobody up."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
from edgecore_gridftp import GridFtpTransfer
from edgecore_gridftp.client import Client
from edgecore_gridftp.examining import findings
from edgecore_gridftp.gsi import Credential, Seal
from edgecore_gridftp.text import Reply
from testbed.grid import Grid, Owner
from testbed.gridftp import gridftp_needed
from testbed.gsi_acceptor import Acceptor, owner_context
from testbed.proxies import Holder, place_file, proxy_pem, write_proxy

from edgecore.errors import ConfigurationError, TransferInterrupted, TransferRefused
from edgecore.models import Finding, Level, SiteContext

__all__ = ["gridftp_needed"]


@pytest.fixture
def grid(tmp_path: Path, gridftp_needed: None) -> Grid:
    """An authority of its own, whose lists a test may change."""
    return Grid(tmp_path / "grid")


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _half(path: Path) -> None:
    whole = proxy_pem()
    place_file(path, whole[: len(whole) // 2])


def _open_to_others(path: Path) -> None:
    place_file(path, proxy_pem(), 0o644)


def _for_a_group(path: Path) -> None:
    holder = Holder.made(["edge"])
    place_file(path, holder.pem + holder.key_pem(), 0o640)


def _locked(path: Path) -> None:
    holder = Holder.made(["edge"])
    place_file(path, holder.pem + holder.key_pem("secret"))


def _expired(path: Path) -> None:
    write_proxy(path, -5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_fifo, "proxy is no regular file"),
        (Path.mkdir, "proxy is no regular file"),
        (_loop, "Too many levels of symbolic links"),
        (_half, "proxy breaks off|proxy holds no certificate|proxy holds no private key|cannot be read"),
        (_open_to_others, "proxy has mode 0644.*chmod 600"),
        (_for_a_group, "proxy has mode 0640.*chmod 600"),
        (_locked, "wants a passphrase"),
        (_expired, "proxy: it expired at"),
        (Path.touch, "holds no certificate"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_at_once_with_what_to_do(
    make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    proxy = tmp_path / "proxy"
    make(proxy)
    credential = Credential(proxy=str(proxy), authorities=str(tmp_path))

    with pytest.raises(TransferInterrupted, match=f"the grid proxy cannot be used: .*({words}).*; make one"):
        credential.check()
    (found,) = (each for each in _findings(credential) if each.subject == "grid proxy")
    assert Level.FAILURE is found.level
    assert str(proxy) in found.message


def test_another_proxy_in_the_same_file_is_told_from_the_one_before(tmp_path: Path) -> None:
    credential = Credential(proxy=str(write_proxy(tmp_path / "proxy")), authorities=str(tmp_path))
    first = credential.check()

    assert first == credential.check()
    write_proxy(tmp_path / "proxy")
    assert first != credential.check()


@pytest.mark.parametrize("place", ["nowhere", "proxy"])
def test_authorities_that_cannot_be_read_are_named(place: str, tmp_path: Path) -> None:
    authorities = tmp_path / place
    credential = Credential(proxy=str(write_proxy(tmp_path / "proxy")), authorities=str(authorities))

    with pytest.raises(
        TransferInterrupted, match=rf"cannot read the authorities in {authorities}: .*\(authorities\)"
    ):
        credential.context()


def test_nobody_is_asked_for_a_passphrase_at_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file may have been exchanged since it was looked at."""
    _locked(tmp_path / "proxy")
    credential = Credential(proxy=str(tmp_path / "proxy"), authorities=str(tmp_path))
    monkeypatch.setattr(Credential, "check", lambda self: ())
    monkeypatch.setattr("os.listdir", lambda path: [])

    with pytest.raises(TransferInterrupted, match="cannot use the grid proxy"):
        credential.context()
    assert ("", "") == capfd.readouterr()


def test_a_path_that_depends_on_where_the_service_was_started_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = SiteContext(site="theta", work_directory=tmp_path)
    with pytest.raises(ConfigurationError, match=r"proxy: found 'proxy'; must be an absolute path"):
        GridFtpTransfer(proxy="proxy").open(site=site)

    monkeypatch.setenv("HOME", str(tmp_path))
    write_proxy(tmp_path / "proxy", 12 * 3600)
    driver = GridFtpTransfer(proxy="~/proxy", authorities=str(tmp_path))
    driver.open(site=site)
    assert f"{tmp_path}/proxy is good until" in str(driver.diagnose())
    driver.close()


# --------------------------------------------------------------------------- what a server shows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("revoked", "lasts", "error", "words"),
    [
        (False, timedelta(days=1), None, ""),
        (True, timedelta(days=1), TransferRefused, "certificate revoked"),
        (False, -timedelta(hours=1), TransferInterrupted, "CRL has expired; have the lists of revoked"),
    ],
)
def test_a_server_is_believed_unless_its_authority_has_revoked_it_or_may_have(
    revoked: bool, lasts: timedelta, error: type[Exception] | None, words: str, grid: Grid, tmp_path: Path
) -> None:
    host = grid.host()
    grid.revoke(*([host] if revoked else []), lasts=lasts)

    with nullcontext() if error is None else pytest.raises(error, match=words):
        _shake_hands(grid, host, tmp_path)


@pytest.mark.slow
def test_a_certificate_of_a_server_that_has_expired_may_be_renewed_there(grid: Grid, tmp_path: Path) -> None:
    with pytest.raises(TransferInterrupted, match="certificate has expired; its operators must renew it"):
        _shake_hands(grid, grid.host(lasts=-timedelta(minutes=1)), tmp_path)


def _shake_hands(grid: Grid, host: Owner, directory: Path) -> None:
    """Log in to a host, in memory."""
    acceptor = Acceptor(owner_context(host, directory))
    proxy = grid.user("Alice of the tests").write_proxy(directory / "proxy")
    credential = Credential(proxy=str(proxy), authorities=str(grid.authorities))

    def ask(command: bytes) -> Reply:
        answer = acceptor.shake_hands(command.removeprefix(b"ADAT "))
        return Reply(int(answer[:3]), (answer[4:],))

    Seal.made(credential, "127.0.0.1").shake_hands(ask, credential, "the server")


def _findings(credential: Credential) -> list[Finding]:
    client = Client(environment={}, credential="", options=(), turns=threading.BoundedSemaphore())
    return list(findings(client, credential))
