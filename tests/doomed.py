"""Run a service that kills itself with SIGKILL at a named point of a job's way.

Run as a program: ``doomed.py POINT COUNT SITE.toml`` dies when the point is passed for the
COUNTth time. The seams of the product are wrapped here, so that the product holds no code for it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import edgecore
from edgecore import batch, relays, rows, store, store_file

_left = 1
_lock = threading.Lock()


def die_here() -> None:
    """Die if it is time."""
    global _left
    with _lock:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()


def _after(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if result:
            die_here()
        return result

    setattr(owner, name, wrapped)


def _before(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        die_here()
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def _after_prepare() -> None:
    real = batch.RunDirectory.prepare

    def prepare(self: batch.RunDirectory, script: bytes) -> None:
        real(self, script)
        die_here()

    batch.RunDirectory.prepare = prepare  # type: ignore[method-assign]


def _around_commit(state: str, *, after: bool) -> Callable[[], None]:
    """Die just before or just after the transaction in which a job gets to *state*."""

    def install() -> None:
        real = rows.write_history
        seen = threading.local()

        def write_history(connection: Any, job: Any) -> None:
            real(connection, job)
            seen.state = getattr(seen, "state", False) or job.state == state

        rows.write_history = write_history
        together = store.Store._write_together

        def write_together(self: Any, items: Any) -> None:
            together(self, items)
            if getattr(seen, "state", False):
                seen.state = False
                die_here()

        transaction = store_file.transaction

        def watched(connection: Any) -> Any:
            return _Dying(transaction(connection), seen)

        if after:
            store.Store._write_together = write_together  # type: ignore[method-assign]
        else:
            store_file.transaction = watched

    return install


class _Dying:
    def __init__(self, inner: Any, seen: threading.local) -> None:
        self.inner, self.seen = inner, seen

    def __enter__(self) -> Any:
        return self.inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        if getattr(self.seen, "state", False):
            self.seen.state = False
            die_here()
        return self.inner.__exit__(*error)


_COMMITTED: Final = (
    "CREATED",
    "STAGED_IN",
    "PREPROCESSED",
    "SUBMITTING",
    "SUBMITTED",
    "RUNNING",
    "EXECUTION_FINISHED",
    "EXECUTION_FAILED",
    "STAGED_OUT",
    "JOB_FINISHED",
    "JOB_FAILED",
)

POINTS: Final[dict[str, Callable[[], None]]] = {
    "received": lambda: _after(relays.MessagingRelay, "receive"),
    "before settling": lambda: _before(relays.MessagingRelay, "settle"),
    "settled": lambda: _after(relays.MessagingRelay, "settle"),
    "before fetching": lambda: _before(relays.TransferRelay, "fetch"),
    "fetched": lambda: _after(relays.TransferRelay, "fetch"),
    "before delivering": lambda: _before(relays.TransferRelay, "deliver"),
    "delivered": lambda: _after(relays.TransferRelay, "deliver"),
    "token made": _after_prepare,
    "before submit": lambda: _before(relays.SchedulingRelay, "submit"),
    "after submit": lambda: _after(relays.SchedulingRelay, "submit"),
    "observed": lambda: _after(relays.SchedulingRelay, "observe"),
    "looked for by tag": lambda: _after(relays.SchedulingRelay, "find"),
    "token read": lambda: _after(batch.RunDirectory, "token"),
    "before revoking": lambda: _before(batch.RunDirectory, "revoke"),
    "revoked": lambda: _after(batch.RunDirectory, "revoke"),
    "before fencing": lambda: _before(batch.RunDirectory, "stop"),
    "fenced": lambda: _after(batch.RunDirectory, "stop"),
    "before cancelling": lambda: _before(relays.SchedulingRelay, "cancel"),
    "cancelled": lambda: _after(relays.SchedulingRelay, "cancel"),
    "before sending": lambda: _before(relays.MessagingRelay, "send"),
    "sent": lambda: _after(relays.MessagingRelay, "send"),
    **{f"before {state} is committed": _around_commit(state, after=False) for state in _COMMITTED},
    **{f"{state} committed": _around_commit(state, after=True) for state in _COMMITTED},
}


if __name__ == "__main__":
    point, count, site = sys.argv[1:]
    _left = int(count)
    logging.basicConfig(level="INFO")
    POINTS[point]()
    edgecore.run_site(site)
