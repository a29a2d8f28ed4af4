"""`AsyncService`: a service that is a coroutine, with an event loop and a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from types import CoroutineType
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from servicegroup._aio_executor import DaemonExecutor
from servicegroup._aio_tasks import CLEANUP_SECONDS, Cleanup
from servicegroup._options import seconds
from servicegroup.errors import StopTimeoutError
from servicegroup.service import Managed, required_arguments

T = TypeVar("T")

if TYPE_CHECKING:
    from typing import Protocol

    class Control(Protocol):
        """What runs an `AsyncService` in a loop."""

        @property
        def loop(self) -> asyncio.AbstractEventLoop: ...

        def on_stop(self) -> None: ...


# Of the time a stop may take: when a run() that looks at `stopping` is cancelled, and when one
# that did not end even so is given up, so that time is left to end what it left behind.
CANCEL_SHARE = 0.8
GIVE_UP_SHARE = 0.87

# One for all services, held for a few lines: a lock each would be most of a small one's memory.
# Re-entrant, since a signal handler that calls stop() may come in the midst of them.
_lock = threading.RLock()


class _Stopping(asyncio.Event):
    """The `stopping` event, which also ends the waits of `until_stopping`."""

    _waits: tuple[asyncio.Timeout, ...] = ()

    def set(self) -> None:
        super().set()
        for wait in self._waits:
            wait.reschedule(-math.inf)
        self._waits = ()

    def end_by(self, wait: asyncio.Timeout) -> None:
        self._waits = (*self._waits, wait)

    def forget(self, wait: asyncio.Timeout) -> None:
        self._waits = tuple(one for one in self._waits if one is not wait)


class AsyncService(Managed):
    """A base class for what runs in an event loop; override `async def run()`.

    On its own it runs in a loop and a thread of its own; in an `AsyncGroup`, as a task beside
    others. Everything is there without `super().__init__()`. The options are those of `Managed`.

    Attributes:
        cancel_after: seconds from the stop until `run()` is cancelled; `math.inf`: not until it
            would be abandoned. `None`: at once if `run()` never looked at `stopping` nor used
            `sleep()` or `until_stopping()`, else when four fifths of the time to stop are over.
        loop_factory: makes the event loop (`uvloop.new_event_loop`, say); `None`: asyncio's own.
            Of no meaning in an `AsyncGroup`, which has its own.

    Raises:
        TypeError: the class does not override `run()`.
        ValueError: `cancel_after` of the class is negative or NaN.
    """

    cancel_after: float | None = None
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None

    _event: _Stopping | None = None
    _asked: bool = False
    _looked: bool = False
    _control: Control | None = None

    _no_run: ClassVar[bool] = True  # nobody has overridden run()

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls._no_run = cls.run is AsyncService.run
        if inspect.isasyncgenfunction(cls.run):
            raise TypeError(f"{cls.__name__}.run() has a yield in it: it must be a coroutine")
        check_cancel_after(cls.__name__, cls.cancel_after)

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        if cls._no_run:
            raise TypeError(f"{cls.__name__} does not override async def run(), its work")
        return super().__new__(cls, *args, **kwargs)

    @property
    def stopping(self) -> asyncio.Event:
        """Set once the service has been asked to stop. To be waited for in its loop only."""
        object.__setattr__(self, "_looked", True)
        return self._stopping()

    def _stopping(self) -> _Stopping:
        event = self._event
        if event is None:
            with _lock:
                event = self._event
                if event is None:
                    event = _Stopping()
                    object.__setattr__(self, "_event", event)
                    if self._asked:  # looked at last: a signal handler may have come before
                        event.set()
        return event

    async def run(self) -> object:
        """Do the work until it is done or `stopping` is set. To be overridden."""
        raise NotImplementedError(f"{type(self).__name__} does not override run()")

    def start(self) -> None:
        """Run `run()` in a new event loop on the calling thread; return when all has ended.

        Called by the group; not by an `AsyncGroup`. Tasks that `run()` left behind are cancelled
        and waited for, generators and the default executor closed: within the time to stop, or
        within 5 seconds if there was no stop. The executor's threads are daemons.

        Raises:
            StopTimeoutError: `run()`, a task or a thread of the executor had not ended by then; it
                says where they are.
            RuntimeError: it runs already, or the calling thread runs a loop.
            Exception: what `run()` raised. An `ExceptionGroup` if tasks left behind raised, too.
        """
        check_cancel_after(f"service {self.name!r}", self.cancel_after)
        if self._control is not None:
            raise RuntimeError(f"service {self.name!r} runs already: make another object of it")
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                f"start() of service {self.name!r} blocks and this thread runs an event loop: "
                "add it to a group, or await its run()"
            )
        _Solo(self).start()

    def stop(self) -> object:
        """Ask for the end: set `stopping`, and cancel `run()` after `cancel_after`.

        Any thread may call it, and a signal handler.
        """
        with _lock:
            object.__setattr__(self, "_asked", True)
            control = self._control
            if control is None and self._event is not None:
                self._event.set()  # nobody can be waiting: there is no loop
        if control is None:
            return None
        if asyncio._get_running_loop() is control.loop:
            control.on_stop()  # so that the caller finds `stopping` set
        try:
            # Then, too: a signal handler runs while the loop waits, and does not wake it.
            control.loop.call_soon_threadsafe(control.on_stop)
        except RuntimeError:  # it is closed: all has ended just now
            pass
        return None

    async def sleep(self, seconds: float) -> bool:
        """Sleep for `seconds`, or until the stop. True: slept through; False: stopping."""
        object.__setattr__(self, "_looked", True)
        event = self._stopping()
        try:
            async with asyncio.timeout(None if seconds == math.inf else max(0.0, seconds)):
                await event.wait()
        except TimeoutError:
            pass
        return not event.is_set()

    def until_stopping(self, items: AsyncIterable[T]) -> AsyncGenerator[T, None]:
        """Yield from `items`, and end when the service is asked to stop.

        The item in hand is finished first. A wait for the next one is cancelled, and the iterator
        closed with its `aclose()`, if it has one: at the end, however it comes, in the same task.

        Raises:
            TypeError: `items` is no asynchronous iterable.
        """
        if not hasattr(items, "__aiter__"):
            hint = ""
            if hasattr(items, "__iter__"):
                hint = ": in an ordinary loop, look at stopping.is_set()"
            raise TypeError(
                f"service {self.name!r}: until_stopping() takes an asynchronous iterable, "
                f"not {items!r}{hint}"
            )
        object.__setattr__(self, "_looked", True)
        return _until(self._stopping(), aiter(items))

    def _rearm(self) -> None:
        with _lock:
            for name in ("_asked", "_looked", "_event"):
                object.__setattr__(self, name, getattr(AsyncService, name))

    def _about_to_stop(self) -> None:
        # An overridden stop() need not do it.
        AsyncService.stop(self)

    def _attach(self, control: Control | None) -> bool:
        """From now on `control` is told of a stop; whether it was asked for before."""
        if control is None and self._asked:
            object.__setattr__(self, "_control", None)
            return True
        with _lock:
            object.__setattr__(self, "_control", control)
            if control is None and not self._asked:
                # An event belongs to the loop in which it was waited for.
                object.__setattr__(self, "_event", None)
            return self._asked

    def _on_asked(self) -> None:
        """It was asked to stop. In the loop; may come again."""
        self._stopping().set()

    def _told_of(self) -> set[asyncio.Task[object]]:
        """Tasks that would not end, as has been told already."""
        return set()

    def _on_threads_hung(self, where: str) -> str:
        """What of the executor's threads that would not end is to be told as a failure."""
        return where

    def _cancel_delay(self, left: float) -> float:
        """In how many seconds `run()` is to be cancelled, with `left` to stop; `inf`: never."""
        if self.cancel_after is not None:
            return self.cancel_after
        return CANCEL_SHARE * left if self._looked else 0.0


