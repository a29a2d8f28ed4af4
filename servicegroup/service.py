"""What a service is: two methods. `Service`, `with_start` and `with_context` are conveniences."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import (
    TYPE_CHECKING,
    Generic,
    Literal,
    Protocol,
    Self,
    TypeVar,
    Union,
    overload,
    runtime_checkable,
)

T = TypeVar("T")

if TYPE_CHECKING:
    from servicegroup.events import Event
    from servicegroup.report import ServiceStatus
    from servicegroup.restart import Restart

ReadyWhen = Literal["entered", "announced", "returned"]
# Restart is named only, not loaded: few programs need it.
OnFailure = Union[Literal["stop", "continue"], "Restart"]
OnReturn = Union[Literal["continue", "stop"], "Restart"]
OnStall = Literal["report", "fail"]


@runtime_checkable
class StartStop(Protocol):
    """Anything of this shape is a service.

    `start()` does the work and blocks until it is done or was asked to stop; it runs on a thread of
    its own. `stop()` asks for the end, from another thread, and may block while work in flight
    finishes; `start()` must return soon after. One `start()` is answered by exactly one `stop()`,
    also when it returned long ago; one that raised, or was never entered, by none. The `stop()` may
    come before the first line of `start()` has run.
    """

    def start(self) -> object: ...

    def stop(self) -> object: ...


if TYPE_CHECKING:

    class Link(Protocol):
        """What a group tells a `Service` about itself and takes from it."""

        def announce(self, ready: bool) -> None: ...

        def remaining(self) -> float: ...

        def beat(self) -> None: ...

        def wants_details(self) -> bool: ...

        def tell(self, event: Event, below: str = "") -> None: ...


class Composite:
    """A service made of services, as a nested group is."""

    @property
    def services(self) -> dict[str, StartStop]:
        """Its services by name, those of nested groups as `group/name`. Any thread."""
        return {}

    if TYPE_CHECKING:

        def _parts(self) -> tuple[ServiceStatus, ...]: ...

        def _drain(self) -> None: ...


class Managed:
    """What all base classes of services have in common: options, readiness, the time left.

    The options are class attributes that a subclass (or an instance, before it is added) sets;
    `None` means: as the group says. The same keyword given to `ServiceGroup.add` goes before.

    Attributes:
        name: what the group calls it; by default the name of the class.
        ready_when: when it counts as up: `"entered"` (its thread runs `start()`), `"announced"`
            (it called `mark_ready()`), `"returned"` (its `start()` does not block).
        daemon: whether the group may end while it still runs.
        start_timeout: seconds it may take to become ready.
        stop_timeout: seconds from the moment it is asked to stop until it is abandoned.
        on_failure: what to do when `start()` raises: `"stop"` the group, `"continue"` without it,
            or a `Restart`.
        on_return: what to do when `start()` returns: `"continue"`, `"stop"` the group, or a
            `Restart`.
        heartbeat_timeout: seconds it may go on without a `heartbeat()`, once it is ready, before it
            counts as stalled.
        on_stall: what to do then: `"report"` it, or let it `"fail"`.
        expected_on_stop: exception types that are no failure once it was asked to stop.
    """

    name: str

    ready_when: ReadyWhen | None = None
    daemon: bool | None = None
    start_timeout: float | None = None
    stop_timeout: float | None = None
    on_failure: OnFailure | None = None
    on_return: OnReturn | None = None
    heartbeat_timeout: float | None = None
    on_stall: OnStall | None = None
    expected_on_stop: tuple[type[BaseException], ...] = ()

    _link: Link | None = None

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        self = super().__new__(cls)
        if getattr(cls, "name", None) is None:
            # object.__setattr__, since a subclass may be a frozen dataclass.
            object.__setattr__(self, "name", cls.__name__)
        return self

    def drain(self) -> None:
        """Prepare for the stop while still serving; override it where that makes sense.

        Called on the group's stopping thread when the group begins to drain; returns at once.
        """

    def check(self) -> object:
        """Raise if the service cannot do its work for now; override it where that can be told.

        Asked for readiness, on a thread of the asker's own, with a timeout: the less it does, the
        better. It is not called while the service is not up.
        """
        return None

    def remaining(self) -> float:
        """Seconds until the group abandons this service; `inf` before the stop. Any thread."""
        return float("inf") if self._link is None else self._link.remaining()

    def mark_ready(self) -> None:
        """Say that this service is up. Any thread; again and again does no harm."""
        if self._link is not None:
            self._link.announce(True)

    def mark_not_ready(self) -> None:
        """Say that this service is not up for now (its broker is away, say). Any thread."""
        if self._link is not None:
            self._link.announce(False)

    def heartbeat(self) -> None:
        """Say that this service is alive. Any thread; it costs next to nothing."""
        if self._link is not None:
            self._link.beat()

    def _rearm(self) -> None:
        """It ran before and is started again: forget that it was asked to stop."""

    def _about_to_stop(self) -> None:
        """Its `stop()` is called next, on the same thread."""


class Service(Managed):
    """A base class for what runs on a thread; override `start()`.

    Everything is there without `super().__init__()`. The options are those of `Managed`.

    Attributes:
        stopping: set once the service has been asked to stop. The group sets it before it calls
            `stop()`, so an overridden `stop()` need not.
    """

    stopping: threading.Event

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "stopping", threading.Event())
        return self

    def start(self) -> object:
        """Do the work and block until it is done or `stopping` is set. To be overridden."""
        raise NotImplementedError(f"{type(self).__name__} does not override start()")

    def stop(self) -> object:
        """Ask for the end. Any thread may call it. Override it to wake what `start()` waits for."""
        self.stopping.set()
        return None

    def sleep(self, seconds: float) -> bool:
        """Sleep for `seconds`, or until the stop. True: slept through; False: stopping."""
        return not self.stopping.wait(seconds)

    def _rearm(self) -> None:
        self.stopping.clear()

    def _about_to_stop(self) -> None:
        self.stopping.set()


def required_arguments(fn: Callable[..., object]) -> list[inspect.Parameter]:
    """The parameters `fn` cannot be called without; none for what shows no signature."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some built-in functions tell nothing
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind not in optional]


