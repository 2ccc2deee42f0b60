"""Run a service for a test: one that kills itself with SIGKILL at a named point of a job's way, if wanted.

Run as a program by `edgecore.testing.site`. The seams of the product are wrapped here, so that the product
holds no code for it. What the batch system's driver answers is checked against the types that it promises.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

from edgecore import batch, clock, relays, rows, service, store, store_file
from edgecore.testing.checks import TypeChecked

__all__ = ["LOOKED", "LOOK_FAILED", "POINTS", "main"]

LOOKED: Final = "a look was answered"
"""What is logged after each listing of the batch system."""
LOOK_FAILED: Final = "a look was not answered"

_LONGEST_RECEIVE_S: Final = 0.1

_log = logging.getLogger(__name__)

_left = 0
"""How often the point is still to be passed; 0 where nobody is to die."""
_lock = threading.Lock()


def _die_here() -> None:
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
            _die_here()
        return result

    setattr(owner, name, wrapped)


def _before(owner: Any, name: str) -> None:
    real = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _die_here()
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def _after_prepare() -> None:
    real = batch.RunDirectory.prepare

    def prepare(self: batch.RunDirectory, script: bytes) -> None:
        real(self, script)
        _die_here()

    batch.RunDirectory.prepare = prepare  # type: ignore[method-assign]


def _around_commit(state: str, *, after: bool) -> Callable[[], None]:
    """Die just before or just after the transaction in which a job gets to *state*."""

    def install() -> None:
        real = rows.write_history
        seen = threading.local()

        def write_history(connection: Any, jobs: Any) -> None:
            real(connection, jobs)
            seen.state = getattr(seen, "state", False) or any(job.state == state for job in jobs)

        rows.write_history = write_history
        together = store.Store._write_together  # noqa: SLF001

        def write_together(self: Any, items: Any) -> None:
            together(self, items)
            if getattr(seen, "state", False):
                seen.state = False
                _die_here()

        transaction = store_file.transaction

        def watched(connection: Any) -> Any:
            return _Dying(transaction(connection), seen)

        if after:
            store.Store._write_together = write_together  # type: ignore[method-assign]  # noqa: SLF001
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
            _die_here()
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


def _go_ahead(seconds: float) -> None:
    """Let the service's clock go before ours."""
    real = clock.Clock.now

    def now(self: clock.Clock) -> int:
        return real(self) + round(seconds * 1e6)

    clock.Clock.now = now  # type: ignore[method-assign]


def _tell_of_looks() -> None:
    """Log each listing, so that a test can wait for some."""
    real = relays.SchedulingRelay.observe

    def observe(self: relays.SchedulingRelay, **arguments: Any) -> Any:
        try:
            answer = real(self, **arguments)
        except Exception:
            _log.info(LOOK_FAILED)
            raise
        _log.info(LOOKED)
        return answer

    relays.SchedulingRelay.observe = observe  # type: ignore[method-assign]


def _ask_often() -> None:
    """Let no test wait for a service that waits for messages when it is told to stop."""
    real = relays.MessagingRelay.receive

    def receive(self: relays.MessagingRelay, *, timeout_s: float, **arguments: Any) -> Any:
        return real(self, timeout_s=min(timeout_s, _LONGEST_RECEIVE_S), **arguments)

    relays.MessagingRelay.receive = receive  # type: ignore[method-assign]


def main() -> None:
    """Run the service of one site until it is told to stop, or dies."""
    global _left
    parser = argparse.ArgumentParser()
    parser.add_argument("site")
    parser.add_argument("--ahead", type=float, default=0.0)
    parser.add_argument("--die", nargs=2, metavar=("POINT", "COUNT"))
    options = parser.parse_args()
    logging.basicConfig(level="INFO")
    _go_ahead(options.ahead)
    _tell_of_looks()
    _ask_often()
    if options.die:
        point, count = options.die
        _left = int(count)
        POINTS[point]()
    service.run_site(options.site, plugins=(TypeChecked(),))


if __name__ == "__main__":
    main()
