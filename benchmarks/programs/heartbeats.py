"""A service that calls heartbeat() as often as the argument says; prints the seconds of a call."""

import sys
import time

from servicegroup import Service, ServiceGroup


class Beating(Service):
    heartbeat_timeout = 60.0
    on_return = "stop"

    def start(self) -> None:
        count = int(sys.argv[1])
        begun = time.perf_counter()
        for _ in range(count):
            self.heartbeat()
        print((time.perf_counter() - begun) / count)


def main() -> None:
    group = ServiceGroup()
    group.add(Beating())
    group.start()


if __name__ == "__main__":
    main()
