"""Ten services whose stop() takes down when it was entered; the first such time is printed."""

import time

from servicegroup import Service, ServiceGroup

entered: list[float] = []


class Stopped(Service):
    def start(self) -> None:
        self.stopping.wait()

    def stop(self) -> None:
        entered.append(time.monotonic())


class Last(Stopped):
    def __init__(self, group: ServiceGroup) -> None:
        self.group = group

    def start(self) -> None:
        self.group.wait_ready()
        print("running", flush=True)
        super().start()


def main() -> None:
    group = ServiceGroup()
    for _ in range(9):
        group.add(Stopped())
    group.add(Last(group))
    group.start()
    print(entered[0])


if __name__ == "__main__":
    main()
