"""A child process as the system sees it: making one, signals, its end."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from multiprocessing.popen_spawn_posix import Popen


class ChildProcess:
    """A new interpreter that runs `target(line, life, parent, *args)`; for one thread.

    `line` is the other end of the `line` here, `life` is for the child to hold open, `parent` is
    the id of this process.

    Attributes:
        pid: its process id.
        line: a socket to talk with it.
        exit_fd: a descriptor that is readable once it has ended.

    Raises:
        OSError: no process or descriptor is to be had.
    """

    def __init__(self, name: str, target: Callable[..., None], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        with ExitStack() as ours:
            self.line, theirs = socket.socketpair()
            ours.callback(self.line.close)
            with theirs:
                life, self._held = context.Pipe(duplex=False)
                ours.callback(self._held.close)
                with life:
                    process = context.Process(
                        target=target,
                        args=(theirs, life, os.getpid(), *args),
                        name=f"servicegroup {name}",
                        daemon=False,  # a daemon must have no children of its own
                    )
                    with _sigint_blocked():
                        # Not process.start(): with that, multiprocessing would reap it too, on any
                        # thread that makes a process, and exit codes would get lost in between.
                        self._popen = popen = Popen(process)
                        for undo in (popen.close, popen.wait, popen.kill):
                            ours.callback(undo)
                    # Here a Ctrl-C may come through, if this is the main thread.
                    self.pid = popen.pid
                    _end_at_hangup(life.fileno(), self.pid)
            self.exit_fd = _exit_fd(popen)
            ours.pop_all()

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        try:
            if self.exit_fd != self._popen.sentinel:
                signal.pidfd_send_signal(self.exit_fd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:  # somebody else in this process has reaped it
            pass

    def reap(self) -> int | None:
        """Wait for its end and let go of all that it had.

        Returns:
            The exit code, or minus the signal that ended it; None if somebody else has taken it.
        """
        code = self._popen.wait()
        self.line.close()
        self._held.close()
        if self.exit_fd != self._popen.sentinel:
            os.close(self.exit_fd)
        self._popen.close()
        return code


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


def _exit_fd(popen: Popen) -> int:
    # The sentinel is a pipe, which a process forked from the child holds open.
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(popen.pid)
        except OSError:
            pass  # an old kernel
    return popen.sentinel
