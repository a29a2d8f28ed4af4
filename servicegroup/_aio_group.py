"""`AsyncGroup`: many coroutine services in one loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from operator import attrgetter
from typing import Generic, TypeVar

from servicegroup._aio_crew import Crew, Outer, new_ones
from servicegroup._aio_service import AsyncService, check_cancel_after
from servicegroup._options import CHOICES, NAMES, Options, Resolver, choice, seconds
from servicegroup._table import Table
from servicegroup.errors import GroupStoppingError
from servicegroup.group import _require_name
from servicegroup.report import GroupState, ServiceStatus
from servicegroup.service import Composite, Managed, OnFailure, OnReturn, ReadyWhen, _name_of

T = TypeVar("T")
A = TypeVar("A", bound=AsyncService)

# This group ends its own stop that much sooner than the outer one would abandon it.
NESTED_SHARE = 1.1

_options_of = attrgetter(*NAMES)
_ASKED = "the outer group stops"
_NO_ATTRIBUTES = _options_of(Managed)
_KEYWORDS = (
    "ready_when",
    "daemon",
    "start_timeout",
    "stop_timeout",
    "on_failure",
    "on_return",
    "expected_on_stop",
)
_NO_KEYWORDS = (None,) * len(_KEYWORDS)


class AsyncGroup(AsyncService, Composite):
    """Runs `AsyncService`s in one event loop, each as a task; starts in order, stops in reverse.

    It is a service itself: add it to a `ServiceGroup`, which runs it on one thread. It is ready
    when all of its own are, and ends when all but daemons have finished.

    Args:
        name: what the outer group, the report and the log call it.
        start_timeout: seconds a service may take to become ready.
        stop_timeout: seconds a service may take to stop before it is abandoned.
        shutdown_timeout: seconds the whole stop may take, cut to what the outer group has left.
        on_failure: what to do when a service raises: `"stop"` or `"continue"`.
        on_return: what to do when a service's `run()` returns: `"continue"` or `"stop"`.
        loop_factory: makes the event loop; `None`: asyncio's own.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    ready_when: ReadyWhen | None = "announced"
    # Its members are cancelled, each in its turn; it never is itself.
    cancel_after: float | None = math.inf

    def __init__(
        self,
        *,
        name: str = "AsyncGroup",
        start_timeout: float = 60.0,
        stop_timeout: float = 10.0,
        shutdown_timeout: float = 25.0,
        on_failure: OnFailure = "stop",
        on_return: OnReturn = "continue",
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        _require_name("AsyncGroup", name)
        whose = f"group {name!r}"
        self.name = name
        self._shutdown_timeout = seconds(whose, "shutdown_timeout", shutdown_timeout)
        if loop_factory is not None:
            if not callable(loop_factory):
                raise TypeError(f"{whose}: loop_factory must be callable, not {loop_factory!r}")
            self.loop_factory = loop_factory
        self._resolver = Resolver(
            {
                "start_timeout": seconds(whose, "start_timeout", start_timeout),
                "stop_timeout": seconds(whose, "stop_timeout", stop_timeout),
                "on_failure": choice(whose, "on_failure", on_failure),
                "on_return": choice(whose, "on_return", on_return),
            }
        )
        # It has limits of its own; those of the outer group are only there in case they fail.
        self.start_timeout = math.inf
        self.stop_timeout = shutdown_timeout * NESTED_SHARE
        self._usual: Options | None = None  # of services that say nothing of their own
        self._vetted: set[type] = set()
        self._table = Table()
        self._crew: Crew | None = None

    def add(
        self,
        service: A,
        *,
        name: str | None = None,
        ready_when: ReadyWhen | None = None,
        daemon: bool | None = None,
        start_timeout: float | None = None,
        stop_timeout: float | None = None,
        on_failure: OnFailure | None = None,
        on_return: OnReturn | None = None,
        expected_on_stop: tuple[type[BaseException], ...] | None = None,
    ) -> A:
        """Add a service, to be started after those added before. Any thread may call it.

        On a group that runs, the service is started now. The options are those of
        `ServiceGroup.add`, but for `ready_when="returned"` and restarts.

        Returns:
            The service.

        Raises:
            TypeError: it is no `AsyncService`, or an option is of the wrong type.
            ValueError: it is in the group already, its name is taken, or an option makes no sense.
            GroupStoppingError: the group is stopping.
        """
        self._vet(service)
        chosen = name is not None
        if name is None:
            name = service.name
        _require_name(f"add({service!r})" if chosen else type(service).__name__, name)
        given = (
            ready_when,
            daemon,
            start_timeout,
            stop_timeout,
            on_failure,
            on_return,
            expected_on_stop,
        )
        # Thousands of services say nothing of their own.
        usual = given == _NO_KEYWORDS and _options_of(service) == _NO_ATTRIBUTES
        options = self._usual if usual else None
        if options is None:
            keywords = dict(zip(_KEYWORDS, given, strict=True))
            options = self._resolve(service, name, keywords)
            if usual:
                self._usual = options
        try:
            self._table.add(service, name, options, chosen=chosen)
        except GroupStoppingError as error:
            error.add_note(f"in group {self.name!r}")
            raise
        crew = self._crew
        if crew is not None and crew.state is not GroupState.STOPPED:
            crew.call(crew.advance_soon)
        return service

    def add_context(
        self,
        cm: AbstractAsyncContextManager[T] | AbstractContextManager[T],
        *,
        name: str | None = None,
    ) -> AsyncContext[T]:
        """Add a context manager: entered, held and left in its place, in one task.

        Returns:
            Its service, a daemon; `.value` is what entering it returned, while it is held.

        Raises:
            TypeError: it is no context manager, neither an asynchronous nor an ordinary one.
            ValueError, GroupStoppingError: as `add`.
        """
        return self.add(AsyncContext(cm), name=name)

    async def run(self) -> None:
        """Run the services until all have ended. Called by `start()`, or by an outer AsyncGroup.

        Raises:
            ServiceGroupError: services failed.
            SystemExit: a service called `sys.exit()` with something other than 0.
        """
        loop = asyncio.get_running_loop()
        self._crew = crew = Crew(
            Outer(
                name=self.name,
                table=self._table,
                shutdown_timeout=self._shutdown_timeout,
                remaining=self._time_left,
                announce=self._announce,
            ),
            loop,
        )
        interrupted: asyncio.CancelledError | None = None
        try:
            if self._asked:
                crew.stop(_ASKED)
            else:
                crew.advance()
            while not crew.over.done():
                try:
                    await asyncio.shield(crew.over)
                except asyncio.CancelledError as cancelled:
                    # Ctrl-C where start() was called in the main thread: the stop is bounded.
                    interrupted = cancelled
                    crew.stop("cancelled")
            error = crew.outcome()
        finally:
            self._table.reopen()
        if interrupted is not None:
            raise interrupted from error
        if error is not None:
            raise error

    def status(self) -> tuple[ServiceStatus, ...]:
        """How each service stands, in the order of `add`. Any thread."""
        crew = self._crew
        return tuple(new_ones(self._table.entries)) if crew is None else crew.status()

    def drain(self) -> None:
        """Pass it on to the services, the last one first. Called by the outer group."""
        for entry in reversed(self._table.entries[:]):
            service = entry.service
            if isinstance(service, Managed) and type(service).drain is not Managed.drain:
                service.drain()

    def _parts(self) -> tuple[ServiceStatus, ...]:
        return self.status()

    def _drain(self) -> None:
        self.drain()

    def _on_asked(self) -> None:
        super()._on_asked()
        if self._crew is not None:
            self._crew.stop(_ASKED)

    def _told_of(self) -> set[asyncio.Task[object]]:
        crew = self._crew
        return set() if crew is None else crew.abandoned()

    def _time_left(self) -> float:
        return self.remaining() / NESTED_SHARE

    def _announce(self, ready: bool) -> None:
        (self.mark_ready if ready else self.mark_not_ready)()

    def _resolve(self, service: AsyncService, name: str, given: Mapping[str, object]) -> Options:
        if isinstance(service, AsyncGroup) and given["stop_timeout"] is None:
            given = {**given, "stop_timeout": service.stop_timeout}
        options = self._resolver.resolve(service, name, tuple(map(given.get, NAMES)))
        whose = f"service {name!r}"
        if options.ready_when == "returned":
            raise ValueError(
                f'{whose}: ready_when="returned" has no meaning in an AsyncGroup, where run() is '
                'a coroutine: say "announced" and call mark_ready()'
            )
        for option in ("on_failure", "on_return"):
            value = getattr(options, option)
            if value not in ("stop", "continue"):
                raise ValueError(
                    f"{whose}: {option}={value!r} cannot be had in an AsyncGroup: give it to the "
                    f"AsyncGroup as a whole, when that is added, or one of {CHOICES[option]}"
                )
        if options.heartbeat_timeout != math.inf:
            raise ValueError(
                f"{whose}: heartbeat_timeout cannot be had in an AsyncGroup: give it to the "
                "AsyncGroup as a whole, when that is added"
            )
        return options

    def _vet(self, service: object) -> None:
        """Refuse what cannot run in a loop of others."""
        kind = type(service)
        if isinstance(service, AsyncService):
            check_cancel_after(f"service {service.name!r}", service.cancel_after)
            if isinstance(service, AsyncGroup) and (service is self or service._contains(self)):
                raise ValueError(f"group {service.name!r} cannot be put inside itself")
        if kind in self._vetted:
            return
        if isinstance(service, type):
            raise TypeError(f"{service.__name__} is a class: add an object of it")
        if not isinstance(service, AsyncService):
            hint = "make it an AsyncService, or add it to the ServiceGroup"
            if hasattr(service, "__aenter__") or hasattr(service, "__enter__"):
                hint = "add_context() takes context managers"
            raise TypeError(f"group {self.name!r} takes AsyncServices, not {service!r}: {hint}")
        for method in ("start", "stop"):
            if getattr(kind, method) is not getattr(AsyncService, method):
                raise TypeError(
                    f"service {service.name!r} ({kind.__name__}) overrides {method}(), which an "
                    "AsyncGroup does not call: put what it does into run()"
                )
        self._vetted.add(kind)

    def _contains(self, group: AsyncGroup) -> bool:
        return any(
            entry.service is group or entry.service._contains(group)
            for entry in self._table.entries
            if isinstance(entry.service, AsyncGroup)
        )


class AsyncContext(AsyncService, Generic[T]):
    """What `AsyncGroup.add_context` makes."""

    ready_when: ReadyWhen | None = "announced"
    daemon: bool | None = True

    def __init__(self, cm: AbstractAsyncContextManager[T] | AbstractContextManager[T]) -> None:
        asynchronous = hasattr(cm, "__aenter__") and hasattr(cm, "__aexit__")
        if not asynchronous and not (hasattr(cm, "__enter__") and hasattr(cm, "__exit__")):
            raise TypeError(f"add_context() takes a context manager, not {cm!r}")
        # What contextlib makes is named after the function it was made from.
        made_by = getattr(cm, "func", None)
        self.name = type(cm).__name__ if made_by is None else _name_of(made_by)
        self._cm = cm

    @property
    def value(self) -> T:
        """What entering the context manager returned.

        Raises:
            RuntimeError: it has not been entered, or was left already.
        """
        try:
            return self._value
        except AttributeError:
            raise RuntimeError(
                f"the context of service {self.name!r} is not entered: its value is there from "
                "the moment the service is ready until it has stopped"
            ) from None

    async def run(self) -> None:
        """Enter, hold and leave it."""
        cm = self._cm
        if isinstance(cm, AbstractAsyncContextManager):
            async with cm as self._value:
                await self._hold()
        else:
            with cm as self._value:
                await self._hold()

    async def _hold(self) -> None:
        try:
            self.mark_ready()
            await self.stopping.wait()
        finally:
            del self._value
