"""As many services as the argument says, in a group; SIGTERM ends them."""

import sys
import time

from servicegroup import Service, ServiceGroup


class Waiter(Service):
    def start(self) -> None:
        self.stopping.wait()


class Last(Waiter):
    # No subscriber tells of it: with one, the group would make a record for every single service.
    def __init__(self, group: ServiceGroup, begun: float) -> None:
        self.group = group
        self.begun = begun

    def start(self) -> None:
        self.group.wait_ready()
        print(self.begun, time.monotonic(), flush=True)
        super().start()


def main() -> None:
    begun = time.monotonic()
    group = ServiceGroup(stop_timeout=600, shutdown_timeout=600)
    for _ in range(int(sys.argv[1]) - 1):
        group.add(Waiter())
    group.add(Last(group, begun))
    group.start()


if __name__ == "__main__":
    main()
