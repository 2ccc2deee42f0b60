"""The manifest: what was staged out, file by file, as bytes and true of what was delivered."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from attrs import evolve
from scripted import Edge, ScriptedTransfer

from edgecore import batch
from edgecore.config import ManifestTable
from edgecore.errors import TransferInterrupted, TransferStopped
from edgecore.manifest import MANIFEST, Stocktaking
from edgecore.models import JobState as S
from edgecore.selection import EVERYTHING, Selection
from edgecore.testing.trees import ODD_NAMES


def begun(directory: Path) -> Stocktaking:
    return Stocktaking.begin(directory, lambda: None, EVERYTHING)


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "data"
    (tree / "log").mkdir(parents=True)
    (tree / "b").write_bytes(b"bravo")
    (tree / "a b").write_bytes(b"")
    (tree / "log" / "c").write_bytes(b"charlie")
    (tree / "log" / "link").symlink_to("../a b")
    return tree


def test_it_says_name_size_and_checksum_of_every_file_in_the_order_of_names(
    tree: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run" / MANIFEST
    digest = begun(tree).write(file, {"b": "adler32:0633021c"}, compute=True)
    assert [
        {"name": "a%20b", "size": 0, "checksum": sha256(b"")},
        {"name": "b", "size": 5, "checksum": "adler32:0633021c"},
        {"name": "log/c", "size": 7, "checksum": sha256(b"charlie")},
        {"name": "log/link", "link": "../a%20b"},
    ] == lines(file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert digest == begun(tree).write(file, {"b": "adler32:0633021c"}, compute=True)
    assert [MANIFEST] == os.listdir(file.parent)


def test_only_what_a_driver_tells_is_there_when_nothing_is_to_be_computed(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / MANIFEST
    begun(tree).write(file, {"log/c": "sha256:cc"}, compute=False)
    assert {"log/c": "sha256:cc"} == {
        str(line["name"]): line["checksum"] for line in lines(file) if "checksum" in line
    }


def test_a_name_of_any_kind_can_be_read_back_byte_by_byte(tmp_path: Path) -> None:
    tree = tmp_path / "data"
    tree.mkdir()
    for name in ODD_NAMES.values():
        (tree / os.fsdecode(name)).write_bytes(name)
    file = tmp_path / MANIFEST
    begun(tree).write(file, {}, compute=True)
    assert file.read_bytes().isascii()
    assert {name: sha256(name) for name in ODD_NAMES.values()} == {
        unquote_to_bytes(str(line["name"])): line["checksum"] for line in lines(file)
    }


@pytest.mark.parametrize("compute", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        "same size",
        "longer",
        "removed",
        "a link",
        "its directory",
        "one more",
        "a directory more",
        "a FIFO more",
    ],
)
def test_a_file_that_changed_after_the_first_look_is_no_part_of_a_manifest(
    change: str, compute: bool, tree: Path, tmp_path: Path
) -> None:
    file, path = tmp_path / MANIFEST, tree / "log" / "c"
    file.write_text("the former\n")
    stock, before = begun(tree), path.stat()
    if change == "same size":
        path.write_bytes(b"CHARLIE")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "longer":
        path.write_bytes(b"charlie and more")
    elif change == "one more":
        (tree / "log" / "late").touch()
    elif change == "a FIFO more":
        os.mkfifo(tree / "log" / "late")
    elif change == "a directory more":
        (tree / "log" / "late").mkdir()
    elif change == "its directory":
        (tree / "log").rename(tmp_path / "elsewhere")
        (tree / "log").symlink_to(tmp_path / "elsewhere")
    else:
        path.unlink()
        if change == "a link":
            path.symlink_to("../b")
    with pytest.raises(TransferInterrupted, match="log"):
        stock.write(file, {}, compute=compute)
    assert "the former\n" == file.read_text()


def test_what_is_not_selected_may_change(tree: Path, tmp_path: Path) -> None:
    stock = Stocktaking.begin(tree, lambda: None, Selection(("b",)))
    (tree / "a b").write_bytes(b"more")
    (tree / "log" / "c").unlink()
    (tree / "new").touch()
    stock.write(tmp_path / MANIFEST, {}, compute=True)
    assert ["b"] == [line["name"] for line in lines(tmp_path / MANIFEST)]


def test_a_fifo_that_a_job_put_in_its_place_does_not_hold_us_up(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"{MANIFEST}.new")
    os.mkfifo(tmp_path / MANIFEST)
    begun(tree).write(tmp_path / MANIFEST, {}, compute=True)
    assert 4 == len(lines(tmp_path / MANIFEST))


def test_writing_it_ends_when_nobody_wants_it_any_more(tree: Path, tmp_path: Path) -> None:
    wanted = [True]

    def check() -> None:
        if not wanted[0]:
            raise TransferStopped("the service drains")

    stock = Stocktaking.begin(tree, check, EVERYTHING)
    wanted[0] = False
    with pytest.raises(TransferStopped):
        stock.write(tmp_path / MANIFEST, {}, compute=True)
    assert not (tmp_path / MANIFEST).exists()


def test_a_job_that_was_staged_out_names_its_manifest_and_its_digest(edge: Edge) -> None:
    edge.start()
    edge.send(**edge.input("job"))
    edge.wait("job", S.JOB_FINISHED)
    file = batch.run_directory(edge.config.work_directory, edge.job().id, 1).path / MANIFEST
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    staged_out = edge.wait("job", S.STAGED_OUT)
    assert staged_out.message.endswith(f"; manifest run/1/manifest.jsonl sha256:{digest}")
    out = edge.site.base / "data/out-job"
    assert {path.name: sha256(path.read_bytes()) for path in out.iterdir()} == {
        line["name"]: line["checksum"] for line in lines(file)
    }


@pytest.mark.slow
def test_a_manifest_that_cannot_be_written_now_is_written_later_and_nothing_is_reported_before(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = Stocktaking.write, [True, True]

    def on_a_full_disk(self: Stocktaking, file: Path, told: Mapping[str, str], *, compute: bool) -> str:
        if full and full.pop():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return write(self, file, told, compute=compute)

    monkeypatch.setattr(Stocktaking, "write", on_a_full_disk)
    edge.start()
    edge.send(**edge.input("job"))
    edge.wait("job", S.JOB_FINISHED)
    assert [] == full
    assert 1 == edge.states().count("STAGED_OUT")
    message = edge.wait("job", S.STAGED_OUT).message
    assert message.startswith("3 files, 0 bytes, 3 of them were there already; manifest run/1/")


@pytest.mark.slow
def test_a_job_that_failed_has_a_manifest_of_what_was_brought_home(edge: Edge) -> None:
    edge.config = evolve(edge.config, manifest=ManifestTable(checksums=False))
    edge.transfer = ScriptedTransfer()
    edge.start()
    edge.send(application="fails", output_url=edge.output("job"))
    edge.wait("job", S.JOB_FAILED)
    file = batch.run_directory(edge.config.work_directory, edge.job().id, 1).path / MANIFEST
    assert ["stderr.1.txt", "stdout.1.txt"] == [line["name"] for line in lines(file)]
    assert not [line for line in lines(file) if "checksum" in line]
