"""`InProcess`: a service whose work is done in child processes."""

from __future__ import annotations

import fcntl
import logging
import math
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import cast

from servicegroup import _child
from servicegroup._child_pipe import Frames, Message, frame
from servicegroup.errors import StopTimeoutError
from servicegroup.report import ServiceStatus, State, one_line
from servicegroup.service import (
    Composite,
    Managed,
    ReadyWhen,
    StartStop,
    require_plain,
    required_arguments,
)

# Of the time that a child has to stop: when it gives its service up and says where that hangs, when
# it is sent SIGTERM, and when SIGKILL. The rest is for telling of it before the group gives up.
CHILD_SHARE = 0.8
TERM_SHARE = 0.85
KILL_SHARE = 0.92
# For exit hooks and threads that are left once the service has ended, if it was not asked to.
LINGER_SECONDS = 5.0
LINGER_KILL_SECONDS = 6.0


class ChildDiedError(RuntimeError):
    """A child process ended without a word: it was killed, or called `os._exit()`.

    Attributes:
        pid: its process id.
        exit_code: as in `subprocess`, minus the signal's number after a signal; None if somebody
            else in this process has taken it.
        signal: the signal that killed it, or None.
    """

    def __init__(self, message: str, pid: int, exit_code: int | None) -> None:
        super().__init__(message)
        self.pid = pid
        self.exit_code = exit_code
        self.signal = -exit_code if exit_code is not None and exit_code < 0 else None

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.pid, self.exit_code)


class ChildError(RuntimeError):
    """Stands for an exception of the child that cannot be pickled; the message has its type."""


class ChildTraceback(Exception):
    """The traceback of an exception as it stood in the child; the `__cause__` of what arrives."""

    def __str__(self) -> str:
        return f"in the child process\n{self.args[0]}".rstrip()


class ChildStopTimeoutError(StopTimeoutError):
    """A child process did not end in time and was ended by a signal.

    Attributes:
        pid: its process id.
        signal: the signal that ended it, SIGTERM or SIGKILL.
    """

    def __init__(self, service: str, seconds: float, stack: str, pid: int, number: int) -> None:
        super().__init__(service, seconds, stack)
        first, *rest = str(self).split("\n", 1)
        self.args = ("\n".join([f"{first}: {_ended_by(pid, number)}", *rest]),)
        self.pid = pid
        self.signal = number

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.service, self.seconds, self.stack, self.pid, self.signal)


