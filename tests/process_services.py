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
from types import ModuleType
from typing import Any

from servicegroup import InProcess, Restart, Service, ServiceGroup, with_start

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
    """One that cannot be made again by calling it with its `args`."""

    def __init__(self, one: object, *, other: object) -> None:
        super().__init__(f"{one} and {other}")
        self.one = one


class PickyOS(OSError):
    """The same with what `OSError` has besides."""

    def __init__(self, *, path: str) -> None:
        super().__init__(2, "not there", path)


class Liar(Exception):
    """One that knows how to be made again, and is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return Liar, ()


class Wordy(str):
    """A word that no other process is to know."""


class Awkward(Exception):
    """One whose message and notes are not what they should be."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())
        notes: list[object] = [Mute(), Wordy("a note"), 3]
        vars(self)["__notes__"] = notes

    def __str__(self) -> str:
        return Wordy("awkward")


class Unpicklable(Exception):
    """One that holds what no other process can have."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


def mixed() -> ExceptionGroup:
    """A group of one that can be sent and one that cannot."""
    error = ExceptionGroup("mixed", [ConnectionError("lost"), Unpicklable("held")])
    error.add_note("a note")
    return error


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


class Dying(Service):
    """Logs more than the socket holds, and is gone."""

    def start(self) -> None:
        for number in range(500):
            log.warning("record %d", number, extra={"padding": "x" * 1000})
        os.kill(os.getpid(), signal.SIGKILL)


class Foreign:
    """What only the child can read; see `logging_of_foreign`."""


def logging_of_foreign() -> Service:
    module = ModuleType("only_in_the_child")
    sys.modules[module.__name__] = module
    Foreign.__module__ = module.__name__
    vars(module)["Foreign"] = Foreign

    def start() -> None:
        log.warning("with something", extra={"thing": Foreign(), "service": "mine"})

    return with_start(start)


class Together(Service):
    """Its stop takes until as many have been asked to stop as there are."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.count = count
        self.released = threading.Event()

    def start(self) -> None:
        self.released.wait()

    def stop(self) -> None:
        (self.directory / str(os.getpid())).touch()
        while len(list(self.directory.iterdir())) < self.count:
            time.sleep(0.002)
        self.released.set()


class FailingOnce(Service):
    """Fails at its first start."""

    def __init__(self) -> None:
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        if self.starts == 1:
            raise ConnectionError("the first time")
        self.mark_ready()
        self.stopping.wait()


def group_with_restart() -> ServiceGroup:
    group = ServiceGroup(name="inner")
    group.add(FailingOnce(), name="one", ready_when="announced", on_failure=Restart(delay=0.01))
    return group


class Beating(Service):
    """Gives heartbeats but for those of its processes whose file is there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def start(self) -> None:
        while self.sleep(0.002):
            if not (self.directory / str(os.getpid())).exists():
                self.heartbeat()


class Silent(Service):
    """Watched for heartbeats by its own will, and gives none."""

    heartbeat_timeout = 0.05
    on_stall = "fail"

    def start(self) -> None:
        self.stopping.wait()
