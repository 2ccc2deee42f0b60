"""Put tests into the order in which several processes of pytest need the fewest servers, and none is left alone in the end.

``--dist worksteal`` gives each process a stretch of the tests and lets who has done with it take from the end of another's.
So what shares a server that takes long to start stands together, at the very front, from where nobody takes it but in
the end; then come the other slow tests, module by module; and the quick ones, which are the stretches of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

__all__ = ["share"]

_SERVERS: Final = ("rabbitmq_server", "slurm_server", "slurm_accounting_server", "slurm_strict")
"""Fixtures that take seconds to make; a test that uses two goes with the first."""


def share(items: list[pytest.Item]) -> None:
    """Sort *items* by the server that they use, then slow before quick; otherwise they stay as they are."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    fixtures: Sequence[str] = getattr(item, "fixturenames", ())
    for place, server in enumerate(_SERVERS):
        if server in fixtures:
            return place
    return len(_SERVERS) + (item.get_closest_marker("slow") is None)
