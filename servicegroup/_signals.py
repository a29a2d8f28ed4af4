"""Take signals over and give them back.

The Python-level handlers do next to nothing. CPython writes the number of each signal into the
wake-up descriptor, here a pipe, from its C handler, and the main thread blocks in a read of it: no
moment is left in which a signal could be missed, and no handler runs code that the signal may have
interrupted halfway. A pipe, not a socket pair as in asyncio: it holds 65,536 signals rather than
under 300, so none is lost however long the main thread waits for the interpreter's lock.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from types import FrameType

_taken: Signals | None = None
_fork_hooks_registered = False
_masks: dict[int, set[signal.Signals]] = {}  # by the forking thread's ident
_ignored_at_exit: set[int] = set()


def in_main_thread() -> bool:
    """Whether this is the one thread that may take signals."""
    return threading.current_thread() is threading.main_thread()


def _no_op(_number: int, _frame: FrameType | None) -> None:
    pass


class Signals:
    """The signals `numbers` while the context is held; entered and left in the main thread only.

    `dump` is taken only if nobody else has a handler for it.
    """

    def __init__(self, numbers: Iterable[int], dump: int | None) -> None:
        self.numbers = frozenset(numbers)
        self.dump = dump if dump is not None and signal.getsignal(dump) == signal.SIG_DFL else None
        self._undo = ExitStack()
        self._read = self._write = -1
        # Which of `numbers` a handler of ours was called for. When it is given back, this tells a
        # signal that came too late for the group from one that went to the handler before.
        self.seen: set[int] = set()

    def __enter__(self) -> Signals:
        global _taken
        with ExitStack() as undo:
            self._read, self._write = os.pipe()
            undo.callback(self._close)
            os.set_blocking(self._write, False)
            _register_fork_hooks()
            before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            undo.callback(signal.set_wakeup_fd, before, warn_on_full_buffer=False)
            outer, _taken = _taken, self
            undo.callback(_set_taken, outer)
            for number in (*self.numbers, *([] if self.dump is None else [self.dump])):
                handler = self._see if number in self.numbers else _no_op
                undo.callback(_restore, number, handler, signal.getsignal(number))
                signal.signal(number, handler)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._undo.close()

    def _see(self, number: int, _frame: FrameType | None) -> None:
        self.seen.add(number)  # no lock, no output: the signal may have interrupted anything

    def _close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def wait(self) -> bytes:
        """Block until signals come or `wake` is called; the numbers that came, and perhaps zeros.

        A number may be of a signal that was not taken: it has a handler of the user's own.
        """
        return os.read(self._read, 65536)

    def wait_until_readable(self, seconds: float) -> bool:
        """Whether `wait` would return at once, within `seconds`. For a thread that has a deadline.

        Poll, not select: descriptors over 1,023 are common in servers.
        """
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def wake(self) -> None:
        """End a `wait`, from any thread."""
        try:
            os.write(self._write, b"\0")
        except BlockingIOError:
            pass  # full: the reader has plenty to wake it

    def ignore_at_exit(self) -> None:
        """Have them ignored from the last exit hook on, for a process with nothing left to lose."""
        _ignored_at_exit.update(self.numbers)


# Registered this early to be called late: until then one more signal can end an exit that hangs.
@atexit.register
def _ignore_at_exit() -> None:
    # The interpreter sets its handlers back to the default right after the exit hooks, and a signal
    # that comes then would still turn 0 into 143; what is ignored stays ignored.
    for number in _ignored_at_exit:
        signal.signal(number, signal.SIG_IGN)


def _set_taken(signals: Signals | None) -> None:
    global _taken
    _taken = signals


def _restore(number: int, ours: object, before: signal._HANDLER) -> None:
    # None is a handler that was not set from Python, which Python cannot set again.
    if before is not None and signal.getsignal(number) == ours:
        signal.signal(number, before)


def _register_fork_hooks() -> None:
    # Once in a process, since such hooks cannot be taken away.
    global _fork_hooks_registered
    if not _fork_hooks_registered:
        _fork_hooks_registered = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_unmask, after_in_child=_after_fork_in_child
        )


def _before_fork() -> None:
    # A signal to the child before it has let go of the pipe would stop the parent: hold it back.
    if _taken is not None:
        ident = threading.get_ident()
        _masks[ident] = signal.pthread_sigmask(signal.SIG_BLOCK, _taken.numbers)  # type: ignore[assignment]


def _unmask() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    if _taken is not None:
        _taken.__exit__()
    _unmask()
