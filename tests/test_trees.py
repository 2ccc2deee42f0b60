"""Plans of trees: they stand in the order of names, and cost little for each file."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgecore.testing.trees import ODD_NAMES
from edgecore.trees import File, PackedFiles, Plan, plan_tree


def planned(tree: Path) -> Plan:
    opened = os.open(tree, os.O_RDONLY)
    try:
        return plan_tree(opened, lambda: None)
    finally:
        os.close(opened)


def test_packed_files_come_out_as_they_went_in() -> None:
    files = [
        File(name, name, number, changed_ns=(-number, 2**62))
        for number, name in enumerate(map(os.fsdecode, ODD_NAMES))
    ]
    packed = PackedFiles()
    for file in files:
        packed.append(file)
    assert files == list(packed)
    assert len(files) == len(packed)


def test_numbers_that_no_true_listing_has_become_the_largest_there_is() -> None:
    packed = PackedFiles()
    packed.append(File("a", "a", 2**64, changed_ns=(-(2**70), 2**70)))
    (found,) = packed
    assert (2**63 - 1, (1 - 2**63, 2**63 - 1)) == (found.size_bytes, found.changed_ns)


def test_a_plan_of_many_files_holds_little_more_than_their_names() -> None:
    count, name = 10_000, "event-{:07}.root"
    packed = PackedFiles()
    tracemalloc.start()
    try:
        for number in range(count):
            packed.append(File(name.format(number), name.format(number), 10**9, changed_ns=(10**18, 10**18)))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / count < len(name) + 24 + 25


def test_a_plan_stands_in_the_order_of_names_as_bytes_and_packs_its_files(tmp_path: Path) -> None:
    names = [b"b", b"a", b"\xff", "é".encode(), b"\xf0\x90\x80\x80", b"-", b"Z"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    (directory,) = planned(tmp_path).directories
    assert sorted(names) == [os.fsencode(file.name) for file in directory.files]
    assert isinstance(directory.files, PackedFiles)


def test_what_a_file_system_lists_twice_is_planned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"four")
    (tmp_path / "below").mkdir()
    scan = os.scandir

    @contextmanager
    def twice(directory: int) -> Iterator[list[os.DirEntry[str]]]:
        with scan(directory) as entries:
            yield [*entries] * 2

    monkeypatch.setattr(os, "scandir", twice)
    plan = planned(tmp_path)
    assert ["a"] == [file.name for file in plan.directories[0].files]
    assert ([(), ("below",)], 4) == ([each.parts for each in plan.directories], plan.size_bytes)
