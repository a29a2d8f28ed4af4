"""A Python program in a process of its own, for what only a whole process can show."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from textwrap import dedent
from types import TracebackType
from typing import NoReturn, Self

# Far more than anything here takes, for machines that do other things too; a test that hits it has
# failed.
PATIENCE = 30.0

_ROOT = Path(__file__).resolve().parent.parent

_PRELUDE = '''
import logging
import os
import signal
import sys
import threading
import time

from servicegroup import Service, ServiceGroup, events, with_start

logging.getLogger("servicegroup").addHandler(logging.NullHandler())  # stderr is for the rest
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is to ignore it


def say(*words):
    # No lock and no buffer: said at once, from any thread and from a signal handler.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())


class Worker(Service):
    def __init__(self, name):
        self.name = name
        self.released = threading.Event()  # `stopping` is set before stop() is called

    def start(self):
        self.released.wait()
        say("end", self.name)

    def stop(self):
        say("stop", self.name)
        self.released.set()


def tell(event):
    if isinstance(event, events.GroupEvent):
        say(type(event).__name__)


def group_of(*names, **options):
    """A group that says what becomes of it, with a worker a name."""
    group = ServiceGroup(**options)
    group.subscribe(tell)
    for name in names:
        group.add(Worker(name))
    return group


def wait_for(condition, what):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.001)


def fill_stderr():
    """Make the next write to stderr, a pipe that nobody reads, block."""
    os.set_blocking(2, False)
    try:
        while True:
            os.write(2, b"x")
    except BlockingIOError:
        os.set_blocking(2, True)
'''


class Child:
    """Runs `sources`, one behind the other, after the prelude; reaped at the end of the block.

    With `unread`, its stderr is a pipe that nobody reads; otherwise `stderr` returns what came.
    """

    def __init__(self, *sources: str, unread: bool = False) -> None:
        self.lines: list[str] = []
        self._taken = 0  # of the lines, by wait_for
        self._partial = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "\n".join([_PRELUDE, *map(dedent, sources)])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if unread else self._stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            bufsize=0,
        )
        assert self.process.stdout is not None
        self._stdout = self.process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for file in (self.process.stdout, self.process.stderr, self._stderr):
            if file is not None:
                file.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        """What it has printed there so far."""
        return os.pread(self._stderr.fileno(), 2**24, 0).decode(errors="replace")

    def said(self, *firsts: str) -> list[str]:
        """The lines so far whose first word is one of `firsts`."""
        while not self._stdout.closed and self._gulp(0.0):
            pass
        return [line for line in self.lines if line.split(" ")[0] in firsts]

    def wait_for(self, start: str, patience: float = PATIENCE) -> str:
        """The next line that begins with `start`, behind the one that was waited for last."""
        until = time.monotonic() + patience
        while True:
            while self._taken < len(self.lines):
                self._taken += 1
                if self.lines[self._taken - 1].startswith(start):
                    return self.lines[self._taken - 1]
            if not self._gulp(max(0.0, until - time.monotonic())):
                self._give_up(f"it never said {start!r}")

    def send(self, number: int) -> float:
        """Send it a signal; when that was, by `time.monotonic()`."""
        at = time.monotonic()
        self.process.send_signal(number)
        return at

    def end(self) -> int:
        """Wait for its end; its exit code, or minus the signal that killed it."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._give_up("it did not end")
        while self._gulp(0.0):
            pass
        return code

    def stat(self, name: str) -> list[str]:
        """The lines of /proc/<pid>/task/*/status that begin with `name`, of all its threads."""
        found = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                text = (task / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            found += [line for line in text.splitlines() if line.startswith(name)]
        return found

    def _gulp(self, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._stdout, select.POLLIN)
        if not poller.poll(seconds * 1000):
            return False
        more = os.read(self._stdout.fileno(), 65536)
        *lines, self._partial = (self._partial + more).split(b"\n")
        self.lines += [line.decode() for line in lines]
        return bool(more)

    def _give_up(self, what: str) -> NoReturn:
        raise AssertionError(
            f"{what} (exit code {self.process.poll()})\n"
            f"stdout: {self.lines}\nstderr:\n{self.stderr[-20000:]}"
        )
