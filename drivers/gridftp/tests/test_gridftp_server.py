"""What the driver for gsiftp:// and ftp:// does with real servers, beyond the contract."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from edgecore_gridftp import GridFtpTransfer, work
from edgecore_gridftp.client import Client, Load
from edgecore_gridftp.control import Control
from edgecore_gridftp.place import parse_url
from testbed.grid import Grid
from testbed.gridftp import GridFtp, grid, gridftp, gridftp_anonymous, gridftp_needed, gridftp_second

from edgecore.carrying import Tally
from edgecore.commands import CommandResult, run
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.models import Level, SiteContext, TransferReport, TransferUpdate
from edgecore.processes import process_stat
from edgecore.selection import EVERYTHING
from edgecore.testing.checks import CheckedProgress
from edgecore.testing.disks import small_disk
from edgecore.testing.trees import content_of, planted_tree, random_bytes

__all__ = ["grid", "gridftp", "gridftp_anonymous", "gridftp_needed", "gridftp_second"]

pytestmark = pytest.mark.slow

_PARALLEL_BYTES = 80 * 1024 * 1024
_LONG_BYTES = 8 * 1024 * 1024
_PART_BYTES = 6 * 1024 * 1024
_LOOKS = 3

Open = Callable[..., GridFtpTransfer]


@pytest.fixture
def opened(tmp_path: Path, gridftp: GridFtp) -> Iterator[Open]:
    """Open a driver for the server of the grid, with other keys where they are given."""
    work = tmp_path / "work"
    work.mkdir()

    def make(server: GridFtp = gridftp, **settings: Any) -> GridFtpTransfer:
        known: dict[str, Any] = {"options": ("-dcstack", server.stack)}
        if server.grid is not None:
            known |= {"proxy": str(server.proxy), "authorities": str(server.grid.authorities)}
        driver = GridFtpTransfer(**{**known, **settings})
        driver.open(site=SiteContext(site="theta", work_directory=work))
        stack.enter_context(closing(driver))
        return driver

    with ExitStack() as stack:
        yield make


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree."""
    (tmp_path / "source").mkdir()
    return planted_tree(tmp_path / "source", links=False, large_bytes=1000)


def _ignored(update: TransferUpdate) -> None:
    """Take no notice."""


def _carry(driver: GridFtpTransfer, way: str, url: str, directory: Path) -> None:
    if way == "fetch":
        driver.fetch(url=url, directory=directory, progress=_ignored)
    else:
        driver.deliver(directory=directory, url=url, progress=_ignored, selection=EVERYTHING)


# ------------------------------------------------------------------------------- credentials


def test_an_expired_proxy_is_told_with_what_to_do_and_may_be_renewed(
    opened: Open, gridftp: GridFtp, source: Path, tmp_path: Path
) -> None:
    proxy = tmp_path / "proxy"
    assert gridftp.grid is not None
    user = gridftp.grid.user("Alice of the tests")
    user.write_proxy(proxy, lasts=-timedelta(minutes=1))
    driver, url = opened(proxy=str(proxy)), gridftp.url + quote(str(tmp_path / "far"))

    with pytest.raises(
        TransferInterrupted, match=r"proxy: it expired at .* UTC; make one there with grid-proxy-init"
    ):
        driver.deliver(directory=source, url=url, progress=_ignored, selection=EVERYTHING)
    user.write_proxy(proxy)
    driver.deliver(directory=source, url=url, progress=_ignored, selection=EVERYTHING)

    assert content_of(source, modes=False, times=False) == content_of(
        tmp_path / "far", modes=False, times=False
    )


def test_a_proxy_that_is_not_there_is_waited_for(opened: Open, gridftp: GridFtp, source: Path) -> None:
    driver = opened(proxy="/nowhere/proxy")

    with pytest.raises(
        TransferInterrupted, match="the grid proxy cannot be used: /nowhere/proxy: No such file"
    ):
        driver.deliver(directory=source, url=f"{gridftp.url}/x", progress=_ignored, selection=EVERYTHING)


def test_a_person_whom_the_server_does_not_know_is_refused_in_its_words(
    opened: Open, gridftp: GridFtp, source: Path, tmp_path: Path
) -> None:
    assert gridftp.grid is not None
    proxy = gridftp.grid.user("Bob").write_proxy(tmp_path / "bob")

    with pytest.raises(
        TransferRefused, match=r"Could not map /DC=org/DC=edgecore-tests/CN=Bob.*ask the operators"
    ):
        opened(proxy=str(proxy)).deliver(
            directory=source, url=f"{gridftp.url}/x", progress=_ignored, selection=EVERYTHING
        )


