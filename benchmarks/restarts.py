"""From a failure until the service runs again, with no pause: `python -m benchmarks.restarts`."""

from __future__ import annotations

import logging
import math
import statistics
import time

from servicegroup import Restart, Service, ServiceGroup

ROUNDS = 2000


class Failing(Service):
    """Raises at once, as often as there are rounds, and notes how long it was away."""

    def __init__(self) -> None:
        self.raised_at: float | None = None
        self.seconds: list[float] = []

    def start(self) -> None:
        if self.raised_at is not None:
            self.seconds.append(time.perf_counter() - self.raised_at)
        if len(self.seconds) < ROUNDS:
            self.raised_at = time.perf_counter()
            raise ConnectionError


def main() -> None:
    logging.getLogger("servicegroup").setLevel(logging.CRITICAL)
    group = ServiceGroup(on_failure=Restart(delay=0.0, max_restarts=math.inf))
    service = group.add(Failing())
    group.start()
    times = sorted(second * 1000 for second in service.seconds)
    print(
        f"{ROUNDS} restarts, failure to running again: median {statistics.median(times):.3f} ms, "
        f"99th percentile {times[len(times) * 99 // 100]:.3f} ms"
    )


if __name__ == "__main__":
    main()
