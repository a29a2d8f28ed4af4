"""The child's side of `InProcess`: a group of one service, led over a socket by the parent."""

from __future__ import annotations

import logging
import math
import os
import pickle
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import cast

from attrs import frozen

from servicegroup import events
from servicegroup._child_errors import Failure
from servicegroup._child_log import Forward, Levels
from servicegroup._child_pipe import Frames, Message, Sender
from servicegroup._stacks import all_stacks
from servicegroup.errors import ServiceGroupError
from servicegroup.group import ServiceGroup
from servicegroup.service import Managed, StartStop

# What a group logs of its services; of the one in the child, the parent's group logs the same. It
# knows nothing of a stall that is watched for in the child, and not where the child was.
_EVENTS = {
    *(kind.__name__ for kind in events.ServiceEvent.__subclasses__()),
    *(kind.__name__ for kind in events.GroupEvent.__subclasses__()),
} - {"ServiceStalled", "ServiceRecovered"}
# Into how many pieces the time for a heartbeat is cut: it is passed on once in each.
_PIECES = 4


@frozen(kw_only=True, eq=False, repr=False)
class Job:
    """What the parent tells a child that is up.

    Attributes:
        name: what the parent calls the service.
        group: what the parent's group is called.
        factory: the pickled factory.
        levels: how much is to be logged.
        beat_seconds: the parent waits so long for a heartbeat; `inf`: for none.
    """

    name: str
    group: str
    factory: bytes
    levels: Levels
    beat_seconds: float


def main(line: socket.socket, _life: Connection, parent: int) -> None:
    """What a child runs.

    Args:
        line: to talk with the parent.
        _life: kept open only; SIGIO comes when the parent's end of it is closed.
        parent: the process that made this one.
    """
    _settle_signals()
    control = _Control(line, parent)
    control.start()
    send = control.sender.send
    send(("up",))
    job, group = control.jobs.get()
    job.levels.put()
    logging.getLogger().handlers[:] = [Forward(control.sender)]
    logging.getLogger("servicegroup").addFilter(_News(job))
    send(("ended", tuple(map(Failure.of, _run(job, group, control.beats)))))


def _run(job: Job, group: ServiceGroup, beats: _Beats) -> list[BaseException]:
    """What is raised on the way."""
    try:
        service = cast(StartStop, pickle.loads(job.factory)())
        watched = job.beat_seconds != math.inf
        # What follows from a failure, a stall or the end is for the parent's group to decide.
        group.add(
            service,
            name=job.name,
            daemon=False,
            on_failure="stop",
            on_return="continue",
            heartbeat_timeout=job.beat_seconds if watched else None,
            on_stall="report" if watched else None,
        )
        if watched and isinstance(service, Managed):
            beats.listen(service)
        group.start()
    except SystemExit as error:
        left = error.__cause__
        return [error, *(left.exceptions if isinstance(left, ServiceGroupError) else ())]
    except ServiceGroupError as error:
        return list(error.exceptions)
    except BaseException as error:
        return [error]
    return [] if group._clean_exit is None else [group._clean_exit]


class _News(logging.Filter):
    """Keeps back what the parent's group logs, too."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be forwarded: of a nested group, say, all is."""
        known = vars(record)
        mine = known.get("service", self._job.name) == self._job.name
        return not (
            mine and known.get("group") == self._job.group and known.get("event") in _EVENTS
        )


class _Beats:
    """Passes heartbeats on, some four times at most in the time within which one is due.

    The first is passed on at once, and what comes too soon after it a little later, so that the
    parent never sees a longer silence than there was.
    """

    def __init__(self, send: Callable[[Message], None], seconds: float) -> None:
        self.pause = seconds / _PIECES
        self._send = send
        self._sent_at = -math.inf
        self._unsent = False

    def listen(self, service: Managed) -> None:
        """Have the heartbeats of `service` passed on."""
        beat = service.heartbeat

        def heartbeat() -> None:
            beat()
            self._unsent = True
            if time.monotonic() - self._sent_at >= self.pause:
                self.send()

        # Past a class that may be a frozen dataclass.
        object.__setattr__(service, "heartbeat", heartbeat)

    def send(self) -> None:
        """Pass on what was not. Any thread."""
        if self._unsent:
            self._unsent = False
            self._sent_at = time.monotonic()
            self._send(("beat",))


class _Control(threading.Thread):
    """Takes what the parent says, and ends this process when the parent is gone."""

    def __init__(self, line: socket.socket, parent: int) -> None:
        super().__init__(name="servicegroup (parent)", daemon=True)
        self._line = line
        self._parent = parent
        self._stacks_at = math.inf
        self._beat_at = math.inf
        self.sender = Sender(line.fileno())
        self.beats = _Beats(self.sender.send, math.inf)
        self.jobs: SimpleQueue[tuple[Job, ServiceGroup]] = SimpleQueue()

    def run(self) -> None:
        """Never returns, the end of the process be it."""
        try:
            self._listen()
        except OSError:
            pass  # reset
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _listen(self) -> None:
        line = self._line.fileno()
        poller = select.poll()
        poller.register(line, select.POLLIN)
        # Beside the end of the line, since a process forked from the parent may hold that open.
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
                data = os.read(fd, 65536) if fd == line else b""
                if not data:
                    return
                for message in frames.feed(data):
                    if message[0] == "go":
                        group = self._go(cast(Job, message[1]))
                    elif group is not None:
                        self._lead(group, message)
            now = time.monotonic()
            if now >= self._beat_at:
                self._beat_at = now + self.beats.pause
                self.beats.send()
            if now >= self._stacks_at:
                self._stacks_at = math.inf
                self.sender.send(("stacks", all_stacks()))

    def _milliseconds(self) -> float | None:
        until = min(self._stacks_at, self._beat_at)
        if until == math.inf:
            return None
        # Days at most, since poll takes no more.
        return min(max(0.0, until - time.monotonic()) * 1000 + 1, 1e9)

    def _go(self, job: Job) -> ServiceGroup:
        # The parent's group knows the limits; this one is told them when the stop comes.
        group = ServiceGroup(
            name=job.group,
            start_timeout=math.inf,
            stop_timeout=math.inf,
            shutdown_timeout=math.inf,
            signals=(),
        )

        def tell(event: events.Event) -> None:
            match event:
                # What has another name is a part of the service and says nothing of the whole.
                case events.ServiceReady(service=job.name):
                    self.sender.send(("ready", True))
                case events.ServiceNotReady(service=job.name):
                    self.sender.send(("ready", False))

        group.subscribe(tell)
        self.beats = _Beats(self.sender.send, job.beat_seconds)
        if job.beat_seconds != math.inf:
            self._beat_at = time.monotonic() + self.beats.pause
        self.jobs.put((job, group))
        return group

    def _lead(self, group: ServiceGroup, message: Message) -> None:
        match message:
            case ("drain",):
                group._drain()
            case ("stop", float(seconds)):
                self._stacks_at = time.monotonic() + seconds
                group._stop_within(seconds, "the parent process asks for it")


def _settle_signals() -> None:
    # It came blocked from the parent: nothing is lost, and no Ctrl-C came through in between.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the parent ignored is ignored here, too; but these must end this process.
    numbers = {signal.SIGTERM, signal.SIGIO}
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, *numbers})
