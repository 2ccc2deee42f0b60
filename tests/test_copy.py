"""The driver for file:// keeps the promises of the transfer role."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from copies import MEBIBYTE, bytes_written, content_of, deliver, fetch, planted_tree, silent, url_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecore import carrying
from edgecore.builtin.copy import FileTransfer
from edgecore.errors import TransferInterrupted, TransferRefused, TransferStopped
from edgecore.models import TransferUpdate
from edgecore.selection import EVERYTHING
from edgecore.trees import part_name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a small tree with all that a copy must keep."""
    return planted_tree(tmp_path / "tree")


# ------------------------------------------------------------------------------ what arrives


def test_the_content_of_a_tree_is_fetched_with_modes_times_links_and_what_is_empty(
    tree: Path, tmp_path: Path
) -> None:
    report = fetch(tree, tmp_path / "here")
    assert content_of(tree) == content_of(tmp_path / "here")
    assert report.files == 6
    assert report.size_bytes == 5 + 10 + 3 * MEBIBYTE + 17


def test_a_host_named_localhost_is_this_machine(tree: Path, tmp_path: Path) -> None:
    url = url_of(tree / "a").replace("file://", "file://localhost")
    FileTransfer().fetch(url=url, directory=tmp_path / "here", progress=silent)
    assert (tmp_path / "here" / "a").read_bytes() == b"alpha"


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: not {0, 47} & set(name) and name not in (b".", b"..")
)
TREES = st.recursive(
    st.binary(max_size=2000),
    lambda below: st.dictionaries(NAMES, below, max_size=4),
    max_leaves=12,
).filter(lambda made: isinstance(made, dict))


def plant(root: bytes, content: object) -> None:
    if isinstance(content, dict):
        os.mkdir(root)
        for name, below in content.items():
            plant(os.path.join(root, name), below)
    else:
        assert isinstance(content, bytes)
        with open(root, "wb") as file:
            file.write(content)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=TREES)
def test_any_tree_survives_the_way_out_and_back(content: object, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as place:
        source, out, back = (Path(place) / name for name in ("source", "out", "back"))
        plant(os.fsencode(source), content)
        deliver(source, out)
        fetch(out, back)
        assert content_of(source) == content_of(back)


def test_a_hole_in_a_file_stays_a_hole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.write(b"begin")
        file.seek(64 * MEBIBYTE)
        file.write(b"middle")
        file.truncate(96 * MEBIBYTE + 3)
    fetch(source, tmp_path / "here")
    copied = tmp_path / "here" / "source"
    assert source.stat().st_size == copied.stat().st_size
    assert copied.stat().st_blocks * 512 < 8 * MEBIBYTE
    assert source.read_bytes() == copied.read_bytes()


def test_what_a_former_copy_left_in_the_place_of_a_hole_does_not_stay(tmp_path: Path) -> None:
    source, here = tmp_path / "source", tmp_path / "here"
    with source.open("wb") as file:
        file.seek(4 * MEBIBYTE)
        file.write(b"end")
    here.mkdir()
    (here / part_name("source")).write_bytes(b"old" * MEBIBYTE)
    fetch(source, here)
    assert source.read_bytes() == (here / "source").read_bytes()


def test_special_permission_bits_are_not_kept(tmp_path: Path) -> None:
    source = tmp_path / "program"
    source.touch()
    source.chmod(0o4755)
    fetch(source, tmp_path / "here")
    assert stat.S_IMODE((tmp_path / "here" / "program").stat().st_mode) == 0o755


def test_a_read_only_directory_arrives_and_can_be_completed_later(tree: Path, tmp_path: Path) -> None:
    (tree / "sub").chmod(0o555)
    here = tmp_path / "here"
    try:
        fetch(tree, here)
        assert stat.S_IMODE((here / "sub").stat().st_mode) == 0o555
        (here / "sub").chmod(0o755)
        (here / "sub" / "b").unlink()
        (here / "sub").chmod(0o555)
        fetch(tree, here)
        assert (here / "sub" / "b").exists()
    finally:
        for path in (tree / "sub", here / "sub"):
            path.chmod(0o755)


def test_without_comparing_the_report_says_that_only_sizes_were_checked(tree: Path, tmp_path: Path) -> None:
    driver = FileTransfer(compare=False)
    assert driver.fetch(url=url_of(tree), directory=tmp_path / "here", progress=silent).verified == "size"
    assert content_of(tree) == content_of(tmp_path / "here")
    again = driver.fetch(url=url_of(tree), directory=tmp_path / "here", progress=silent)
    assert again.files == again.skipped_files


# --------------------------------------------------------------------- again, and resumed


def test_a_file_with_the_right_content_gets_its_mode_and_time(tree: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "a").write_bytes(b"alpha")
    (here / "a").chmod(0o600)
    report = fetch(tree / "a", here)
    assert report.skipped_files == 1
    assert ((tree / "a").stat().st_mode, (tree / "a").stat().st_mtime_ns) == (
        (here / "a").stat().st_mode,
        (here / "a").stat().st_mtime_ns,
    )


def test_another_file_under_the_final_name_is_whole_until_it_is_replaced(tmp_path: Path) -> None:
    source, here = tmp_path / "big", tmp_path / "here"
    source.write_bytes(os.urandom(4 * MEBIBYTE))
    here.mkdir()
    (here / "big").write_bytes(b"the former one")
    seen: set[bytes] = set()
    before = os.open(here / "big", os.O_RDONLY)
    try:
        FileTransfer().fetch(
            url=url_of(source), directory=here, progress=lambda update: seen.add((here / "big").read_bytes())
        )
        assert os.pread(before, 100, 0) == b"the former one"  # replaced, not overwritten
    finally:
        os.close(before)
    assert seen <= {b"the former one", source.read_bytes()}
    assert source.read_bytes() == (here / "big").read_bytes()


@pytest.mark.parametrize("right", [0, 1, MEBIBYTE, 2 * MEBIBYTE + 5])
def test_a_partial_file_is_resumed_where_it_differs(right: int, tmp_path: Path) -> None:
    source, here = tmp_path / "big", tmp_path / "here"
    content = os.urandom(8 * MEBIBYTE + 3)
    source.write_bytes(content)
    here.mkdir()
    part = here / part_name("big")
    part.write_bytes(content[:right] + bytes(3 * MEBIBYTE))
    inode, written = part.stat().st_ino, bytes_written()
    fetch(source, here)
    assert content == (here / "big").read_bytes()
    assert inode == (here / "big").stat().st_ino
    assert bytes_written() - written <= len(content) - right + 2 * MEBIBYTE


def test_a_partial_file_longer_than_the_source_is_cut(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"short")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / part_name("f")).write_bytes(b"short, and more")
    fetch(tmp_path / "f", tmp_path / "here")
    assert (tmp_path / "here" / "f").read_bytes() == b"short"


