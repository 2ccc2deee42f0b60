"""The driver for file:// refuses what it must, and strangers' links lead it nowhere."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from copies import content_of, deliver, fetch, planted_tree, silent, url_of

from edgecore.builtin.copy import FileTransfer
from edgecore.errors import TransferInterrupted, TransferRefused
from edgecore.models import TransferReport
from edgecore.selection import EVERYTHING
from edgecore.trees import part_name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a small tree with all that a copy must keep."""
    return planted_tree(tmp_path / "tree")


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(TransferRefused) as raised:
        action()
    return str(raised.value)


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file://otherhost/data", "names the host otherhost"),
        ("file://", "is not of the form"),
        ("ftp://localhost/data", "is not of the form"),
        ("file:///", "must name a place below /"),
        ("file:///data/../etc/passwd", r"without '\.' and '\.\.'"),
        ("file:///data/%2e%2E/etc/passwd", r"without '\.' and '\.\.'"),
        ("file:///data/./x", r"without '\.' and '\.\.'"),
        ("file:///data/a%2Fb", "'%2F', which cannot stand in a path"),
        ("file:///data/a%00b", "'%00', which cannot stand in a path"),
        ("file:///data/100%", "'%', which cannot stand in a path"),
        ("file:///data/a?b", "as %3F"),
        ("file:///data/a#b", "as %3F"),
    ],
)
def test_a_url_that_is_no_local_path_is_refused_with_words(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(TransferRefused, match=words):
        FileTransfer().fetch(url=url, directory=tmp_path / "here", progress=silent)
    with pytest.raises(TransferRefused, match=words):
        FileTransfer().deliver(directory=tmp_path, url=url, progress=silent, selection=EVERYTHING)
    assert (url == "file:///") == FileTransfer().probe(url=url).ok  # it can be looked at, and not copied


def test_a_source_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    url = url_of(tmp_path / "nowhere" / "file")
    assert f"cannot read {url}: No such file or directory" == refusal(
        lambda: FileTransfer().fetch(url=url, directory=tmp_path / "here", progress=silent)
    )
    assert not (tmp_path / "here").exists()
    assert "nowhere" in refusal(lambda: deliver(tmp_path / "nowhere", tmp_path / "there"))
    assert not (tmp_path / "there").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused_by_name(tree: Path, tmp_path: Path) -> None:
    (tree / "sub" / "b").chmod(0)
    words = refusal(lambda: fetch(tree, tmp_path / "here"))
    assert "sub/b: Permission denied" in words


def test_a_directory_where_a_file_must_go_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "here" / "a").mkdir(parents=True)
    words = refusal(lambda: fetch(tree, tmp_path / "here"))
    assert "here/a is a directory, and a file must go there" in words


def test_a_file_where_a_directory_must_go_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "sub").touch()
    words = refusal(lambda: fetch(tree, tmp_path / "here"))
    assert "here/sub: Not a directory" in words
    (tmp_path / "file").touch()
    words = refusal(lambda: deliver(tree, tmp_path / "file" / "x"))
    assert "file/x" in words


def test_a_destination_that_is_the_source_or_inside_it_is_refused(tree: Path, tmp_path: Path) -> None:
    before = content_of(tree)
    for url in (url_of(tree), url_of(tree / "sub"), url_of(tree / "new" / "place")):
        assert "lies inside" in refusal(
            lambda url=url: FileTransfer().deliver(
                directory=tree, url=url, progress=silent, selection=EVERYTHING
            )  # type: ignore[misc]
        )
    assert "lies inside" in refusal(lambda: fetch(tree, tree / "sub" / "deeper"))
    assert "already is" in refusal(lambda: fetch(tree / "a", tree))
    assert before == content_of(tree)


def test_a_copy_from_url_to_url_goes_beside_its_source_and_not_into_it(tree: Path, tmp_path: Path) -> None:
    def go(source: Path, target: Path) -> TransferReport:
        return FileTransfer().copy(source=url_of(source), target=url_of(target), progress=silent)

    assert "lies inside" in refusal(lambda: go(tree, tree / "new" / "deeper"))
    assert not (tree / "new").exists()
    assert "already is the file" in refusal(lambda: go(tree / "a", tree))
    assert 1 == go(tree / "a", tree / "new" / "deeper").files
    assert (tree / "a").read_bytes() == (tree / "new" / "deeper" / "a").read_bytes()