def require_plain(fn: object, what: str) -> Callable[..., object]:
    """`fn` itself if it is an ordinary callable; TypeError, saying `what` it is, otherwise."""
    if not callable(fn):
        raise TypeError(f"{what} must be callable, not {fn!r}")
    if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(
            f"{what} is a coroutine function, and a service thread runs no event loop: "
            "make it async def run() of a servicegroup.AsyncService"
        )
    return fn


def _name_of(fn: Callable[..., object]) -> str:
    owner = getattr(fn, "__self__", None)
    if owner is not None and not inspect.ismodule(owner):
        return owner.__name__ if isinstance(owner, type) else type(owner).__name__
    return getattr(fn, "__name__", type(fn).__name__).strip("<>")


class _Pair(Service):
    def __init__(self, start: Callable[..., object], stop: Callable[[], object] | None) -> None:
        require_plain(start, "with_start(): start")
        needed = required_arguments(start)
        positional = [p for p in needed if p.kind is not p.KEYWORD_ONLY]
        if len(needed) > 1 or needed != positional:
            raise TypeError(
                f"with_start(): start must need no argument, or one (the stopping event), "
                f"but {_name_of(start)} needs {', '.join(p.name for p in needed)}: "
                "bind them with functools.partial"
            )
        if stop is not None and required_arguments(require_plain(stop, "with_start(): stop")):
            raise TypeError(f"with_start(): stop must need no argument, but {_name_of(stop)} does")
        self.name = _name_of(start)
        self._start = start
        self._takes_event = bool(positional)
        self._stop = stop

    def start(self) -> object:
        return self._start(self.stopping) if self._takes_event else self._start()

    def stop(self) -> object:
        self.stopping.set()
        return self._stop() if self._stop is not None else None


@overload
def with_start(
    start: Callable[[], object], stop: Callable[[], object] | None = None
) -> Service: ...


@overload
def with_start(
    start: Callable[[threading.Event], object], stop: Callable[[], object] | None = None
) -> Service: ...


def with_start(
    start: Callable[[], object] | Callable[[threading.Event], object],
    stop: Callable[[], object] | None = None,
) -> Service:
    """A service out of two functions, as oklog/run's actors and go-zero's `WithStart`.

    Args:
        start: does the work and blocks. It is passed the `stopping` event if it has a required
            positional parameter, nothing otherwise.
        stop: asks for the end, called on the group's stopping thread. Not needed by a `start` that
            looks at the event, or that ends by itself.

    Raises:
        TypeError: either is not callable, is a coroutine function or needs other arguments.
    """
    return _Pair(start, stop)


class _Context(Service, Generic[T]):
    name: str
    ready_when: ReadyWhen | None = "announced"
    daemon: bool | None = True

    def __init__(self, cm: AbstractContextManager[T]) -> None:
        if not (hasattr(cm, "__enter__") and hasattr(cm, "__exit__")):
            hint = ""
            if hasattr(cm, "__aenter__"):
                hint = "; an asynchronous one needs an event loop, so enter it in your own start()"
            raise TypeError(f"with_context() takes a context manager, not {cm!r}{hint}")
        self.name = type(cm).__name__
        # What contextlib.contextmanager makes is named after the function it was made from.
        made_by = getattr(cm, "func", None)
        if made_by is not None:
            self.name = _name_of(made_by)
        self._cm = cm

    @property
    def value(self) -> T:
        """What the context manager's `__enter__` returned.

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

    def start(self) -> None:
        with self._cm as self._value:
            try:
                self.mark_ready()
                self.stopping.wait()
            finally:
                del self._value


def with_context(cm: AbstractContextManager[T]) -> _Context[T]:
    """A service that holds a context manager open: entered, held and left on one thread.

    It is a daemon, and ready once entered. `.value` is what `__enter__` returned, for as long as
    the context is held.

    Raises:
        TypeError: `cm` is no context manager.
    """
    return _Context(cm)