@pytest.mark.parametrize("who", ["server", "person"])
def test_who_has_a_certificate_of_an_unknown_authority_is_not_believed(
    who: str, opened: Open, gridftp: GridFtp, tmp_path: Path
) -> None:
    other = Grid(tmp_path / "other grid")
    proxy = other.user("Alice of the tests").write_proxy(tmp_path / "proxy")
    driver = opened(authorities=str(other.authorities)) if who == "server" else opened(proxy=str(proxy))

    report = driver.probe(url=f"{gridftp.url}/tmp")

    assert not report.ok
    assert {"server": "certificate is not believed", "person": "trusted CA"}[who] in report.message


def test_a_server_with_another_name_is_believed_only_where_the_site_names_it(
    opened: Open, gridftp: GridFtp
) -> None:
    url = gridftp.url.replace("127.0.0.1", "127.1") + "/tmp"  # its certificate does not know this name

    answers = [
        opened(subject=subject).probe(url=url).ok
        for subject in ("", "/DC=org/DC=edgecore-tests/CN=other", "/DC=org/DC=edgecore-tests/CN=localhost")
    ]

    assert [False, False, True] == answers


def test_no_other_credential_than_the_named_one_is_ever_taken(
    opened: Open, gridftp: GridFtp, tmp_path: Path
) -> None:
    """The client would take a user's certificate when a proxy has expired."""
    site = {"X509_USER_CERT": "/a", "X509_USER_KEY": "/b", "X509_RUN_AS_SERVER": "1", "LANG": "C"}
    driver = opened()
    driver.open(site=SiteContext(site="theta", work_directory=tmp_path, environment=site))
    client = driver._client(secure=True)
    authorities = driver.authorities

    assert str(gridftp.proxy) == client.credential
    assert {
        "LANG": "C",
        "X509_USER_PROXY": client.credential,
        "X509_CERT_DIR": authorities,
    } == client.environment


# ------------------------------------------------------------------------- kinds of servers


def test_an_anonymous_server_is_served_both_ways(
    opened: Open, gridftp_anonymous: GridFtp, source: Path, tmp_path: Path
) -> None:
    driver, url = opened(gridftp_anonymous), gridftp_anonymous.url + quote(str(tmp_path / "far"))

    sent = driver.deliver(directory=source, url=url, progress=_ignored, selection=EVERYTHING)
    fetched = driver.fetch(url=url, directory=tmp_path / "near", progress=_ignored)

    assert ("sha256", "sha256") == (sent.verified, fetched.verified)
    assert content_of(source, times=False) == content_of(tmp_path / "near", times=False)
    assert driver.probe(url=url).ok


def test_the_wrong_scheme_is_refused_with_the_right_one(
    opened: Open, gridftp: GridFtp, gridftp_anonymous: GridFtp
) -> None:
    driver = opened()
    plain, secured = f"ftp://127.0.0.1:{gridftp.port}/tmp", f"gsiftp://127.0.0.1:{gridftp_anonymous.port}/tmp"

    assert "write gsiftp:// instead of ftp://" in driver.probe(url=plain).message
    assert "a server without GSI has ftp:// URLs" in driver.probe(url=secured).message


@pytest.mark.parametrize("checksum", ["md5", "adler32", "none"])
@pytest.mark.parametrize("way", ["fetch", "deliver"])
def test_the_checksum_is_the_site_s_choice(
    way: str, checksum: str, opened: Open, gridftp: GridFtp, source: Path, tmp_path: Path
) -> None:
    driver, target = opened(checksum=checksum), tmp_path / "t"

    def go() -> TransferReport:
        if way == "fetch":
            return driver.fetch(url=gridftp.url + quote(str(source)), directory=target, progress=_ignored)
        url = gridftp.url + quote(str(target))
        return driver.deliver(directory=source, url=url, progress=_ignored, selection=EVERYTHING)

    first, again = go(), go()

    assert (checksum if checksum != "none" else "size") == first.verified
    assert (0, 4) == (first.skipped_files, again.skipped_files)
    assert content_of(source, times=False) == content_of(target, times=False)