def test_a_link_above_the_source_does_not_hide_that_the_destination_is_inside(
    tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "alias").symlink_to("tree")
    url = url_of(tmp_path / "alias" / "sub")
    assert "lies inside" in refusal(
        lambda: FileTransfer().deliver(directory=tree, url=url, progress=silent, selection=EVERYTHING)
    )


@pytest.mark.parametrize("kind", ["socket", "fifo", "device"])
def test_what_is_no_file_is_refused_by_name_before_anything_moves(
    kind: str, tree: Path, tmp_path: Path
) -> None:
    path = tree / "sub" / "odd\none"
    if kind == "socket":
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    words = refusal(lambda: fetch(tree, tmp_path / "here"))
    assert r"sub/odd\none is a socket, FIFO or device" in words
    assert os.listdir(tmp_path / "here") == []
    words = refusal(lambda: fetch(path, tmp_path / "here"))
    assert "neither a file nor a directory" in words


# ----------------------------------------------------------------------------------- links


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("bad", "/etc/passwd"),
        ("bad", ".."),
        ("sub/bad", "../../elsewhere"),
        ("sub/bad", "deeper/../../../etc"),
        ("bad", "missing/../../x"),
        ("bad", "sub/root/../x"),  # through a link that itself stays inside
        ("bad", "bad"),
    ],
)
def test_a_link_that_leaves_the_tree_is_refused_by_name_before_anything_moves(
    place: str, target: str, tree: Path, tmp_path: Path
) -> None:
    (tree / "sub" / "root").symlink_to("..")
    (tree / place).symlink_to(target)
    words = refusal(lambda: deliver(tree, tmp_path / "t"))
    assert f"the link {place} -> {target} leaves the tree" in words
    assert os.listdir(tmp_path / "t") == []
    (tree / place).unlink()
    deliver(tree, tmp_path / "t")
    assert content_of(tree) == content_of(tmp_path / "t")


def test_everything_that_cannot_be_copied_is_named_at_once(tree: Path, tmp_path: Path) -> None:
    for number in range(7):
        (tree / f"bad{number}").symlink_to("/etc")
    words = refusal(lambda: fetch(tree, tmp_path / "here"))
    assert words.count("leaves the tree") == 5
    assert "and 2 more" in words


