"""Services that do what the test says, and note what is done to them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from servicegroup import Service, ServiceGroup
from servicegroup._runner import Runner
from tests.child import PATIENCE
from tests.fake_time import FakeClock, mailbox_of, pass_time, wait_until

Command = Callable[[], object] | str

Trace = list[tuple[str, str]]  # what happened, and to whom


class Desk:
    """Where a thread of a scripted service waits for what it is told to do."""

    def __init__(self) -> None:
        self.waits = False
        self._commands: SimpleQueue[Command] = SimpleQueue()

    @property
    def listens(self) -> bool:
        """Whether it is there to be told."""
        return self.waits

    @property
    def parked(self) -> bool:
        """Whether nothing happens until it is told, or time passes."""
        return self.listens

    def tell(self, command: Command) -> None:
        self.waits = False
        self._commands.put(command)

    def work(self) -> None:
        """Do as told until told to leave; what a command raises, this raises."""
        while True:
            if self._commands.empty():
                self.waits = True
            command = self._commands.get()
            self.waits = False
            if command == "leave":
                return
            assert callable(command)
            command()


class Plain:
    """A service by shape alone; `on_stop` says how it takes a stop."""

    def __init__(self, name: str, trace: Trace, on_stop: str = "obey") -> None:
        self.name = name
        self.trace = trace
        self.on_stop = on_stop
        self.in_start = Desk()
        self.in_stop = Desk()

    def start(self) -> None:
        self.trace.append(("start", self.name))
        try:
            self.work()
        except BaseException:
            self.trace.append(("raised", self.name))
            raise
        self.trace.append(("returned", self.name))

    def work(self) -> None:
        self.in_start.work()

    def stop(self) -> None:
        self.trace.append(("stop", self.name))
        if self.on_stop == "hang":
            self.in_stop.work()
        if self.on_stop != "ignore":
            failure = ValueError(f"end of {self.name}")
            self.end(fail_with(failure) if self.on_stop == "fail" else "leave")
        if self.on_stop == "raise":
            raise OSError(f"stop of {self.name}")
        self.trace.append(("stopped", self.name))

    def end(self, command: Command) -> None:
        """What its `stop()` does to end its `start()`."""
        self.in_start.tell(command)

    def free(self) -> None:
        """Let its threads end, however it was told to behave."""
        self.on_stop = "ignore"
        for desk in (self.in_start, self.in_stop):
            desk.tell("leave")
            desk.tell("leave")


class Full(Plain, Service):
    """The same as a subclass of `Service`, whose `start` can announce."""

    def __init__(self, name: str, trace: Trace, on_stop: str = "obey") -> None:
        Plain.__init__(self, name, trace, on_stop)


class Drained(Full):
    """One that has a `drain()`."""

    def drain(self) -> None:
        self.trace.append(("drain", self.name))


class ByEvent(Service):
    """One whose `stop()` is that of `Service`: it only sets the event."""

    def __init__(self, name: str, trace: Trace) -> None:
        self.name = name
        self.trace = trace
        self.in_start = Desk()

    def start(self) -> None:
        self.trace.append(("start", self.name))
        self.in_start.waits = True
        self.stopping.wait()
        self.trace.append(("stop", self.name))
        self.trace.append(("stopped", self.name))
        self.trace.append(("returned", self.name))

    def free(self) -> None:
        self.stopping.set()


def fail_with(error: BaseException) -> Callable[[], None]:
    """A command that raises."""

    def fail() -> None:
        raise error

    return fail


def is_quiet(group: ServiceGroup) -> bool:
    """Whether nothing happens any more until the test does something or time passes."""
    mailbox = mailbox_of(group)
    takes = mailbox.takes
    if not mailbox.waiting or not all(map(_is_quiet, list(group._run._runners))):
        return False
    # Those looked at first may have been moved by what came of those looked at last.
    return not mailbox.messages and (mailbox.takes, mailbox.waiting) == (takes, True)


def _is_quiet(runner: Runner) -> bool:
    if runner.settled:
        return True
    service = runner.service
    stopping = (runner.asked and not runner.stop_returned) or _drains(runner)
    if isinstance(service, ServiceGroup):
        return not stopping and (runner.ended or is_quiet(service))
    desk = getattr(service, "in_start", None)
    started = runner.ended or desk is None or desk.parked
    if isinstance(service, ByEvent):
        return runner.ended or (started and not service.stopping.is_set())
    stop_desk = getattr(service, "in_stop", None)
    return started and (not stopping or stop_desk is None or stop_desk.parked)


def _drains(runner: Runner) -> bool:
    return getattr(runner.host, "_draining", None) is runner


def run_in_thread(group: ServiceGroup) -> tuple[threading.Thread, list[BaseException]]:
    """`group.start()` on a thread; what it raised is in the list."""
    raised: list[BaseException] = []

    def start() -> None:
        try:
            group.start()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    return thread, raised


def settle(group: ServiceGroup) -> None:
    """Wait until nothing moves any more."""
    wait_until(lambda: group._run.over.is_set() or is_quiet(group), "quiet")


def end(group: ServiceGroup, clock: FakeClock, thread: threading.Thread) -> None:
    """From deadline to deadline to the end of a group that `run_in_thread` started."""
    pass_time(group, clock, lambda: is_quiet(group))
    thread.join(PATIENCE)
    assert not thread.is_alive()
