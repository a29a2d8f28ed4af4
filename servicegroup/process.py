"""`InProcess`: a service whose work is done in child processes."""

from __future__ import annotations

import math
import os
import pickle
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from servicegroup._child import Job
from servicegroup._child_errors import (
    ChildDiedError,
    ChildError,
    ChildStopTimeoutError,
    ChildTraceback,
)
from servicegroup._child_log import Levels
from servicegroup._child_worker import Worker, is_failure
from servicegroup._runner import Runner
from servicegroup.report import ServiceStatus, one_line
from servicegroup.service import (
    Composite,
    Managed,
    ReadyWhen,
    StartStop,
    require_plain,
    required_arguments,
)

__all__ = ["ChildDiedError", "ChildError", "ChildStopTimeoutError", "ChildTraceback", "InProcess"]


class InProcess(Managed, Composite):
    """A service that runs in a child process, or in several: for what keeps the interpreter busy.

    To the group it is a service like any other. It is ready when the service in the child is;
    `drain()`, `stop()`, `remaining()`, heartbeats, failures, `sys.exit()` and log records come
    through to the other side. An exception arrives as the type it was where it can be pickled, else
    as a `ChildError`, always with the child's traceback as its `__cause__`. A child that ends
    otherwise is a `ChildDiedError`; one that does not stop in time gets SIGTERM, then SIGKILL, and
    is a `StopTimeoutError`. A child whose parent is gone ends at once.

    The child is a new interpreter (multiprocessing's "spawn"), never a fork. It imports the main
    module again, so the program's start belongs under `if __name__ == "__main__":`.

    Args:
        factory: makes the service, in the child; called in the child's main thread without
            arguments (bind some with `functools.partial`). It is pickled here and now, so it is a
            class or function at the top level of a module. What the service itself says of
            `on_failure`, `on_return` and `daemon` does not count, what this object says does.
        workers: how many children, all alike. They are started at once and stopped at once; when
            one fails, all are stopped. Each is a part of this service's status.
        name: what the group calls it; by default the name of the factory.

    Raises:
        TypeError: the factory cannot be called without arguments, is a coroutine function or
            cannot be pickled, or `workers` is no int.
        ValueError: `workers` is less than 1, or `name` is empty.
    """

    ready_when: ReadyWhen | None = "announced"

    def __init__(
        self, factory: Callable[[], StartStop], *, workers: int = 1, name: str | None = None
    ) -> None:
        self._factory = _pickled(factory)
        if isinstance(workers, bool) or not isinstance(workers, int):
            raise TypeError(f"InProcess(): workers must be an int, not {workers!r}")
        if workers < 1:
            raise ValueError(f"InProcess(): workers must be 1 or more, not {workers}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"InProcess(): name must be a string, not {name!r}")
        if name is not None and not name.strip():
            raise ValueError("InProcess(): name must not be empty")
        self.name = _name_of(factory) if name is None else name
        self._count = workers
        self._workers: tuple[Worker, ...] = ()
        # Guards the three below: what other threads ask for, and how they wake the one of start().
        # Reentrant, for a signal's handler that calls stop() on that very thread.
        self._lock = threading.RLock()
        self._asked = False
        self._drains = False
        self._wake = -1

    def __repr__(self) -> str:
        return f"<InProcess {self.name!r}: workers={self._count}, pids={list(self.pids)}>"

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the children that live. Any thread."""
        return tuple(worker.pid for worker in self._workers if worker.pid and not worker.over)

    def start(self) -> None:
        """Run the children until all have ended; called by the group.

        Raises:
            BaseException: what the service raised in the child; of several workers or failures, an
                `ExceptionGroup` of them.
            ChildDiedError, ChildError, StopTimeoutError: see the class.
            SystemExit: the service called `sys.exit()`.
        """
        wake, write = os.pipe()
        try:
            os.set_blocking(wake, False)
            os.set_blocking(write, False)
            with self._lock:
                self._wake = write
            self._workers = workers = tuple(self._new_workers())
            try:
                with _woken_by_signals(write):
                    self._supervise(workers, wake)
            finally:
                # Nothing is left of them, unless this very thread was interrupted.
                for worker in workers:
                    worker.kill()
        finally:
            with self._lock:
                self._wake = -1
            os.close(wake)
            os.close(write)
        _raise_failures(self._name_here, workers)

    def stop(self) -> None:
        """Ask the children to stop; returns at once. Any thread, and a signal's handler."""
        with self._lock:
            self._asked = True
            self._poke()

    def drain(self) -> None:
        """Have the services in the children drain; returns at once. As `stop()`."""
        with self._lock:
            self._drains = True
            self._poke()

    def _poke(self) -> None:
        if self._wake >= 0:
            try:
                os.write(self._wake, b"\0")
            except BlockingIOError:
                pass  # full: the reader has plenty to wake it

    def _rearm(self) -> None:
        with self._lock:
            self._asked = self._drains = False

    def _parts(self) -> tuple[ServiceStatus, ...]:
        return tuple(worker.status() for worker in self._workers) if self._count > 1 else ()

    @property
    def _name_here(self) -> str:
        return self._link.name if isinstance(self._link, Runner) else self.name

    # -- one run, on the thread of start() --------------------------------------------------------

    def _new_workers(self) -> list[Worker]:
        name, group, beat_seconds = self._name_here, f"process-{os.getpid()}", math.inf
        if isinstance(self._link, Runner):
            group = threading.current_thread().name.removesuffix(f"/{name}")
            beat_seconds = self._link.options.heartbeat_timeout
        levels = Levels.take()
        return [
            Worker(
                number,
                Job(
                    name=name if self._count == 1 else f"{name}/{number}",
                    group=group,
                    factory=self._factory,
                    levels=levels,
                    beat_seconds=beat_seconds,
                ),
                alone=self._count == 1,
            )
            for number in range(1, self._count + 1)
        ]

    def _supervise(self, workers: tuple[Worker, ...], wake: int) -> None:
        """Return when all have ended."""
        run = _Supervisor(self, workers)
        run.look()
        for worker in workers:
            # A stop during the start keeps the rest from being started.
            if run.until is None:
                worker.spawn()
            else:
                worker.skip()
            run.look()
        while not all(worker.over for worker in workers):
            poller = select.poll()
            poller.register(wake, select.POLLIN)
            owners: dict[int, Worker] = {}
            for worker in workers:
                for fd, events in worker.waits_for():
                    poller.register(fd, events)
                    owners[fd] = worker
            due = min(worker.due for worker in workers)
            milliseconds = max(0.0, due - time.monotonic()) * 1000 + 1
            for fd, _ in poller.poll(None if due == math.inf else min(milliseconds, 1e9)):
                if fd == wake:
                    os.read(fd, 65536)
                    continue
                for _ in owners[fd].on_event(fd):
                    run.look()
            run.look()

    def _wishes(self) -> tuple[bool, bool]:
        """Whether it was asked to stop, and whether it is newly asked to drain."""
        with self._lock:
            drains, self._drains = self._drains, False
            return self._asked, drains

    def _seconds_to_stop(self) -> float:
        """How long the others may take to stop when one has failed and the group knows not yet."""
        own = self.stop_timeout
        seconds = self._link.options.stop_timeout if isinstance(self._link, Runner) else own
        return min(10.0 if seconds is None else seconds, self.remaining())


class _Supervisor:
    """What follows, in one run, from how the workers stand and what is asked for."""

    def __init__(self, service: InProcess, workers: tuple[Worker, ...]) -> None:
        self.until: float | None = None  # when they are to have stopped, once they are to
        self._service = service
        self._workers = workers
        self._asked = False
        self._ready = False

    def look(self) -> None:
        """Do what is to be done now."""
        now = time.monotonic()
        asked, drains = self._service._wishes()
        if drains:
            for worker in self._workers:
                worker.drain()
        if asked and not self._asked:
            self._asked = True
            self._stop(now, self._service.remaining())
        elif self.until is None and any(worker.errors for worker in self._workers):
            self._stop(now, self._service._seconds_to_stop())
        for worker in self._workers:
            worker.expire(now)
        if self.until is None:
            self._pass_on()

    def _stop(self, now: float, seconds: float) -> None:
        if self.until is not None:
            seconds = min(seconds, max(0.0, self.until - now))
        self.until = now + seconds
        for worker in reversed(self._workers):
            worker.ask(now, seconds)

    def _pass_on(self) -> None:
        ready = all(worker.ready for worker in self._workers)
        if ready is not self._ready:
            self._ready = ready
            if ready:
                self._service.mark_ready()
            else:
                self._service.mark_not_ready()
        at_work = [worker for worker in self._workers if not (worker.ended or worker.over)]
        # One that is silent is a silent service, however much the others have to say.
        if at_work and all(worker.beaten for worker in at_work):
            for worker in at_work:
                worker.beaten = False
            self._service.heartbeat()


@contextmanager
def _woken_by_signals(fd: int) -> Iterator[None]:
    """Have signals write to `fd`, if this is a start without a group, on the main thread.

    One that came just before the thread slept, or to another thread, would not wake it.
    """
    try:
        before = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    except ValueError:  # another thread, or a subinterpreter
        before = None
    try:
        yield
    finally:
        if before is not None:
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)