class InProcess(Managed, Composite):
    """A service that runs in a child process, or in several: for what keeps the interpreter busy.

    To the group it is a service like any other. It is ready when the service in the child is;
    `drain()`, `stop()`, `remaining()`, failures, `sys.exit()` and log records come through to the
    other side. An exception arrives as the type it was where it can be pickled, else as a
    `ChildError`, always with the child's traceback as its `__cause__`. A child that ends otherwise
    is a `ChildDiedError`; one that does not stop in time gets SIGTERM, then SIGKILL, and is a
    `StopTimeoutError`. A child whose parent is gone ends at once.

    The child is a new interpreter (multiprocessing's "spawn"), never a fork. It imports the main
    module again, so the program's start belongs under `if __name__ == "__main__":`.

    Args:
        factory: makes the service, in the child; called in the child's main thread without
            arguments (bind some with `functools.partial`). It is pickled here and now, so it is a
            class or function at the top level of a module. What the service itself says of
            `on_failure`, `on_return` and `daemon` does not count, what this object says does.
        workers: how many children, all alike. They are started at once and stopped one by one, the
            last first; when one fails, all are stopped. Each is a part of this service's status.
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
        self._workers: tuple[_Worker, ...] = ()
        # Guards the three below: what other threads ask for, and how they wake the one of start().
        self._lock = threading.Lock()
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
        name = str(getattr(self._link, "name", self.name))
        names = [name] if self._count == 1 else [f"{name}/{i + 1}" for i in range(self._count)]
        wake, write = os.pipe()
        try:
            os.set_blocking(wake, False)
            os.set_blocking(write, False)
            with self._lock:
                self._wake = write
            workers = [
                _Worker(i + 1, one, self._factory, len(names) == 1) for i, one in enumerate(names)
            ]
            self._workers = tuple(workers)
            supervisor = _Supervisor(self, workers, wake)
            try:
                supervisor.run()
            finally:
                # Nothing is left of them, unless this very thread was interrupted.
                for worker in workers:
                    worker.kill()
        finally:
            with self._lock:
                self._wake = -1
            os.close(wake)
            os.close(write)
        supervisor.raise_failures(name)

    def stop(self) -> None:
        """Ask the children to stop, the last one first; returns at once. Any thread."""
        with self._lock:
            self._asked = True
            self._poke()

    def drain(self) -> None:
        """Have the services in the children drain; returns at once. Any thread."""
        with self._lock:
            self._drains = True
            self._poke()

    def _poke(self) -> None:
        if self._wake >= 0:
            try:
                os.write(self._wake, b"\0")
            except BlockingIOError:
                pass  # full: the reader has plenty to wake it

    def _wishes(self) -> tuple[bool, bool]:
        """Whether it was asked to stop, and whether it is newly asked to drain."""
        with self._lock:
            drains, self._drains = self._drains, False
            return self._asked, drains

    def _rearm(self) -> None:
        with self._lock:
            self._asked = self._drains = False

    def _stop_seconds(self) -> float:
        """How long the others may take to stop when one has failed and the group knows not yet."""
        options = getattr(self._link, "options", None)
        seconds = self.stop_timeout if options is None else options.stop_timeout
        return 10.0 if seconds is None else float(seconds)

    def _parts(self) -> tuple[ServiceStatus, ...]:
        return tuple(worker.status() for worker in self._workers) if self._count > 1 else ()


class _Supervisor:
    """Leads the workers through one run, on the thread of `start()`."""

    def __init__(self, service: InProcess, workers: Sequence[_Worker], wake: int) -> None:
        self._service = service
        self._workers = workers
        self._wake = wake
        self._was_ready = False
        self._asked = False
        self._deadline: float | None = None  # set once they are to stop
        for worker in workers:
            worker.on_changed = self._announce

    def run(self) -> None:
        """Return when all have ended."""
        self._look()
        for worker in self._workers:
            # A stop during the start keeps the rest from being started.
            if self._deadline is None:
                worker.spawn()
                self._look()
            else:
                worker.over = True
        while not all(worker.over for worker in self._workers):
            self._wait()
            self._look()

    def _look(self) -> None:
        """Do what is to be done now."""
        now = time.monotonic()
        asked, drains = self._service._wishes()
        if drains:
            for worker in self._workers:
                worker.drain()
        newly = asked and not self._asked
        if newly:
            self._asked = True
            until = now + self._service.remaining()
            self._deadline = until if self._deadline is None else min(self._deadline, until)
        if self._deadline is None and any(worker.failed for worker in self._workers):
            seconds = min(self._service._stop_seconds(), self._service.remaining())
            self._deadline = now + seconds
        for worker in self._workers:
            worker.expire(now)
        if self._deadline is None:
            return
        left = [worker for worker in self._workers if worker.pid and not worker.over]
        if left and (newly or left[-1].asked_at is None):
            # Each gets its share, so that one that hangs leaves time for the others.
            left[-1].ask(now, max(0.0, self._deadline - now) / len(left))

    def _announce(self) -> None:
        if self._deadline is not None:
            return
        ready = all(worker.ready for worker in self._workers)
        if ready is not self._was_ready:
            self._was_ready = ready
            if ready:
                self._service.mark_ready()
            else:
                self._service.mark_not_ready()

    def _wait(self) -> None:
        """Until something comes or is due."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        owners: dict[int, _Worker] = {}
        until = math.inf
        for worker in self._workers:
            for fd, events in worker.waits_for():
                poller.register(fd, events)
                owners[fd] = worker
            until = min(until, worker.due)
        milliseconds: float | None = None
        if until != math.inf:
            milliseconds = min(max(0.0, until - time.monotonic()) * 1000 + 1, 1e9)
        for fd, _ in poller.poll(milliseconds):
            if fd == self._wake:
                os.read(fd, 65536)
            else:
                owners[fd].on_event(fd)

    def raise_failures(self, name: str) -> None:
        """Raise what has failed, if anything has."""
        by_time = sorted(self._workers, key=lambda worker: worker.over_at)
        errors = [error for worker in by_time for error in worker.errors]
        exits = [code for worker in by_time for code in worker.exits]
        error: BaseException | None = errors[0] if errors else None
        if len(errors) > 1:
            error = BaseExceptionGroup(f"service {name!r}: {len(errors)} failures", errors)
        for code in exits:
            if code.code and error is not None:
                raise code from error
            if code.code:
                raise code
        if error is not None:
            raise error
        if exits:
            raise exits[0]


