"""What the driver does with a real sshd beyond the contract: connections, resuming, full disks, liars."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import paramiko
import pytest
from edgecore_scp import ScpTransfer
from scp_helpers import MEBIBYTE, WAIT_S, Opener, carry, opened, proxy, silent, telling, url_of
from testbed.hostile_sftp import HostileSftp, Lies
from testbed.sshd import Sshd, running_sshd, sshd
from testbed.stall import Proxy

from edgecore import parts
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.models import SiteContext
from edgecore.selection import EVERYTHING
from edgecore.testing.disks import small_disk
from edgecore.testing.trees import content_of, random_bytes
from edgecore.trees import part_name

__all__ = ["opened", "proxy", "sshd"]

pytestmark = pytest.mark.slow


# ------------------------------------------------------------------------------------ connections


def test_many_transfers_in_many_threads_log_in_once_and_out_when_idle(
    opened: Opener, proxy: Proxy, sshd: Sshd, tmp_path: Path
) -> None:
    for number in range(8):
        (tmp_path / f"s{number}").mkdir()
        (tmp_path / f"s{number}" / "file").write_bytes(b"content")
    log = sshd.directory / "log"
    before = log.read_text().count("Accepted publickey")
    driver = opened(idle_s=0.2)

    def deliver(number: int) -> int:
        source, url = tmp_path / f"s{number}", url_of(tmp_path / f"t{number}", proxy)
        return driver.deliver(directory=source, url=url, progress=silent, selection=EVERYTHING).files

    with ThreadPoolExecutor(8) as pool:
        assert [1] * 8 == list(pool.map(deliver, range(8)))
    assert 1 == log.read_text().count("Accepted publickey") - before
    deadline = time.monotonic() + WAIT_S
    while proxy.connections and time.monotonic() < deadline:
        time.sleep(0.02)
    assert 0 == proxy.connections
    assert 1 == deliver(0)


def test_a_closed_driver_leaves_no_thread_and_no_connection(
    opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    driver = opened()
    assert driver.probe(url=url_of(tmp_path, proxy)).ok
    driver.close()
    deadline = time.monotonic() + WAIT_S
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set() == left


def alone(server: Sshd, proxy: Proxy, tmp_path: Path) -> ScpTransfer:
    """Open a driver for a server of the test's own."""
    (tmp_path / "known_hosts").write_text(server.known_as(proxy.port))
    known_hosts = str(tmp_path / "known_hosts")
    driver = ScpTransfer(key_file=str(server.key), known_hosts=known_hosts, ssh_config="none", agent=False)
    driver.open(site=SiteContext(site="theta", work_directory=tmp_path))
    return driver


