"""Make throw-away sites on the embedded default; see `edgecore.testing.site` for what they can do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecore.testing import site as sites
from edgecore.testing.site import Site, stop, wait_for

__all__ = ["Site", "make_site", "stop", "wait_for"]


def make_site(
    base: Path,
    *,
    slots: int = 4,
    poll_s: float = 0.2,
    grace_s: float = 2,
    lost_after_s: float = 4,
    messaging: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    more: str = "",
) -> Site:
    """Lay out a site whose batch system is `fork`, with an application ``ledger``."""
    return sites.make_site(
        base,
        scheduling={"driver": "fork", "slots": slots, "poll_interval_s": 0.2, "idle_s": 3},
        messaging=messaging,
        environment=environment,
        timing={"poll_interval_s": poll_s, "grace_s": grace_s, "lost_after_s": lost_after_s},
        more=more,
    )
