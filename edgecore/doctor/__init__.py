"""Examine a site: everything that its service will need, and what to do about what is wrong.

Nothing is taken and no job is touched, so that a site may be examined while its service works, and before its
first start. What a start would make anyway (the queues at the broker, the directory of a driver) may be
made. Each check runs by itself with a time limit: one that hangs or crashes is a finding like any other.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence

from attrs import evolve, frozen

from edgecore.config import SiteConfig
from edgecore.doctor.checks import Check, findings_of
from edgecore.doctor.credentials import credential_checks
from edgecore.doctor.drivers import driver_checks
from edgecore.doctor.host import account_check, host_checks
from edgecore.doctor.limits import limit_checks
from edgecore.doctor.programs import program_checks
from edgecore.doctor.store import store_checks
from edgecore.models import Finding, Level, SiteContext

__all__ = ["Section", "diagnose"]


@frozen
class Section:
    """What was found in one part of a site."""

    title: str
    """``host``, ``store``, ``messaging`` and the like."""
    findings: tuple[Finding, ...]

    def count(self, level: Level) -> int:
        """Return how many findings are of that level."""
        return sum(finding.level is level for finding in self.findings)


def diagnose(config: SiteConfig, *, plugins: Sequence[object] = ()) -> Iterator[Section]:
    """Yield what is found in each part of a site, as soon as the part was examined.

    Drivers are opened only under the account that the store, or else the work directory, belongs to.
    *plugins* are layers beside those that the configuration names. Raises nothing; a check that gives no
    answer within its time limit is left behind in a thread that does not keep the process alive.
    """
    checks = _checks(config, evolve(config.context, examining=True), plugins)
    for title, of_one_part in itertools.groupby(checks, key=lambda check: check.title):
        found = itertools.chain.from_iterable(map(_run, of_one_part))
        yield Section(title, tuple(found))


def _checks(config: SiteConfig, context: SiteContext, plugins: Sequence[object]) -> Iterator[Check]:
    yield from host_checks(config)
    yield from store_checks(config)
    yield from credential_checks(config)
    if all(finding.level is not Level.FAILURE for finding in _run(account_check(config))):
        yield from driver_checks(config, context, plugins)
    yield from program_checks(config, context)
    yield from limit_checks(config)


def _run(check: Check) -> tuple[Finding, ...]:
    """Make one check in a thread of its own, and wait for it no longer than it may take."""
    found: list[Finding] = []

    def work() -> None:
        try:
            found.extend(check.find())  # one by one: what came before a crash counts
        except (Exception, SystemExit) as error:
            found.extend(findings_of(check.subject, error))

    thread = threading.Thread(target=work, name=f"doctor {check.title} {check.subject}", daemon=True)
    thread.start()
    thread.join(check.limit_s)
    answered = tuple(found)
    if not thread.is_alive():
        return answered
    words = f"gave no answer within {check.limit_s:g} s"
    return (*answered, Finding(check.subject, Level.FAILURE, words, check.when_silent))
