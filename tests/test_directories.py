"""A directory is examined by writing into it, and is left as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgecore import directories
from edgecore.directories import DirectoryCheck, size_words
from edgecore.models import Finding, Level

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")


def examine(path: Path, **more: bool | int) -> list[Finding]:
    return list(DirectoryCheck(subject="place", path=path, **more).findings())  # type: ignore[arg-type]


def only(path: Path, **more: bool | int) -> Finding:
    (finding,) = examine(path, **more)
    return finding


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that only we can write, however the suite is run."""
    made = tmp_path / "place"
    made.mkdir(mode=0o755)
    return made


def test_a_directory_that_is_fit_is_praised_and_left_as_it_was(place: Path) -> None:
    found = only(place)

    assert (Level.OK, "") == (found.level, found.remedy)
    assert f"{place}: writable, " in found.message
    assert [] == list(place.iterdir())


def test_a_directory_that_the_service_makes_may_be_missing(place: Path) -> None:
    found = only(place / "a" / "b", made=True)

    assert Level.OK is found.level
    assert f"will be made in {place}, " in found.message
    assert [] == list(place.iterdir())


def test_a_directory_that_the_operator_makes_must_be_there(place: Path) -> None:
    found = only(place / "a" / "b")

    assert Level.FAILURE is found.level
    assert f"{place}/a/b does not exist" == found.message
    assert f"mkdir -p {place}/a/b" in found.remedy


@pytest.mark.parametrize("made", [True, False])
def test_what_is_no_directory_is_a_failure(place: Path, made: bool) -> None:
    (place / "file").write_text("")
    (place / "nowhere").symlink_to(place / "gone")

    for name, words in (
        ("file", "file is no directory"),
        ("nowhere", "nowhere is no directory"),
        ("file/below", "file stands in the way"),
    ):
        found = only(place / name, made=made)
        assert Level.FAILURE is found.level
        assert words in found.message


def test_where_nothing_can_be_written_is_a_failure() -> None:
    found = examine(Path("/proc/self/fd"))[0]  # not even root can

    assert Level.FAILURE is found.level
    assert "/proc/self/fd: nothing can be written there: " in found.message
    assert "let " in found.remedy


def test_a_name_that_cannot_be_looked_up_is_a_failure(place: Path) -> None:
    found = only(place / ("x" * 300))

    assert Level.FAILURE is found.level
    assert "File name too long" in found.message


def test_a_directory_that_vanishes_meanwhile_is_a_failure(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def gone(path: Path) -> os.statvfs_result:
        place.rmdir()
        return real(path)

    monkeypatch.setattr("os.statvfs", gone)
    found = only(place)

    assert (Level.FAILURE, f"{place}: No such file or directory") == (found.level, found.message)


@pytest.mark.parametrize(
    ("more", "level", "words"),
    [
        ({"low_bytes": 2**62}, Level.FAILURE, " free"),
        ({"low_files": 2**62}, Level.FAILURE, "more files (inodes)"),
    ],
)
def test_too_little_room_is_a_failure(place: Path, more: dict[str, int], level: Level, words: str) -> None:
    if "low_files" in more and os.statvfs(place).f_files == 0:
        pytest.skip("this file system does not count inodes")
    found = only(place, **more)

    assert level is found.level
    assert words in found.message
    assert "should be free" in found.remedy


def test_little_room_is_a_warning(place: Path) -> None:
    room = os.statvfs(place)

    found = only(place, low_bytes=room.f_bavail * room.f_frsize * 4)

    assert Level.WARNING is found.level


def test_a_place_that_every_account_can_write_is_a_warning(place: Path) -> None:
    inner = place / "inner"
    inner.mkdir(mode=0o755)
    place.chmod(0o777)
    assert [f"chmod o-w {place},"] == [one.remedy.partition(" or ")[0] for one in examine(inner)]

    place.chmod(0o1777)  # as /tmp: others cannot replace what is ours
    assert Level.OK is only(inner).level

    inner.chmod(0o1777)
    assert f"{inner} can be written by every account of this host" == only(inner).message


@root_only
def test_a_directory_of_another_account_is_a_warning(place: Path) -> None:
    os.chown(place, 54321, 54321)

    found = only(place)

    assert Level.WARNING is found.level
    assert "belongs to 54321, and this account is root" in found.message
    assert "run this as 54321" in found.remedy


def test_a_network_file_system_is_a_failure_where_a_local_one_is_needed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directories, "file_system_of", lambda directory: "nfs4")

    assert "is on a network file system (nfs4)" in only(place, local=True).message
    assert only(place).message.endswith("free, nfs4")


def test_a_file_server_with_another_clock_is_a_warning(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_900_000_000.0)

    found = only(place)

    assert Level.WARNING is found.level
    assert "s behind this host's clock" in found.message


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1.5 * 1024**3, "1.5 GiB"),
        (5000 * 1024**4, "5,000.0 TiB"),
    ],
)
def test_a_size_is_written_for_people(size_bytes: float, words: str) -> None:
    assert words == size_words(size_bytes)
