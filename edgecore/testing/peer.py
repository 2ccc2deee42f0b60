"""Say what contract tests need of the far side of a transfer: to look at it, to prepare it, to spoil it.

The tests of `TransferContract` know no protocol. A `Peer` is one server with one empty place on it, which a
driver author's fixture starts; most servers of a test run on this machine, and then `place` is
all that it takes. What the author leaves out cannot be done there, and `TransferContract.cannot` says why.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

__all__ = ["Peer"]


class Peer:
    """One server with a place for one test."""

    url: str
    """URL of a directory that exists and is empty; without a slash at its end."""
    place: Path
    """The same directory as this machine sees it, unless `plant` and `look` know another way."""
    settings: Mapping[str, Any] = {}
    """The driver's own keys in ``[transfer.<scheme>]``."""
    impatient: Mapping[str, Any] = {}
    """Keys besides, with which the driver gives up after a second or less in which nothing moves."""
    environment: Mapping[str, str] = {}
    """``[environment] set``: what the driver's commands need, such as a PATH or a credential."""

    # ------------------------------------------------------------------------------- looking

    def url_of(self, name: str) -> str:
        """Return the URL of a path below the place; bytes of all kinds are allowed in it."""
        return f"{self.url}/{quote(os.fsencode(name))}"

    def origin_of(self, name: str) -> str:
        """Return the URL from which a copy from server to server takes a path below the place: where this machine
        can play two servers, the other one, which shows the same files."""
        return self.url_of(name)

    def plant(self, source: Path, name: str) -> None:
        """Put a file or tree there under *name*, by other means than the driver, modes, times and links kept."""
        target = self.place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target, follow_symlinks=False)

    def look(self, name: str = "") -> Path:
        """Return where this machine sees what is there under *name* now, whether or not it exists."""
        return self.place / name

    # ------------------------------------------------------------------------------ spoiling

    def slow(self) -> AbstractContextManager[None]:
        """Let the driver, in this process, move about 10 MiB a second and no more."""
        raise NotImplementedError

    def take_permission(self, name: str) -> AbstractContextManager[None]:
        """Let the peer's user neither read nor write what is under *name*."""
        raise NotImplementedError

    def fill_disk(self) -> AbstractContextManager[None]:
        """Leave room for less than 1 MiB at the place; what stood there may be hidden meanwhile."""
        raise NotImplementedError

    def break_connection(self) -> AbstractContextManager[None]:
        """Cut every connection, and accept none meanwhile."""
        raise NotImplementedError

    def stall(self) -> AbstractContextManager[None]:
        """Keep connections and answer nothing on them: no byte moves in either direction."""
        raise NotImplementedError

    def list_as(self, name: str, entries: Sequence[str]) -> AbstractContextManager[None]:
        """Be hostile: list the tree *name* as holding files called *entries*, such as ``../escaped``."""
        raise NotImplementedError

    def send_more(self, name: str) -> AbstractContextManager[None]:
        """Be hostile: send more bytes of the file *name* than were announced, without an end."""
        raise NotImplementedError
