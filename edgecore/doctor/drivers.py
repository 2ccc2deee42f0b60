"""Examine drivers and plugins: open each as the service will, ask it one thing, let it look for trouble."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Final

from attrs import define, evolve

from edgecore.config import SiteConfig, TransferTable
from edgecore.doctor.catalogue import demands
from edgecore.doctor.checks import Check, findings_of
from edgecore.drivers import (
    Listeners,
    MessagingRelay,
    SchedulingRelay,
    TransferRelay,
    list_drivers,
    open_plugins,
)
from edgecore.errors import BrokerUnavailable, ConfigurationError, EdgeError, Unavailable
from edgecore.models import Finding, Level, SiteContext
from edgecore.partners import connect_broker, open_batch_system, open_place, topology

__all__ = ["driver_checks"]

_DRIVER_S: Final = 45.0
"""For a driver that asks a server; a driver's own time limits should come before."""
_SLOW_S: Final = 10.0
_NO_TAG: Final = "edoctor"
"""No attempt is called so: its id would be of the first hours of 1970."""
_SEE_BROKER: Final = (
    "see that the broker runs, that this host reaches it, and that [messaging] names it rightly"
)
_SEE_BATCH: Final = "try the batch system's own commands as this account; ask its operators if they fail too"
_SEE_PLACE: Final = "see that the server answers, that the place is there, and that this account may read it"


def driver_checks(config: SiteConfig, context: SiteContext, plugins: Sequence[object]) -> Iterator[Check]:
    """Return what is asked of plugins and drivers; *plugins* are opened already."""
    visit = _Visit(config, context, list(plugins))
    see = "see which package hangs while it is imported: edgecore drivers --check"
    yield Check(title="plugins", subject="enabled", find=visit.enabled, when_silent=see)
    yield Check(title="plugins", subject="installed", find=visit.installed, when_silent=see)
    yield Check(
        title="messaging", subject="broker", find=visit.messaging, limit_s=_DRIVER_S, when_silent=_SEE_BROKER
    )
    yield Check(
        title="scheduling",
        subject=config.scheduling.driver,
        find=visit.scheduling,
        limit_s=_DRIVER_S,
        when_silent=_SEE_BATCH,
    )
    yield Check(title="transfer", subject="prefixes", find=partial(_prefixes, config.transfer))
    for table in config.transfer:
        yield Check(
            title="transfer",
            subject=table.prefix,
            find=partial(visit.transfer, table),
            limit_s=_DRIVER_S,
            when_silent=_SEE_PLACE,
        )


