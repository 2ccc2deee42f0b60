"""A tree on another host is planned from what that host lists, within limits, and refused as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgecore.errors import TransferRefused
from edgecore.remote import RemoteFile, Survey, below, has_size, levels, plan_remote_file
from edgecore.trees import DEEPEST, Link, Plan, part_name


def survey(limit: int = 100) -> Survey:
    return Survey(b"/base", lambda: None, limit)


def test_directories_are_given_out_level_by_level_with_their_paths() -> None:
    found, given = survey(), list[list[bytes]]()
    for level, paths in found.levels(0o755, 7):
        given.append(paths)
        for directory in level:
            if len(directory.parts) < 2:
                for name in ("a", "\udcff"):
                    found.directory((*directory.parts, name), 0o700, 8)
            found.file(directory, "file", (3, 0o644, 9))
    plan = found.planned()
    assert [[b"/base"], [b"/base/a", b"/base/\xff"]] == given[:2]
    assert [1, 2, 4] == list(map(len, given)) == list(map(len, levels(plan)))
    assert 7 * 3 == plan.size_bytes
    assert [RemoteFile("file", "file", 3, mode=0o644, changed_s=9)] == list(plan.directories[-1].files)
    assert (0o700, 8_000_000_000) == (plan.directories[-1].mode, plan.directories[-1].changed_ns)


def test_what_cannot_be_fetched_is_refused_by_name_and_temporary_files_are_left_out() -> None:
    found = survey()
    for level, _ in found.levels(0o755, 0):
        found.file(level[0], part_name("file"), (3, 0o644, 9))
        found.special(level[0], "fifo\n")
        level[0].links.append(Link("out", "../other", 0))
    assert (0, 0) == (found.plan.size_bytes, len(found.plan.directories[0].files))
    with pytest.raises(TransferRefused, match=r"(?s)fifo\\n is a socket.*out"):
        found.planned()


def test_a_tree_without_an_end_is_refused() -> None:
    found = survey()

    def go_down() -> None:
        for level, _ in found.levels(0o755, 0):
            found.directory((*level[0].parts, "d"), 0o755, 0)

    with pytest.raises(TransferRefused, match=rf"^d/d/d/... lies more than {DEEPEST} directories deep"):
        go_down()


def test_more_names_than_a_transfer_may_have_are_refused_as_they_come() -> None:
    found = survey(limit=5)
    found.seen(5)
    with pytest.raises(TransferRefused, match=r"^/base holds more names than a transfer may have"):
        found.seen(1)


def test_a_path_below_the_root_begins_with_one_slash() -> None:
    assert [b"/", b"/a/b", b"/c/\xff"] == [
        below(b"/", ()),
        below(b"/", ("a", "b")),
        below(b"/c", ("\udcff",)),
    ]


def test_a_file_here_is_described_as_the_listing_says_but_never_one_with_other_names(tmp_path: Path) -> None:
    plan = plan_remote_file(b"file", (4, 0o640, 1_000))
    (file,) = plan.directories[0].files
    assert isinstance(file, RemoteFile)
    assert Plan([plan.directories[0]], 4) == plan
    (tmp_path / "file").write_bytes(b"four")
    holder = os.open(tmp_path, os.O_RDONLY)
    opened = os.open(tmp_path / "file", os.O_RDWR)
    try:
        assert has_size(file, holder, "here")
        assert file.describe_again(opened)
        found = os.fstat(opened)
        assert (0o100640, 1_000_000_000_000) == (found.st_mode, found.st_mtime_ns)
        os.link(tmp_path / "file", tmp_path / "other")
        assert file.describe_again(opened)  # nothing is to be changed
        os.chmod(tmp_path / "file", 0o600)
        assert not file.describe_again(opened)
        os.truncate(tmp_path / "file", 3)
        assert not has_size(file, holder, "here")
        (tmp_path / "file").unlink()
        assert not has_size(file, holder, "here")
        (tmp_path / "file").mkdir()
        with pytest.raises(TransferRefused, match=r"^here is a directory, and a file must go there"):
            has_size(file, holder, "here")
    finally:
        os.close(opened)
        os.close(holder)
