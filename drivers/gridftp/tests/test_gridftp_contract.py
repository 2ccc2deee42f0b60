"""The driver for gsiftp:// and ftp:// keeps the contract of the transfer role, with real servers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from testbed.gridftp import GridFtp, grid, gridftp, gridftp_needed, gridftp_second

from edgecore.errors import TransferRefused
from edgecore.relays import TransferRelay
from edgecore.testing.checks import CheckedProgress
from edgecore.testing.disks import small_disk
from edgecore.testing.transfer import Peer, TransferContract
from edgecore.testing.trees import ODD_NAMES, content_of, planted_tree

__all__ = ["grid", "gridftp", "gridftp_needed", "gridftp_second"]

pytestmark = pytest.mark.slow


class GridFtpPeer(Peer):
    """A directory behind a server that can be slow, silent, strict or gone."""

    def __init__(self, place: Path, server: GridFtp, second: GridFtp, **settings: Any) -> None:
        place.mkdir()
        self.place, self.server, self.second = place, server, second
        self.url = server.url + quote(str(place))
        # Once in hundreds of times the client waits for ever for a server whose disk is full.
        patient = {"no_progress_s": 60}
        self.settings: dict[str, Any] = {"options": ["-dcstack", server.stack], **patient, **settings}
        if server.grid is not None:
            self.settings |= {"proxy": str(server.proxy), "authorities": str(server.grid.authorities)}
        self.impatient = {"no_progress_s": 0.7}

    def origin_of(self, name: str) -> str:
        return self.second.url + quote(os.fsencode(self.place / name))

    def slow(self) -> AbstractContextManager[None]:
        return self.server.slow(10e6)

    def break_connection(self) -> AbstractContextManager[None]:
        return self.server.away()

    def stall(self) -> AbstractContextManager[None]:
        return self.server.stall()

    @contextmanager
    def fill_disk(self) -> Iterator[None]:
        with small_disk(self.place):
            yield

    @contextmanager
    def take_permission(self, name: str) -> Iterator[None]:
        path = self.place / name
        if os.geteuid() == 0:  # whom a server refuses only what it was told to
            with self.server.restarted("-restrict-paths", f"RW/,N{path}"):
                yield
            return
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            yield
        finally:
            path.chmod(mode)


class TestGsiftp(TransferContract):
    """With a proxy, and checksums on both sides."""

    driver = "gsiftp"
    live = True
    links = "refused"
    times_within_s = 1.0
    cannot: ClassVar = {
        "list_as": "a real server tells the truth; one that does not is played in test_gridftp_hostile.py",
        "send_more": "a real server tells the truth; one that does not is played in test_gridftp_hostile.py",
    }

    by_hand = frozenset(
        {
            # The server is made slow by halting it from here, and on a busy machine moves all at once.
            "test_a_connection_that_breaks_in_the_middle_interrupts_and_the_next_call_resumes",
            "test_progress_is_told_every_second_within_one_long_file",
            "test_a_file_of_five_gigabytes_arrives",
            "test_a_name_of_any_kind_survives_both_ways_or_is_refused_before_the_start",
            "test_a_transfer_that_is_stopped_at_any_point_is_resumed_and_ends_right",
            "test_ten_thousand_small_files_arrive",
        }
    )

    @pytest.fixture
    def peer(self, tmp_path: Path, gridftp: GridFtp, gridftp_second: GridFtp) -> Peer:
        return GridFtpPeer(tmp_path / "far side", gridftp, gridftp_second)

    def test_names_of_all_kinds_survive_both_ways_at_once(
        self, peer: Peer, relay: TransferRelay, source: Path, tmp_path: Path
    ) -> None:
        """One by one they are tried by hand."""
        for name in map(os.fsdecode, ODD_NAMES.values()):
            (source / f"{name[:200]}.d").mkdir()
            (source / f"{name[:200]}.d" / name).write_bytes(os.fsencode(name))
        relay.deliver(directory=source, url=peer.url_of("sent"), progress=CheckedProgress())
        relay.fetch(url=peer.url_of("sent"), directory=tmp_path / "back", progress=CheckedProgress())
        assert {} == self.differences(relay.profile, source, peer.look("sent"))
        assert {} == self.differences(relay.profile, source, tmp_path / "back")

    # Servers do not show links that lead to nothing; they only count them.

    @pytest.mark.parametrize(
        ("kind", "way"),
        [
            ("absolute", "fetch"),
            ("the directory above", "fetch"),
            ("absolute", "deliver"),
            ("the directory above", "deliver"),
            ("from below", "deliver"),
            ("by a detour", "deliver"),
        ],
    )
    def test_a_link_that_leaves_its_tree_is_refused_before_anything_moves(
        self, kind: str, way: str, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        super().test_a_link_that_leaves_its_tree_is_refused_before_anything_moves(
            kind, way, peer, relay, source
        )

    def test_a_link_that_leads_to_nothing_is_refused_by_its_directory(
        self, peer: Peer, relay: TransferRelay, source: Path
    ) -> None:
        """The server shows the directory without it; what is hidden must not be left behind unseen."""
        planted_tree(source, links=False, large_bytes=10)
        (source / "sub" / "bad").symlink_to("not there")
        errand = self.errand("fetch", peer, source).prepare()
        with pytest.raises(TransferRefused, match="sub holds a name that the server does not show"):
            errand.go(relay)
        assert {} == content_of(errand.near)
