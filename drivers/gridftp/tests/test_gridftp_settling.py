"""Files get their final names while the client goes on with others, and not before they are compared."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from attrs import evolve
from edgecore_gridftp import GridFtpTransfer, settling, work
from edgecore_gridftp.client import Client, Load
from testbed.gridftp import GridFtp, grid, gridftp, gridftp_needed

from edgecore import parts
from edgecore.carrying import Halted, Tally
from edgecore.errors import TransferInterrupted
from edgecore.models import SiteContext, TransferReport, TransferUpdate
from edgecore.selection import EVERYTHING
from edgecore.trees import part_name

__all__ = ["grid", "gridftp", "gridftp_needed"]

pytestmark = pytest.mark.slow

_GROUP = 10
_FILES = 23
_SETTLED_S = 60.0

Carry = Callable[..., TransferReport]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """More files than are settled at a time, each with its own content."""
    monkeypatch.setattr(settling, "_GROUP_FILES", _GROUP)
    (tmp_path / "source").mkdir()
    for number in range(_FILES):
        (tmp_path / "source" / f"{number:03}").write_bytes(b"%03d of the right content" % number)
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where they go."""
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


@pytest.fixture
def carry(tmp_path: Path, gridftp: GridFtp, source: Path, target: Path) -> Carry:
    """Carry the files there or here, with other keys where they are given."""

    def go(way: str, **settings: Any) -> TransferReport:
        assert gridftp.grid is not None
        driver = GridFtpTransfer(
            proxy=str(gridftp.proxy),
            authorities=str(gridftp.grid.authorities),
            options=("-dcstack", gridftp.stack),
            **settings,
        )
        driver.open(site=SiteContext(site="theta", work_directory=tmp_path))
        with closing(driver):
            if way == "fetch":
                url = gridftp.url + quote(str(source))
                return driver.fetch(url=url, directory=target, progress=_ignored)
            url = gridftp.url + quote(str(target))
            return driver.deliver(directory=source, url=url, progress=_ignored, selection=EVERYTHING)

    return go


def _ignored(update: TransferUpdate) -> None:
    """Take no notice."""


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _pausing(monkeypatch: pytest.MonkeyPatch, pause: Callable[[], None]) -> None:
    """Let the client stop in the middle of its files, for *pause*."""
    carried = Client.carry

    def carry(self: Client, load: Load, tally: Tally, watch: Callable[[], None]) -> None:
        middle = 2 * len(load.pairs) // 3
        carried(self, evolve(load, pairs=load.pairs[:middle]), tally, watch)
        pause()
        carried(self, evolve(load, pairs=load.pairs[middle:]), tally, watch)

    monkeypatch.setattr(Client, "carry", carry)


