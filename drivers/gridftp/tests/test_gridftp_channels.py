"""Transfers of several jobs share log-ins, with a real server whose log counts them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from edgecore_gridftp import GridFtpTransfer, control
from edgecore_gridftp.channels import Channels
from edgecore_gridftp.control import Server
from edgecore_gridftp.gsi import Credential
from edgecore_gridftp.place import parse_url
from sites import wait_for
from testbed.grid import Grid
from testbed.gridftp import GridFtp, grid, gridftp_needed, running_gridftp

from edgecore.carrying import Tally
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.models import SiteContext, TransferReport, TransferUpdate
from edgecore.selection import EVERYTHING

__all__ = ["grid", "gridftp_needed"]

pytestmark = pytest.mark.slow

_THREADS = 3
_TRANSFERS = 12
_DEADLINE_S = 60

Open = Callable[..., GridFtpTransfer]
Send = Callable[[GridFtpTransfer], TransferReport]


@pytest.fixture(scope="module")
def server(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridFtp]:
    """A server that notes who logs in."""
    with running_gridftp(tmp_path_factory.mktemp("gridftp"), grid, "-d", "ERROR,WARN,INFO") as server:
        yield server


@pytest.fixture
def opened(server: GridFtp, grid: Grid, tmp_path: Path) -> Iterator[Open]:
    """Open a driver, with other keys where they are given."""

    def make(**settings: Any) -> GridFtpTransfer:
        known: dict[str, Any] = {"proxy": str(server.proxy), "authorities": str(grid.authorities)}
        driver = GridFtpTransfer(**{**known, "options": ("-dcstack", server.stack), **settings})
        driver.open(site=SiteContext(site="theta", work_directory=tmp_path))
        stack.enter_context(closing(driver))
        return driver

    with ExitStack() as stack:
        yield make


@pytest.fixture
def send(server: GridFtp, tmp_path: Path) -> Send:
    """Send a tree that is there already: its files are compared, and the client has nothing to do."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("content")
    url = server.url + quote(str(tree))  # as it comes to a server that shares our disk

    def go(driver: GridFtpTransfer) -> TransferReport:
        return driver.deliver(directory=tree, url=url, progress=_ignored, selection=EVERYTHING)

    return go


def _ignored(update: TransferUpdate) -> None:
    """Take no notice."""


def _log_ins(server: GridFtp) -> int:
    """Count who logged in so far, when all have hung up: who serves writes its part of the log at its end."""
    wait_for(lambda: not server._serving(), _DEADLINE_S)
    lines = (server.directory / "log").read_text(errors="replace").splitlines()
    return sum(":: User " in line and line.endswith("successfully authorized.") for line in lines)