def test_a_directory_of_thousands_of_names_is_listed_whole(
    opened: Open, gridftp: GridFtp, tmp_path: Path
) -> None:
    """A server tells more than a thousand names in several parts."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(2500):
        (tree / f"{number}").touch()
    driver, place = opened(), parse_url(gridftp.url + quote(str(tree)))

    plan = driver._source(driver._trip(place, gridftp.url, Tally()), place, gridftp.url).plan()

    assert {f"{number}" for number in range(2500)} == {file.name for file in plan.directories[0].files}
    strict = opened(max_entries=2400)
    with pytest.raises(TransferRefused, match="more names than a transfer may have"):
        strict._source(strict._trip(place, gridftp.url, Tally()), place, gridftp.url).plan()


# ---------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("way", ["fetch", "deliver"])
def test_a_long_file_is_continued_and_written_anew_where_that_proves_wrong(
    way: str, wrong: bool, opened: Open, gridftp: GridFtp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_ALONE_BYTES", _LONG_BYTES)
    content = random_bytes(_LONG_BYTES)
    source, target = tmp_path / "from", tmp_path / "to"
    source.mkdir()
    target.mkdir()
    (source / "long").write_bytes(content)
    part = target / ".long.edgecore-part"
    part.write_bytes(b"?" * 1000 + content[1000:_PART_BYTES] if wrong else content[:_PART_BYTES])
    offsets: list[int] = []
    carry = Client.carry

    def noted(self: Client, load: Load, *arguments: Any) -> None:
        offsets.append(load.offset)
        carry(self, load, *arguments)

    monkeypatch.setattr(Client, "carry", noted)
    here, there = (target, source) if way == "fetch" else (source, target)

    _carry(opened(parallel=1), way, gridftp.url + quote(str(there)), here)

    assert ([_PART_BYTES, 0] if wrong else [_PART_BYTES]) == offsets
    assert content == (target / "long").read_bytes()
    assert ["long"] == os.listdir(target)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    """Return how the client is called."""
    found = list[str]()

    def noted(command: Sequence[str], **more: Any) -> CommandResult:
        found.append(" ".join(command))
        return run(command, **more)

    monkeypatch.setattr("edgecore_gridftp.client.run", noted)
    return found


def test_a_long_file_goes_by_parallel_streams_both_ways(
    opened: Open, gridftp: GridFtp, tmp_path: Path, commands: Sequence[str]
) -> None:
    content = random_bytes(_PARALLEL_BYTES)
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "long").write_bytes(content)
    driver, url = opened(parallel=3, parallel_from_mb=64), gridftp.url + quote(str(tmp_path / "far"))

    driver.deliver(directory=tmp_path / "from", url=url, progress=_ignored, selection=EVERYTHING)
    driver.fetch(url=url, directory=tmp_path / "near", progress=_ignored)

    assert content == (tmp_path / "near" / "long").read_bytes()
    assert [True, True] == ["-p 3 " in command for command in commands]


@pytest.mark.parametrize(
    ("round_trip_s", "expected"), [(0.0011, ["", "", "-p 4"]), (0.010, ["-p 4", "-p 4", "-p 4"])]
)
def test_the_way_decides_how_many_connections_carry_a_long_file(
    round_trip_s: float,
    expected: Sequence[str],
    opened: Open,
    gridftp: GridFtp,
    gridftp_second: GridFtp,
    tmp_path: Path,
    commands: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Control, "round_trip_s", property(lambda self: round_trip_s))
    content = random_bytes(_PARALLEL_BYTES)
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "long").write_bytes(content)
    driver, url = opened(parallel_from_mb=64), gridftp.url + quote(str(tmp_path / "far"))

    driver.deliver(directory=tmp_path / "from", url=url, progress=_ignored, selection=EVERYTHING)
    driver.fetch(url=url, directory=tmp_path / "near", progress=_ignored)
    beside = gridftp_second.url + quote(str(tmp_path / "beside"))
    driver.copy(source=url, target=beside, progress=_ignored)

    assert content == (tmp_path / "near" / "long").read_bytes() == (tmp_path / "beside" / "long").read_bytes()
    assert expected == ["".join(re.findall(r"-p \d+", command)) for command in commands]


def test_the_round_trip_is_no_longer_than_the_quickest_answer(opened: Open, gridftp: GridFtp) -> None:
    driver, answers = opened(), list[float]()
    with driver._pool.channel(driver._server(parse_url(gridftp.url)), Tally()) as control:
        for _ in range(100):
            begun = time.perf_counter()
            control.ask(b"NOOP")
            answers.append(time.perf_counter() - begun)
        assert 0 < control.round_trip_s <= min(answers)


# ------------------------------------------------------------------------ server to server


def test_a_tree_goes_from_server_to_server_checked_and_once(
    opened: Open, gridftp: GridFtp, gridftp_second: GridFtp, source: Path, tmp_path: Path
) -> None:
    driver = opened()
    there, here = gridftp.url + quote(str(source)), gridftp_second.url + quote(str(tmp_path / "a" / "copy"))

    first = driver.copy(source=there, target=here, progress=CheckedProgress())
    again = driver.copy(source=there, target=here, progress=CheckedProgress())
    alone = driver.copy(
        source=f"{there}/a",
        target=gridftp_second.url + quote(str(tmp_path / "alone")),
        progress=CheckedProgress(),
    )

    assert (4, 0, "sha256") == (first.files, first.skipped_files, first.verified)
    assert 4 == again.skipped_files
    assert content_of(source, times=False) == content_of(tmp_path / "a" / "copy", times=False)
    assert (1, ["a"]) == (alone.files, os.listdir(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("theirs", "verified"), [("CKSM MD5:1;ADLER32:2", "md5"), ("CKSM CRC32:1", "size"), ("SIZE", "size")]
)
def test_two_servers_are_compared_by_what_both_compute(
    theirs: str,
    verified: str,
    opened: Open,
    gridftp: GridFtp,
    gridftp_second: GridFtp,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Storage systems compute one or two kinds of checksum, and seldom the one that another prefers."""
    told = Control.connect

    def connect(control: Control) -> Control:
        told(control)
        if control.name.endswith(f":{gridftp_second.port}"):
            word, _, rest = theirs.partition(" ")
            del control.features["CKSM"]
            control.features[word] = rest
        return control

    monkeypatch.setattr(Control, "connect", connect)
    urls = [
        server.url + quote(str(place))
        for server, place in ((gridftp, source), (gridftp_second, tmp_path / "a"))
    ]

    report = opened().copy(source=urls[0], target=urls[1], progress=CheckedProgress())

    assert (4, verified) == (report.files, report.verified)
    assert content_of(source, times=False) == content_of(tmp_path / "a", times=False)


