"""Open what a site's configuration names to talk to: its broker, its batch system, its places for files.

The service opens them, and so does whoever examines or feeds a site; all of them see the same keys, layers
and names in errors.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgecore.config import SiteConfig, TransferTable
from edgecore.drivers import (
    MessagingRelay,
    SchedulingRelay,
    TransferRelay,
    open_messaging,
    open_scheduling,
    open_transfer,
)
from edgecore.models import Queue, SiteContext, Topology

__all__ = ["connect_broker", "open_batch_system", "open_broker", "open_place", "topology"]


def topology(config: SiteConfig) -> Topology:
    """Return the exchange and the queues that a site needs."""
    messaging = config.messaging
    return Topology(
        exchanges=(messaging.exchange,),
        queues=(
            Queue(name=config.queue, exchange=messaging.exchange, keys=(config.queue,)),
            Queue(name=messaging.status_key, exchange=messaging.exchange, keys=(messaging.status_key,)),
        ),
    )


def connect_broker(
    config: SiteConfig, plugins: Sequence[object] = (), context: SiteContext | None = None
) -> MessagingRelay:
    """Connect to the site's broker, as *context* says. Raises ConfigurationError, BrokerUnavailable."""
    table = config.messaging
    return open_messaging(
        table.scheme,
        {**table.settings, "url": table.url},
        context or config.context,
        source=f"{config.source} [messaging]",
        layers=plugins,
    )


def open_broker(config: SiteConfig, plugins: Sequence[object] = ()) -> MessagingRelay:
    """Connect to the site's broker and make sure that its exchange and queues exist.

    Raises ConfigurationError, BrokerUnavailable.
    """
    relay = connect_broker(config, plugins)
    try:
        relay.declare(topology=topology(config))
    except BaseException:
        relay.close()
        raise
    return relay


def open_batch_system(
    config: SiteConfig, plugins: Sequence[object] = (), context: SiteContext | None = None
) -> SchedulingRelay:
    """Open the site's batch system, as *context* says. Raises ConfigurationError, SchedulerUnavailable."""
    table = config.scheduling
    return open_scheduling(
        table.driver,
        table.settings,
        context or config.context,
        source=f"{config.source} [scheduling]",
        layers=plugins,
    )


def open_place(
    config: SiteConfig,
    table: TransferTable,
    plugins: Sequence[object] = (),
    context: SiteContext | None = None,
) -> TransferRelay:
    """Open what moves files below one prefix, as *context* says. Raises ConfigurationError."""
    return open_transfer(
        table.scheme,
        table.settings,
        context or config.context,
        source=f"{config.source} [[transfer]] {table.prefix}",
        layers=plugins,
    )
