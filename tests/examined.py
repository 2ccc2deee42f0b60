"""Examine one part of a site, for the tests of the doctor."""

from __future__ import annotations

from collections.abc import Iterable

from places import Place

from edgecore import doctor
from edgecore.config import SiteConfig
from edgecore.doctor.checks import Check
from edgecore.models import Finding, Level

OK, WARNING, FAILURE = Level.OK, Level.WARNING, Level.FAILURE


def changed(place: Place, old: str, new: str) -> SiteConfig:
    """Return the configuration of a site whose file was edited."""
    text = place.file.read_text()
    assert old in text
    place.file.write_text(text.replace(old, new, 1))
    return place.config


def added(place: Place, text: str) -> SiteConfig:
    """Return the configuration of a site whose file has become longer."""
    with place.file.open("a") as file:
        file.write(text)
    return place.config


def examined(checks: Iterable[Check], title: str) -> dict[str, Finding]:
    """Return what the checks of one part find, by subject; the last one of a subject counts."""
    found = [finding for check in checks if check.title == title for finding in doctor._run(check)]
    assert all(finding.remedy for finding in found if finding.level is not OK), found
    return {finding.subject: finding for finding in found}
