"""The driver believes nothing that a hostile server says, be it anonymous or one whose name an authority has signed."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from edgecore_gridftp import GridFtpTransfer, control
from testbed.grid import Grid
from testbed.gridftp import grid, gridftp_needed
from testbed.gsi_acceptor import host_context
from testbed.hostile_ftp import HostileFtp, Lies

from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.models import SiteContext, TransferUpdate
from edgecore.testing.trees import content_of, random_bytes

__all__ = ["grid", "gridftp_needed"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("gridftp_needed")]

_FILE = "Type=file;Size=4;Modify=20200101000000;"
_DIRECTORY = "Type=dir;Size=4;Modify=20200101000000;"

Fetch = Callable[[Lies], None]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the server really has."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "good").write_bytes(b"good")
    return tree


@pytest.fixture
def near(tmp_path: Path) -> Path:
    """Where it is fetched to."""
    return tmp_path / "near"


@pytest.fixture(scope="module")
def proxy(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Who we are."""
    return grid.user("Alice of the tests").write_proxy(tmp_path_factory.mktemp("user") / "proxy")


@pytest.fixture(scope="module")
def host(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Who the server of the grid is."""
    return host_context(grid, tmp_path_factory.mktemp("host"))


@pytest.fixture(params=["ftp", "gsiftp"])
def scheme(request: pytest.FixtureRequest) -> str:
    """Whether the server proves who it is."""
    return str(request.param)


@pytest.fixture
def fetch(
    scheme: str, tmp_path: Path, tree: Path, near: Path, grid: Grid, proxy: Path, host: ssl.SSLContext
) -> Iterator[Fetch]:
    """Fetch the tree from a server that lies."""
    driver, context = GridFtpTransfer(), None
    if scheme == "gsiftp":
        driver, context = GridFtpTransfer(proxy=str(proxy), authorities=str(grid.authorities)), host
    driver.open(site=SiteContext(site="theta", work_directory=tmp_path))

    def go(lies: Lies) -> None:
        with HostileFtp(lies, context).running() as server:
            driver.fetch(url=server.url + quote(str(tree)), directory=near, progress=_ignored)

    yield go
    driver.close()


def _ignored(update: TransferUpdate) -> None:
    """Take no notice."""


def test_a_server_without_lies_is_fetched_from(fetch: Fetch, tree: Path, near: Path) -> None:
    fetch(Lies())

    assert content_of(tree, modes=False, times=False) == content_of(near, modes=False, times=False)


@pytest.mark.parametrize(
    "line",
    [
        f"{_FILE} ../escaped",
        f"{_FILE} ../../escaped",
        f"{_FILE} /tmp/escaped",
        f"{_FILE} sub/../../escaped",
        f"{_DIRECTORY} ../escaped",
        f"{_FILE} {'x' * 256}",
        "escaped",
        f"{_FILE} one\r\n two",
        f"{_FILE} carriage\rreturn",
    ],
)
def test_a_name_that_could_lead_elsewhere_is_refused_before_anything_moves(
    line: str, fetch: Fetch, tree: Path, near: Path, tmp_path: Path
) -> None:
    with pytest.raises(TransferRefused, match="no name of a file"):
        fetch(Lies(listings={str(tree): [f"{_FILE} good", line]}))

    assert [] == os.listdir(near)
    assert [] == list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../escaped", "good"])
def test_a_link_in_a_listing_is_refused_wherever_it_leads(
    target: str, fetch: Fetch, tree: Path, near: Path
) -> None:
    link = f"Type=file;Size=4;Modify=20200101000000;UNIX.slink={target}; link"

    with pytest.raises(TransferRefused, match="link is a link"):
        fetch(Lies(listings={str(tree): [f"{_FILE} good", link]}))

    assert [] == os.listdir(near)


@pytest.mark.parametrize("kind", ["file", "dir", "pdir", "cdir"])
def test_the_directory_above_is_left_out_of_a_listing(
    kind: str, fetch: Fetch, tree: Path, near: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())

    fetch(Lies(listings={str(tree): [f"{_FILE} good", f"Type={kind};Size=4; ..", f"Type={kind};Size=4; ."]}))

    assert ["good"] == os.listdir(near)
    assert before == sorted(path for path in tmp_path.iterdir() if path != near)


def test_a_tree_without_an_end_is_refused(fetch: Fetch, tree: Path, near: Path) -> None:
    with pytest.raises(TransferRefused, match="more than 200 directories deep"):
        fetch(Lies(bottomless=True))

    assert [] == os.listdir(near)


def test_a_file_that_is_sent_without_an_end_is_cut_off(fetch: Fetch, tree: Path, near: Path) -> None:
    (tree / "good").write_bytes(random_bytes(1024 * 1024))
    free = shutil.disk_usage(tree).free

    with pytest.raises(TransferInterrupted, match="more than the 1048576 bytes that were announced"):
        fetch(Lies(endless_files=frozenset({str(tree / "good")})))

    assert not (near / "good").exists()
    assert free - shutil.disk_usage(tree).free < 1024 * 1024 * 1024


def test_a_file_that_is_shorter_than_announced_is_no_success(fetch: Fetch, tree: Path, near: Path) -> None:
    with pytest.raises(TransferInterrupted, match="does not hold what its source holds"):
        fetch(Lies(listings={str(tree): ["Type=file;Size=5;Modify=20200101000000; good"]}))

    assert not (near / "good").exists()


def test_sizes_that_are_no_numbers_do_no_harm(fetch: Fetch, tree: Path, near: Path) -> None:
    with pytest.raises(TransferInterrupted):
        fetch(Lies(listings={str(tree): ["Type=file;Size=-1;Modify=soon;UNIX.mode=9x; good"]}))

    assert not (near / "good").exists()


def test_a_plain_ftp_server_is_refused_with_the_reason(fetch: Fetch, near: Path) -> None:
    with pytest.raises(TransferRefused, match="does not know the command MLSC"):
        fetch(Lies(features="MLST;SIZE;UTF8"))

    assert [] == os.listdir(near)


def test_a_server_that_computes_no_checksums_is_compared_by_sizes(
    fetch: Fetch, tree: Path, near: Path
) -> None:
    fetch(Lies(features="MLST;MLSC;SIZE"))

    assert content_of(tree, modes=False, times=False) == content_of(near, modes=False, times=False)


# ------------------------------------------------------------------------------ the log-in


@pytest.mark.parametrize("scheme", ["gsiftp"])
def test_a_server_that_lets_us_in_before_it_has_shown_who_it_is_is_refused(fetch: Fetch, near: Path) -> None:
    with pytest.raises(TransferRefused, match="ended the handshake before it had shown who it is"):
        fetch(Lies(log_in="hasty"))

    assert [] == os.listdir(near)


@pytest.mark.parametrize("scheme", ["gsiftp"])
@pytest.mark.parametrize(
    ("log_in", "words"),
    [
        ("unsealed", "not sealed as all must be"),
        ("mixed up", "cannot be unsealed"),
        ("slipped in", "'230 welcome', which is not sealed"),
    ],
)
def test_what_is_not_sealed_by_the_server_that_we_know_is_not_believed(
    log_in: str, words: str, fetch: Fetch, near: Path
) -> None:
    with pytest.raises(TransferInterrupted, match=words):
        fetch(Lies(log_in=log_in))

    assert [] == os.listdir(near)


@pytest.mark.parametrize("scheme", ["gsiftp"])
@pytest.mark.parametrize(
    ("log_in", "words"), [("endless", "asks for more without an end"), ("garbled", "what is no base64")]
)
def test_a_handshake_that_leads_nowhere_is_ended(log_in: str, words: str, fetch: Fetch) -> None:
    with pytest.raises((TransferRefused, TransferInterrupted), match=words):
        fetch(Lies(log_in=log_in))


# ------------------------------------------------------------------------- answers without an end


@pytest.mark.parametrize("scheme", ["ftp"])
@pytest.mark.parametrize(
    ("limit", "flood"),
    [
        ("_LINE_LIMIT_BYTES", b"2" * 65536),
        ("_REPLY_LIMIT_BYTES", b"250-\r\n" * 1000),
        ("_PARTS_LIMIT", b"113 I live\r\n" * 1000),
    ],
)
def test_an_answer_without_an_end_is_cut_off(
    limit: str, flood: bytes, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, limit, 100_000)

    with pytest.raises(TransferRefused, match="answers without an end"):
        fetch(Lies(flood=flood))


def test_an_answer_that_comes_in_drops_is_not_waited_for_longer_than_for_any_other(tmp_path: Path) -> None:
    driver = GridFtpTransfer(answer_s=0.3)
    driver.open(site=SiteContext(site="theta", work_directory=tmp_path))
    with HostileFtp(Lies(flood=b"2", pause_s=0.02)).running() as server:
        report = driver.probe(url=f"{server.url}/tmp")
    driver.close()

    assert (False, True) == (report.ok, "gave no answer for 0.3 s" in report.message)
