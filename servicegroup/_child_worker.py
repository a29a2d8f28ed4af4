"""One child during one run, as the parent sees it: what it is told, what it tells, how it ended."""

from __future__ import annotations

import math
import select
import signal
import time
from collections.abc import Iterator

from servicegroup import _child
from servicegroup._child_errors import (
    ChildDiedError,
    ChildStopTimeoutError,
    Failure,
    ended_by,
    signal_name,
)
from servicegroup._child_log import handle
from servicegroup._child_pipe import Line, Message
from servicegroup._child_process import ChildProcess
from servicegroup.errors import StopTimeoutError
from servicegroup.report import ServiceStatus, State

# Of the time that a child has to stop: when it gives its service up and says where that hangs, when
# it is sent SIGTERM, and when SIGKILL. The rest is for telling of it before the group gives up.
CHILD_SHARE = 0.8
TERM_SHARE = 0.85
KILL_SHARE = 0.92
# For exit hooks and threads that are left once the service has ended, if it was not asked to.
LINGER_SECONDS = 5.0
LINGER_KILL_SECONDS = 6.0


class Worker:
    """All methods but `status` are for the thread of `start()`; other threads may read."""

    def __init__(self, number: int, job: _child.Job, alone: bool) -> None:
        self.pid = 0
        self.ready = False
        self.beaten = False  # there was a heartbeat; taken back by whoever has counted it
        self.ended = False  # it has said how its service ended
        self.over = False
        self.over_at = math.inf
        self.asked_at: float | None = None
        self.errors: list[BaseException] = []  # a SystemExit is one of them, whatever its code
        self._number = number
        self._job = job
        self._alone = alone
        self._state = State.NEW
        self._process: ChildProcess | None = None
        self._line: Line | None = None
        self._drains = False
        self._up = False  # it has been told its job: from here on it is owed a stop
        self._signals: list[tuple[float, int]] = []  # to be sent, and when
        self._sent: list[int] = []
        self._stack = ""
        self._started_at = 0.0
        self._ready_at: float | None = None
        self._wall = time.time() - time.monotonic()

    def spawn(self) -> None:
        """Make the child; raises nothing."""
        self._started_at = time.monotonic()
        self._state = State.STARTING
        try:
            self._process = process = ChildProcess(self._job.name, _child.main)
        except Exception as error:  # no process or descriptor to be had
            # Its frames would keep the descriptors that multiprocessing had made until then.
            self.errors.append(error.with_traceback(None))
            self.skip(State.FAILED)
            return
        self._line = Line(process.line)
        self.pid = process.pid

    def skip(self, state: State = State.NEW) -> None:
        """Nothing is to come from it."""
        self._state = state
        self.ready = state is State.FINISHED
        self.over_at = time.monotonic()
        self._signals.clear()
        self.over = True

    # -- what it is told --------------------------------------------------------------------------

    def drain(self) -> None:
        """Have the service drain, now or as soon as there is one."""
        self._drains = True
        if self._up and self.asked_at is None:
            self._send(("drain",))

    def ask(self, now: float, seconds: float) -> None:
        """Have it stop within `seconds`; again, if that has become less."""
        if self.over:
            return
        if self.asked_at is None:
            self.asked_at = now
        if not self.ended:
            self._state = State.STOPPING
        if self._up:
            self._send(("stop", float(CHILD_SHARE * seconds)))
            self._end_by(now + TERM_SHARE * seconds, now + KILL_SHARE * seconds)
        else:
            # It knows of no service yet, so there is nothing that could be stopped in order.
            self._signals = [(now, signal.SIGKILL)]

    def _end_by(self, term_at: float, kill_at: float) -> None:
        signals = [(term_at, int(signal.SIGTERM)), (kill_at, int(signal.SIGKILL))]
        self._signals = min(self._signals or signals, signals)

    @property
    def due(self) -> float:
        """When `expire` has something to do."""
        return self._signals[0][0] if self._signals else math.inf

    def expire(self, now: float) -> None:
        """Send the signals that are due."""
        while self.due <= now:
            self._signal(self._signals.pop(0)[1])

    def kill(self) -> None:
        """End it at once, if it lives."""
        if self._process is not None and not self.over:
            self._signal(signal.SIGKILL)
            self._finish(self._process)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._sent.append(number)
            self._process.send_signal(number)

    def _send(self, message: Message) -> None:
        if self._line is not None:
            self._line.send(message)

    # -- what it tells ----------------------------------------------------------------------------

    def waits_for(self) -> Iterator[tuple[int, int]]:
        """The descriptors to look at, and for what."""
        if self._process is not None and self._line is not None and not self.over:
            yield self._process.exit_fd, select.POLLIN
            if self._line.is_open:
                yield self._line.fileno(), self._line.events

    def on_event(self, fd: int) -> Iterator[None]:
        """Something is to be had from `fd`. Yields after each thing that was taken from there."""
        process, line = self._process, self._line
        if process is None or line is None or self.over:
            return
        ended = fd == process.exit_fd
        if not ended:
            line.flush()
        while (messages := line.receive()) is not None:
            for message in messages:
                self._take(message)
                yield
            if not ended:
                return  # others have their turn
        if ended:
            self._finish(process)

    def _take(self, message: Message) -> None:
        match message:
            case ("up",):
                if self.asked_at is None:
                    self._up = True
                    self._send(("go", self._job))
                    if self._drains:
                        self._send(("drain",))
            case ("ready", bool(ready)):
                if self.asked_at is None and not self.ended:
                    self._on_ready(ready)
            case ("beat",):
                self.beaten = True
            case ("log", bytes(fields), bytes(extra)):
                handle(fields, extra, self._job.name, self.pid)
            case ("stacks", str(stack)):
                self._stack = stack
            case ("ended", tuple(failures)):
                self._on_ended(failures)

    def _on_ready(self, ready: bool) -> None:
        self.ready = ready
        if self._ready_at is None and ready:
            self._ready_at = time.monotonic()
            self._state = State.RUNNING

    def _on_ended(self, failures: tuple[Failure, ...]) -> None:
        self.ended = True
        self.errors += [self._error_of(failure) for failure in failures]
        if self.asked_at is None:
            self.ready = not self.errors
            self._state = State.FINISHED if self.ready else State.FAILED
            now = time.monotonic()
            self._end_by(now + LINGER_SECONDS, now + LINGER_KILL_SECONDS)

    def _error_of(self, failure: Failure) -> BaseException:
        error = failure.error()
        if self._alone:
            # The parent's group adds the same, with what it was doing as seen from there.
            notes = getattr(error, "__notes__", [])
            twice = f"in service {self._job.name!r}, "
            notes[:] = [note for note in notes if not str(note).startswith(twice)]
        return error

    # -- its end ----------------------------------------------------------------------------------

    def _finish(self, process: ChildProcess) -> None:
        """Its process has ended."""
        code = process.reap()
        if code is not None and -code in self._sent:
            if self._up:
                self._judge_ended(-code)
        elif not self.ended or (code is not None and code < 0):
            self.errors.append(ChildDiedError(self._how_it_died(code), self.pid, code))
        if any(map(is_failure, self.errors)):
            self.skip(State.FAILED)
        elif self.asked_at is None or self._state is State.FINISHED:
            self.skip(State.FINISHED)
        else:
            self.skip(State.STOPPED if self._up else State.NEW)

    def _judge_ended(self, number: int) -> None:
        """A signal of ours ended it."""
        for error in self.errors:
            if isinstance(error, StopTimeoutError):
                error.add_note(ended_by(self.pid, number))
                return
        if self.asked_at is None:
            seconds = LINGER_SECONDS
            stack = "its service had ended, but something kept the process: threads or exit hooks"
        else:
            seconds, stack = time.monotonic() - self.asked_at, self._stack
        name = self._job.name
        self.errors.append(ChildStopTimeoutError(name, seconds, stack, self.pid, number))

    def _how_it_died(self, code: int | None) -> str:
        whose = f"process {self.pid} of service {self._job.name!r}"
        when = ", when its service had ended" if self.ended else ""
        if code is None:
            return f"{whose} ended, and somebody else has taken its exit code"
        if code < 0:
            return f"{whose} was killed by {signal_name(-code)}{when}"
        if self._up:
            return f"{whose} ended with exit code {code} and without a word, as os._exit() does"
        return (
            f"{whose} ended with exit code {code} before it could make its service; its stderr "
            "says why. A program's start must stand under: if __name__ == '__main__'"
        )

    def status(self) -> ServiceStatus:
        """How it stands. Any thread."""
        started_at, ready_at = self._started_at, self._ready_at
        asked_at, over_at = self.asked_at, self.over_at
        return ServiceStatus(
            name=str(self._number),
            state=self._state,
            ready=self.ready and asked_at is None,
            started_at=started_at + self._wall if started_at else None,
            seconds_to_ready=None if ready_at is None else ready_at - started_at,
            stopping_at=None if asked_at is None else asked_at + self._wall,
            seconds_to_stop=(
                None if asked_at is None or over_at == math.inf else over_at - asked_at
            ),
            error=next(filter(is_failure, list(self.errors)), None),
            stack=self._stack or None,
        )


def is_failure(error: BaseException) -> bool:
    """Whether it is more than a `sys.exit(0)`."""
    return not isinstance(error, SystemExit) or bool(error.code)
