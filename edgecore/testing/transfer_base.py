"""Hold what all tests of `TransferContract` share: the far side, the driver, and errands in both directions."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from attrs import define

from edgecore.hookspecs import Transfer
from edgecore.models import SiteContext, TransferProfile, TransferProgress, TransferReport
from edgecore.relays import TransferRelay
from edgecore.testing.checks import CheckedProgress, TypeChecked
from edgecore.testing.peer import Peer
from edgecore.testing.trees import content_of
from edgecore.testing.worker import Worker, make_driver, working

__all__ = ["WAYS", "Errand", "TransferBase", "watched"]

WAYS = ("fetch", "deliver", "copy")
"""The hooks that carry."""


@define
class Errand:
    """One transfer of the local tree *source*, by one of the hooks that carry."""

    way: str
    peer: Peer
    source: Path
    near: Path
    """Where a fetch brings it."""
    name: str
    """What it is called on the far side."""

    def prepare(self) -> Errand:
        """Put the tree on the far side, if that is where it comes from."""
        if self.way == "fetch":
            self.peer.plant(self.source, self.name)
        elif self.way == "copy":
            self.peer.plant(self.source, self._origin)
        return self

    def go(self, relay: TransferRelay, progress: TransferProgress | None = None) -> TransferReport:
        """Carry it, with all checks of progress."""
        told = progress or CheckedProgress()
        if self.way == "fetch":
            return relay.fetch(url=self.url, directory=self.near, progress=told)
        if self.way == "copy":
            return relay.copy(source=self.peer.origin_of(self._origin), target=self.url, progress=told)
        return relay.deliver(directory=self.source, url=self.url, progress=told)

    def go_in(self, start: Callable[..., Worker]) -> Worker:
        """Carry it in a process of its own."""
        if self.way == "copy":
            return start(self.way, self.peer.origin_of(self._origin), self.url)
        return start(self.way, self.url, os.fspath(self.near if self.way == "fetch" else self.source))

    @property
    def url(self) -> str:
        """The far side of it; where it goes, if both are."""
        return self.peer.url_of(self.name)

    @property
    def _origin(self) -> str:
        """What the source of a copy is called there."""
        return f"origin of {self.name}"

    @property
    def target(self) -> Path:
        """Where to look at what arrived."""
        return self.near if self.way == "fetch" else self.peer.look(self.name)

    def put(self, path: str, content: bytes, changed_ns: int, workshop: Path) -> None:
        """Let *content* stand at the target under *path* as if somebody had put it there."""
        workshop.mkdir(exist_ok=True)
        made = workshop / "content"
        made.write_bytes(content)
        os.utime(made, ns=(changed_ns, changed_ns))
        if self.way != "fetch":
            self.peer.plant(made, f"{self.name}/{path}")
        else:
            (self.near / path).parent.mkdir(parents=True, exist_ok=True)
            made.replace(self.near / path)

    def halves(self) -> list[str]:
        """Say which final names stand at the target without their whole content."""
        wanted = content_of(self.source, modes=False, times=False)
        found = content_of(self.target, modes=False, times=False) if self.target.is_dir() else {}
        return [repr(name) for name, what in wanted.items() if name in found and found[name] != what]


class TransferBase:
    """What a subclass declares, and the fixtures of the tests; see `edgecore.testing.TransferContract`."""

    driver: ClassVar[str]
    """The URL scheme under which the driver is installed."""
    live: ClassVar[bool] = False
    """Whether `peer` is the real server, not something that plays it."""
    cannot: ClassVar[Mapping[str, str]] = {}
    """What cannot be done -> why: a method of `Peer`, or ``name <kind>`` for a kind of `ODD_NAMES` that the
    protocol cannot carry: such a name must be refused before anything moves."""
    by_hand: ClassVar[frozenset[str]] = frozenset()
    """Tests to mark as ``long``, where another class has shown the same or they take minutes."""
    links: ClassVar[Literal["kept", "refused"]] = "kept"
    """What becomes of symbolic links that stay inside their tree."""
    times_within_s: ClassVar[float] = 0.0
    """How exactly the protocol keeps times, where it keeps them at all."""

    @pytest.fixture
    def site(self, peer: Peer, tmp_path: Path) -> SiteContext:
        """Give the driver a site of its own."""
        work = tmp_path / "work"
        work.mkdir()
        return SiteContext(site="theta", work_directory=work, environment=peer.environment)

    @pytest.fixture
    def relay(self, peer: Peer, site: SiteContext) -> Iterator[TransferRelay]:
        """Open the driver under the check of every answer."""
        relay = self.opened(peer, site)
        yield relay
        relay.close()

    @pytest.fixture
    def start(self, peer: Peer, site: SiteContext) -> Iterator[Callable[..., Worker]]:
        """Give a way to use the driver in processes that can be killed."""
        with working("transfer", self.driver, peer.settings, site) as start:
            yield start

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """Give an empty local directory for what a test wants to carry."""
        path = tmp_path / "source"
        path.mkdir()
        return path

    @pytest.fixture(autouse=True)
    def bystanders(self, peer: Peer, tmp_path: Path) -> Iterator[Path]:
        """Stand beside every target, and be the same afterwards."""
        near = tmp_path / "bystander"
        near.mkdir()
        (near / "precious").write_bytes(b"precious")
        (near / "precious").chmod(0o640)
        peer.plant(near, "bystander")
        yield near
        for place in (near, peer.look("bystander")):
            assert {b"precious": (b"precious", 0o100640, None)} == content_of(place, times=False)

    # --------------------------------------------------------------------------- helpers

    def opened(self, peer: Peer, site: SiteContext, **settings: Any) -> TransferRelay:
        """Open the driver once more."""
        driver = make_driver("transfer", self.driver, {**peer.settings, **settings})
        return TransferRelay(driver, site, layers=[TypeChecked()], source=f"the contract's {self.driver}")

    def errand(self, way: str, peer: Peer, source: Path, name: str = "errand") -> Errand:
        """Make an errand whose near side lies beside *source*; skip the test when the driver has no such hook."""
        if way == "copy" and not self._copies(peer):
            pytest.skip(f"{self.driver} does not copy from server to server")
        return Errand(way, peer, source, source.parent / f"near {name}", name)

    def _copies(self, peer: Peer) -> bool:
        return type(make_driver("transfer", self.driver, peer.settings)).copy is not Transfer.copy

    def need(self, ability: str) -> None:
        """Skip the test when the subclass says that this cannot be done."""
        if ability in self.cannot:
            pytest.skip(f"{self.driver} cannot {ability}: {self.cannot[ability]}")

    def differences(self, profile: TransferProfile, source: Path, target: Path) -> dict[bytes, object]:
        """Return what is not the same in two trees, as far as the driver says that it keeps it."""
        wanted, found = (
            content_of(root, modes=profile.keeps_modes, times=profile.keeps_times)
            for root in (source, target)
        )
        return {
            name: (found.get(name, "missing"), wanted.get(name, "not wanted"))
            for name in {**wanted, **found}
            if not self._same(wanted.get(name), found.get(name))
        }

    def _same(self, one: object, other: object) -> bool:
        if not isinstance(one, tuple) or not isinstance(other, tuple):
            return False
        if "directory" in (one[0], other[0]):
            return bool(one[0] == other[0])
        apart_ns = abs(one[-1] - other[-1]) if one[0] != "link" and one[-1] is not None else 0
        return bool(one[:-1] == other[:-1]) and apart_ns <= self.times_within_s * 1e9


# ----------------------------------------------------------------------------------- watching


@contextmanager
def watched(errand: Errand) -> Iterator[Sequence[str]]:
    """Look again and again at the target; give the list of files that had a final name too early."""
    sizes = {
        os.path.relpath(os.path.join(place, name), errand.source): os.lstat(os.path.join(place, name)).st_size
        for place, _, names in os.walk(errand.source)
        for name in names
    }
    early: list[str] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.005):
            target = errand.target
            for name, size in sizes.items():
                try:
                    found = os.lstat(target / name).st_size
                except OSError:
                    continue
                if found != size:
                    early.append(f"{name} had {found} of {size} bytes")

    thread = threading.Thread(target=look, name="watch the target")
    thread.start()
    try:
        yield early
    finally:
        ended.set()
        thread.join()