class _Worker:
    """One child during one run. All methods but `status` are for the thread of `start()`."""

    def __init__(self, number: int, name: str, factory: bytes, alone: bool) -> None:
        self.name = name
        self.pid = 0
        self.ready = False
        self.over = False
        self.over_at = math.inf
        self.asked_at: float | None = None
        self.errors: list[BaseException] = []
        self.exits: list[SystemExit] = []
        # Called with each change of `ready`: several may come at once, and its end behind them.
        self.on_changed: Callable[[], None] = lambda: None
        self.due = math.inf  # when `expire` has something to do
        self._number = number
        self._factory = factory
        self._alone = alone
        self._state = State.NEW
        self._process: multiprocessing.context.SpawnProcess | None = None
        self._pipe: multiprocessing.connection.Connection | None = None
        self._held: multiprocessing.connection.Connection | None = None
        self._exit_fd = -1
        self._frames = Frames()
        self._out = bytearray()  # what the pipe had no room for
        self._drains = False
        self._up = False  # it has been told its job: from here on it is owed a stop
        self._told = False  # it said how its service ended
        self._term_at = self._kill_at = math.inf
        self._sent: list[int] = []  # the signals of ours
        self._stack = ""
        self._started_at = 0.0
        self._ready_at: float | None = None
        self._wall = time.time() - time.monotonic()

    @property
    def failed(self) -> bool:
        """Whether the others are to be stopped."""
        return bool(self.errors or self.exits)

    # -- from start to end ------------------------------------------------------------------------

    def spawn(self) -> None:
        """Make the child; raises nothing."""
        self._started_at = time.monotonic()
        self._state = State.STARTING
        context = multiprocessing.get_context("spawn")
        with ExitStack() as ours:
            try:
                pipe, theirs = context.Pipe()
                ours.callback(pipe.close)
                with theirs:
                    life, held = context.Pipe(duplex=False)
                    ours.callback(held.close)
                    with life:
                        process = context.Process(
                            target=_child.main,
                            args=(theirs, life, os.getpid()),
                            name=f"servicegroup {self.name}",
                            daemon=True,
                        )
                        with _sigint_blocked():
                            process.start()
                        _end_at_hangup(life.fileno(), process.pid or 0)
            except Exception as error:  # no process or descriptor to be had
                # Its frames would keep the descriptors that multiprocessing had made until then.
                self.errors.append(error.with_traceback(None))
                self._end(State.FAILED)
                return
            ours.pop_all()
        self._process, self._pipe, self._held = process, pipe, held
        self.pid = process.pid or 0
        os.set_blocking(pipe.fileno(), False)
        self._exit_fd = _exit_fd(process)

    def drain(self) -> None:
        """Have the service drain, now or as soon as there is one."""
        self._drains = True
        if self._up and self.asked_at is None:
            self._send(("drain",))

    def ask(self, now: float, seconds: float) -> None:
        """Have it stop within `seconds`."""
        if self.asked_at is None:
            self.asked_at = now
        if not self._told:
            self._state = State.STOPPING
        if self._up:
            self._send(("stop", float(CHILD_SHARE * seconds)))
            self._set_due(now + TERM_SHARE * seconds, now + KILL_SHARE * seconds)
        else:
            # It knows of no service yet, so there is nothing that could be stopped in order.
            self._set_due(math.inf, now)
            self.expire(now)

    def expire(self, now: float) -> None:
        """Send the signals that are due."""
        if self.over or now < self.due:
            return
        if now >= self._kill_at:
            self._term_at = self._kill_at = math.inf
            self._signal(signal.SIGKILL)
        elif now >= self._term_at:
            self._term_at = math.inf
            self._signal(signal.SIGTERM)
        self.due = min(self._term_at, self._kill_at)

    def kill(self) -> None:
        """End it at once, if it lives."""
        if self._process is not None and not self.over:
            self._signal(signal.SIGKILL)
            self._process.join()
            self._finish()

    def _set_due(self, term_at: float, kill_at: float) -> None:
        self._term_at = min(self._term_at, term_at)
        self._kill_at = min(self._kill_at, kill_at)
        self.due = min(self._term_at, self._kill_at)

    def _signal(self, number: int) -> None:
        process = self._process
        assert process is not None
        self._sent.append(number)
        if number == signal.SIGKILL:
            process.kill()
        else:
            process.terminate()

    # -- what comes -------------------------------------------------------------------------------

    def waits_for(self) -> Iterator[tuple[int, int]]:
        """The descriptors to look at, and for what."""
        if self.pid and not self.over:
            yield self._exit_fd, select.POLLIN
            if self._pipe is not None:
                yield (
                    self._pipe.fileno(),
                    select.POLLIN | (select.POLLOUT if self._out else 0),
                )

    def on_event(self, fd: int) -> None:
        """Something is to be had from `fd`."""
        if self.over:
            return
        if fd == self._exit_fd:
            while self._read():
                pass
            self._finish()
        else:
            self._flush()
            self._read()

    def _read(self) -> bool:
        """Take what is there; whether there may be more."""
        if self._pipe is None:
            return False
        try:
            data = os.read(self._pipe.fileno(), 2**18)
        except BlockingIOError:
            return False
        except OSError:  # reset
            data = b""
        if not data:
            self._pipe.close()
            self._pipe = None
            return False
        for message in self._frames.feed(data):
            self._take(message)
        return True

    def _send(self, message: Message) -> None:
        self._out += frame(message)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._out and self._pipe is not None:
                del self._out[: os.write(self._pipe.fileno(), self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()  # nobody reads any more; its end is seen elsewhere

    def _take(self, message: Message) -> None:
        match message:
            case ("up",):
                self._on_up()
            case ("ready", str(name), bool(ready)):
                if name == self.name:
                    self._on_ready(ready)
            case ("log", bytes(fields)):
                self._log(fields)
            case ("stacks", str(stack)):
                self._stack = stack
            case ("ended", list(failures), list(exits)):
                self._on_ended(failures, exits)

    def _on_up(self) -> None:
        if self.asked_at is None:
            self._up = True
            levels = _child.Levels.take()
            job = _child.Job(name=self.name, factory=self._factory, levels=levels)
            self._send(("go", job))
            if self._drains:
                self._send(("drain",))

    def _on_ready(self, ready: bool) -> None:
        if self.asked_at is None:
            self.ready = ready
            if self._ready_at is None and ready:
                self._ready_at = time.monotonic()
                self._state = State.RUNNING
            self.on_changed()

    def _on_ended(self, failures: list[_child.Failure], exits: list[_child.Failure]) -> None:
        self._told = True
        self.errors += [self._error_of(failure) for failure in failures]
        for failure in exits:
            error = self._error_of(failure)
            if not isinstance(error, SystemExit):
                code = SystemExit(failure.text)
                code.__cause__ = error.__cause__
                error = code
            self.exits.append(error)
        now = time.monotonic()
        if self.asked_at is None:
            self._state = State.FAILED if self.failed else State.FINISHED
            self.ready = not self.failed
            if self.ready:
                self.on_changed()
            self._set_due(now + LINGER_SECONDS, now + LINGER_KILL_SECONDS)

    def _error_of(self, failure: _child.Failure) -> BaseException:
        """The exception that arrives."""
        error: object = None
        if failure.pickled is not None:
            try:
                error = pickle.loads(failure.pickled)
            except Exception:  # its __init__ needs more than it keeps in args, say
                pass
        if not isinstance(error, BaseException):
            error = ChildError(f"{failure.kind}: {failure.text}")
            for note in failure.notes:
                error.add_note(note)
        if self._alone:
            # The parent's group adds the same, with what it was doing as seen from there.
            notes = getattr(error, "__notes__", [])
            twice = f"in service {self.name!r}, "
            notes[:] = [note for note in notes if not str(note).startswith(twice)]
        if failure.traceback:
            error.__cause__ = ChildTraceback(failure.traceback)
        return error

    def _log(self, pickled: bytes) -> None:
        try:
            fields = pickle.loads(pickled)
            record = logging.makeLogRecord({**fields, "service": self.name, "pid": self.pid})
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        except Exception:  # what it carries cannot be read here, or a filter raised
            if logging.raiseExceptions:
                print(f"a log record of service {self.name!r} is lost", file=sys.stderr)
                traceback.print_exc()

    # -- the end ----------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Its process has ended: reap it, and let go of all that it had."""
        process = self._process
        assert process is not None
        code = _exit_code(process)
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._held is not None:
            self._held.close()
        if self._exit_fd != process.sentinel:
            os.close(self._exit_fd)
        if code is not None:
            process.close()
        self._judge(code)
        if self.errors or any(code.code for code in self.exits):
            self._end(State.FAILED)
        elif self.asked_at is None or self._state is State.FINISHED:
            self._end(State.FINISHED)
        else:
            self._end(State.STOPPED if self._up else State.NEW)

    def _end(self, state: State) -> None:
        self._state = state
        self.ready = state is State.FINISHED
        self.over_at = time.monotonic()
        self.due = math.inf
        self.over = True

    def _judge(self, code: int | None) -> None:
        """What its end means, besides what it said itself."""
        if self._sent and code is not None and -code in self._sent:
            if self._up:
                self._judge_killed(-code)
        elif not self._told or (code is not None and code < 0):
            self.errors.append(
                ChildDiedError(self._how_it_died(code), self.pid, code),
            )

    def _judge_killed(self, number: int) -> None:
        """A signal of ours ended it."""
        for error in self.errors:
            if isinstance(error, StopTimeoutError):
                error.add_note(_ended_by(self.pid, number))
                return
        now = time.monotonic()
        since = self.asked_at
        if since is None:
            seconds = LINGER_SECONDS
            stack = "its service had ended, but something kept the process: threads or exit hooks"
        else:
            seconds, stack = now - since, self._stack
        self.errors.append(ChildStopTimeoutError(self.name, seconds, stack, self.pid, number))

    def _how_it_died(self, code: int | None) -> str:
        whose = f"process {self.pid} of service {self.name!r}"
        when = ", when its service had ended" if self._told else ""
        if code is None:
            return f"{whose} ended, and somebody else has taken its exit code"
        if code < 0:
            return f"{whose} was killed by {_signal_name(-code)}{when}"
        if self._up:
            return f"{whose} ended with exit code {code} and without a word, as os._exit() does"
        return (
            f"{whose} ended with exit code {code} before it could make its service; its stderr "
            "says why. A program's start must stand under: if __name__ == '__main__'"
        )

    def status(self) -> ServiceStatus:
        """How it stands. Any thread."""
        started_at, ready_at, asked_at, over = (
            self._started_at,
            self._ready_at,
            self.asked_at,
            self.over_at,
        )
        errors = [*self.errors, *(code for code in self.exits if code.code)]
        return ServiceStatus(
            name=str(self._number),
            state=self._state,
            ready=self.ready and asked_at is None,
            started_at=started_at + self._wall if started_at else None,
            seconds_to_ready=None if ready_at is None else ready_at - started_at,
            stopping_at=None if asked_at is None else asked_at + self._wall,
            seconds_to_stop=None if asked_at is None or over == math.inf else over - asked_at,
            error=errors[0] if errors else None,
            stack=self._stack or None,
        )


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """The child inherits the mask, and lets go of it when it ignores SIGINT."""
    # Starting the tracker unblocks SIGINT, so it must not be left to the start of the child.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_at_hangup(fd: int, pid: int) -> None:
    """Have the kernel send `pid` SIGIO, which ends it, when the other end of the pipe is closed.

    The child watches for the end of its parent itself, on a thread; but not while it imports the
    main module, nor while C code holds the interpreter's lock.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETOWN, pid)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    except (AttributeError, OSError):
        pass  # a system that has no such thing, or not for pipes


def _exit_fd(process: multiprocessing.context.SpawnProcess) -> int:
    """A descriptor that is readable once the process has ended."""
    # The sentinel is a pipe, which a process forked from the child holds open.
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(process.pid or 0)
        except OSError:
            pass  # an old kernel
    return process.sentinel


def _exit_code(process: multiprocessing.context.SpawnProcess) -> int | None:
    """Reap it. None when somebody else did, past multiprocessing."""
    # multiprocessing looks after all children whenever one is made, on any thread; for the moment
    # until that thread has taken the exit code down, this one sees none.
    until = time.monotonic() + 0.1
    while True:
        process.join(0.05)
        code = process.exitcode
        if code is not None or time.monotonic() >= until:
            return code
        time.sleep(0.001)


def _pickled(factory: object) -> bytes:
    if not callable(factory):
        hint = ": pass what makes the service, not the service" if _is_service(factory) else ""
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


def _is_service(thing: object) -> bool:
    return isinstance(thing, StartStop)


def _name_of(factory: object) -> str:
    innermost = _innermost(factory)
    return cast(str, getattr(innermost, "__name__", type(innermost).__name__)).strip("<>")


def _ended_by(pid: int, number: int) -> str:
    return f"its process {pid} was ended by {_signal_name(number)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