def test_a_command_that_ends_before_it_heard_us_out_does_not_cut_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does the end of the program there, which an account for files only answers commands with."""
    plainly, ends = paramiko.Transport._send_user_message, set[int]()

    def hesitantly(transport: paramiko.Transport, message: paramiko.Message) -> None:
        if message.asbytes()[:1] == paramiko.common.cMSG_CHANNEL_EOF:
            ends.add(threading.get_ident())
            time.sleep(0.2)  # longer than such a program lives; a pause, and no wait for anything
        plainly(transport, message)

    monkeypatch.setattr(paramiko.Transport, "_send_user_message", hesitantly)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"content")
    (tmp_path / "server").mkdir()
    with (
        running_sshd(tmp_path / "server", "ForceCommand internal-sftp") as server,
        closing(Proxy(server.port).start()) as proxy,
        closing(alone(server, proxy, tmp_path)) as driver,
    ):
        for number in range(3):
            assert (
                "size" == carry(driver, "fetch", tmp_path / "source", tmp_path / f"{number}", proxy).verified
            )
        log = (server.directory / "log").read_text()
    assert ends
    assert "nonexistent channel" not in log
    assert 1 == log.count("Accepted publickey")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("exit 3", "ended with exit code 3"),
        ("echo Welcome to the machine room", r"sent text \(Welcome to the machine room\)"),
    ],
)
def test_what_a_server_of_files_did_in_place_of_its_work_is_in_the_error(
    command: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    with (
        running_sshd(tmp_path / "server", f"ForceCommand {command}") as server,
        closing(Proxy(server.port).start()) as proxy,
        closing(alone(server, proxy, tmp_path)) as driver,
        pytest.raises(TransferInterrupted, match=words),
    ):
        carry(driver, "fetch", tmp_path, tmp_path / "here", proxy)


# -------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("way", ["fetch", "deliver"])
def test_a_server_that_is_killed_in_the_middle_interrupts_and_the_next_one_goes_on(
    way: str, tmp_path: Path
) -> None:
    content, moving = random_bytes(12 * MEBIBYTE), threading.Event()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(content)
    (tmp_path / "server").mkdir()
    with running_sshd(tmp_path / "server") as server, closing(Proxy(server.port).start()) as proxy:
        driver = alone(server, proxy, tmp_path)

        def kill() -> None:
            assert moving.wait(WAIT_S)
            server.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with proxy.slow(5e6), pytest.raises(TransferInterrupted):
            carry(driver, way, tmp_path / "source", tmp_path / "target", proxy, telling(moving))
        killer.join(WAIT_S)
        assert not (tmp_path / "target" / "file").exists()
        server.start()
        carry(driver, way, tmp_path / "source", tmp_path / "target", proxy)
        driver.close()
    assert content == (tmp_path / "target" / "file").read_bytes()


@pytest.mark.parametrize("openssh", [True, False], ids=["OpenSSH", "alone"])
@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "sizes"])
@pytest.mark.parametrize("way", ["fetch", "deliver"])
@pytest.mark.parametrize("partial", ["right", "wrong"])
def test_a_partial_file_is_continued_where_it_is_right_and_written_anew_where_it_is_not(
    partial: str, way: str, checksums: bool, openssh: bool, opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    size, have = 4 * MEBIBYTE, 5 * MEBIBYTE // 2
    content = random_bytes(size)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_bytes(content)
    part = target / part_name("file")
    part.write_bytes(content[:have] if partial == "right" else random_bytes(have, 2))
    driver = opened(checksums=checksums, openssh=openssh, openssh_from_mb=1)
    before = proxy.passed_bytes
    report = carry(driver, way, source, target, proxy)
    assert content_of(source, modes=False, times=False) == content_of(target, modes=False, times=False)
    assert (1, size) == (report.files, report.size_bytes)
    assert ("sha256" if checksums else "size") == report.verified
    if partial == "right":
        assert (
            proxy.passed_bytes - before < size - have + 5 * MEBIBYTE // 4
        )  # the end of a part may be looked at


@pytest.mark.parametrize("left", [2 * MEBIBYTE, MEBIBYTE // 2, 0], ids=["OpenSSH", "alone", "nothing"])
@pytest.mark.parametrize("way", ["fetch", "deliver"])
def test_a_partial_file_that_is_wrong_before_its_end_is_found_however_little_is_missing(
    way: str, left: int, opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    """As a disk may leave it that lost its power."""
    content = random_bytes(4 * MEBIBYTE)
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_bytes(content)
    (target / part_name("file")).write_bytes((bytes(4096) + content[4096:])[: len(content) - left])
    report = carry(opened(openssh_from_mb=1), way, source, target, proxy)
    assert ("sha256", content) == (report.verified, (target / "file").read_bytes())


def test_a_partial_file_that_nobody_may_write_is_replaced(
    opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    """As one that was killed between the final mode and the final name; the server of root would not notice."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_bytes(b"content")
    part = target / part_name("file")
    part.write_bytes(b"old")
    part.chmod(0o400)
    before = part.stat().st_ino
    with part.open("rb"):  # so that its number is not given again
        carry(opened(), "deliver", source, target, proxy)
    assert b"content" == (target / "file").read_bytes()
    assert before != (target / "file").stat().st_ino


# -------------------------------------------------------------------------------------- OpenSSH


def spied(directory: Path, ending: str) -> dict[str, str]:
    """Give an environment in which ``sftp`` notes that it was called, and then does what *ending* says."""
    directory.mkdir()
    real = shutil.which("sftp")
    (directory / "sftp").write_text(f'#!/bin/sh\ntouch "{directory}/called"\n{ending.format(real=real)}\n')
    (directory / "sftp").chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize("way", ["fetch", "deliver"])
