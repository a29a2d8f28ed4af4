"""A group of one service, which prints when it runs; run by itself or by `servicegroup run`."""

from __future__ import annotations

import threading
import time

from servicegroup import ServiceGroup, with_start


def waits(stopping: threading.Event) -> None:
    print(time.monotonic(), flush=True)
    stopping.wait()


group = ServiceGroup()
group.add(with_start(waits))

if __name__ == "__main__":
    group.run()
