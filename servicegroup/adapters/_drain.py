"""How long a server may wait for requests in flight, and what is said of those it cut."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

log = logging.getLogger("servicegroup.adapters")

FIRST_WORD = 1.0  # seconds: who has connected and said nothing by then has nothing to say
CUT_SECONDS = 0.2  # for handlers to notice that their connection was cut

# Seconds before a service is abandoned, for cutting what is left and telling of it: enough where a
# machine is busy. Where there is little time, half of it.
MARGIN = 1.0


def seconds_to_drain(remaining: float) -> float | None:
    """Seconds until what is left is to be cut, of those `remaining`; None: no limit."""
    return None if remaining == math.inf else remaining - min(MARGIN, remaining / 2)


def log_cut(name: str, requests: list[str], stacks: Iterable[str]) -> None:
    """Tell of the `requests` of service `name` that were cut, and where those that hang are."""
    hung = [stack for stack in stacks if stack]
    log.error(
        "service %r cut %d requests in flight, since its time was up: those of %s%s",
        name,
        len(requests),
        ", ".join(requests),
        f"; {len(hung)} hang:\n{''.join(hung)}" if hung else "",
    )
