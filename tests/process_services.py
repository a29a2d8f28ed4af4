"""Services for children to run: a child can only make what it can import."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from servicegroup import InProcess, Service, ServiceGroup, with_start

log = logging.getLogger("tests.child")


class Steady(Service):
    """Runs until it is asked to stop, and writes down in a file what is done to it."""

    ready_when = "announced"

    def __init__(self, notes: Path | None = None) -> None:
        self.notes = notes
        self.released = threading.Event()  # `stopping` is set before stop() is called

    def note(self, *words: object) -> None:
        if self.notes is not None:
            with self.notes.open("a") as file:
                file.write(" ".join(map(str, words)) + "\n")

    def start(self) -> None:
        self.note("start")
        self.mark_ready()
        self.released.wait()
        self.note("end")

    def drain(self) -> None:
        self.note("drain")

    def stop(self) -> None:
        self.note("stop", self.remaining())
        self.released.set()


class Wavering(Service):
    """Ready while a file is there."""

    ready_when = "announced"

    def __init__(self, file: Path) -> None:
        self.file = file

    def start(self) -> None:
        while self.sleep(0.002):
            if self.file.exists():
                self.mark_ready()
            else:
                self.mark_not_ready()


class Picky(Exception):
    """One that cannot be made again out of its `args`."""

    def __init__(self, one: object, other: object) -> None:
        super().__init__(f"{one} and {other}")


class Unpicklable(Exception):
    """One that holds what no other process can have."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Raising(Service):
    """Raises, in its `start()` or in its `stop()`."""

    def __init__(self, error: BaseException | partial[Any], where: str = "start") -> None:
        self.error = error
        self.where = where

    def _raise(self) -> None:
        raise self.error() if isinstance(self.error, partial) else self.error

    def start(self) -> None:
        if self.where == "start":
            self._raise()
        self.stopping.wait()
        if "end" in self.where:
            self._raise()

    def stop(self) -> None:
        if "stop" in self.where:
            self._raise()


class Logging(Service):
    """Says something, in several ways."""

    def start(self) -> None:
        log.debug("not asked for")
        log.warning("a %s of %d", "record", 1, extra={"mine": threading.Lock(), "order": 7})
        try:
            raise ValueError("logged")
        except ValueError:
            log.exception("with a traceback")


def failing_factory() -> Service:
    raise LookupError("no such service")


def exiting_factory() -> Service:
    sys.exit(5)


def no_service() -> Any:
    return object()


def returning() -> Service:
    return with_start(lambda: None)


def background() -> Service:
    service = with_start(lambda: None)
    service.ready_when = "returned"
    return service


def exiting(code: object) -> Service:
    return with_start(lambda: sys.exit(code))  # type: ignore[arg-type]  # any object will do


def leaving(code: int) -> Service:
    return with_start(lambda: os._exit(code))


def hanging_factory(notes: Path) -> Service:
    notes.write_text("factory\n")
    time.sleep(600)
    raise AssertionError


def deaf() -> Service:
    """One that does not hear that it is to stop."""
    return with_start(sleep_on)


def hanging_stop() -> Service:
    return with_start(lambda stopping: stopping.wait(), sleep_on)


def leave_a_thread() -> None:
    """One that keeps the process, unlike those that daemon threads make by default."""
    threading.Thread(target=sleep_on, daemon=False).start()


def sleep_on() -> None:
    time.sleep(600)


def holding_the_lock(notes: Path) -> Service:
    """One that never gives the interpreter's lock away."""

    def hold() -> None:
        notes.write_text("held\n")
        ctypes.PyDLL(None).sleep(600)

    return with_start(hold)


def immune(notes: Path) -> Service:
    """The same, and SIGTERM does nothing to it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return holding_the_lock(notes)


def exiting_with_a_lock() -> Service:
    return exiting(threading.Lock())


def deaf_and_lingering() -> Service:
    """One that does not hear, and leaves a thread."""

    def start() -> None:
        leave_a_thread()
        sleep_on()

    return with_start(start)


def matryoshka() -> InProcess:
    """One with a child of its own."""
    return InProcess(returning)


def counting(data: bytes, length: int) -> Service:
    assert len(data) == length
    return returning()


def lingering() -> Service:
    """One that leaves behind a thread which keeps the process."""
    return with_start(leave_a_thread)


def group_of_two(notes: Path) -> ServiceGroup:
    group = ServiceGroup(name="inner")
    group.add(Steady(notes), name="one")
    group.add(Steady(notes), name="two")
    return group


class Numbered(Service):
    """The first to take a number fails once the second has taken its own, and others run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def start(self) -> None:
        (self.directory / str(os.getpid())).touch()
        while self.sleep(0.002):
            if (self.directory / f"fail-{os.getpid()}").exists():
                raise ConnectionError(f"{os.getpid()} was told to fail")

    def stop(self) -> None:
        with (self.directory / "stops").open("a") as file:
            file.write(f"{os.getpid()}\n")


class NotPicklable:
    """Makes a service, but cannot be sent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self) -> Service:
        return Steady()


async def coroutine() -> Service:
    return Steady()


class Mute(Exception):
    """One whose message cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no message")


class ExitingBadly(Service):
    """Exits, and its `stop()` fails besides."""

    def start(self) -> None:
        self.stopping.wait()
        sys.exit(4)

    def stop(self) -> None:
        raise ValueError("besides")


def logging_badly() -> Service:
    def start() -> None:
        log.warning("%d", "no number")

    return with_start(start)
