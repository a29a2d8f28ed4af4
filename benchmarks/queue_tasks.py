"""Task queues beside the consumers: the rate at which their worker does what is nothing to do."""

from __future__ import annotations

import importlib.util
import uuid

from benchmarks.queue_programs import running

# The program, and the module it needs.
LIBRARIES = {"Celery": ("celery_tasks", "celery"), "dramatiq": ("dramatiq_tasks", "dramatiq")}
KINDS = ("redis", "rabbitmq")


def missing(library: str) -> str:
    """Why that library cannot be measured; empty if it can."""
    _, module = LIBRARIES[library]
    found = importlib.util.find_spec(module)
    return "" if found else "it is not installed (the extra bench has it)"


def rate(library: str, url: str, tasks: int, on: set[int]) -> float:
    """Tasks a second, with a worker on these processors.

    Raises:
        RuntimeError: it failed.
    """
    program, _ = LIBRARIES[library]
    # A queue of its own: a worker that is killed may leave some that it has not acknowledged.
    with running(program, url, f"tasks-{uuid.uuid4()}", tasks, on=on) as child:
        return (tasks - 1) / child.number()
