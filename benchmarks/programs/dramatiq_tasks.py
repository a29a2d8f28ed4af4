"""So many tasks that do nothing, and a worker of dramatiq for them: it is killed afterwards.

Arguments: the broker's URL, a name for the queue, how many.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Any

from benchmarks.programs.tally import Tally

THREADS = 4
PREFETCH = 200


def main() -> None:
    url, queue, tasks = sys.argv[1:]
    # By name: a type checker is to find no fault where it is not installed.
    dramatiq: Any = import_module("dramatiq")
    kind = "Redis" if url.startswith("redis") else "Rabbitmq"
    broker = getattr(import_module(f"dramatiq.brokers.{kind.lower()}"), f"{kind}Broker")(url=url)
    dramatiq.set_broker(broker)
    tally = Tally(int(tasks))

    def note() -> None:
        tally.note()

    actor = dramatiq.actor(note, queue_name=queue)
    for _ in range(int(tasks)):
        actor.send()
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    worker.queue_prefetch = PREFETCH
    worker.start()
    signal.pause()


if __name__ == "__main__":
    main()
