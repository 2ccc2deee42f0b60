"""Hold a transfer driver to its contract: subclass `TransferContract` and say where the far side is.

The tests know no protocol. They carry trees between a directory here and a `Peer` there, in both
directions, look at both sides by other means than the driver, and interrupt what can be interrupted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgecore.errors import TransferRefused
from edgecore.models import SiteContext
from edgecore.relays import TransferRelay
from edgecore.selection import Selection
from edgecore.testing.checks import CheckedProgress
from edgecore.testing.peer import Peer
from edgecore.testing.transfer_base import WAYS, TransferBase
from edgecore.testing.transfer_breaks import TransferBreaks
from edgecore.testing.trees import MEBIBYTE, ODD_NAMES, content_of, planted_tree

__all__ = ["Peer", "TransferContract"]

_MANY = 10_000
_LONG_BYTES = 5 * 1024 * MEBIBYTE
_LEAVING = {
    "absolute": ("bad", "/etc/passwd"),
    "the directory above": ("bad", ".."),
    "from below": ("sub/bad", "../../elsewhere"),
    "by a detour": ("sub/bad", "deeper/../../../etc"),
}
"""Links that lead out of their tree: where they stand, and what they say."""


class TransferContract(TransferBreaks, TransferBase):
    """Test every promise of the transfer role with one driver.

    Install the driver's package, then write in its ``tests/``::

        class SftpPeer(Peer):
            def __init__(self, place, server):
                self.place = place
                self.url = f"sftp://127.0.0.1:{server.port}{place}"
                self.settings = {"key_file": server.key}

            @contextmanager
            def break_connection(self):
                with self.server.away():
                    yield

        class TestSftp(TransferContract):
            driver = "sftp"
            live = True
            cannot = {"send_more": "the client asks for ranges, never for a whole"}
            times_within_s = 1.0

            @pytest.fixture
            def peer(self, tmp_path, server):
                place = tmp_path / "far"
                place.mkdir()
                return SftpPeer(place, server)

    `Peer` says what each method must do. A method that is neither written nor named in `cannot`, with the
    reason, makes its tests fail, so that nothing is forgotten. Slow tests carry the mark ``slow``.
    """

    # ------------------------------------------------------------------------- what arrives

    def test_a_file_is_fetched_under_its_own_name(
        self, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path
    ) -> None:
        """A URL of a file brings this file and nothing else."""
        planted_tree(source, links=False)
        peer.plant(source, "tree")
        report = relay.fetch(
            url=peer.url_of("tree/a"), directory=tmp_path / "here", progress=CheckedProgress()
        )
        assert ["a"] == os.listdir(tmp_path / "here")
        assert b"alpha" == (tmp_path / "here" / "a").read_bytes()
        assert (1, 5, 0) == (report.files, report.size_bytes, report.skipped_files)

    @pytest.mark.parametrize("way", WAYS)
    def test_the_content_of_a_tree_arrives_with_what_is_empty_and_with_all_that_the_profile_keeps(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """Empty files and directories arrive, and modes and times as far as the profile says so."""
        planted_tree(source, links=False)
        errand = self.errand(way, peer, source, "one/two words/three").prepare()
        report = errand.go(relay)
        assert {} == self.differences(relay.profile, source, errand.target)
        assert (4, 5 + 10 + 3 * MEBIBYTE + 17) == (report.files, report.size_bytes)
        for name, told in report.checksums.items():
            if told.startswith("sha256:"):
                assert told == f"sha256:{hashlib.sha256((source / name).read_bytes()).hexdigest()}"

    @pytest.mark.parametrize("way", WAYS)
    def test_an_empty_tree_arrives(self, way: str, peer: Peer, relay: TransferRelay, source: Path) -> None:
        """A job without output is no error."""
        errand = self.errand(way, peer, source).prepare()
        assert errand.go(relay).files == 0
        assert {} == content_of(errand.target)
        assert errand.target.is_dir()

    def test_only_what_is_selected_is_delivered_and_the_rest_is_no_reason_to_refuse(
        self, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """An application says what its users want; whatever else lies there stays, be it a FIFO."""
        for name in ("a.root", "-rf.root", "log/deep/b", "junk/c", "log/d.root"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(name.encode())
        (source / "log" / "empty").mkdir()
        os.mkfifo(source / "junk" / "fifo")
        (source / "junk" / "link").symlink_to("/etc/passwd")
        selection, wanted = (
            Selection(("*.root", "log/**")),
            {b"a.root", b"-rf.root", b"log/d.root", b"log/deep/b"},
        )
        for skipped in (0, 4):
            report = relay.deliver(
                directory=source, url=peer.url_of("t"), progress=CheckedProgress(), selection=selection
            )
            assert (4, skipped) == (report.files, report.skipped_files)
            found = content_of(peer.look("t"), modes=False, times=False)
            assert wanted == {name for name in found if not peer.look(f"t/{os.fsdecode(name)}").is_dir()}
            assert {b"log", b"log/deep", b"log/empty"} == found.keys() - wanted

    @pytest.mark.parametrize("kind", ODD_NAMES)
    def test_a_name_of_any_kind_survives_both_ways_or_is_refused_before_the_start(
        self, kind: str, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path
    ) -> None:
        """No name is ever altered."""
        name, progress = os.fsdecode(ODD_NAMES[kind]), CheckedProgress
        (source / name).write_bytes(b"content")
        (source / f"{name[:200]}.d").mkdir()
        (source / f"{name[:200]}.d" / name).write_bytes(b"more")
        peer.plant(source, "planted")
        if f"name {kind}" in self.cannot:
            with pytest.raises(TransferRefused):
                relay.deliver(directory=source, url=peer.url_of("sent"), progress=progress())
            assert not peer.look("sent").exists() or {} == content_of(peer.look("sent"))
            return
        relay.deliver(directory=source, url=peer.url_of("sent"), progress=progress())
        relay.fetch(url=peer.url_of("planted"), directory=tmp_path / "tree", progress=progress())
        relay.fetch(url=peer.url_of(f"planted/{name}"), directory=tmp_path / "alone", progress=progress())
        assert {} == self.differences(relay.profile, source, peer.look("sent"))
        assert {} == self.differences(relay.profile, source, tmp_path / "tree")
        assert [os.fsencode(name)] == os.listdir(os.fsencode(tmp_path / "alone"))

    @pytest.mark.slow
    @pytest.mark.parametrize("way", WAYS)
    def test_ten_thousand_small_files_arrive(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """Many files are carried in the time of many files, with progress on the way."""
        for number in range(_MANY):
            directory = source / f"{number % 100}"
            directory.mkdir(exist_ok=True)
            (directory / f"{number}").write_bytes(b"%d" % number)
        errand = self.errand(way, peer, source).prepare()
        report = errand.go(relay)
        assert _MANY == report.files
        assert content_of(source, modes=False, times=False) == content_of(
            errand.target, modes=False, times=False
        )

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_a_file_of_five_gigabytes_arrives(self, peer: Peer, relay: TransferRelay, source: Path) -> None:
        """No count of bytes ends at 32 bits. The file is nearly all hole, and so is what is sent of it."""
        if shutil.disk_usage(source).free < 3 * _LONG_BYTES:
            pytest.skip(
                "the disk is too short for three times 5 GiB, which it takes where holes are not kept"
            )
        marks = {0: b"begin", 3 * 2**30 + 1: b"middle", _LONG_BYTES - 3: b"end"}
        with (source / "large").open("wb") as file:
            for place, mark in marks.items():
                file.seek(place)
                file.write(mark)
        progress = CheckedProgress()
        report = relay.deliver(directory=source, url=peer.url_of("large tree"), progress=progress)
        assert (1, _LONG_BYTES) == (report.files, report.size_bytes)
        arrived = peer.look("large tree") / "large"
        assert _LONG_BYTES == arrived.stat().st_size
        with arrived.open("rb") as file:
            for place, mark in marks.items():
                file.seek(place)
                assert mark == file.read(len(mark))

    # -------------------------------------------------------------------------- a second time

    @pytest.mark.parametrize("way", WAYS)
    def test_a_repeated_call_skips_what_is_right(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """Nothing that is right is moved again, or replaced."""
        planted_tree(source, links=False, large_bytes=10)
        errand = self.errand(way, peer, source).prepare()
        first = errand.go(relay)
        before = {path: path.lstat().st_ino for path in errand.target.rglob("*")}
        again = errand.go(relay)
        assert (first.files, first.files) == (again.files, again.skipped_files)
        assert before == {path: path.lstat().st_ino for path in errand.target.rglob("*")}

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("wrong", ["same size", "truncated", "longer", "missing"])
    def test_a_repeated_call_repairs_what_is_wrong_and_skips_the_rest(
        self, wrong: str, way: str, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path
    ) -> None:
        """Whoever compares more than sizes must not be misled by the right time."""
        planted_tree(source, links=False, large_bytes=10)
        errand = self.errand(way, peer, source).prepare()
        report = errand.go(relay)
        changed_ns = (source / "a").stat().st_mtime_ns if report.verified != "size" else 10**18
        if wrong == "missing":
            (errand.target / "a").unlink()
        else:
            content = {"same size": b"alphA", "truncated": b"alp", "longer": b"alphabet"}[wrong]
            errand.put("a", content, changed_ns, tmp_path / "workshop")
        again = errand.go(relay)
        assert (report.files, report.files - 1) == (again.files, again.skipped_files)
        assert {} == self.differences(relay.profile, source, errand.target)

    def test_a_driver_that_is_opened_anew_knows_what_was_carried_before(
        self, peer: Peer, site: SiteContext, source: Path
    ) -> None:
        """Nothing is kept in memory: after a restart all is skipped that is right."""
        planted_tree(source, links=False, large_bytes=10)
        errand = self.errand("deliver", peer, source)
        for skipped in (0, 4):
            relay = self.opened(peer, site)
            assert skipped == errand.go(relay).skipped_files
            relay.close()

    # ------------------------------------------------------------------------------ refused

    def test_a_source_that_does_not_exist_is_refused_by_name(
        self, peer: Peer, relay: TransferRelay, tmp_path: Path
    ) -> None:
        """Trying again would not help."""
        url = peer.url_of("nowhere/file")
        with pytest.raises(TransferRefused, match="nowhere"):
            relay.fetch(url=url, directory=tmp_path / "here", progress=CheckedProgress())
        assert not (tmp_path / "here").exists() or [] == os.listdir(tmp_path / "here")
        with pytest.raises(TransferRefused, match="absent"):
            relay.deliver(directory=tmp_path / "absent", url=peer.url_of("t"), progress=CheckedProgress())
        assert not peer.look("t").exists()

    def test_what_may_not_be_read_or_written_is_refused(
        self, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path
    ) -> None:
        """Permissions do not come by waiting."""
        self.need("take_permission")
        planted_tree(source, links=False, large_bytes=10)
        peer.plant(source, "closed")
        with peer.take_permission("closed"):
            with pytest.raises(TransferRefused):
                relay.fetch(
                    url=peer.url_of("closed"), directory=tmp_path / "here", progress=CheckedProgress()
                )
            with pytest.raises(TransferRefused):
                relay.deliver(directory=source, url=peer.url_of("closed/in"), progress=CheckedProgress())
            assert not relay.probe(url=peer.url_of("closed/a")).ok

    @pytest.mark.parametrize("way", WAYS)
    def test_a_directory_where_a_file_must_go_is_refused(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path
    ) -> None:
        """Nothing that stands there is removed for it."""
        (source / "a").write_bytes(b"alpha")
        errand = self.errand(way, peer, source).prepare()
        errand.put("a/inside", b"kept", 10**18, tmp_path / "workshop")
        with pytest.raises(TransferRefused):
            errand.go(relay)
        assert b"kept" == (errand.target / "a" / "inside").read_bytes()

    @pytest.mark.parametrize("way", WAYS)
    def test_a_file_where_a_directory_must_go_is_refused(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path
    ) -> None:
        """Nothing that stands there is removed for it."""
        planted_tree(source, links=False, large_bytes=10)
        errand = self.errand(way, peer, source).prepare()
        errand.put("sub", b"kept", 10**18, tmp_path / "workshop")
        with pytest.raises(TransferRefused):
            errand.go(relay)
        assert b"kept" == (errand.target / "sub").read_bytes()

    def test_what_is_no_file_is_refused(self, peer: Peer, relay: TransferRelay, source: Path) -> None:
        """A FIFO must not be waited for."""
        planted_tree(source, links=False, large_bytes=10)
        os.mkfifo(source / "sub" / "fifo")
        with pytest.raises(TransferRefused, match="fifo"):
            relay.deliver(directory=source, url=peer.url_of("t"), progress=CheckedProgress())

    # -------------------------------------------------------------------------------- links

    @pytest.mark.parametrize("way", WAYS)
    def test_links_inside_a_tree_are_kept_or_refused_as_declared(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """Also one that leads to nothing yet."""
        planted_tree(source, links=True)
        errand = self.errand(way, peer, source).prepare()
        if self.links == "refused":
            with pytest.raises(TransferRefused):
                errand.go(relay)
            return
        errand.go(relay)
        assert {} == self.differences(relay.profile, source, errand.target)

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("kind", _LEAVING)
    def test_a_link_that_leaves_its_tree_is_refused_before_anything_moves(
        self, kind: str, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """What it leads to is not the sender's."""
        planted_tree(source, links=False, large_bytes=10)
        place, target = _LEAVING[kind]
        (source / place).symlink_to(target)
        errand = self.errand(way, peer, source).prepare()
        with pytest.raises(TransferRefused, match="bad"):
            errand.go(relay)
        assert not errand.target.exists() or {} == content_of(errand.target)

    def test_a_link_at_the_target_is_never_followed(
        self, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path, bystanders: Path
    ) -> None:
        """Whoever writes into a job's directory must not lead a fetch elsewhere."""
        planted_tree(source, links=False, large_bytes=10)
        peer.plant(source, "tree")
        here, there = tmp_path / "here", tmp_path / "there"
        here.mkdir()
        (here / "a").symlink_to(bystanders / "precious")
        relay.fetch(url=peer.url_of("tree"), directory=here, progress=CheckedProgress())
        assert not (here / "a").is_symlink()
        there.mkdir()
        (there / "sub").symlink_to(bystanders)
        with pytest.raises(TransferRefused):
            relay.fetch(url=peer.url_of("tree"), directory=there, progress=CheckedProgress())

    # ------------------------------------------------------------------------------ the rest

    def test_a_probe_says_whether_something_can_be_read_and_moves_nothing(
        self, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """A place that cannot be reached is an answer, no error."""
        (source / "a").write_bytes(b"alpha")
        peer.plant(source, "tree")
        before = content_of(peer.look())
        assert [True, True, False] == [
            relay.probe(url=peer.url_of(name)).ok for name in ("tree", "tree/a", "nowhere")
        ]
        assert before == content_of(peer.look())

    def test_several_threads_carry_at_the_same_time(
        self, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """Every lane of a service uses the same driver."""
        trees = [planted_tree(source / f"{number}", links=False) for number in range(4)]
        errands = [self.errand(WAYS[n % 2], peer, tree, f"e{n}").prepare() for n, tree in enumerate(trees)]
        with ThreadPoolExecutor(4) as pool:
            carry: Callable[[int], int] = lambda n: errands[n].go(relay).files  # noqa: E731
            assert [4, 4, 4, 4] == list(pool.map(carry, range(4)))
        for errand in errands:
            assert {} == self.differences(relay.profile, errand.source, errand.target)

    def test_what_a_driver_finds_about_itself_has_the_right_form(self, relay: TransferRelay) -> None:
        """The checks around the driver look at it; there may be no finding."""
        assert isinstance(tuple(relay.diagnose()), tuple)
