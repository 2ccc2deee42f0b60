"""Say how long to wait after failures; the one place where waiting times grow."""

from __future__ import annotations

import random

from attrs import frozen

__all__ = ["Backoff"]


@frozen(kw_only=True)
class Backoff:
    """Exponential back-off with jitter."""

    first_s: float = 10.0
    longest_s: float = 600.0
    tries: int = 10
    """After how many failures in a row to give up, where that is possible at all."""

    def after(self, failures: int) -> float:
        """Return seconds to wait after that many failures in a row."""
        wait = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return wait * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, guards nothing