@define(eq=False)
class _Visit:
    """A site's plugins and drivers, one after the other; drivers under the layers that could be opened."""

    config: SiteConfig
    context: SiteContext
    plugins: list[object]

    def enabled(self) -> Iterator[Finding]:
        """Open each layer and listener that the site names."""
        table, source = self.config.plugins, str(self.config.source)
        for name, count in Counter(table.enabled).items():
            if count > 1:
                words = f"[plugins] enabled names it {count} times"
                yield Finding(name, Level.FAILURE, words, "name each plugin once")
            try:
                opened = open_plugins([name], {name: table.settings.get(name, {})}, source=source)
                Listeners(opened)
            except ConfigurationError as error:
                yield from findings_of(name, error)
            else:
                self.plugins.extend(opened)
                yield Finding(name, Level.OK, "is found and takes its settings")
        try:
            open_plugins([], {name: table.settings[name] for name in table.settings}, source=source)
        except ConfigurationError as error:
            if not set(table.settings).issubset(table.enabled):  # else it was said above
                yield from findings_of("settings", error)

    def installed(self) -> Iterator[Finding]:
        """Import whatever is installed: a package that is broken now may be the next one to be used."""
        config = self.config
        used = {("scheduling", config.scheduling.driver), ("messaging", config.messaging.scheme)}
        used |= {("transfer", table.scheme) for table in config.transfer}
        used |= {("plugins", name) for name in config.plugins.enabled}
        listed = list_drivers(check=True)
        broken = [each for each in listed if each.status == "unusable"]
        yield Finding(
            "installed", Level.OK, f"{len(listed)} drivers and plugins, {len(broken)} of them unusable"
        )
        for each in broken:
            if (each.role, each.name) not in used:  # else it is said where it is opened
                remedy = f"repair or uninstall {each.package}; this site does not use it"
                yield Finding(each.package, Level.WARNING, each.error, remedy)

    def messaging(self) -> Iterator[Finding]:
        """Connect, and make sure of the queues as every start does."""
        begun = time.monotonic()
        try:
            relay = connect_broker(self.config, self.plugins, self.context)
        except EdgeError as error:
            yield from findings_of("broker", error, _SEE_BROKER)
            yield from _found_all_the_same(error)
            return
        with closing(relay):
            version = f", version {relay.profile.version}" if relay.profile.version else ""
            yield _timed("broker", f"{relay.profile.broker} answers{version}", begun)
            try:
                declared = relay.declare(topology=topology(self.config))
            except EdgeError as error:
                allow = "let this account use these queues, or make them anew"
                away = isinstance(error, BrokerUnavailable)
                yield from findings_of("queues", error, _SEE_BROKER if away else allow)
            else:
                yield Finding("queues", Level.OK, f"declared: {', '.join(declared.queues)}")
            yield from _diagnosed(relay)

    def scheduling(self) -> Iterator[Finding]:
        """Open the batch system and ask for a job that there is not."""
        driver, begun = self.config.scheduling.driver, time.monotonic()
        try:
            context = evolve(self.context, demands=demands(self.config))
            relay = open_batch_system(self.config, self.plugins, context)
        except EdgeError as error:
            yield from findings_of(driver, error, _SEE_BATCH)
            return
        with closing(relay):
            yield _timed(driver, f"opened: {relay.profile.version or 'version not told'}", begun)
            yield from self._asked(relay)
            yield from self._polled(relay)
            yield from _diagnosed(relay)

    def _asked(self, relay: SchedulingRelay) -> Iterator[Finding]:
        begun = time.monotonic()
        try:
            found = relay.find(tags=(_NO_TAG,))
        except EdgeError as error:
            yield from findings_of("query", error, _SEE_BATCH)
            return
        if found:
            words = f"asked for {_NO_TAG}, which nobody submitted, it told of {', '.join(found)}"
            yield Finding("query", Level.FAILURE, words, f"report this to the makers of the {relay.source}")
        else:
            yield _timed("query", "answered", begun)

    def _polled(self, relay: SchedulingRelay) -> Iterator[Finding]:
        asked, kind = self.config.timing.poll_interval_s, relay.profile.poll_interval_s
        if asked is not None and asked < kind:
            words = (
                f"[timing] poll_interval_s = {asked:g}; the driver finds {kind:g} s kind to the batch system"
            )
            yield Finding(
                "poll interval", Level.WARNING, words, "leave it out, or ask the batch system's operators"
            )

    def transfer(self, table: TransferTable) -> Iterator[Finding]:
        """Open the driver for one prefix and have it look at the place."""
        begun = time.monotonic()
        try:
            relay = open_place(self.config, table, self.plugins, self.context)
        except EdgeError as error:
            yield from findings_of(table.prefix, error, _SEE_PLACE)
            return
        with closing(relay):
            try:
                report = relay.probe(url=table.prefix)
            except EdgeError as error:
                yield from findings_of(table.prefix, error, _SEE_PLACE)
            else:
                if report.ok:
                    yield _timed(table.prefix, report.message, begun)
                else:
                    yield Finding(table.prefix, Level.FAILURE, report.message, _SEE_PLACE)
            yield from _diagnosed(relay)


def _prefixes(tables: Sequence[TransferTable]) -> Iterator[Finding]:
    """Find prefixes that are never used, since URLs below them go to an earlier one."""
    if not tables:
        yield Finding("prefixes", Level.OK, "none: jobs may neither bring input nor take output away")
    for number, table in enumerate(tables):
        earlier = next((one.prefix for one in tables[:number] if one.allows(table.prefix)), None)
        if earlier is not None:
            words = f"[[transfer]] {table.prefix} is never used: {earlier} stands before it"
            yield Finding("prefixes", Level.WARNING, words, "put the longer prefix first, or remove one")


def _found_all_the_same(error: EdgeError) -> Iterator[Finding]:
    """Yield what a driver that could not be opened knows nevertheless, unless the error says it."""
    found = error.findings if isinstance(error, Unavailable) else ()
    for finding in found:
        if isinstance(finding, Finding) and finding.message not in str(error):
            yield finding


def _diagnosed(relay: MessagingRelay | SchedulingRelay | TransferRelay) -> Iterator[Finding]:
    """Yield what the driver finds by itself."""
    try:
        answer: Sequence[object] = relay.diagnose()
    except EdgeError as error:
        yield from findings_of("driver", error, f"look into what the {relay.source} says")
        return
    for finding in answer:
        if isinstance(finding, Finding):
            yield finding
        else:
            words = f"diagnose of the {relay.source} answered {type(finding).__name__}, not findings"
            yield Finding("driver", Level.FAILURE, words, "report this to its makers")


def _timed(subject: str, words: str, begun: float) -> Finding:
    """Say how long an answer took; one that came late is a warning."""
    took_s = time.monotonic() - begun
    if took_s > _SLOW_S:
        remedy = "find out why it is slow: every listing and submission will be"
        return Finding(subject, Level.WARNING, f"{words}, after {took_s:.1f} s", remedy)
    return Finding(subject, Level.OK, f"{words} ({took_s:.2f} s)")
