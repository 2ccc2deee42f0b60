"""Examine whether a site's limits and times fit each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from edgecore.config import SiteConfig
from edgecore.directories import size_words
from edgecore.doctor.checks import Check
from edgecore.models import Finding, Level

__all__ = ["limit_checks"]

_POLLS: Final = 2
"""So many listings should miss a job before it counts as gone."""


def limit_checks(config: SiteConfig) -> Iterator[Check]:
    """Return what is compared."""
    yield Check(title="limits", subject="limits", find=lambda: _all(config))


def _all(config: SiteConfig) -> Iterator[Finding]:
    trouble = [*_defaults(config), *_times(config), *_room(config)]
    yield from trouble or [Finding("limits", Level.OK, "fit each other")]


def _defaults(config: SiteConfig) -> Iterator[Finding]:
    """Find defaults that the site's own limits forbid: every definition without the key is rejected."""
    limits, defaults = config.limits, config.defaults
    for key, default, limit, most in (
        ("num_nodes", defaults.num_nodes, "max_nodes", limits.max_nodes),
        (
            "wall_time_minutes",
            defaults.wall_time_minutes,
            "max_wall_time_minutes",
            limits.max_wall_time_minutes,
        ),
    ):
        if most is not None and default > most:
            words = f"[defaults] {key} = {default:,} is more than [limits] {limit} = {most:,}"
            yield Finding(key, Level.FAILURE, words, "lower the default, or raise the limit")


def _times(config: SiteConfig) -> Iterator[Finding]:
    timing, retry = config.timing, config.retry
    interval_s = timing.poll_interval_s
    if interval_s is not None:
        for key, least_s in (("lost_after_s", _POLLS * interval_s), ("alarm_after_s", interval_s)):
            if getattr(timing, key) < least_s:
                words = f"[timing] {key} = {getattr(timing, key):g} with poll_interval_s = {interval_s:g}"
                remedy = f"make {key} at least {least_s:g}: one listing that fails is no evidence"
                yield Finding(key, Level.WARNING, words, remedy)
    if retry.first_s > retry.longest_s:
        words = f"[retry] first_s = {retry.first_s:g} is more than longest_s = {retry.longest_s:g}"
        yield Finding("retry", Level.WARNING, words, "make longest_s the longer one")
    if config.retention.keep_failed_days < config.retention.keep_days:
        words = "[retention] keeps directories of failed jobs for less time than those of finished ones"
        yield Finding(
            "retention", Level.WARNING, words, "who is to look into a failure needs them: swap the two"
        )


def _room(config: SiteConfig) -> Iterator[Finding]:
    """Compare what transfers may bring at once with what the work directory has room for."""
    limits, place = config.limits, config.work_directory
    if limits.max_transfer_bytes is None or not place.is_dir():
        return
    room = os.statvfs(place)
    free_bytes = room.f_bavail * room.f_frsize
    if limits.max_transfer_bytes > free_bytes:
        words = f"[limits] max_transfer_bytes allows {size_words(limits.max_transfer_bytes)} to one job, "
        words += f"and {place} has {size_words(free_bytes)} free"
        yield Finding("max_transfer_bytes", Level.WARNING, words, "lower it, or make room")