@pytest.mark.parametrize(("size", "handed"), [(3 * MEBIBYTE, True), (MEBIBYTE // 2, False)])
def test_a_long_file_is_handed_to_openssh_and_a_short_one_is_not(
    size: int, handed: bool, way: str, opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(random_bytes(size))
    environment = spied(tmp_path / "bin", 'exec {real} "$@"')
    driver = opened(openssh_from_mb=1, environment=environment)
    carry(driver, way, tmp_path / "source", tmp_path / "target", proxy)
    assert random_bytes(size) == (tmp_path / "target" / "file").read_bytes()
    assert handed == (tmp_path / "bin" / "called").exists()


def test_the_disk_is_told_of_a_long_file_while_openssh_fetches_it(
    opened: Opener, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def tell(opened: int, begin: int, size: int, advice: int) -> None:
        told.append((begin, size))
        if begin + size == 3 * MEBIBYTE:
            (tmp_path / "told").touch()

    monkeypatch.setattr(os, "posix_fadvise", tell)
    monkeypatch.setattr(parts, "_WRITE_OUT_BYTES", 1)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(random_bytes(3 * MEBIBYTE))
    wait = (
        f"n=0; while [ ! -e '{tmp_path}/told' ]; do n=$((n+1)); [ $n -lt 1000 ] || exit 9; sleep 0.02; done"
    )
    driver = opened(openssh_from_mb=1, environment=spied(tmp_path / "bin", f'{{real}} "$@" || exit; {wait}'))
    carry(driver, "fetch", tmp_path / "source", tmp_path / "target", proxy)
    assert [0, *(begin + size for begin, size in told)] == [*(begin for begin, _ in told), 3 * MEBIBYTE]


def test_a_delivery_tells_the_checksums_that_it_computed_also_of_what_was_right_already(
    opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    contents = {"short": b"short", "sub/long": random_bytes(3 * MEBIBYTE)}
    (tmp_path / "source" / "sub").mkdir(parents=True)
    for name, content in contents.items():
        (tmp_path / "source" / name).write_bytes(content)
    wanted = {name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in contents.items()}
    driver = opened(openssh_from_mb=1)
    for skipped in (0, 2):
        report = carry(driver, "deliver", tmp_path / "source", tmp_path / "target", proxy)
        assert (skipped, wanted) == (report.skipped_files, report.checksums)
    blind = opened(checksums=False)
    assert {} == carry(blind, "deliver", tmp_path / "source", tmp_path / "other", proxy).checksums


@pytest.mark.parametrize("way", ["fetch", "deliver"])
def test_what_openssh_complains_about_is_in_the_error(
    way: str, opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(random_bytes(3 * MEBIBYTE))
    driver = opened(openssh_from_mb=1, environment=spied(tmp_path / "bin", "echo Bad weather >&2; exit 255"))
    with pytest.raises(TransferInterrupted, match="exit code 255: Bad weather"):
        carry(driver, way, tmp_path / "source", tmp_path / "target", proxy)
    assert not (tmp_path / "target" / "file").exists()


@pytest.mark.parametrize("openssh_from_mb", [1, 64], ids=["OpenSSH", "alone"])
def test_a_full_disk_there_is_told_from_other_failures(
    openssh_from_mb: int, opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(random_bytes(3 * MEBIBYTE))
    (tmp_path / "target").mkdir()
    driver = opened(openssh_from_mb=openssh_from_mb)
    with small_disk(tmp_path / "target"), pytest.raises(TransferInterrupted, match="no space left there"):
        carry(driver, "deliver", tmp_path / "source", tmp_path / "target", proxy)


def test_a_disk_there_that_takes_no_further_file_is_told_to_many_at_once(
    opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    """Whoever asks for the room that is left holds no session meanwhile, else all would wait for each other."""
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    for number in range(12):
        (tmp_path / "source" / f"{number}").write_bytes(b"content")
    driver = opened(no_progress_s=WAIT_S)

    def deliver(number: int) -> str:
        with pytest.raises(TransferInterrupted) as caught:
            carry(driver, "deliver", tmp_path / "source", tmp_path / "target" / f"{number}", proxy)
        return str(caught.value)

    with small_disk(tmp_path / "target", "1m,nr_inodes=12"), ThreadPoolExecutor(6) as pool:
        found = list(pool.map(deliver, range(6)))
    assert [True] * 6 == ["no space left there for one more file" in words for words in found], found


# ------------------------------------------------------------------------------ beside each other


def test_two_transfers_to_one_place_do_not_mix_their_files(
    opened: Opener, proxy: Proxy, tmp_path: Path
) -> None:
    # Each is far more than is under way at a time, before the other's questions.
    contents = {name: random_bytes(16 * MEBIBYTE, seed) for seed, name in enumerate(("first", "second"))}
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(content)
    driver, moving = opened(), threading.Event()
    with proxy.slow(4e6), ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            carry, driver, "deliver", tmp_path / "first", tmp_path / "target", proxy, telling(moving)
        )
        assert moving.wait(WAIT_S)
        with pytest.raises(TransferInterrupted, match=r"another transfer is writing .*/target/file"):
            carry(driver, "deliver", tmp_path / "second", tmp_path / "target", proxy)
        proxy.rate_bytes_s = None
        first.result(WAIT_S)
    assert contents["first"] == (tmp_path / "target" / "file").read_bytes()
    carry(driver, "deliver", tmp_path / "second", tmp_path / "target", proxy)
    assert contents["second"] == (tmp_path / "target" / "file").read_bytes()


# ----------------------------------------------------------------------------------- odd servers


@pytest.mark.parametrize("lacking", ["xargs", "sha256sum"])
def test_where_a_program_for_checksums_is_missing_sizes_are_compared(lacking: str, tmp_path: Path) -> None:
    for name in ("source", "server", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "source" / "file").write_bytes(b"content")
    for program in {"xargs", "sha256sum"} - {lacking}:
        (tmp_path / "bin" / program).symlink_to(shutil.which(program) or "")
    with (
        running_sshd(tmp_path / "server", f'SetEnv PATH="{tmp_path}/bin"') as server,
        closing(Proxy(server.port).start()) as proxy,
        closing(alone(server, proxy, tmp_path)) as driver,
    ):
        for way in ("deliver", "fetch"):
            assert "size" == carry(driver, way, tmp_path / "source", tmp_path / way, proxy).verified
            assert b"content" == (tmp_path / way / "file").read_bytes()


# ----------------------------------------------------------------------------------------- liars


@pytest.mark.parametrize("way", ["fetch", "deliver"])
def test_a_directory_without_an_end_is_refused(
    way: str, opened: Opener, proxy: Proxy, sshd: Sshd, tmp_path: Path
) -> None:
    for name in ("endless", "here"):
        (tmp_path / name).mkdir()
    lies = Lies(endless_directories=frozenset({str(tmp_path / "endless")}))
    driver = opened(max_entries=1000)
    with HostileSftp(sshd.host_key, lies).running() as hostile, proxy.leading_to(hostile.port):
        source, target = ("endless", "here") if way == "fetch" else ("here", "endless")
        with pytest.raises(TransferRefused, match="max_entries"):
            carry(driver, way, tmp_path / source, tmp_path / target, proxy)
        driver.close()
    assert [] == os.listdir(tmp_path / "here")


@pytest.mark.parametrize(
    "name", ["a/b", "/etc", "nul\0byte", "x" * 256], ids=["path", "absolute", "NUL", "long"]
)
def test_a_name_that_no_file_can_have_is_refused_when_it_is_listed(
    name: str, opened: Opener, proxy: Proxy, sshd: Sshd, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    driver, lies = opened(), Lies(listings={str(tmp_path / "tree"): [name]})
    with HostileSftp(sshd.host_key, lies).running() as hostile, proxy.leading_to(hostile.port):
        with pytest.raises(TransferRefused, match="which is no name of a file; nothing was copied"):
            driver.fetch(url=url_of(tmp_path / "tree", proxy), directory=tmp_path / "here", progress=silent)
        driver.close()
