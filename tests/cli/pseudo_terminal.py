"""`servicegroup` in a terminal of its own."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.child import PATIENCE
from tests.cli.command import SERVICEGROUP, environment

# What a shell does for a job in the foreground.
_TAKE_IT = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class PseudoTerminal:
    """Runs `servicegroup` with `arguments` in `directory`; the terminal is its controlling one."""

    def __init__(
        self, directory: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.screen = ""  # all that was written to it
        self._ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (30, 100))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_IT, *SERVICEGROUP, *arguments],
            cwd=directory,
            env=environment({"TERM": "xterm", **(env or {})}),
            start_new_session=True,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

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
        if self._ours >= 0:
            self.hang_up()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self._ours)
        self._ours = -1

    def wait_for(self, text: str) -> str:
        """All that was written after what was waited for last, up to `text`."""
        until = time.monotonic() + PATIENCE
        while text not in self.screen:
            assert self._gulp(until - time.monotonic()), f"no {text!r} in {self.screen!r}"
        found, _, self.screen = self.screen.partition(text)
        return found

    def end(self) -> int:
        """Wait for its end; its exit code."""
        until = time.monotonic() + PATIENCE
        while self._ours >= 0 and self._gulp(until - time.monotonic()):
            pass
        return self.process.wait(PATIENCE)

    def _gulp(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._ours], [], [], max(0.0, seconds))
        try:
            more = os.read(self._ours, 65536) if ready else b""
        except OSError:  # nobody has it open any more
            more = b""
        self.screen += more.decode(errors="replace")
        return bool(more)
