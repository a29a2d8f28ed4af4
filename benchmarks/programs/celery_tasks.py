"""So many tasks that do nothing, and a worker of Celery for them: it is killed afterwards.

Arguments: the broker's URL, a name for the queue, how many.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from benchmarks.programs.tally import Tally

THREADS = 4
PREFETCH = 200


def main() -> None:
    url, queue, tasks = sys.argv[1:]
    # By name: it has no types, and need not be installed.
    app: Any = import_module("celery").Celery("benchmark", broker=url)
    app.conf.update(
        task_default_queue=queue,
        task_ignore_result=True,
        worker_prefetch_multiplier=PREFETCH // THREADS,
    )
    tally = Tally(int(tasks))

    def note() -> None:
        tally.note()

    task = app.task(name="note")(note)
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(int(tasks)):
            task.apply_async(producer=producer)
    app.start(
        [
            *("--quiet", "worker", "--pool", "threads", "--concurrency", str(THREADS)),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]
    )


if __name__ == "__main__":
    main()