async def _until(event: _Stopping, iterator: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    try:
        while not event.is_set():
            # In the same task, since what the iterator entered in one it must leave in the same.
            try:
                async with asyncio.timeout(None) as wait:
                    event.end_by(wait)
                    try:
                        item = await anext(iterator)
                    finally:
                        event.forget(wait)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if event.is_set() and wait.expired():
                    return
                raise
            # It may have come in spite of the stop, and must not be lost.
            yield item
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


def check_cancel_after(whose: str, value: object) -> None:
    """TypeError or ValueError if it makes no sense."""
    if value is not None:
        seconds(whose, "cancel_after", value)


def as_awaitable(service: AsyncService) -> Awaitable[object]:
    """What `run()` returned.

    Raises:
        TypeError: nothing that can be awaited.
    """
    work: object = service.run()
    if type(work) is not CoroutineType and not inspect.isawaitable(work):
        raise TypeError(
            f"run() of service {service.name!r} returned {work!r}: it must be async def run()"
        )
    return work


class _Solo:
    """One service in a loop of its own."""

    def __init__(self, service: AsyncService) -> None:
        self._service = service
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._errors: list[BaseException] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._asked_at: float | None = None
        self._cleanup: Cleanup | None = None

    def start(self) -> None:
        service = self._service
        executor = DaemonExecutor(f"{threading.current_thread().name} (executor)")
        # The factory may raise; nothing is to be ended then.
        runner = asyncio.Runner(loop_factory=_plain_factory(service))
        self.loop = runner.get_loop()
        if getattr(self.loop, "_default_executor", None) is None:
            self.loop.set_default_executor(executor)
        try:
            try:
                runner.run(self._main())
            except BaseException as error:  # of a task beside run(), or Ctrl-C
                self._errors.append(error)
            begun = self.loop.time()
            self._cleanup = cleanup = Cleanup(
                self.loop,
                executor,
                service.remaining,
                service._told_of(),
                service._on_threads_hung,
            )
            cleanup.run(runner)
            self._errors += cleanup.errors
            if cleanup.hung:
                since = begun if self._asked_at is None else self._asked_at
                seconds = self.loop.time() - since
                self._errors.append(StopTimeoutError(service.name, seconds, cleanup.hung))
        finally:
            service._attach(None)
            if self._cleanup is not None and self._cleanup.tasks_hung:
                self.loop.close()  # the runner would wait for them
            else:
                runner.close()
        # The tracebacks of the errors hold this frame and this object, which must not hold them.
        outcome = _outcome(service.name, self._errors)
        self._errors = []
        try:
            if outcome is not None:
                raise outcome
        finally:
            del outcome

    async def _main(self) -> None:
        self._over: asyncio.Future[None] = self.loop.create_future()
        self._task = self.loop.create_task(self._body(), name=self._service.name)
        if self._service._attach(self):
            self.loop.call_soon(self.on_stop)  # after its first step, which may look at `stopping`
        try:
            await self._over
        except asyncio.CancelledError:
            # Ctrl-C, where start() was called in the main thread.
            self._cancel()
            await asyncio.wait([self._task], timeout=CLEANUP_SECONDS)
            raise
        finally:
            for timer in self._timers:
                timer.cancel()

    async def _body(self) -> None:
        try:
            await as_awaitable(self._service)
        except asyncio.CancelledError as cancelled:
            if not (self._cancelled or self._over.done()):
                self._errors.append(cancelled)
        except BaseException as error:
            self._errors.append(error)
        self._give_up()

    def on_stop(self) -> None:
        """It was asked to stop (once more, maybe: with less time). In the loop."""
        self._service._on_asked()
        if self._asked_at is None:
            self._asked_at = self.loop.time()
        if self._over.done():
            if self._cleanup is not None:
                self._cleanup.hurry()
            return
        left = self._service.remaining()
        self._call_in(self._service._cancel_delay(left), self._cancel)
        self._call_in(GIVE_UP_SHARE * left, self._give_up)

    def _call_in(self, delay: float, what: Callable[[], None]) -> None:
        # What an earlier stop has set stays: to be asked again must not put it off.
        if delay < math.inf:
            self._timers.append(self.loop.call_later(delay, what))

    def _cancel(self) -> None:
        if not self._cancelled and self._task is not None:
            self._cancelled = True
            self._task.cancel()

    def _give_up(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


def _plain_factory(
    service: AsyncService,
) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Its `loop_factory`; a function that is an attribute of the class has become a method."""
    factory = service.loop_factory
    function = getattr(factory, "__func__", None)
    if function is not None and getattr(factory, "__self__", None) is service:
        plain: Callable[[], asyncio.AbstractEventLoop] = function
        return factory if required_arguments(plain) else plain
    return factory


def _outcome(name: str, errors: list[BaseException]) -> BaseException | None:
    """What to raise: one as it is, several together; what ends a program goes first."""
    failures = [error for error in errors if isinstance(error, Exception)]
    failure = failures[0] if failures else None
    if len(failures) > 1:
        failure = ExceptionGroup(f"service {name!r} and what it left behind", failures)
    clean = [error for error in errors if isinstance(error, SystemExit) and not error.code]
    for error in errors:
        if not isinstance(error, Exception) and error not in clean:
            if failure is not None:
                error.__cause__ = failure
            return error
    # A clean exit must not hide a failure.
    return clean[0] if clean and failure is None else failure
