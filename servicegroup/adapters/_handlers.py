"""Where the handlers of a queue's messages run: on threads, or as tasks of the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from queue import Empty, SimpleQueue

from servicegroup._aio_tasks import task_stack
from servicegroup._stacks import stack_of
from servicegroup.adapters._broker import Delivery
from servicegroup.adapters._drain import log
from servicegroup.adapters._message import Message

Handler = Callable[[Message], object]
# A message, and what its handler raised, if it did.
OnDone = Callable[[Delivery, BaseException | None], None]


class Handlers(ABC):
    """At most `concurrency` messages are handled at a time; the others wait.

    All is for the thread of the event loop, where `on_done` is called, too.

    Attributes:
        count: how many are being handled, or wait for that.
    """

    def __init__(
        self, handler: Handler, concurrency: int, timeout: float, name: str, on_done: OnDone
    ) -> None:
        self._handler = handler
        self._concurrency = concurrency
        self._timeout = timeout
        self._name = name
        self._tell_done = on_done
        self.count = 0

    def handle(self, delivery: Delivery) -> None:
        """Have it handled as soon as there is room."""
        self.count += 1
        self._put(delivery)

    def take_back(self) -> list[Delivery]:
        """Those that have not begun, and will not."""
        taken = self._take_back()
        self.count -= len(taken)
        return taken

    def _on_done(self, delivery: Delivery, error: BaseException | None) -> None:
        self.count -= 1
        self._tell_done(delivery, error)

    @abstractmethod
    def _put(self, delivery: Delivery) -> None: ...

    @abstractmethod
    def _take_back(self) -> list[Delivery]: ...

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How many have not begun."""

    @abstractmethod
    def stacks(self) -> list[str]:
        """Where those are that have begun."""

    @abstractmethod
    def close(self) -> None:
        """End what can be ended."""

    def _tell_stalled(self, delivery: Delivery, stack: str) -> None:
        log.error(
            "service %r: the handler of message %s has run for more than %g s:\n%s",
            self._name,
            delivery.message.id,
            self._timeout,
            stack,
        )


class ThreadHandlers(Handlers):
    """Daemon threads. One whose handler takes too long is replaced, and ends when that returns."""

    def __init__(
        self, handler: Handler, concurrency: int, timeout: float, name: str, on_done: OnDone
    ) -> None:
        super().__init__(handler, concurrency, timeout, name, on_done)
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Delivery | None] = SimpleQueue()
        self._done: deque[tuple[Delivery, BaseException | None]] = deque()
        self._woken = False  # the loop is to look at `_done`
        self._begun: dict[threading.Thread, tuple[Delivery, float]] = {}
        self._stalled: set[threading.Thread] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._made = 0
        for _ in range(concurrency):
            self._add_thread()

    def _put(self, delivery: Delivery) -> None:
        self._jobs.put(delivery)
        if self._timer is None and self._timeout < math.inf:
            self._timer = self._loop.call_later(self._timeout, self._look)

    @property
    def waiting(self) -> int:
        return self._jobs.qsize()

    def _take_back(self) -> list[Delivery]:
        taken = []
        try:
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    taken.append(job)
        except Empty:
            return taken

    def stacks(self) -> list[str]:
        return [stack_of(thread) for thread in list(self._begun)]

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for _ in range(self._made):
            self._jobs.put(None)

    def _add_thread(self) -> None:
        self._made += 1
        threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._work,),
            name=f"{threading.current_thread().name} (handler {self._made})",
            daemon=True,
        ).start()

    def _work(self) -> None:
        this = threading.current_thread()
        while this not in self._stalled and (delivery := self._jobs.get()) is not None:
            self._begun[this] = delivery, time.monotonic()
            error: BaseException | None = None
            try:
                result = self._handler(delivery.message)
                if inspect.iscoroutine(result):
                    result.close()
                    raise _coroutine(self._handler)
            except BaseException as raised:
                error = raised
            del self._begun[this]
            self._done.append((delivery, error))
            # An idle thread must not keep what it worked with.
            del delivery, error
            if not self._woken:
                self._woken = True
                try:
                    self._loop.call_soon_threadsafe(self._tell)
                except RuntimeError:  # closed: it came after the deadline
                    break
        self._stalled.discard(this)

    def _tell(self) -> None:
        self._woken = False
        while self._done:
            self._on_done(*self._done.popleft())

    def _look(self) -> None:
        """Replace the threads that have been at it for too long."""
        now = time.monotonic()
        self._timer = None
        due = math.inf
        for thread, (delivery, since) in self._begun.copy().items():
            if thread in self._stalled:
                continue
            if now - since < self._timeout:
                due = min(due, since + self._timeout)
                continue
            self._stalled.add(thread)
            self._add_thread()
            self._tell_stalled(delivery, stack_of(thread))
        # One may have been taken just now, and not be noted yet as begun.
        stalled = sum(thread in self._stalled for thread in self._begun.copy())
        if due == math.inf and self.count > stalled:
            due = now + self._timeout
        if due < math.inf:
            self._timer = self._loop.call_later(due - now, self._look)


class TaskHandlers(Handlers):
    """Tasks of the event loop. One that takes too long is cancelled, and has failed."""

    def __init__(
        self, handler: Handler, concurrency: int, timeout: float, name: str, on_done: OnDone
    ) -> None:
        super().__init__(handler, concurrency, timeout, name, on_done)
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[Delivery] = deque()
        self._tasks: dict[asyncio.Task[None], Delivery] = {}

    def _put(self, delivery: Delivery) -> None:
        self._jobs.append(delivery)
        self._begin()

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def _take_back(self) -> list[Delivery]:
        taken = list(self._jobs)
        self._jobs.clear()
        return taken

    def stacks(self) -> list[str]:
        return [task_stack(task) for task in self._tasks]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _begin(self) -> None:
        while self._jobs and len(self._tasks) < self._concurrency:
            delivery = self._jobs.popleft()
            task = self._loop.create_task(self._work(delivery), name=f"{self._name} (handler)")
            self._tasks[task] = delivery
            task.add_done_callback(self._end)

    async def _work(self, delivery: Delivery) -> None:
        result = self._handler(delivery.message)
        if not isinstance(result, Awaitable):
            raise TypeError(f"{self._handler!r} returned {result!r}, which cannot be awaited")
        if self._timeout == math.inf:
            await result
            return
        this = asyncio.current_task()
        assert this is not None
        try:
            async with asyncio.timeout(None) as limit:
                tell = self._loop.call_later(self._timeout, self._stall, this, delivery, limit)
                try:
                    await result
                finally:
                    tell.cancel()
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"its handler took more than {self._timeout:g} s") from None

    def _stall(self, task: asyncio.Task[None], delivery: Delivery, limit: asyncio.Timeout) -> None:
        self._tell_stalled(delivery, task_stack(task))
        limit.reschedule(self._loop.time())

    def _end(self, task: asyncio.Task[None]) -> None:
        delivery = self._tasks.pop(task)
        cancelled = RuntimeError("its handler was cancelled")
        self._on_done(delivery, cancelled if task.cancelled() else task.exception())
        self._begin()


def is_async(handler: object) -> bool:
    """Whether calling it makes a coroutine."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - of an object that is called
    )


def _coroutine(handler: object) -> TypeError:
    return TypeError(f"{handler!r} returned a coroutine: make it an async def itself")
