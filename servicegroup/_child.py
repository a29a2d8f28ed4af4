"""The child's side of `InProcess`: a group of one service, led over a pipe by the parent."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import pickle
import select
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import cast

import attrs
from attrs import frozen

from servicegroup import events
from servicegroup._child_pipe import Frames, Message, Sender
from servicegroup._stacks import all_stacks
from servicegroup.errors import ServiceGroupError
from servicegroup.group import ServiceGroup
from servicegroup.service import StartStop

# What a group logs of these, the parent's group logs too.
_TOLD_BY_THE_PARENT = {
    *(kind.__name__ for kind in events.ServiceEvent.__subclasses__()),
    *(kind.__name__ for kind in events.GroupEvent.__subclasses__()),
} - {"ServiceStalled", "ServiceRestarting"}


@frozen(kw_only=True, eq=False, repr=False)
class Levels:
    """How much is logged."""

    disabled: int
    of_loggers: Mapping[str, int]

    @classmethod
    def take(cls) -> Levels:
        """Those of this process."""
        root = logging.getLogger()
        levels = {
            name: logger.level
            for name, logger in list(root.manager.loggerDict.items())
            if isinstance(logger, logging.Logger) and logger.level
        }
        return cls(disabled=root.manager.disable, of_loggers={"": root.level, **levels})

    def put(self) -> None:
        """Make them those of this process."""
        logging.disable(self.disabled)
        for name, level in self.of_loggers.items():
            logging.getLogger(name).setLevel(level)


@frozen(kw_only=True, eq=False, repr=False)
class Job:
    """What the parent tells a child that is up.

    Attributes:
        name: what the parent calls the service.
        factory: the pickled factory.
    """

    name: str
    factory: bytes
    levels: Levels


@frozen(kw_only=True, eq=False, repr=False)
class Failure:
    """An exception on its way to the parent.

    Attributes:
        pickled: itself, if it can be pickled.
        kind: the name of its type.
        text: its message.
        traceback: as it is printed.
        notes: what was added to it.
    """

    pickled: bytes | None
    kind: str
    text: str
    traceback: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """`error`, as far as it can be told."""
        try:
            pickled = pickle.dumps(error)
        except Exception:  # whatever the parts of it raise
            pickled = None
        try:
            text = str(error)
        except Exception:
            text = "(its message cannot be had)"
        kind = type(error)
        return cls(
            pickled=pickled,
            kind=kind.__qualname__
            if kind.__module__ == "builtins"
            else f"{kind.__module__}.{kind.__qualname__}",
            text=text,
            # One that was never raised, a timeout, has nothing to show there.
            traceback="".join(traceback.format_exception(error)) if error.__traceback__ else "",
            notes=tuple(map(str, getattr(error, "__notes__", ()))),
        )


class _Forward(logging.Handler):
    """Sends the records to the parent."""

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._sender.send(("log", _pickled_fields(record)))
        except OSError:
            pass  # the parent is gone, and so is this process in a moment
        except Exception:
            self.handleError(record)


def _pickled_fields(record: logging.LogRecord) -> bytes:
    fields = {**vars(record), "msg": record.getMessage(), "args": None, "exc_info": None}
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    try:
        return pickle.dumps(fields)
    except Exception:  # one that somebody gave as `extra`
        return pickle.dumps({name: _picklable(value) for name, value in fields.items()})


def _picklable(value: object) -> object:
    try:
        pickle.dumps(value)
    except Exception:
        return repr(value)
    return value


def _is_news(record: logging.LogRecord) -> bool:
    return getattr(record, "event", None) not in _TOLD_BY_THE_PARENT


class _Control(threading.Thread):
    """Takes what the parent says, and ends this process when the parent is gone."""

    def __init__(self, connection: Connection, parent: int) -> None:
        super().__init__(name="servicegroup (parent)", daemon=True)
        self._connection = connection
        self._parent = parent
        self._stacks_at = math.inf
        self.sender = Sender(connection.fileno())
        self.jobs: SimpleQueue[tuple[Job, ServiceGroup]] = SimpleQueue()

    def run(self) -> None:
        """Never returns, the end of the process be it."""
        try:
            self._listen()
        finally:
            os._exit(1)

    def _listen(self) -> None:
        pipe = self._connection.fileno()
        poller = select.poll()
        poller.register(pipe, select.POLLIN)
        # Beside the end of the pipe, since a process forked from the parent may hold that open.
        if hasattr(os, "pidfd_open"):
            try:
                poller.register(os.pidfd_open(self._parent), select.POLLIN)
            except OSError:
                pass  # an old kernel; or the parent is gone already, which comes next
        if os.getppid() != self._parent:
            return
        frames = Frames()
        group: ServiceGroup | None = None
        while True:
            for fd, _ in poller.poll(self._milliseconds()):
                data = os.read(fd, 65536) if fd == pipe else b""
                if not data:
                    return
                for message in frames.feed(data):
                    if message[0] == "go":
                        group = self._go(cast(Job, message[1]))
                    elif group is not None:
                        self._lead(group, message)
            if time.monotonic() >= self._stacks_at:
                self._stacks_at = math.inf
                self.sender.send(("stacks", all_stacks()))

    def _milliseconds(self) -> float | None:
        if self._stacks_at == math.inf:
            return None
        # Days at most, since poll takes no more.
        return min(max(0.0, self._stacks_at - time.monotonic()) * 1000 + 1, 1e9)

    def _go(self, job: Job) -> ServiceGroup:
        # The parent's group knows the limits; this one is told them when the stop comes.
        group = ServiceGroup(
            name=f"process-{os.getpid()}",
            start_timeout=math.inf,
            stop_timeout=math.inf,
            shutdown_timeout=math.inf,
            signals=(),
        )
        group.subscribe(self._tell)
        self.jobs.put((job, group))
        return group

    def _lead(self, group: ServiceGroup, message: Message) -> None:
        match message:
            case ("drain",):
                group._drain()
            case ("stop", float(seconds)):
                run = group._run
                run.settings = attrs.evolve(run.settings, shutdown_timeout=seconds)
                self._stacks_at = time.monotonic() + seconds
                group.stop("the parent process asks for it")

    def _tell(self, event: events.Event) -> None:
        if isinstance(event, (events.ServiceReady, events.ServiceNotReady)):
            # Those of parts have a slash in their names and say nothing of the whole.
            self.sender.send(("ready", event.service, isinstance(event, events.ServiceReady)))


def main(connection: Connection, _life: Connection, parent: int) -> None:
    """What a child runs.

    Args:
        connection: to talk with the parent.
        _life: kept open only; SIGIO comes when the parent's end of it is closed.
        parent: the process that made this one.
    """
    _settle_signals()
    # It ends with the parent, as a daemon; but unlike multiprocessing's may have children.
    multiprocessing.current_process().daemon = False
    control = _Control(connection, parent)
    control.start()
    control.sender.send(("up",))
    job, group = control.jobs.get()
    job.levels.put()
    logging.getLogger().handlers[:] = [_Forward(control.sender)]
    logging.getLogger("servicegroup").addFilter(_is_news)
    failures: list[Failure] = []
    exits: list[Failure] = []
    with _collected(failures, exits):
        service = cast(StartStop, pickle.loads(job.factory)())
        # What follows from a failure or the end is for the parent's group to decide.
        group.add(service, name=job.name, daemon=False, on_failure="stop", on_return="continue")
        reason = group.start().reason
        for code in (0, None, "", False):
            if reason == f"service {job.name!r} called sys.exit({code!r})":
                raise SystemExit(code)
    control.sender.send(("ended", failures, exits))


@contextmanager
def _collected(failures: list[Failure], exits: list[Failure]) -> Iterator[None]:
    try:
        yield
    except SystemExit as error:
        exits.append(Failure.of(error))
        if isinstance(error.__cause__, ServiceGroupError):
            failures += map(Failure.of, error.__cause__.exceptions)
    except ServiceGroupError as error:
        failures += map(Failure.of, error.exceptions)
    except BaseException as error:
        failures.append(Failure.of(error))


def _settle_signals() -> None:
    # It came blocked from the parent: nothing is lost, and no Ctrl-C came through in between.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the parent ignored is ignored here, too; but these must end this process.
    numbers = {signal.SIGTERM, signal.SIGIO}
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, *numbers})
