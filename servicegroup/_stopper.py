"""The stopping thread: where `stop()` and `drain()` of the services are called."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from servicegroup._runner import GroupThread, Runner, line_of
from servicegroup.service import Managed

if TYPE_CHECKING:

    class StopHost(Protocol):
        """The run, as its stopping thread sees it."""

        @property
        def root(self) -> object: ...

        @property
        def context(self) -> Context: ...

        def post(self, handler: Callable[..., None], /, *args: object) -> None: ...

        def on_stopped(
            self, runner: Runner, error: BaseException | None, line: str = ...
        ) -> None: ...

        def on_drained(
            self, runner: Runner, error: BaseException | None, line: str = ...
        ) -> None: ...


class Stopper:
    """One thread, made before the first service; a thread a stop would cost far more.

    All public methods are for the deciding thread.
    """

    def __init__(self, name: str, host: StopHost) -> None:
        self._name = f"{name} (stopping)"
        self._host = host
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: GroupThread | None = None
        self._busy = False

    def start(self) -> None:
        """Make the thread. RuntimeError when the machine has none left."""
        self._thread = GroupThread(self._work, self._name, self._host.root)
        self._busy = False
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None
            raise

    # Once a stop() has hung, what is left goes on on a new thread; the old one, should it ever come
    # back, finds that it is not the current one any more, and ends.
    replace = start

    def stop(self, runner: Runner) -> None:
        """Have `runner`'s service stopped, after what was asked before."""
        self._jobs.put(lambda: self._stop_in_time(runner))

    def stop_apart(self, runner: Runner) -> None:
        """The same, at once, on a thread of its own (if one can be made)."""
        try:
            GroupThread(
                lambda: self._stop(runner), f"{self._name} {runner.name}", self._host.root
            ).start()
        except RuntimeError:
            self._jobs.put(lambda: self._stop(runner))

    def drain(self, runner: Runner) -> None:
        """Have `runner`'s service drained."""
        self._jobs.put(lambda: self._drain(runner))

    def close(self, timeout: float) -> None:
        """Let the thread end, and wait for it unless it hangs."""
        self._jobs.put(None)
        if self._thread is not None and not self._busy:
            self._thread.join(timeout)

    def _work(self) -> None:
        jobs, me = self._jobs, threading.current_thread()
        while self._thread is me:
            job = jobs.get()
            if job is None:
                jobs.put(None)  # for one that was replaced just as its stop() did return
                return
            self._busy = True
            job()
            if self._thread is me:
                self._busy = False

    def _stop_in_time(self, runner: Runner) -> None:
        if runner.settled:
            # It was abandoned before its turn came, and may hang: that must cost others nothing.
            self.stop_apart(runner)
        else:
            self._stop(runner)

    def _stop(self, runner: Runner) -> None:
        service = runner.service
        if isinstance(service, Managed):
            service._about_to_stop()
        self._call(runner, service.stop, self._host.on_stopped)

    def _drain(self, runner: Runner) -> None:
        assert runner.drain is not None
        self._call(runner, runner.drain, self._host.on_drained)

    def _call(self, runner: Runner, fn: Callable[[], object], done: Callable[..., None]) -> None:
        runner.stop_thread = threading.current_thread()
        try:
            self._host.context.copy().run(fn)
        except BaseException as error:
            raised: tuple[object, ...] = (error, line_of(error))
        else:
            raised = (None,)
        runner.stop_thread = None
        self._host.post(done, runner, *raised)
        del raised  # it holds this frame, and this frame would hold it