def test_a_temporary_file_that_nobody_may_write_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was killed between the final mode and the final name; root would not notice."""
    source, here = tmp_path / "source", tmp_path / "here"
    source.mkdir()
    here.mkdir()
    (source / "f").write_bytes(b"content")
    (source / "f").chmod(0o400)
    part = here / part_name("f")
    part.write_bytes(b"old")
    part.chmod(0o400)
    real = os.open

    def as_a_user(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == part.name and flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", as_a_user)
    fetch(source, here)
    assert b"content" == (here / "f").read_bytes()


SLOW_COPY = """
import os, sys, time
from pathlib import Path
from edgecore.builtin.copy import FileTransfer
write = os.copy_file_range
def slowly(*given):
    time.sleep(0.02)
    return write(*given)
os.copy_file_range = slowly
FileTransfer().fetch(url=sys.argv[1], directory=Path(sys.argv[2]), progress=lambda update: None)
"""


@pytest.mark.slow
def test_a_copy_killed_in_the_middle_is_resumed_and_ends_right(tmp_path: Path) -> None:
    source, here = tmp_path / "big", tmp_path / "here"
    size = 200 * MEBIBYTE
    with source.open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(MEBIBYTE))
    part = here / part_name("big")
    child = subprocess.Popen([sys.executable, "-c", SLOW_COPY, url_of(source), str(here)])
    try:
        until(lambda: part.exists() and part.stat().st_size > 60 * MEBIBYTE)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    held, inode, written = part.stat().st_size, part.stat().st_ino, bytes_written()
    assert 60 * MEBIBYTE < held < size
    assert not (here / "big").exists()
    report = fetch(source, here)
    assert size - held <= bytes_written() - written <= size - held + MEBIBYTE
    assert (1, 0, size) == (report.files, report.skipped_files, report.size_bytes)
    assert inode == (here / "big").stat().st_ino
    assert source.read_bytes() == (here / "big").read_bytes()
    assert os.listdir(here) == ["big"]


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)


def test_our_temporary_names_are_not_copied_from_a_tree(tree: Path, tmp_path: Path) -> None:
    (tree / part_name("a")).write_bytes(b"half")
    (tree / "sub" / part_name("x" * 250)).write_bytes(b"half")
    (tree / ".hidden").write_bytes(b"whole")
    fetch(tree, tmp_path / "here")
    names = {path.name for path in (tmp_path / "here").rglob("*")}
    assert ".hidden" in names
    assert not [name for name in names if name.endswith("edgecore-part")]


# ---------------------------------------------------------------------- progress and stopping


def test_progress_ends_with_everything(tree: Path, tmp_path: Path) -> None:
    updates: list[TransferUpdate] = []
    report = FileTransfer().fetch(url=url_of(tree), directory=tmp_path / "here", progress=updates.append)
    assert (report.files, report.size_bytes, report.size_bytes) == (
        updates[-1].files,
        updates[-1].size_bytes,
        updates[-1].total_bytes,
    )
    sizes = [update.size_bytes for update in updates]
    assert sizes == sorted(sizes)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every step of a copy, 1 MiB, take 0.1 s."""
    write = os.copy_file_range

    def slowly(*given: object) -> int:
        time.sleep(0.1)
        return write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "copy_file_range", slowly)


