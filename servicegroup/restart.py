"""When to start a service again, and after how long. Pure: clock and chance are passed in."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from attrs import field, frozen


def _number(low: float, high: float = math.inf) -> Callable[[object, object, object], None]:
    def check(_policy: object, attribute: object, value: object) -> None:
        name = getattr(attribute, "name", attribute)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"Restart: {name} must be a number, not {value!r}")
        if math.isnan(value) or not low <= value <= high:
            limits = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"Restart: {name} must be {limits}, not {value!r}")

    return check


@frozen(kw_only=True)
class Restart:
    """A policy for `on_failure` and `on_return`: run the service again, with growing pauses.

    More than `max_restarts` within a sliding window of `within` seconds are a failure (the window
    is that of Erlang/OTP's supervisors, the growing pause that of thejerf/suture). Once a service
    has run for a whole window, the pause is back at its first value.

    Attributes:
        max_restarts: how many in one window; `math.inf`: no limit, 0: none at all.
        within: the window, in seconds.
        delay: the first pause, in seconds.
        factor: by how much the pause grows each time; 1 or more.
        max_delay: what it does not grow beyond, in seconds.
        jitter: the share of each pause that is left to chance, up and down; from 0 to 1.

    Raises:
        TypeError: one of them is no number.
        ValueError: one is out of its range.
    """

    max_restarts: float = field(default=5, validator=_number(0))
    within: float = field(default=60.0, validator=_number(0))
    delay: float = field(default=0.1, validator=_number(0))
    factor: float = field(default=2.0, validator=_number(1))
    max_delay: float = field(default=30.0, validator=_number(0))
    jitter: float = field(default=0.1, validator=_number(0, 1))


class RestartHistory:
    """The restarts of one service under one policy.

    Args:
        policy: the policy.
        random: the chance for the jitter: a number from 0 to 1 at each call.
    """

    __slots__ = ("_last", "_pause", "_policy", "_random", "_times")

    def __init__(self, policy: Restart, random: Callable[[], float]) -> None:
        self._policy = policy
        self._random = random
        self._times: deque[float] = deque()  # of the restarts in the window
        self._last = -math.inf
        self._pause = policy.delay

    def next(self, now: float) -> float | None:
        """Seconds to pause before one more restart; None when that would be one too many.

        `now` is when the service ended, in seconds of whatever clock the caller keeps to.
        """
        policy, times = self._policy, self._times
        while times and now - times[0] >= policy.within:
            times.popleft()
        if len(times) >= policy.max_restarts:
            return None
        if policy.max_restarts != math.inf:
            times.append(now)
        if now - self._last >= policy.within:
            self._pause = policy.delay
        pause = min(self._pause, policy.max_delay)
        self._pause = min(pause * policy.factor, policy.max_delay)
        pause *= 1 + policy.jitter * (2 * self._random() - 1)
        self._last = now + pause
        return pause
