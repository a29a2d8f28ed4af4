"""A service that fails at once, as often as the first argument says, and is started again.

It prints for how many seconds it was away each time.
"""

import logging
import math
import sys
import time

from servicegroup import Restart, Service, ServiceGroup


class Failing(Service):
    def __init__(self, times: int) -> None:
        self.times = times
        self.raised_at: float | None = None
        self.seconds: list[float] = []

    def start(self) -> None:
        if self.raised_at is not None:
            self.seconds.append(time.perf_counter() - self.raised_at)
        if len(self.seconds) < self.times:
            self.raised_at = time.perf_counter()
            raise ConnectionError


def main() -> None:
    logging.getLogger("servicegroup").setLevel(logging.CRITICAL)  # thousands of tracebacks
    group = ServiceGroup(on_failure=Restart(delay=0.0, max_restarts=math.inf))
    service = group.add(Failing(int(sys.argv[1])))
    group.start()
    print(*service.seconds)


if __name__ == "__main__":
    main()
