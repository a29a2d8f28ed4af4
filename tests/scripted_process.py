"""A scripted service in a child process: what runs there, and what stands for it here."""

from __future__ import annotations

import os
import signal
import tempfile
from functools import partial
from pathlib import Path

from servicegroup import InProcess, Service
from tests.scripted import Command, Desk, Plain, Trace


class Told(Service):
    """In the child: does what it reads from a pipe, and writes down what is done to it."""

    ready_when = "announced"

    def __init__(self, place: Path, on_stop: str, script: str) -> None:
        self.place = place
        self.on_stop = on_stop
        self.script = script
        pipe = place / str(os.getpid())
        os.mkfifo(pipe)
        self.pipe = os.open(pipe, os.O_RDWR)

    def note(self, what: str) -> None:
        with (self.place / "notes").open("a") as file:
            file.write(f"{os.getpid()} {what}\n")

    def start(self) -> None:
        self.note("start")
        if self.script == "returns":
            os.write(self.pipe, b"l")
        elif self.script == "raises":
            os.write(self.pipe, b"x")
        elif self.script != "late":
            self.mark_ready()
        while (command := os.read(self.pipe, 1)) != b"l":
            if command == b"x":
                self.note("raised")
                raise ValueError("told to")
            (self.mark_ready if command == b"r" else self.mark_not_ready)()
        self.note("returned")

    def stop(self) -> None:
        self.note("stop")
        if self.on_stop != "ignore":
            os.write(self.pipe, b"x" if self.on_stop == "fail" else b"l")


class _Wire(Desk):
    """The desk of one that is far away: it is parked once it has done all it was told."""

    def __init__(self, service: Remote) -> None:
        super().__init__()
        self._service = service
        self._starts = 0
        self._ends = True
        self._asked = False  # to end, and not by itself
        self._ready = False  # what it should have said
        self.said = False
        self.drained = False

    def begin(self) -> None:
        """A run begins."""
        self._starts += 1
        self.said = self._asked = False
        self._ready = self._service.script == ""
        self._ends = self._service.script in ("raises", "returns")

    def end(self) -> None:
        """It is stopped or killed."""
        self._ends = self._asked = True

    @property
    def parked(self) -> bool:
        # Once it drains, it neither starts nor ends before it is asked to stop.
        return self.listens or (self.drained and not self._asked)

    @property
    def listens(self) -> bool:
        if self._ends or self.said is not self._ready:
            return False
        starts = sum(words[1] == "start" for words in self._service.notes())
        return starts == self._starts

    def tell(self, command: Command) -> None:
        service = self._service
        if command == service.mark_ready:
            letter, self._ready = b"r", True
        elif command == service.mark_not_ready:
            letter, self._ready = b"n", False
        else:
            letter, self._ends = (b"l" if command == "leave" else b"x"), True
        pipe = os.open(service.place / str(service.pids[0]), os.O_WRONLY | os.O_NONBLOCK)
        os.write(pipe, letter)
        os.close(pipe)


class Remote(Plain, InProcess):
    """Stands for a `Told` in a child process."""

    def __init__(self, name: str, trace: Trace, on_stop: str, script: str, place: Path) -> None:
        self.place = Path(tempfile.mkdtemp(dir=place))
        self.script = script
        InProcess.__init__(self, partial(Told, self.place, on_stop, script), name=name)
        # Whether the stop is heard is a matter of the child.
        Plain.__init__(self, name, trace, "obey" if on_stop == "ignore" else on_stop)
        self.in_start = self.wire = _Wire(self)
        # In the child, time passes: so little that nobody waits, or more than a busy machine needs.
        self.stop_timeout = 0.6 if on_stop == "ignore" else 8.2

    def notes(self) -> list[list[str]]:
        """What the children wrote: the process, and what was done to it."""
        try:
            return [line.split() for line in (self.place / "notes").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def work(self) -> None:
        self.wire.begin()
        InProcess.start(self)

    def mark_ready(self) -> None:
        super().mark_ready()
        self.wire.said = True

    def mark_not_ready(self) -> None:
        super().mark_not_ready()
        self.wire.said = False

    def drain(self) -> None:
        super().drain()
        self.wire.drained = True

    def kill(self) -> None:
        """As from outside."""
        self.wire.end()
        os.kill(self.pids[0], signal.SIGKILL)

    def end(self, command: Command) -> None:
        self.wire.end()
        InProcess.stop(self)

    def free(self) -> None:
        self.on_stop = "ignore"
        self.in_stop.tell("leave")
        InProcess.stop(self)