@pytest.mark.parametrize("who", ["source", "target"])
def test_a_server_that_ends_when_another_one_is_to_speak_to_it_interrupts_and_the_next_call_goes_on(
    who: str,
    opened: Open,
    gridftp: GridFtp,
    gridftp_second: GridFtp,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It dies when both have said what they hold, and before the client logs in."""
    servers = {"source": gridftp, "target": gridftp_second}
    driver, victim, carry = opened(), servers[who], Client.carry
    urls = {
        "source": gridftp.url + quote(str(source)),
        "target": gridftp_second.url + quote(str(tmp_path / "to")),
    }

    def killing(*given: Any) -> None:
        victim.kill()
        carry(*given)

    monkeypatch.setattr(Client, "carry", killing)
    try:
        with pytest.raises(TransferInterrupted):
            driver.copy(**urls, progress=_ignored)
    finally:
        victim.start()
    monkeypatch.undo()
    report = driver.copy(**urls, progress=_ignored)

    assert 4 == report.files
    assert content_of(source, times=False) == content_of(tmp_path / "to", times=False)


def test_a_full_disk_of_the_target_interrupts_a_copy_and_the_next_call_ends_it(
    opened: Open, gridftp: GridFtp, gridftp_second: GridFtp, tmp_path: Path
) -> None:
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    (tmp_path / "from" / "long").write_bytes(random_bytes(_LONG_BYTES))
    driver = opened()
    there, here = (
        gridftp.url + quote(str(tmp_path / "from")),
        gridftp_second.url + quote(str(tmp_path / "to")),
    )

    with small_disk(tmp_path / "to"), pytest.raises(TransferInterrupted):  # in the words of either server
        driver.copy(source=there, target=here, progress=_ignored)
    driver.copy(source=there, target=here, progress=_ignored)

    assert content_of(tmp_path / "from", times=False) == content_of(tmp_path / "to", times=False)


def test_what_cannot_go_from_server_to_server_is_refused(
    opened: Open, gridftp: GridFtp, gridftp_anonymous: GridFtp, source: Path, tmp_path: Path
) -> None:
    driver, here = opened(), gridftp.url + quote(str(tmp_path / "copy"))
    (source / "link").symlink_to("a")

    for there, words in (
        (gridftp.url + quote(str(source)), "link is a link"),
        (gridftp.url + "/nowhere/at/all", "No such file"),
        (gridftp_anonymous.url + quote(str(source)), "schemes differ"),
        (gridftp.url + quote(str(tmp_path)), "lies inside"),
    ):
        with pytest.raises(TransferRefused, match=words):
            driver.copy(source=there, target=here, progress=_ignored)
    assert not (tmp_path / "copy").exists()


# ----------------------------------------------------------------------------------- sockets


@pytest.mark.parametrize("listen", [False, True])
def test_nothing_listens_here_where_the_site_says_so(
    listen: bool, opened: Open, gridftp: GridFtp, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(8):
        (tree / f"{number}").write_bytes(random_bytes(2 * 1024 * 1024, number))
    driver, ended, seen = opened(listen=listen), threading.Event(), list[int]()

    def look() -> None:
        while not ended.wait(0.002):
            seen.extend(_listening_children())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with gridftp.slow(20e6):
            for attempt in range(_LOOKS):  # it listens for a moment, which a busy machine may miss
                near = tmp_path / f"near{attempt}"
                driver.fetch(url=gridftp.url + quote(str(tree)), directory=near, progress=_ignored)
                assert content_of(tree, modes=False, times=False) == content_of(
                    near, modes=False, times=False
                )
                if seen:
                    break
    finally:
        ended.set()
        watcher.join()

    assert listen == bool(seen)


def _listening_children() -> Iterator[int]:
    """Yield the clients that we started and that listen now."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        stat = process_stat(int(name))
        if stat is None or int(stat[1]) != os.getpid():
            continue
        with suppress(OSError):
            if b"globus-url-copy" not in Path(f"/proc/{name}/cmdline").read_bytes():
                continue
            lines = [
                line.split()
                for table in ("tcp", "tcp6")
                for line in Path(f"/proc/{name}/net/{table}").read_text().splitlines()[1:]
            ]
            listening = {f"socket:[{words[9]}]" for words in lines if words[3] == "0A"}
            if listening & {os.readlink(each) for each in Path(f"/proc/{name}/fd").iterdir()}:
                yield int(name)


def test_a_server_that_accepts_and_says_nothing_is_given_up(opened: Open, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"gsiftp://127.0.0.1:{silent.getsockname()[1]}/x"
        report = opened(answer_s=0.5).probe(url=url)

    assert (False, True) == (report.ok, "gave no answer for 0.5 s" in report.message)


# ------------------------------------------------------------------------------------ doctor


def test_the_doctor_sees_the_client_the_proxy_and_the_authorities(
    opened: Open, gridftp: GridFtp, tmp_path: Path
) -> None:
    assert gridftp.grid is not None
    user, bare, proxy = gridftp.grid.user("Alice"), tmp_path / "bare", tmp_path / "proxy"
    bare.mkdir()
    user.write_proxy(proxy, lasts=timedelta(hours=1))
    [authority] = gridftp.grid.authorities.glob("*.0")
    half = tmp_path / "half"
    half.mkdir()
    (half / authority.name).write_bytes(authority.read_bytes())

    def found(**settings: Any) -> dict[str, Level]:
        return {each.subject: each.level for each in opened(**settings).diagnose()}

    good = {"GridFTP client": Level.OK, "grid proxy": Level.OK, "authorities": Level.OK}
    assert good == found()
    assert good | {"grid proxy": Level.WARNING} == found(proxy=str(proxy))
    assert good | {"authorities": Level.FAILURE} == found(authorities=str(bare))
    assert good | {"authorities": Level.FAILURE} == found(authorities="/nowhere")
    assert good | {"authorities": Level.WARNING} == found(authorities=str(half))
    proxy.chmod(0o644)
    assert good | {"grid proxy": Level.FAILURE} == found(proxy=str(proxy))
    user.write_proxy(proxy, lasts=-timedelta(hours=1))
    assert good | {"grid proxy": Level.FAILURE} == found(proxy=str(proxy))
    proxy.write_text("no proxy")
    assert good | {"grid proxy": Level.FAILURE} == found(proxy=str(proxy))
    proxy.unlink()
    assert good | {"grid proxy": Level.FAILURE} == found(proxy=str(proxy))
