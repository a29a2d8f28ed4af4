"""What consumes, in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from servicegroup import ServiceGroup, events
from servicegroup.adapters import _queue_run, sqlite
from servicegroup.adapters.queue import Handler, Message, Reject, Retry, RetryPolicy
from tests.adapters.queues.rig import consumer_of
from tests.child import PATIENCE

SOON = 10.0  # for what waits for nothing: longer than a machine stands still
STEP = 2 * SOON  # what a stop waits for in vain lasts that long, if it has the time
STOP = 20 * PATIENCE  # of which a step may take a twentieth


def be_patient(change: Callable[[Any, str, object], None]) -> None:
    """Have a busy machine keep nobody from a word with a broker that is there."""
    change(_queue_run, "CLOSE_SECONDS", STEP)
    change(sqlite, "BUSY_SECONDS", PATIENCE)


class Work:
    """The handler: what it does is what the body says. It writes down what it has finished.

    Bodies: `raise …` raises, `reject …`, `retry …` say that to the consumer, `hang …` never ends,
    `wait … SECONDS` takes so long; all others take `seconds`. What follows may be anything.
    """

    def __init__(self, log: str, seconds: float) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._seconds = seconds
        self._is_first = True

    def handle(self, message: Message) -> None:
        self._begin(message)
        if (seconds := self._time(message)) is None:
            threading.Event().wait()
        elif seconds:
            time.sleep(seconds)
        self._end(message)

    async def ahandle(self, message: Message) -> None:
        self._begin(message)
        if (seconds := self._time(message)) is None:
            await asyncio.Event().wait()
        elif seconds:
            await asyncio.sleep(seconds)
        self._end(message)

    def _begin(self, message: Message) -> None:
        match message.text().split():
            case ["raise", *_]:
                raise ValueError(f"no good: {message.text()}")
            case ["reject", *_]:
                raise Reject("not wanted")
            case ["retry", *_] if message.attempt < 4:
                raise Retry(after=0.01)

    def _time(self, message: Message) -> float | None:
        match message.text().split():
            case ["hang", *_]:
                self._write(f"hangs {message.text()}")
                return None
            case ["wait", *_, seconds]:
                self._write(f"waits {message.text()}")
                return float(seconds)
        return self._seconds

    def _end(self, message: Message) -> None:
        self._write(message.text())
        if self._is_first:
            self._is_first = False
            say("first")

    def _write(self, line: str) -> None:
        # At once whole, or not at all: a kill -9 may tear what lies across two pages.
        os.write(self._log, line.encode().ljust(63) + b"\n")


def main(
    kind: str,
    options: dict[str, Any],
    log: str,
    *,
    asynchronous: bool = False,
    seconds: float = 0.0,
    attempts: int = 3,
    delay: float = 0.01,
    stop_timeout: float = STOP,
    looks: float | None = None,
    **others: Any,
) -> None:
    """Consume until SIGTERM; say whether it is ready.

    `looks` are the seconds between looks at a file of SQLite, while nobody rings.
    """
    logging.basicConfig()
    be_patient(setattr)
    # A stop that waits in vain is to be short, and still far from its deadline.
    _queue_run.HANDLERS_SHARE = 0.1
    if looks is not None:
        sqlite.LOOK_SECONDS = sqlite.DEAF_SECONDS = looks
    work = Work(log, seconds)
    handler: Handler = work.ahandle if asynchronous else work.handle
    others["retry"] = RetryPolicy(attempts, delay=delay)
    consumer = consumer_of(kind, options, handler, others)
    group = ServiceGroup(stop_timeout=stop_timeout, shutdown_timeout=2 * stop_timeout)
    group.add(consumer)
    told = threading.Event()

    def tell(event: events.Event) -> None:
        match event:
            case events.ServiceReady():
                say("ready")
            case events.ServiceNotReady():
                say("away")
            case events.ServiceStopped():
                say(f"stopped {event.seconds}")
            case events.GroupStopped():
                say(f"handled {consumer.handled} failed {consumer.failed} left {consumer.in_hand}")
                told.set()

    group.subscribe(tell)
    try:
        group.run()
    finally:
        told.wait(PATIENCE)  # a group waits for its subscribers no longer than a second


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())
