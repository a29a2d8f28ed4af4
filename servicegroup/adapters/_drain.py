"""How long a server may wait for requests in flight."""

from __future__ import annotations

import math

# Of the time until a service is abandoned; the rest is for cutting what is left, and telling of it.
DRAIN_SHARE = 0.9


def seconds_to_drain(remaining: float) -> float | None:
    """Seconds until what is left is to be cut, of those `remaining`; None: no limit."""
    return None if remaining == math.inf else DRAIN_SHARE * remaining
