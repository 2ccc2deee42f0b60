"""Patterns of what is staged out: what they take, what they leave, and that no name or pattern does harm."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st
from scripted import Edge, ScriptedTransfer

from edgecore import batch, serial
from edgecore.errors import ConfigurationError, TransferRefused
from edgecore.hookspecs import hookimpl
from edgecore.manifest import MANIFEST
from edgecore.models import Application, TransferProgress, TransferReport
from edgecore.models import JobState as S
from edgecore.selection import EVERYTHING, Selection
from edgecore.testing.trees import ODD_NAMES
from edgecore.trees import plan_tree


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*.root", "a.root"),
        ("*.root", ".root"),
        ("*.root", "-rf.root"),
        ("*", "new\nline"),
        ("log/**", "log/a"),
        ("log/**", "log/a/b/c"),
        ("**/*.root", "a.root"),
        ("**/*.root", "a/b/c.root"),
        ("a/**/z", "a/z"),
        ("a/**/z", "a/b/c/z"),
        ("**", "any/thing"),
        ("run-[0-9]/?.txt", "run-7/x.txt"),
        ("[[]x]", "[x]"),
        ("[x", "[x"),
        ("**/**/a", "a"),
    ],
)
def test_a_path_is_taken_when_a_pattern_fits_all_of_it(pattern: str, path: str) -> None:
    assert Selection((pattern,)).takes(path.split("/"))
    assert Selection(("nothing", pattern)).takes(path.split("/"))


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*.root", "sub/a.root"),
        ("*.root", "a.root.old"),
        ("*.root", "a.ROOT"),
        ("log/**", "logs/a"),
        ("log", "log/a"),
        ("a*z", "a/z"),
        ("a/**/z", "a/b/c"),
        ("**a", "b/a"),
        ("**/x/**", "y/z"),
    ],
)
def test_a_path_is_left_when_none_does(pattern: str, path: str) -> None:
    assert not Selection((pattern,)).takes(path.split("/"))


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
def test_a_name_of_any_kind_can_be_taken(name: bytes) -> None:
    assert Selection(("**/d*/*",)).takes(("sub", "dir", os.fsdecode(name)))


def test_no_pattern_takes_long_over_any_name() -> None:
    selection = Selection(("/".join(["**", "*a*a*a*a*a*a*a*b"] * 10),))
    begun = time.process_time()
    assert not selection.takes(["a" * 255] * 100)
    assert time.process_time() - begun < 5


NAMES = st.text(alphabet="ab*", min_size=1, max_size=3)


@given(
    st.lists(NAMES, min_size=1, max_size=4),
    st.lists(st.sampled_from(["a", "b", "*", "**", "a*"]), min_size=1, max_size=4),
)
def test_no_directory_is_passed_over_that_holds_what_is_taken(path: list[str], pattern: list[str]) -> None:
    selection = Selection(("/".join(pattern),))
    if selection.takes(path):
        spot = selection.root
        for name in path[:-1]:
            below = spot.below(name)
            assert below is not None
            spot = below


# ------------------------------------------------------------------------------------- plans


def planned(root: Path, *patterns: str) -> set[str]:
    opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        plan = plan_tree(opened, lambda: None, Selection(patterns))
    finally:
        os.close(opened)
    return {
        "/".join((*directory.parts, name))
        for directory in plan.directories
        for name in ("", *(each.name for each in directory.entries))
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for name in ("log/deep", "log/empty", "empty", "junk/deep"):
        (tree / name).mkdir(parents=True)
    for name in ("a.root", "log/x", "log/deep/y.root", "junk/deep/z"):
        (tree / name).write_text(name)
    return tree


def test_directories_go_with_what_is_in_them_and_empty_ones_where_all_of_their_place_goes(tree: Path) -> None:
    assert {"", "a.root"} == planned(tree, "*.root")
    assert {"", "a.root", "log/", "log/deep/", "log/deep/y.root"} == planned(tree, "**/*.root")
    assert {"", "log/", "log/x", "log/deep/", "log/deep/y.root", "log/empty/"} == planned(tree, "log/**")
    assert planned(tree) == planned(tree, "**")
    assert {""} == planned(tree, "nothing")


def test_what_is_left_is_no_reason_to_refuse_and_what_is_taken_is(tree: Path) -> None:
    os.mkfifo(tree / "junk" / "fifo")
    (tree / "junk" / "out.root").symlink_to("/etc/passwd")
    (tree / "log" / "up").symlink_to("..")
    deep = tree / "junk"
    for _ in range(210):
        deep /= "d"
    os.makedirs(deep)
    try:
        assert {"", "a.root"} == planned(tree, "*.root")
        assert "log/up" in planned(tree, "log/*")
        for pattern, word in (("junk/f*", "fifo"), ("junk/*.root", "leaves"), ("junk/**", "deep")):
            with pytest.raises(TransferRefused, match=word):
                planned(tree, pattern)
    finally:
        while deep != tree / "junk":
            deep.rmdir()
            deep = deep.parent


# ----------------------------------------------------------------------------- applications


@pytest.mark.parametrize(
    "pattern",
    ["", "/etc/*", "../*", "a/../b", "./a", "a//b", "a/", "a\nb", "a\x1b", "x" * 256, "a/..", "**/.."],
)
def test_a_pattern_that_could_lead_out_or_fit_nothing_is_refused_when_registered(pattern: str) -> None:
    entry = {"name": "a", "executable": "/a", "stage_out": [pattern]}
    with pytest.raises(ConfigurationError, match=r"stage_out\[0\].*a pattern such as"):
        serial.structure(Application, entry, source="a.toml")


def run(edge: Edge, **more: Any) -> tuple[str, set[str]]:
    """Run a job whose application leaves files of several kinds; answers its last word and what came home."""
    program = edge.program(
        "leave", "mkdir log junk; echo 1 >log/a; echo 2 >junk/b; mkfifo junk/f; echo 3 >c.root"
    )
    edge.register("leaves", executable=program, **more)
    edge.start()
    edge.send(application="leaves", output_url=edge.output("job"))
    message = edge.wait("job", S.STAGED_OUT).message
    out = edge.site.base / "data/out-job"
    return message, {str(path.relative_to(out)) for path in out.rglob("*")}


def test_what_fits_is_staged_out_with_what_the_job_printed_and_listed_in_the_manifest(edge: Edge) -> None:
    message, came = run(edge, stage_out=("*.root", "log/**", "*.txt.gz", "-x/**"))
    assert {"c.root", "log", "log/a", "stdout.1.txt", "stderr.1.txt"} == came
    assert message.startswith(
        "4 files, 4 bytes; nothing fits *.txt.gz, -x/**; manifest run/1/manifest.jsonl "
    )
    run_directory = batch.run_directory(edge.config.work_directory, edge.job().id, 1)
    listed = [json.loads(line) for line in (run_directory.path / MANIFEST).read_bytes().splitlines()]
    assert ["c.root", "stderr.1.txt", "stdout.1.txt", "log/a"] == [line["name"] for line in listed]
    data = batch.data_directory(edge.config.work_directory, edge.job().id)
    assert {"c.root", "log", "junk", "stdout.1.txt", "stderr.1.txt"} == {path.name for path in data.iterdir()}


@define(eq=False)
class Whole(ScriptedTransfer):
    """A driver of before there were selections."""

    @hookimpl
    def deliver(self, directory: Path, url: str, progress: TransferProgress) -> TransferReport:  # type: ignore[override]
        return self._move(self.delivered, url, progress)


@pytest.mark.slow
def test_a_driver_that_cannot_select_is_not_asked_to(edge: Edge) -> None:
    edge.transfer = Whole()
    edge.register("leaves", executable="/bin/true", stage_out=("*.root",))
    edge.start()
    edge.send(application="leaves", output_url=edge.output("job"))
    failed = edge.wait("job", S.STAGE_OUT_FAILED)
    assert "delivers only whole directories" in failed.message
    assert [] == edge.transfer.delivered


def test_everything_leaves_nothing_out() -> None:
    assert EVERYTHING.takes(("any", "thing"))
    assert EVERYTHING.root.whole
