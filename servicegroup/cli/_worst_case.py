"""How long a stop can take, by the limits of each service alone."""

from __future__ import annotations

from servicegroup._aio_group import AsyncGroup
from servicegroup._table import Entry
from servicegroup.group import ServiceGroup


def worst_case(group: ServiceGroup) -> float:
    """Seconds from when the drain is over, if every service takes all of its time.

    A nested group takes no more than its own `shutdown_timeout`, and not even that where its
    services have less.
    """
    seconds = [_limit(entry) for entry in group._table.entries]
    return max(seconds, default=0.0) if group._settings.stop_concurrently else sum(seconds)


def _limit(entry: Entry) -> float:
    service = entry.service
    if isinstance(service, ServiceGroup):
        whole = min(worst_case(service), service._settings.shutdown_timeout)
    elif isinstance(service, AsyncGroup):
        whole = min(sum(map(_limit, service._table.entries)), service._shutdown_timeout)
    else:
        return entry.options.stop_timeout
    return min(whole, entry.options.stop_timeout)
