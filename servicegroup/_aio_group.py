"""`AsyncGroup`: many coroutine services in one loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Generic, TypeVar

from servicegroup._aio_crew import ASKED, Crew, Outer, new_ones
from servicegroup._aio_member import Member
from servicegroup._aio_service import AsyncService, check_cancel_after
from servicegroup._options import Resolver, choice, seconds
from servicegroup._runner import line_of
from servicegroup._table import Table
from servicegroup.errors import GroupStoppingError
from servicegroup.group import _require_name
from servicegroup.report import GroupState, ServiceStatus, State
from servicegroup.service import (
    Composite,
    Managed,
    OnFailure,
    OnReturn,
    OnStall,
    ReadyWhen,
    StartStop,
    _name_of,
)

T = TypeVar("T")
A = TypeVar("A", bound=AsyncService)

# This group ends its own stop that much sooner than the outer one would abandon it.
NESTED_SHARE = 1.1


class AsyncGroup(AsyncService, Composite):
    """Runs `AsyncService`s in one event loop, each as a task; starts in order, stops in reverse.

    It is a service itself: add it to a `ServiceGroup`, which runs it on one thread. It is ready
    when all of its own are, and ends when all but daemons have finished.

    Args:
        name: what the outer group, the report and the log call it.
        start_timeout: seconds a service may take to become ready.
        stop_timeout: seconds a service may take to stop before it is abandoned.
        shutdown_timeout: seconds the whole stop may take, cut to what the outer group has left.
        on_failure: what to do when a service raises: `"stop"`, `"continue"` or a `Restart`.
        on_return: what to do when a service's `run()` returns: `"continue"`, `"stop"` or a
            `Restart`.
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
        heartbeat_timeout: float | None = None,
        on_stall: OnStall | None = None,
        expected_on_stop: tuple[type[BaseException], ...] | None = None,
    ) -> A:
        """Add a service, to be started after those added before. Any thread may call it.

        On a group that runs, the service is started now. The options are those of
        `ServiceGroup.add`, but for `ready_when="returned"`.

        Returns:
            The service.

        Raises:
            TypeError: it is no `AsyncService`, or an option is of the wrong type.
            ValueError: it is in the group already, its name is taken, or an option makes no sense.
            GroupStoppingError: the group is stopping.
        """
        if type(service) not in self._vetted:
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
            heartbeat_timeout,
            on_stall,
            expected_on_stop,
        )
        if service.cancel_after is not None:
            check_cancel_after(f"service {name!r}", service.cancel_after)
        options = self._resolver.resolve(service, name, given)
        if options.ready_when == "returned":
            raise ValueError(
                f'service {name!r}: ready_when="returned" has no meaning in an AsyncGroup, where '
                'run() is a coroutine: say "announced" and call mark_ready()'
            )
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
                link=self._link,
            ),
            loop,
        )
        interrupted: asyncio.CancelledError | None = None
        try:
            crew.begin(self._asked)
            while not crew.over.done():
                try:
                    await asyncio.shield(crew.over)
                except asyncio.CancelledError as cancelled:
                    # Ctrl-C where start() was called in the main thread: the stop is bounded.
                    interrupted = cancelled
                    crew.on_stop("cancelled")
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
        """Take and start no more services; pass it on to those that run, the last one first.

        Called by the outer group, on its stopping thread. What the `drain()` of a service raises is
        a failure of that service.
        """
        if not self._table.close():
            return
        crew = self._crew
        if crew is None:
            return  # run() will see that the table is closed
        crew.call(crew.on_drain)
        failures: list[tuple[Member, BaseException, str]] = []
        for member in reversed(crew.members[:]):
            service = member.service
            runs = member.entered and member.state in (State.STARTING, State.RUNNING)
            if runs and type(service).drain is not Managed.drain:
                try:
                    service.drain()
                except BaseException as error:
                    failures.append((member, error, line_of(error)))
        # Only now: the stop, which follows, must not overtake the drain of the others.
        while failures:
            crew.call(crew.on_drain_failed, *failures.pop(0))

    @property
    def services(self) -> dict[str, StartStop]:
        """The services by name. Any thread."""
        return self._table.services()

    def _parts(self) -> tuple[ServiceStatus, ...]:
        return self.status()

    def _drain(self) -> None:
        self.drain()

    def _rearm(self) -> None:
        super()._rearm()
        self._table.reopen()

    def _on_asked(self) -> None:
        super()._on_asked()
        if self._crew is not None:
            self._crew.on_stop(ASKED)

    def _told_of(self) -> set[asyncio.Task[object]]:
        crew = self._crew
        return set() if crew is None else crew.abandoned()

    def _time_left(self) -> float:
        return self.remaining() / NESTED_SHARE

    def _announce(self, ready: bool) -> None:
        (self.mark_ready if ready else self.mark_not_ready)()

    def _vet(self, service: object) -> None:
        """Refuse what cannot run in a loop of others."""
        if isinstance(service, type):
            raise TypeError(f"{service.__name__} is a class: add an object of it")
        if not isinstance(service, AsyncService):
            hint = "make it an AsyncService, or add it to the ServiceGroup"
            if hasattr(service, "__aenter__") or hasattr(service, "__enter__"):
                hint = "add_context() takes context managers"
            raise TypeError(f"group {self.name!r} takes AsyncServices, not {service!r}: {hint}")
        kind = type(service)
        for method in ("start", "stop"):
            if getattr(kind, method) is not getattr(AsyncService, method):
                raise TypeError(
                    f"service {service.name!r} ({kind.__name__}) overrides {method}(), which an "
                    "AsyncGroup does not call: put what it does into run()"
                )
        if not isinstance(service, AsyncGroup):
            self._vetted.add(kind)
        elif service is self or service._contains(self):
            raise ValueError(f"group {service.name!r} cannot be put inside itself")

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