def _raise_failures(name: str, workers: tuple[Worker, ...]) -> None:
    by_time = sorted(workers, key=lambda worker: worker.over_at)
    errors = [error for worker in by_time for error in worker.errors]
    exits = [error for error in errors if isinstance(error, SystemExit)]
    others = [error for error in errors if not isinstance(error, SystemExit)]
    failure: BaseException | None = others[0] if others else None
    if len(others) > 1:
        failure = BaseExceptionGroup(f"service {name!r}: {len(others)} failures", others)
    for code in filter(is_failure, exits):
        if failure is not None:
            raise code from failure
        raise code
    if failure is not None:
        raise failure
    if exits:
        raise exits[0]


def _pickled(factory: object) -> bytes:
    if not callable(factory):
        hint = ""
        if isinstance(factory, StartStop):
            hint = ": pass what makes the service, not the service"
        raise TypeError(f"InProcess(): factory must be callable, not {factory!r}{hint}")
    name = _name_of(factory)
    require_plain(factory, f"InProcess(): factory {name}")
    needed = required_arguments(factory)
    if needed:
        raise TypeError(
            f"InProcess(): factory {name} must need no argument, but needs "
            f"{', '.join(p.name for p in needed)}: bind them with functools.partial"
        )
    try:
        pickled = pickle.dumps(factory)
    except Exception as error:
        raise TypeError(
            f"InProcess(): factory {name} cannot be pickled, so no child can have it "
            f"({one_line(error)}): use a function or class at the top level of a module, and "
            "functools.partial for its arguments"
        ) from error
    main = sys.modules["__main__"]
    of_main = getattr(_innermost(factory), "__module__", None) == "__main__"
    if of_main and getattr(main, "__spec__", None) is None and not hasattr(main, "__file__"):
        raise TypeError(
            f"InProcess(): factory {name} is defined in a session or a -c command, where no child "
            "can import it from: put it into a module"
        )
    return pickled


def _innermost(factory: object) -> object:
    while hasattr(factory, "func"):  # a functools.partial
        factory = factory.func
    return factory


def _name_of(factory: object) -> str:
    innermost = _innermost(factory)
    return cast(str, getattr(innermost, "__name__", type(innermost).__name__)).strip("<>")
