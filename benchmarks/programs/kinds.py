"""As many services of one kind as the arguments say, in a group; SIGTERM ends them."""

import sys
import time
from collections.abc import Callable

from servicegroup import Service, ServiceGroup

# Each loads what it needs and nothing else: the first service of a kind costs that, too.


class Waiter(Service):
    def start(self) -> None:
        self.stopping.wait()


class Last(Waiter):
    begun = 0.0

    def __init__(self, group: ServiceGroup) -> None:
        self.group = group

    def start(self) -> None:
        self.group.wait_ready()
        print(self.begun, time.monotonic(), flush=True)
        super().start()


def service(group: ServiceGroup) -> Callable[[], object]:
    return lambda: group.add(Waiter())


def periodic(group: ServiceGroup) -> Callable[[], object]:
    from servicegroup import Periodic

    return lambda: group.add(Periodic(lambda: None, every=3600.0))


def async_service(group: ServiceGroup) -> Callable[[], object]:
    from servicegroup import AsyncService

    class AsyncWaiter(AsyncService):
        async def run(self) -> None:
            await self.stopping.wait()

    return lambda: group.add(AsyncWaiter())


def async_group(group: ServiceGroup) -> Callable[[], object]:
    from servicegroup import AsyncGroup, AsyncService

    class AsyncWaiter(AsyncService):
        async def run(self) -> None:
            await self.stopping.wait()

    loop = group.add(AsyncGroup(stop_timeout=600, shutdown_timeout=600))
    return lambda: loop.add(AsyncWaiter())


def in_process(group: ServiceGroup) -> Callable[[], object]:
    from servicegroup import InProcess

    return lambda: group.add(InProcess(Waiter))


KINDS = {
    "Service": service,
    "Periodic": periodic,
    "AsyncService": async_service,
    "AsyncGroup": async_group,
    "InProcess": in_process,
}


def main() -> None:
    group = ServiceGroup(stop_timeout=600, shutdown_timeout=600)
    add = KINDS[sys.argv[1]](group)
    Last.begun = time.monotonic()
    for _ in range(int(sys.argv[2])):
        add()
    group.add(Last(group))
    group.start()


if __name__ == "__main__":
    main()
