"""The driver for file:// keeps the contract of the transfer role."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from copies import url_of

from edgecore import carrying
from edgecore.testing.disks import small_disk
from edgecore.testing.transfer import Peer, TransferContract


class Directory(Peer):
    """Another directory of this machine."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.place, self.url = place, url_of(place)
        self.impatient = {"no_progress_s": 0.3}

    @contextmanager
    def slow(self) -> Iterator[None]:
        write = os.copy_file_range

        def slowly(*given: object) -> int:
            time.sleep(0.1)  # for each MiB
            return write(*given)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "copy_file_range", slowly)
            yield

    @contextmanager
    def take_permission(self, name: str) -> Iterator[None]:
        path = self.place / name
        mode = path.stat().st_mode
        path.chmod(0)
        try:
            if os.access(path, os.R_OK):
                pytest.skip("this user, probably root, may read everything")
            yield
        finally:
            path.chmod(mode)

    @contextmanager
    def fill_disk(self) -> Iterator[None]:
        with small_disk(self.place):
            yield

    @contextmanager
    def stall(self) -> Iterator[None]:
        go_on, read, before = threading.Event(), os.preadv, set(threading.enumerate())

        def hang(*given: object) -> int:
            go_on.wait(60)
            return read(*given)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "preadv", hang)
            patch.setattr(carrying, "_ENDING_S", 0.1)
            try:
                yield
            finally:
                go_on.set()
                for thread in set(threading.enumerate()) - before:
                    thread.join(20)


class TestFile(TransferContract):
    driver = "file"
    live = True
    by_hand = frozenset({"test_a_file_of_five_gigabytes_arrives"})  # the kernel counts; it is shown with scp
    cannot: ClassVar = {
        "break_connection": "there is none between two directories of one machine",
        "list_as": "the kernel lists the names, and none of its names holds a slash",
        "send_more": "a file has the size that it has; one that grows meanwhile is tested in test_copy.py",
    }

    @pytest.fixture
    def peer(self, tmp_path: Path) -> Peer:
        return Directory(tmp_path / "far side")