@contextmanager
def _halted(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


# ------------------------------------------------------------------------------------ sharing


def test_transfers_of_many_jobs_in_many_threads_log_in_once_per_thread_at_most(
    opened: Open, send: Send, server: GridFtp, tmp_path: Path
) -> None:
    driver, before = opened(), _log_ins(server)

    with ThreadPoolExecutor(_THREADS) as pool:
        reports = list(pool.map(lambda _: send(driver), range(_TRANSFERS)))
    with pytest.raises(TransferRefused, match="No such file"):
        driver.fetch(url=f"{server.url}/nowhere/at/all", directory=tmp_path / "near", progress=_ignored)
    probed = driver.probe(url=f"{server.url}/tmp")
    driver.close()

    assert [(1, 1)] * _TRANSFERS == [(report.files, report.skipped_files) for report in reports]
    assert probed.ok
    assert 1 <= _log_ins(server) - before <= _THREADS


def test_a_copy_within_one_server_logs_in_for_each_end_and_not_for_each_file(
    opened: Open, server: GridFtp, tmp_path: Path
) -> None:
    (tmp_path / "from").mkdir()
    for number in range(_TRANSFERS):
        (tmp_path / "from" / f"{number}").write_text(f"{number}")
    driver, before = opened(), _log_ins(server)
    url = f"gsiftp://localhost:{server.port}{quote(str(tmp_path))}"

    report = driver.copy(source=f"{url}/from", target=f"{url}/to", progress=_ignored)
    driver.close()

    assert _TRANSFERS == report.files == len(os.listdir(tmp_path / "to"))
    assert _log_ins(server) - before <= 5, (
        "two of the client's, one of ours for the source, two for the target"
    )


def test_what_the_client_carries_costs_its_own_log_in_and_no_other(
    opened: Open, send: Send, server: GridFtp, tmp_path: Path
) -> None:
    driver, before = opened(), _log_ins(server)
    send(driver)

    for number in range(2):
        url = server.url + quote(str(tmp_path / "tree" / "sub"))
        driver.fetch(url=url, directory=tmp_path / f"near {number}", progress=_ignored)
    driver.close()

    assert 1 + 2 == _log_ins(server) - before


@pytest.mark.parametrize("renewed", [False, True])
def test_a_renewed_proxy_logs_in_anew_and_its_forerunner_is_logged_out(
    renewed: bool, opened: Open, send: Send, server: GridFtp, grid: Grid, tmp_path: Path
) -> None:
    user, proxy = grid.user("Alice of the tests"), tmp_path / "proxy"
    user.write_proxy(proxy)
    driver, before = opened(proxy=str(proxy)), _log_ins(server)
    send(driver)

    if renewed:
        user.write_proxy(proxy, lasts=timedelta(hours=2))
    send(driver)
    wait_for(lambda: len(server._serving()) == 1, _DEADLINE_S)
    driver.close()

    assert (2 if renewed else 1) == _log_ins(server) - before


def test_an_expired_proxy_is_not_gone_on_with_though_its_channel_lives(
    opened: Open, send: Send, server: GridFtp, grid: Grid, tmp_path: Path
) -> None:
    proxy = tmp_path / "proxy"
    proxy.write_bytes(server.proxy.read_bytes())
    proxy.chmod(0o600)
    driver = opened(proxy=str(proxy))
    send(driver)

    grid.user("Alice of the tests").write_proxy(proxy, lasts=-timedelta(minutes=1))

    with pytest.raises(TransferInterrupted, match="expired"):
        send(driver)


# ---------------------------------------------------------------------------- life and death


def test_a_channel_that_died_meanwhile_costs_nothing(opened: Open, send: Send, server: GridFtp) -> None:
    driver = opened()
    send(driver)
    with server.away():
        assert driver._channels is not None
        [resting] = driver._channels._resting
        wait_for(
            resting.control._speaks_unasked, _DEADLINE_S
        )  # the end, which comes when its process has gone

    assert 1 == send(driver).skipped_files


def test_a_channel_on_which_nobody_answers_any_more_is_replaced(
    opened: Open, send: Send, server: GridFtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_TRUSTED_S", 0.0)
    monkeypatch.setattr(control, "_SIGN_OF_LIFE_S", 0.2)
    driver, before = opened(), _log_ins(server)
    send(driver)

    with _halted(server._serving()):
        assert 1 == send(driver).skipped_files
    driver.close()

    assert 2 == _log_ins(server) - before


def test_a_channel_that_rested_is_asked_and_goes_on(
    opened: Open, send: Send, server: GridFtp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_TRUSTED_S", 0.0)
    driver, before = opened(), _log_ins(server)

    for _ in range(3):
        send(driver)
    driver.close()

    assert 1 == _log_ins(server) - before


@pytest.mark.parametrize("closed", [False, True])
def test_channels_are_hung_up_when_they_are_idle_and_when_the_driver_closes(
    closed: bool, opened: Open, send: Send, server: GridFtp
) -> None:
    driver = opened(idle_s=60.0 if closed else 0.2)
    send(driver)

    if closed:
        assert server._serving()
        driver.close()
        with pytest.raises(TransferInterrupted, match="the driver is closed"):
            send(driver)

    wait_for(lambda: not server._serving(), _DEADLINE_S)


def test_a_channel_on_which_answers_are_still_to_come_is_lent_to_nobody(
    server: GridFtp, grid: Grid, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("content of a")
    (tmp_path / "b").write_text("content of b")
    paths = {bytes(tmp_path / name): 12 for name in ("a", "b")}
    credential = Credential(proxy=str(server.proxy), authorities=str(grid.authorities))
    where = Server(place=parse_url(server.url), credential=credential, answer_s=_DEADLINE_S)

    with closing(Channels(idle_s=60)) as channels:
        with channels.channel(where, Tally()) as first:
            whole = list(first.digests("MD5", paths, repr))
        with channels.channel(where, Tally()) as again:
            unread = again.digests("MD5", paths, repr)
            begun = next(unread)  # and what stands in the traceback of an error is kept, too
        with channels.channel(where, Tally()) as last:
            found = list(last.digests("MD5", paths, repr))

    assert (first is again, again is last) == (True, False)
    assert ([begun, whole[1]], whole) == (whole, found)