@pytest.mark.parametrize(("way", "checksum"), [("fetch", "none"), ("deliver", "sha256"), ("deliver", "none")])
def test_files_that_the_client_has_left_get_their_final_names_before_the_last_has_come(
    way: str, checksum: str, carry: Carry, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def whole() -> int:
        return sum(not path.name.startswith(".") for path in target.iterdir())

    def pause() -> None:
        deadline = time.monotonic() + _SETTLED_S
        while whole() < _GROUP and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(whole())

    _pausing(monkeypatch, pause)

    report = carry(way, checksum=checksum)

    assert [_GROUP] == seen
    assert (_FILES, 0) == (report.files, report.skipped_files)
    assert _contents(source) == _contents(target)


@pytest.mark.parametrize("way", ["fetch", "deliver"])
def test_what_a_former_call_left_half_is_never_taken_for_what_the_client_has_just_left(
    way: str, carry: Carry, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the right size, but with other content; sizes alone are compared."""
    for path in source.iterdir():
        (target / part_name(path.name)).write_bytes(b"x" * path.stat().st_size)
    held: list[int] = []
    carried = Client.carry

    def noted(self: Client, load: Load, *arguments: Any) -> None:
        held.append(sum(path.stat().st_size for path in target.iterdir()))
        carried(self, load, *arguments)

    monkeypatch.setattr(Client, "carry", noted)

    carry(way, checksum="none")

    assert [0] == held
    assert _contents(source) == _contents(target)


def test_what_is_wrong_with_a_file_that_has_come_stops_the_client(
    carry: Carry, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[type[BaseException]] = []
    carried = Client.carry

    def carry_for_ever(self: Client, load: Load, tally: Tally, watch: Callable[[], None]) -> None:
        os.utime(source / "005", (0, 0))
        middle = 2 * len(load.pairs) // 3
        carried(self, evolve(load, pairs=load.pairs[:middle]), tally, watch)
        deadline = time.monotonic() + _SETTLED_S
        try:
            while time.monotonic() < deadline:
                watch()
                time.sleep(0.01)
        except BaseException as error:
            stopped.append(type(error))
            raise

    monkeypatch.setattr(Client, "carry", carry_for_ever)

    with pytest.raises(TransferInterrupted, match="005 changed while it was copied"):
        carry("deliver")

    assert [Halted] == stopped
    assert all(path.name.startswith(".") for path in target.iterdir())


def test_the_disk_is_told_of_a_long_file_while_it_comes(
    carry: Carry, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_ALONE_BYTES", 1)
    monkeypatch.setattr(parts, "_WRITE_OUT_BYTES", 1)
    for path in sorted(source.iterdir())[1:]:
        path.unlink()
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda opened, begin, size, advice: told.append((begin, size)))
    carried = Client.carry

    def carry_and_wait(self: Client, load: Load, tally: Tally, watch: Callable[[], None]) -> None:
        carried(self, load, tally, watch)
        deadline = time.monotonic() + _SETTLED_S
        while sum(size for _, size in told) < 24 and time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr(Client, "carry", carry_and_wait)

    carry("fetch")

    assert [0, *(begin + size for begin, size in told)] == [*(begin for begin, _ in told), 24]


@pytest.mark.parametrize(("way", "checksum"), [("fetch", "none"), ("deliver", "sha256")])
def test_what_the_client_says_of_its_success_is_not_believed(
    way: str, checksum: str, carry: Carry, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that was interrupted may end with exit code 0."""
    carried = Client.carry

    def broken_off(self: Client, load: Load, tally: Tally, watch: Callable[[], None]) -> None:
        carried(self, load, tally, watch)
        for part in target.glob(".*"):
            os.truncate(part, 5)

    monkeypatch.setattr(Client, "carry", broken_off)
    for path in sorted(source.iterdir())[1:]:
        path.unlink()

    with pytest.raises(TransferInterrupted, match="000 does not hold what its source holds"):
        carry(way, checksum=checksum)

    assert [part_name("000")] == os.listdir(target)


@pytest.mark.parametrize("option", ["-cc", "-concurrency", "-pp", "-pipeline"])
def test_where_the_site_lets_the_client_go_out_of_turn_nothing_is_settled_before_it_ends(
    option: str, tmp_path: Path
) -> None:
    def in_turn(*options: str) -> bool:
        driver = GridFtpTransfer(options=options)
        driver.open(site=SiteContext(site="theta", work_directory=tmp_path))
        return driver._client(secure=False).goes_in_turn

    assert (True, False) == (in_turn("-tcp-bs", "1000"), in_turn("-tcp-bs", "1000", option, "4"))


def test_a_delivery_tells_the_checksums_that_were_compared_also_of_what_was_right_already(
    carry: Carry, source: Path, target: Path
) -> None:
    for path in sorted(source.iterdir())[3:]:
        path.unlink()
    (source / "sub").mkdir()
    (source / "000").rename(source / "sub" / "odd name\n")
    contents = {
        str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()
    }

    def wanted(algorithm: str) -> dict[str, str]:
        return {
            name: f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
            for name, content in contents.items()
        }

    for skipped, algorithm in ((0, "sha256"), (3, "md5")):
        report = carry("deliver", checksum=algorithm)
        assert (skipped, wanted(algorithm)) == (report.skipped_files, report.checksums)
    assert {} == carry("deliver", checksum="none").checksums