def test_a_link_on_the_way_to_a_url_is_followed_when_it_is_ours(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to("./tree/../tree")
    fetch(tmp_path / "alias" / "a", tmp_path / "here")
    assert (tmp_path / "here" / "a").read_bytes() == b"alpha"
    (tmp_path / "other").symlink_to(tree / "a")
    fetch(tmp_path / "other", tmp_path / "here")
    assert (tmp_path / "here" / "other").read_bytes() == b"alpha"
    (tmp_path / "round").symlink_to("round")
    assert "in circles" in refusal(lambda: fetch(tmp_path / "round", tmp_path / "here"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a link of another user")
def test_a_link_of_another_user_on_the_way_to_a_url_is_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to("tree")
    os.lchown(tmp_path / "alias", 12345, 12345)
    url = url_of(tmp_path / "alias")
    assert "alias is a symbolic link of user 12345" in refusal(
        lambda: FileTransfer().fetch(url=url + "/a", directory=tmp_path / "here", progress=silent)
    )
    assert "symbolic link" in refusal(
        lambda: FileTransfer().deliver(directory=tree, url=url, progress=silent, selection=EVERYTHING)
    )


# ---------------------------------------------------------------------- hostile directories


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Give a directory in which nothing may change."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "precious").write_bytes(b"precious")
    (place / "precious").chmod(0o640)
    before = content_of(place)
    yield place
    assert before == content_of(place)


def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(
    tree: Path, outside: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "a").symlink_to(outside / "precious")
    (here / part_name("empty")).symlink_to(outside / "precious")
    fetch(tree, here)
    assert content_of(tree) == content_of(here)


def test_a_link_in_place_of_a_directory_is_refused(tree: Path, outside: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "sub").symlink_to(outside)
    words = refusal(lambda: fetch(tree, here))
    assert "here/sub: Not a directory" in words
    (tmp_path / "alias").symlink_to(outside)
    refusal(lambda: fetch(tree, tmp_path / "alias"))


def test_a_hard_link_under_the_temporary_name_is_not_written_through(
    tree: Path, outside: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    os.link(outside / "precious", here / part_name("a"))
    fetch(tree / "a", here)
    assert (here / "a").read_bytes() == b"alpha"
    assert (here / "a").stat().st_nlink == 1


def test_a_hard_link_with_the_right_content_is_replaced_not_changed(outside: Path, tmp_path: Path) -> None:
    source, here = tmp_path / "precious", tmp_path / "here"
    source.write_bytes(b"precious")
    source.chmod(0o777)
    here.mkdir()
    os.link(outside / "precious", here / "precious")
    fetch(source, here)
    assert stat.S_IMODE((here / "precious").stat().st_mode) == 0o777


def test_a_hard_link_to_the_source_becomes_a_copy(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    os.link(tree / "a", tmp_path / "here" / "a")
    fetch(tree / "a", tmp_path / "here")
    assert not os.path.samefile(tree / "a", tmp_path / "here" / "a")


def test_a_fifo_under_the_temporary_or_the_final_name_is_replaced(tree: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    os.mkfifo(here / "a")
    os.mkfifo(here / part_name("a"))
    fetch(tree / "a", here)
    assert os.listdir(here) == ["a"]
    assert (here / "a").read_bytes() == b"alpha"


def exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


@contextlib.contextmanager
def exchanging(one: Path, other: Path) -> Iterator[list[int]]:
    """Keep exchanging two names from another thread; give the count of exchanges."""
    stop, count = threading.Event(), [0]

    def work() -> None:
        while not stop.is_set():
            exchange(one, other)
            count[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_exchanging_a_directory_for_a_link_while_we_copy_leads_nothing_outside(
    outside: Path, tmp_path: Path
) -> None:
    source, here = tmp_path / "source", tmp_path / "here"
    (source / "out").mkdir(parents=True)
    for number in range(300):
        (source / "out" / f"{number}").write_bytes(os.urandom(3000))
    (source / "out" / "precious").write_bytes(b"an attack")
    (here / "out").mkdir(parents=True)
    (here / "link").symlink_to(outside)
    ends = {"arrived": 0, "refused": 0, "interrupted": 0}
    with exchanging(here / "out", here / "link") as exchanges:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            try:
                FileTransfer(streams=3).fetch(url=url_of(source), directory=here, progress=silent)
                ends["arrived"] += 1
            except TransferRefused:
                ends["refused"] += 1
            except TransferInterrupted:
                ends["interrupted"] += 1
    assert exchanges[0] > 100
    assert ends["refused"] > 0, ends
    assert {"precious"} == set(os.listdir(outside))


@pytest.mark.slow
def test_exchanging_a_directory_of_the_source_for_a_link_brings_nothing_from_outside(tmp_path: Path) -> None:
    secret, source = tmp_path / "secret", tmp_path / "source"
    secret.mkdir()
    (secret / "f").write_bytes(b"secret")
    (source / "in").mkdir(parents=True)
    (source / "in" / "f").write_bytes(b"public")
    other = tmp_path / "link"
    other.symlink_to(secret)
    copies = 0
    with exchanging(source / "in", other) as exchanges:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            here = tmp_path / f"here{copies}"
            copies += 1
            with contextlib.suppress(TransferRefused, TransferInterrupted):
                fetch(source, here)
            found = here / "in" / "f"
            assert not found.exists() or found.read_bytes() == b"public"
    assert exchanges[0] > 100
    assert copies > 10


def test_a_temporary_file_that_somebody_exchanged_is_noticed(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    sync = os.fsync

    def meanwhile(opened: int) -> None:
        if (here / part_name("a")).exists():
            (here / part_name("a")).unlink()
            (here / part_name("a")).write_bytes(b"mine")
        sync(opened)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", meanwhile)
        with pytest.raises(TransferInterrupted, match="was exchanged while it was copied"):
            fetch(tree / "a", here)
    fetch(tree / "a", here)
    assert (here / "a").read_bytes() == b"alpha"


def test_a_link_of_ours_that_another_user_can_have_moved_is_not_followed(tree: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "link").symlink_to(tree)
    assert content_of(tree)
    fetch(shared / "link", tmp_path / "here")
    shared.chmod(0o777)
    for action in (
        lambda: fetch(shared / "link", tmp_path / "there"),
        lambda: deliver(tree, shared / "link" / "new"),
    ):
        assert "in directories that nobody else can write" in refusal(action)
    assert not (tree / "new").exists()


def test_a_tree_that_is_deeper_than_any_honest_one_is_refused_at_once(tmp_path: Path) -> None:
    deep = tmp_path / "tree"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(210):  # no deeper: whoever removes it must be able to
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert "more than 200 directories deep" in refusal(lambda: fetch(deep, tmp_path / "here"))
