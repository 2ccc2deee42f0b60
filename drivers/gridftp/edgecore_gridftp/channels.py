"""Keep control channels open from one transfer to the next, of whatever job, and close those that nobody uses.

A log-in costs a handshake and a process there. A channel that was given back is lent to whoever next goes to the same server with
the same proxy, after a look whether it still lives; a proxy that was renewed gets channels of its own. No command that is sent
here leaves a state on a channel besides the log-in: there is no change of directory, and content goes by the client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field, frozen

from edgecore.carrying import Tally
from edgecore.certificates import Stamp
from edgecore.errors import TransferInterrupted
from edgecore_gridftp.control import Control, Server
from edgecore_gridftp.gsi import Credential

__all__ = ["Channels"]

_END_S: Final = 5.0


@frozen
class _Login:
    """Where somebody is logged in, and as whom."""

    server: str
    credential: Credential | None
    proxy: Stamp
    """What tells one proxy in the credential's file from the next."""


@frozen
class _Resting:
    """A channel that nobody uses."""

    login: _Login
    control: Control
    since: float


@define(eq=False)
class Channels:
    """The channels of one driver; each is used by one borrower at a time."""

    idle_s: float
    _resting: list[_Resting] = field(factory=list, init=False)
    """In the order in which they were given back."""
    _lock: threading.Condition = field(factory=threading.Condition, init=False)
    _janitor: threading.Thread | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    @contextmanager
    def channel(self, server: Server, tally: Tally) -> Iterator[Control]:
        """Lend a channel, logged in. Raises TransferRefused, TransferInterrupted."""
        login = _login(server)
        control = self._rested(login, tally) or Control(server, tally).connect()
        try:
            yield control
        finally:
            self._take_back(login, control)

    def close(self) -> None:
        """Hang up everywhere; what is lent is closed when it comes back."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            resting, self._resting = self._resting, []
        _hang_up(resting)
        if self._janitor is not None:
            self._janitor.join(_END_S)

    def _rested(self, login: _Login, tally: Tally) -> Control | None:
        """Return the channel that was used last and still lives."""
        while (control := self._picked(login)) is not None:
            if control.resumed(tally):
                return control
        return None

    def _picked(self, login: _Login) -> Control | None:
        with self._lock:
            if self._closed:
                raise TransferInterrupted("the driver is closed; open it again")
            outdated = [
                each
                for each in self._resting
                if (each.login.server, each.login.credential) == (login.server, login.credential)
                and each.login.proxy != login.proxy
            ]
            self._resting = [each for each in self._resting if each not in outdated]
            found = next((each for each in reversed(self._resting) if each.login == login), None)
            if found is not None:
                self._resting.remove(found)
        _hang_up(outdated)
        return None if found is None else found.control

    def _take_back(self, login: _Login, control: Control) -> None:
        with self._lock:
            keep = control.answered and not self._closed
            if keep:
                control.tally = Tally()  # what the transfer counted is not kept with it
                self._resting.append(_Resting(login, control, time.monotonic()))
                self._lock.notify_all()
            if keep and self._janitor is None:
                self._janitor = threading.Thread(target=self._tidy, name="gridftp idle", daemon=True)
                self._janitor.start()
        if not keep:
            control.close()

    def _tidy(self) -> None:
        """Close what nobody used for a while."""
        while True:
            with self._lock:
                if self._closed:
                    return
                oldest = self._resting[0].since + self.idle_s if self._resting else None
                wait_s = None if oldest is None else oldest - time.monotonic()
                if wait_s is None or wait_s > 0:
                    self._lock.wait(wait_s)
                    continue
                old = self._resting.pop(0)
            _hang_up([old])


def _login(server: Server) -> _Login:
    credential = server.credential
    return _Login(server.place.server, credential, () if credential is None else credential.check())


def _hang_up(resting: list[_Resting]) -> None:
    for each in resting:
        each.control.close()
