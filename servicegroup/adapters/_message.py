"""A message, and what a handler can say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen


@frozen(kw_only=True)
class Message:
    """What a handler is given.

    Attributes:
        body: as it was published.
        headers: as they were published; none where the broker has no headers.
        id: the broker's name for it; what a handler that must not do its work twice can remember.
        attempt: 1 when it is handled for the first time, as far as the broker knows.
        first_seen: when it was published, or else first delivered: seconds since the epoch.
        raw: what the broker's library has for it.
    """

    body: bytes
    headers: Mapping[str, str] = field(factory=dict)
    id: str = ""
    attempt: int = 1
    first_seen: float = 0.0
    raw: Any = field(default=None, repr=False)  # of another type for each library

    def text(self) -> str:
        """The body as text.

        Raises:
            Reject: it is no UTF-8, and will not be the next time either.
        """
        try:
            return self.body.decode()
        except UnicodeDecodeError as error:
            raise Reject(f"the body is no UTF-8: {error}") from None

    def json(self) -> Any:  # whatever JSON holds
        """What the body says in JSON.

        Raises:
            Reject: it is no JSON, and will not be the next time either.
        """
        try:
            return json.loads(self.text())
        except json.JSONDecodeError as error:
            raise Reject(f"the body is no JSON: {error}") from None


class Reject(Exception):
    """Raised by a handler: this message can never be handled.

    It goes to the dead letters at once. Without any it is dropped, and the log has it.
    """


class Retry(Exception):
    """Raised by a handler: not now, once more in `after` seconds.

    As often as the handler likes: it does not use up the attempts of the `RetryPolicy`.

    Raises:
        ValueError: `after` is negative, infinite or NaN.
    """

    def __init__(self, reason: str = "", *, after: float) -> None:
        if not 0 <= after < math.inf:
            raise ValueError(f"Retry: after must be 0 or more seconds, not {after!r}")
        super().__init__(reason or f"once more in {after:g} s")
        self.after = after


@frozen
class RetryPolicy:
    """How often, and after what pauses, a message is handled again whose handler raised.

    Attributes:
        attempts: how many in all; `math.inf`: no limit.
        delay: the first pause, in seconds.
        factor: by how much it grows each time; 1 or more.
        max_delay: what it does not grow beyond, in seconds.
        jitter: the share of each pause that is left to chance, up and down; from 0 to 1.

    Raises:
        TypeError: one of them is no number.
        ValueError: one is out of its range.
    """

    attempts: float = 5
    delay: float = field(default=1.0, kw_only=True)
    factor: float = field(default=2.0, kw_only=True)
    max_delay: float = field(default=60.0, kw_only=True)
    jitter: float = field(default=0.1, kw_only=True)

    def __attrs_post_init__(self) -> None:
        limits = {
            "attempts": (1.0, math.inf),
            "delay": (0.0, math.inf),
            "factor": (1.0, math.inf),
            "max_delay": (0.0, math.inf),
            "jitter": (0.0, 1.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"RetryPolicy: {name} must be a number, not {value!r}")
            if not low <= value <= high or (value == math.inf and name != "attempts"):
                upper = f"from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
                raise ValueError(f"RetryPolicy: {name} must be {upper}, not {value!r}")

    def pause(self, attempt: int, chance: float) -> float:
        """Seconds before the attempt after `attempt`; `chance` is a number from 0 to 1."""
        try:
            grown = self.delay * self.factor ** (attempt - 1)
        except OverflowError:
            grown = self.max_delay
        return min(grown, self.max_delay) * (1 + self.jitter * (2 * chance - 1))
