"""Read the catalogue of applications as it stands, and say what jobs of a site may ask of the batch system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Final

from edgecore.config import SiteConfig
from edgecore.errors import EdgeError, StoreError
from edgecore.models import Application, Demands, Finding, Level
from edgecore.reader import Reader

__all__ = ["ADD", "catalogue", "demands"]

ADD: Final = "correct its file and register it again: edgecore apps add FILE.toml"
"""What to do about an entry that is wrong."""


def catalogue(config: SiteConfig, tell: Callable[[Finding], None] = lambda _: None) -> list[Application]:
    """Return the entries that can be read; *tell* of the others."""
    found: list[Application] = []
    if not os.path.isfile(config.store):
        return found
    try:
        with closing(Reader(config.store)) as reader:
            for name in sorted(reader.application_names()):
                try:
                    application = reader.application(name)
                except (EdgeError, ValueError) as error:
                    tell(Finding(name, Level.FAILURE, f"its entry cannot be read: {error}", ADD))
                else:
                    found += [] if application is None else [application]
    except StoreError as error:
        tell(Finding("catalogue", Level.WARNING, f"not examined: {error}", "see what is said of the store"))
    return found


def demands(config: SiteConfig) -> Demands:
    """Return what jobs may ask for: by default, by the site's limits, and by those of its applications."""
    defaults, limits, found = config.defaults, config.limits, catalogue(config)
    nodes = [(one.name, one.max_nodes) for one in found]
    minutes = [(one.name, one.max_wall_time_minutes) for one in found]
    return Demands(
        queue=defaults.queue,
        project=defaults.project,
        num_nodes=dict(_asked("num_nodes", defaults.num_nodes, "max_nodes", limits.max_nodes, nodes)),
        wall_time_minutes=dict(
            _asked(
                "wall_time_minutes",
                defaults.wall_time_minutes,
                "max_wall_time_minutes",
                limits.max_wall_time_minutes,
                minutes,
            )
        ),
    )


def _asked(
    key: str, default: int, limit: str, most: int | None, applications: list[tuple[str, int | None]]
) -> Iterator[tuple[str, int]]:
    """Yield who lets jobs ask for how much; an application that allows more than the site adds nothing."""
    yield f"[defaults] {key}", default
    if most is not None:
        yield f"[limits] {limit}", most
    for name, allowed in applications:
        if allowed is not None and (most is None or allowed < most):
            yield f"{limit} of application {name}", allowed
