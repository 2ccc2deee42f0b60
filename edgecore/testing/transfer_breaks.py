"""Hold a transfer driver to what it promises when something breaks: stops, kills, full disks, hostile peers."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecore.errors import TransferInterrupted, TransferRefused, TransferStopped
from edgecore.models import SiteContext, TransferUpdate
from edgecore.relays import TransferRelay
from edgecore.testing.checks import CheckedProgress
from edgecore.testing.disks import small_disk
from edgecore.testing.peer import Peer
from edgecore.testing.transfer_base import WAYS, Errand, TransferBase, watched
from edgecore.testing.trees import MEBIBYTE, random_bytes
from edgecore.testing.worker import Worker

__all__ = ["TransferBreaks"]

_KILLS = 6
_GIVES_UP_S = 20.0
"""How long a driver that was told to be impatient may take to give up, on a busy machine."""


def _planted(source: Path, small: int = 200, large: int = 3) -> None:
    """Make files of which some take a while and others come by the hundred."""
    for number in range(large):
        (source / f"large {number}").write_bytes(random_bytes(12 * MEBIBYTE, number))
    (source / "many").mkdir()
    for number in range(small):
        (source / "many" / f"{number}").write_bytes(random_bytes(100 + number, number))


def _stop_after(size_bytes: int) -> CheckedProgress:
    def then(update: TransferUpdate) -> None:
        if update.size_bytes >= size_bytes:
            raise TransferStopped("the service drains")

    return CheckedProgress(then)


class TransferBreaks(TransferBase):
    """Interrupt transfers; a part of `TransferContract`."""

    @pytest.mark.parametrize("way", WAYS)
    def test_what_progress_raises_at_once_comes_out_and_leaves_nothing_whole_undone(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """See that the first call of progress can stop a transfer, and that the next goes to its end."""
        (source / "a").write_bytes(random_bytes(MEBIBYTE))
        errand = self.errand(way, peer, source).prepare()
        relay.probe(url=peer.url)  # a connection that is kept may have threads of its own
        threads = threading.active_count()
        with pytest.raises(TransferStopped, match="drains"):
            errand.go(relay, _stop_after(0))
        assert threads >= threading.active_count()
        assert [] == errand.halves()
        errand.go(relay)
        assert {} == self.differences(relay.profile, source, errand.target)

    @pytest.mark.slow
    @pytest.mark.parametrize("way", WAYS)
    def test_a_transfer_that_is_stopped_at_any_point_is_resumed_and_ends_right(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """Stop at random points; no file ever has its final name before it is whole."""
        self.need("slow")
        _planted(source)
        errand = self.errand(way, peer, source).prepare()
        chance = random.Random(time.time_ns())  # noqa: S311 - not a secret
        points = sorted(chance.randrange(1, 30 * MEBIBYTE) for _ in range(4))
        with watched(errand) as early:
            with peer.slow():
                for point in points:
                    with pytest.raises(TransferStopped):
                        errand.go(relay, _stop_after(point))
                    assert [] == errand.halves(), f"stopped at {points}"
            errand.go(relay)
        assert [] == list(early), f"stopped at {points}"
        assert {} == self.differences(relay.profile, source, errand.target), f"stopped at {points}"

    @pytest.mark.slow
    @pytest.mark.parametrize("way", WAYS)
    def test_a_transfer_that_is_killed_at_any_time_is_resumed_and_ends_right(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path, start: Callable[..., Worker]
    ) -> None:
        """Kill the process at random times between the first call of progress and the end."""
        _planted(source)
        whole_s = self._duration(self.errand(way, peer, source, "whole").prepare(), start)
        errand = self.errand(way, peer, source).prepare()
        chance, killed = random.Random(time.time_ns()), 0  # noqa: S311 - not a secret
        with watched(errand) as early:
            for _ in range(_KILLS):
                worker = errand.go_in(start)
                assert worker.line() == "begun"
                moment_s = chance.uniform(0, whole_s)
                time.sleep(moment_s)  # the time of the kill is the chance that this test takes
                worker.kill()
                killed += worker.killed
                assert [] == errand.halves(), f"killed after {moment_s:.3f} of {whole_s:.3f} s"
        assert killed > 0
        errand.go(relay)
        assert [] == list(early)
        assert {} == self.differences(relay.profile, source, errand.target)

    def _duration(self, errand: Errand, start: Callable[..., Worker]) -> float:
        worker = errand.go_in(start)
        assert worker.line() == "begun"
        begun = time.monotonic()
        worker.rest()
        assert worker.process.returncode == 0
        return time.monotonic() - begun

    @pytest.mark.slow
    @pytest.mark.parametrize("way", WAYS)
    def test_progress_is_told_every_second_within_one_long_file(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """See that a long file tells on its way how far it is, and never less than before."""
        self.need("slow")
        (source / "large").write_bytes(random_bytes(30 * MEBIBYTE))
        errand = self.errand(way, peer, source).prepare()
        progress = CheckedProgress()
        with peer.slow():
            begun = time.monotonic()
            errand.go(relay, progress)
            took_s = time.monotonic() - begun
        between = {update.size_bytes for update in progress.updates} - {0, 30 * MEBIBYTE}
        assert took_s > 1.5, "the peer's slow() does not make it slow"
        assert len(between) >= 2, "of a file that takes three seconds"
        assert len(progress.updates) >= took_s

    @pytest.mark.parametrize("way", ["fetch", "deliver"])
    def test_a_full_disk_interrupts_and_what_came_later_is_right(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """A full disk may be emptied: try again. Whether that lasts too long is for the service to say."""
        self.need("fill_disk")
        (source / "large").write_bytes(random_bytes(3 * MEBIBYTE))
        errand = self.errand(way, peer, source).prepare()
        errand.near.mkdir()
        with small_disk(errand.near) if way == "fetch" else peer.fill_disk():
            for _ in range(2):
                with pytest.raises(TransferInterrupted):
                    errand.go(relay)
                assert [] == errand.halves()
                assert not (errand.target / "large").exists()
        errand.go(relay)
        assert {} == self.differences(relay.profile, source, errand.target)

    @pytest.mark.parametrize("way", WAYS)
    def test_a_connection_that_breaks_interrupts_and_the_next_call_resumes(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """Break it in the middle where the peer can be slow, else before the start."""
        self.need("break_connection")
        _planted(source)
        errand = self.errand(way, peer, source).prepare()
        with peer.break_connection(), pytest.raises(TransferInterrupted):
            errand.go(relay)
        assert [] == errand.halves()
        errand.go(relay)
        assert {} == self.differences(relay.profile, source, errand.target)

    @pytest.mark.slow
    @pytest.mark.parametrize("way", WAYS)
    def test_a_connection_that_breaks_in_the_middle_interrupts_and_the_next_call_resumes(
        self, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """Break it once something moved."""
        self.need("break_connection")
        self.need("slow")
        _planted(source)
        errand = self.errand(way, peer, source).prepare()
        moving = threading.Event()
        raised: list[BaseException] = []

        def work() -> None:
            try:
                errand.go(relay, CheckedProgress(lambda update: moving.set() if update.size_bytes else None))
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        with peer.slow():
            thread.start()
            assert moving.wait(60)
            with peer.break_connection():
                thread.join(60)
        assert [TransferInterrupted] == [type(error) for error in raised]
        assert [] == errand.halves()
        errand.go(relay)
        assert {} == self.differences(relay.profile, source, errand.target)

    @pytest.mark.slow
    @pytest.mark.parametrize("way", WAYS)
    def test_a_transfer_in_which_nothing_moves_is_given_up(
        self, way: str, peer: Peer, site: SiteContext, relay: TransferRelay, source: Path
    ) -> None:
        """A peer that keeps the connection and says nothing must not hold a transfer for ever."""
        self.need("stall")
        (source / "a").write_bytes(random_bytes(MEBIBYTE))
        errand = self.errand(way, peer, source).prepare()
        impatient = self.opened(peer, site, **peer.impatient)
        try:
            begun = time.monotonic()
            with peer.stall(), pytest.raises(TransferInterrupted):
                errand.go(impatient)
            assert time.monotonic() - begun < _GIVES_UP_S
        finally:
            impatient.close()
        errand.go(relay)
        assert {} == self.differences(relay.profile, source, errand.target)

    # ------------------------------------------------------------------------- hostile peers

    @pytest.mark.parametrize("name", ["../escaped", "../../escaped", "{top}/escaped", "sub/../../escaped"])
    def test_a_name_from_a_hostile_peer_never_leads_out_of_the_directory(
        self, name: str, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path
    ) -> None:
        """A listing is a stranger's text."""
        self.need("list_as")
        (source / "good").write_bytes(b"good")
        errand = self.errand("fetch", peer, source).prepare()
        with peer.list_as(errand.name, ["good", name.format(top=tmp_path)]), pytest.raises(TransferRefused):
            errand.go(relay)
        assert [] == list(tmp_path.rglob("escaped"))

    def test_a_listing_that_holds_the_directory_above_never_leads_there(
        self, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path
    ) -> None:
        """Some protocols always list ``..``, which is then left out; elsewhere it is refused."""
        self.need("list_as")
        (source / "good").write_bytes(b"good")
        errand = self.errand("fetch", peer, source).prepare()
        before = sorted(tmp_path.iterdir())
        with peer.list_as(errand.name, ["good", ".."]):
            try:
                errand.go(relay)
            except TransferRefused:
                assert [] == errand.halves()
            else:
                assert {} == self.differences(relay.profile, source, errand.target)
        assert before == sorted(path for path in tmp_path.iterdir() if path != errand.near)

    def test_a_hostile_peer_that_sends_without_an_end_is_cut_off(
        self, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """More bytes than announced are an interruption, and do not fill the disk."""
        self.need("send_more")
        (source / "a").write_bytes(random_bytes(MEBIBYTE))
        errand = self.errand("fetch", peer, source).prepare()
        free = shutil.disk_usage(source).free
        with peer.send_more(f"{errand.name}/a"), pytest.raises(TransferInterrupted):
            errand.go(relay)
        assert free - shutil.disk_usage(source).free < 1024 * MEBIBYTE
        assert [] == errand.halves()
