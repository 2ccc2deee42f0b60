"""The driver for sqlite:// keeps the contract of the messaging role."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from edgecore.testing.messaging import MessageBroker, MessagingContract


class QueueDirectory(MessageBroker):
    """A queue file in a directory that can be taken away, as a file system is when it is unmounted."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.place, self.away = place, place.with_name("away")
        self.settings = {"url": f"sqlite://{place}/queue.sqlite"}

    def stop(self) -> None:
        self.place.rename(self.away)

    def start(self) -> None:
        self.away.rename(self.place)


class TestSqlite(MessagingContract):
    driver = "sqlite"
    live = True
    cannot: ClassVar = {"kill": "there is no server that could be killed; its clients are, elsewhere here"}
    quiet_s = 0.05
    wakes_within_s = 0.05

    @pytest.fixture
    def broker(self, tmp_path: Path) -> MessageBroker:
        return QueueDirectory(tmp_path / "broker")
