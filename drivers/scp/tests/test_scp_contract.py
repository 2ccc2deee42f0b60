"""The driver for scp:// and sftp:// keeps the contract of the transfer role, with a real sshd."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from testbed.hostile_sftp import HostileSftp, Lies
from testbed.sshd import Sshd, running_sshd, sshd
from testbed.stall import Proxy

from edgecore.testing.disks import small_disk
from edgecore.testing.transfer import Peer, TransferContract

__all__ = ["sshd"]

pytestmark = pytest.mark.slow


class SshPeer(Peer):
    """A directory behind sshd, and a proxy on the way there that can be slow, silent or gone."""

    def __init__(
        self, place: Path, server: Sshd, proxy: Proxy, known_hosts: Path, scheme: str, **settings: Any
    ) -> None:
        place.mkdir()
        known_hosts.write_text(server.known_as(proxy.port))
        self.place, self.proxy, self.host_key = place, proxy, server.host_key
        self.url = f"{scheme}://{server.user}@127.0.0.1:{proxy.port}{quote(str(place))}"
        self.settings: dict[str, Any] = {
            "key_file": str(server.key),
            "known_hosts": str(known_hosts),
            "ssh_config": "none",
            "agent": False,
            "openssh_from_mb": 10,
            **settings,
        }
        self.impatient = {"no_progress_s": 0.5}

    def slow(self) -> AbstractContextManager[None]:
        return self.proxy.slow(10e6)

    def break_connection(self) -> AbstractContextManager[None]:
        return self.proxy.away()

    def stall(self) -> AbstractContextManager[None]:
        return self.proxy.stall()

    @contextmanager
    def fill_disk(self) -> Iterator[None]:
        with small_disk(self.place):
            yield

    @contextmanager
    def list_as(self, name: str, entries: Sequence[str]) -> Iterator[None]:
        with self._lying(Lies(listings={str(self.place / name): entries})):
            yield

    @contextmanager
    def send_more(self, name: str) -> Iterator[None]:
        with self._lying(Lies(endless_files=frozenset({str(self.place / name)}))):
            yield

    @contextmanager
    def _lying(self, lies: Lies) -> Iterator[None]:
        with HostileSftp(self.host_key, lies).running() as hostile, self.proxy.leading_to(hostile.port):
            yield

    @contextmanager
    def take_permission(self, name: str) -> Iterator[None]:
        path = self.place / name
        if os.geteuid() == 0:  # whom the real server refuses nothing
            with self._lying(Lies(closed=frozenset({str(path)}))):
                yield
            return
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            yield
        finally:
            path.chmod(mode)


class TestScp(TransferContract):
    """With OpenSSH for long files and checksums on both sides."""

    driver = "scp"
    live = True
    times_within_s = 1.0
    by_hand = frozenset({"test_a_file_of_five_gigabytes_arrives"})

    @pytest.fixture
    def proxy(self, sshd: Sshd) -> Iterator[Proxy]:
        proxy = Proxy(sshd.port).start()
        yield proxy
        proxy.close()

    @pytest.fixture
    def peer(self, tmp_path: Path, sshd: Sshd, proxy: Proxy) -> Peer:
        return SshPeer(tmp_path / "far side", sshd, proxy, tmp_path / "known_hosts", self.driver)


_SAME_AS_SCP = frozenset(
    {
        "test_a_directory_where_a_file_must_go_is_refused",
        "test_a_file_of_five_gigabytes_arrives",
        "test_a_file_where_a_directory_must_go_is_refused",
        "test_a_link_that_leaves_its_tree_is_refused_before_anything_moves",
        "test_a_name_from_a_hostile_peer_never_leads_out_of_the_directory",
        "test_a_name_of_any_kind_survives_both_ways_or_is_refused_before_the_start",
        "test_progress_is_told_every_second_within_one_long_file",
        "test_several_threads_carry_at_the_same_time",
        "test_ten_thousand_small_files_arrive",
        "test_a_transfer_that_is_stopped_at_any_point_is_resumed_and_ends_right",  # as one that is killed
        "test_what_is_no_file_is_refused",
    }
)
"""What neither OpenSSH nor checksums have a part in, or what takes long beside TestScp's."""


@pytest.fixture(scope="module")
def files_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server that allows SFTP and nothing else, as a careful site sets it up."""
    with running_sshd(tmp_path_factory.mktemp("files only"), "ForceCommand internal-sftp") as server:
        yield server


class TestSftp(TransferContract):
    """With neither OpenSSH on this side nor commands on the other."""

    driver = "sftp"
    live = True
    times_within_s = 1.0
    by_hand = _SAME_AS_SCP

    @pytest.fixture
    def proxy(self, files_only: Sshd) -> Iterator[Proxy]:
        proxy = Proxy(files_only.port).start()
        yield proxy
        proxy.close()

    @pytest.fixture
    def peer(self, tmp_path: Path, files_only: Sshd, proxy: Proxy) -> Peer:
        place, known_hosts = tmp_path / "far side", tmp_path / "known_hosts"
        return SshPeer(place, files_only, proxy, known_hosts, self.driver, openssh=False)