@pytest.mark.slow
@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("error", [TransferStopped("drain"), KeyError("a mistake in the callback")])
def test_what_progress_raises_stops_the_copy_in_a_state_that_can_be_resumed(
    error: Exception, tmp_path: Path
) -> None:
    source, here = tmp_path / "source", tmp_path / "here"
    source.mkdir()
    for name in ("one", "two", "three"):
        (source / name).write_bytes(os.urandom(12 * MEBIBYTE))

    def progress(update: TransferUpdate) -> None:
        if update.size_bytes > 4 * MEBIBYTE:
            raise error

    threads = threading.active_count()
    with pytest.raises(type(error)) as raised:
        FileTransfer().deliver(directory=source, url=url_of(here), progress=progress, selection=EVERYTHING)
    assert error is raised.value
    assert threads == threading.active_count()
    assert {part_name(path.name) for path in source.iterdir()} >= set(os.listdir(here))
    held = sum(path.stat().st_size for path in here.iterdir())
    assert held > 0
    written = bytes_written()
    deliver(source, here)
    assert bytes_written() - written <= 36 * MEBIBYTE - held + MEBIBYTE
    assert content_of(source) == content_of(here)


@pytest.mark.slow
def test_a_copy_in_which_nothing_moves_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "big").write_bytes(b"content")
    go_on, read = threading.Event(), os.preadv

    def hang(*given: object) -> int:
        go_on.wait(60)
        return read(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", hang)
    monkeypatch.setattr(carrying, "_ENDING_S", 0.1)
    driver, before = FileTransfer(no_progress_s=0.3), set(threading.enumerate())
    try:
        with pytest.raises(TransferInterrupted, match=r"nothing moved .* for 0\.3 s"):
            driver.fetch(url=url_of(tmp_path / "big"), directory=tmp_path / "here", progress=silent)
        with pytest.raises(TransferInterrupted, match="another transfer is writing"):
            fetch(tmp_path / "big", tmp_path / "here")
    finally:
        go_on.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
    fetch(tmp_path / "big", tmp_path / "here")
    assert os.listdir(tmp_path / "here") == ["big"]


def test_no_descriptor_stays_open(tree: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fetch(tree, tmp_path / "here")
    deliver(tree, tmp_path / "there")
    (tmp_path / "here" / "a").unlink()
    (tmp_path / "here" / "a").mkdir()
    with pytest.raises(TransferRefused):
        fetch(tree, tmp_path / "here")
    assert before == len(os.listdir("/proc/self/fd"))


# ------------------------------------------------------------------------ disks that fail


@pytest.mark.parametrize(
    ("number", "error"),
    [
        ("EACCES", TransferRefused),
        ("EROFS", TransferRefused),
        ("ENOSPC", TransferInterrupted),
        ("EIO", TransferInterrupted),
    ],
)
def test_an_error_of_the_disk_says_whether_to_try_again(
    number: str, error: type[Exception], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> int:
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(error, match=r"here/a: "):
        fetch(tree / "a", tmp_path / "here")
    assert not (tmp_path / "here" / "a").exists()


@pytest.mark.parametrize("size", [100, 20 * MEBIBYTE])
def test_a_disk_that_returns_other_bytes_is_noticed(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, here = tmp_path / "source", tmp_path / "here"
    source.write_bytes(os.urandom(size))
    write = os.copy_file_range

    def spoil(source: int, target: int, count: int, at: int, to: int) -> int:
        done = write(source, target, count, at, to)
        if at + done == size:
            last = os.pread(target, 1, size - 1)[0]
            os.pwrite(target, bytes([last ^ 1]), size - 1)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", spoil)
        with pytest.raises(TransferInterrupted, match="does not hold what its source holds"):
            fetch(source, here)
    assert not (here / "source").exists()
    fetch(source, here)
    assert source.read_bytes() == (here / "source").read_bytes()


@pytest.mark.parametrize("number", ["EXDEV", "ENOSYS", "EINVAL", "EPERM"])
def test_where_the_kernel_does_not_copy_by_itself_we_do(
    number: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "big").write_bytes(os.urandom(9 * MEBIBYTE + 1))
    calls = 0

    def fail(*given: object) -> int:
        nonlocal calls
        calls += 1
        raise OSError(getattr(errno, number), "not here")

    monkeypatch.setattr(os, "copy_file_range", fail)
    fetch(tree, tmp_path / "here")
    assert content_of(tree) == content_of(tmp_path / "here")
    assert calls == 4  # once for each file that has content


def test_an_error_in_the_middle_of_a_long_file_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, here = tmp_path / "source", tmp_path / "here"
    source.write_bytes(os.urandom(30 * MEBIBYTE))
    write = os.copy_file_range

    def full(source: int, target: int, count: int, at: int, to: int) -> int:
        if at >= 20 * MEBIBYTE:
            raise OSError(errno.ENOSPC, "full")
        return write(source, target, count, at, to)

    threads = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", full)
        with pytest.raises(TransferInterrupted, match=r"here/source: No space left on device"):
            fetch(source, here)
    assert threads == threading.active_count()
    assert (here / part_name("source")).stat().st_size == 20 * MEBIBYTE
    written = bytes_written()
    fetch(source, here)
    assert 10 * MEBIBYTE <= bytes_written() - written <= 11 * MEBIBYTE
    assert source.read_bytes() == (here / "source").read_bytes()


def test_a_source_that_changes_while_it_is_copied_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "log"
    source.write_bytes(os.urandom(3 * MEBIBYTE))
    write = os.copy_file_range

    def meanwhile(*given: object) -> int:
        with source.open("ab") as file:
            file.write(b"another line\n")
        return write(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", meanwhile)
        with pytest.raises(TransferInterrupted, match="log changed while it was copied"):
            fetch(source, tmp_path / "here")
    assert not (tmp_path / "here" / "log").exists()
    fetch(source, tmp_path / "here")
    assert source.read_bytes() == (tmp_path / "here" / "log").read_bytes()


# ------------------------------------------------------------------------------- durability


def test_every_file_is_synced_before_it_has_its_final_name_and_every_directory_after(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.rename

    def seen_sync(opened: int) -> None:
        sync(opened)
        events.append(("sync", os.readlink(f"/proc/self/fd/{opened}")))

    def seen_rename(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        holder = os.readlink(f"/proc/self/fd/{src_dir_fd}")
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        events.append(("rename", f"{holder}/{old}"))

    monkeypatch.setattr(os, "fsync", seen_sync)
    monkeypatch.setattr(os, "rename", seen_rename)
    here = tmp_path / "here"
    fetch(tree, here)
    renamed = [path for what, path in events if what == "rename"]
    files = [path for path in renamed if events.count(("sync", path))]
    assert {part_name(name) for name in ("empty", "a", "b", "run.sh")} == {os.path.basename(f) for f in files}
    for path in files:
        assert events.index(("sync", path)) < events.index(("rename", path))
    last = max(index for index, (what, _) in enumerate(events) if what == "rename")
    directories = {str(here), *(str(path) for path in here.rglob("*") if path.is_dir())}
    assert directories <= {path for what, path in events[last:] if what == "sync"}


# ----------------------------------------------------------------------------------- probe


def test_a_probe_says_what_is_there_and_moves_nothing(tree: Path, tmp_path: Path) -> None:
    driver = FileTransfer()
    assert driver.probe(url=url_of(tree)).ok
    assert "is a directory" in driver.probe(url=url_of(tree)).message
    assert driver.probe(url=url_of(tree / "a")).ok
    assert "is a file" in driver.probe(url=url_of(tree / "a")).message
    nowhere = driver.probe(url=url_of(tmp_path / "nowhere"))
    assert not nowhere.ok
    assert "No such file or directory" in nowhere.message
