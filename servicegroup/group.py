"""`ServiceGroup`: what users hold in their hands."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, ParamSpec, Self, TypeVar

import attrs

from servicegroup import _log
from servicegroup._dispatcher import Subscriber
from servicegroup._mailbox import Mailbox
from servicegroup._options import NAMES, Options, Resolver, choice, flag, seconds
from servicegroup._run import NESTED_SHARE, Run, Settings
from servicegroup._runner import GroupThread
from servicegroup._signals import Signals, in_main_thread
from servicegroup._stacks import all_stacks
from servicegroup._table import Table
from servicegroup.errors import GroupRunningError, GroupStoppingError, ServiceGroupError
from servicegroup.report import GroupState, Report, ServiceStatus, table
from servicegroup.service import (
    Composite,
    Managed,
    OnFailure,
    OnReturn,
    OnStall,
    ReadyWhen,
    Service,
    StartStop,
    require_plain,
    required_arguments,
)

S = TypeVar("S", bound=StartStop)
P = ParamSpec("P")

if TYPE_CHECKING:
    from servicegroup._exit import LastResort

SIGUSR1: signal.Signals | None = getattr(signal, "SIGUSR1", None)

# Why no group may be started for now: somebody imports a program just to have its group.
not_now: str | None = None


class ServiceGroup(Composite):
    """Runs services, each on a thread of its own; starts them in order, stops them in reverse.

    Args:
        name: what logs and thread names call it.
        start_timeout: seconds a service may take to become ready.
        stop_timeout: seconds a service may take to stop before it is abandoned.
        shutdown_timeout: seconds the whole stop may take, drain included. The default leaves 5 of
            the 30 that Kubernetes waits before it kills.
        drain_delay: seconds to go on serving, no longer ready, before the first service is stopped,
            so that load balancers look away.
        on_failure: what to do when a service raises: `"stop"`, `"continue"` or a `Restart`.
        on_return: what to do when a service's `start()` returns: `"continue"`, `"stop"` or a
            `Restart`.
        start_concurrently: start all without waiting for any to be ready.
        stop_concurrently: ask all to stop at once, in no order.
        signals: those that stop the group while `start()` runs in the main thread.
        dump_signal: writes the state of each service and the stack of every thread to the log;
            taken only where nobody else has a handler for it. None: no such signal.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    _mailbox_type: Callable[[], Mailbox] = Mailbox

    def __init__(
        self,
        *,
        name: str = "group",
        start_timeout: float = 60.0,
        stop_timeout: float = 10.0,
        shutdown_timeout: float = 25.0,
        drain_delay: float = 0.0,
        on_failure: OnFailure = "stop",
        on_return: OnReturn = "continue",
        start_concurrently: bool = False,
        stop_concurrently: bool = False,
        signals: Iterable[int] = (signal.SIGINT, signal.SIGTERM),
        dump_signal: int | None = SIGUSR1,
    ) -> None:
        _require_name("ServiceGroup", name)
        whose = f"group {name!r}"
        self._settings = _checked_limits(
            Settings(
                name=name,
                shutdown_timeout=shutdown_timeout,
                drain_delay=drain_delay,
                start_concurrently=flag(whose, "start_concurrently", start_concurrently),
                stop_concurrently=flag(whose, "stop_concurrently", stop_concurrently),
            )
        )
        self._resolver = Resolver(
            {
                "start_timeout": seconds(whose, "start_timeout", start_timeout),
                "stop_timeout": seconds(whose, "stop_timeout", stop_timeout),
                "on_failure": choice(whose, "on_failure", on_failure),
                "on_return": choice(whose, "on_return", on_return),
            }
        )
        self._signals = tuple(_checked_signal(whose, "signals", one) for one in signals)
        self._dump_signal = dump_signal
        if dump_signal is not None:
            _checked_signal(whose, "dump_signal", dump_signal)
            if dump_signal in self._signals:
                raise ValueError(f"{whose}: dump_signal {dump_signal!r} is one of signals, too")
        self._table = Table()
        self._vetted: set[tuple[type, Options]] = set()
        self._subscribers: list[Subscriber] = []
        self._outer: ServiceGroup | None = None  # the group that this one was added to
        self._run = self._new_run()

    def __repr__(self) -> str:
        count = len(self._table.entries)
        return f"<{type(self).__name__} {self.name!r}: {self.state.value}, {count} services>"

    # -- before the start, and during it ----------------------------------------------------------

    @property
    def name(self) -> str:
        """What logs and thread names call it."""
        return self._settings.name

    def add(
        self,
        service: S,
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
    ) -> S:
        """Add a service, to be started after those added before. Any thread may call it.

        On a group that runs, the service is started now. The options are those of `Service`; what
        is given here goes before the service's own.

        Returns:
            The service.

        Raises:
            TypeError: it is no service, or an option is of the wrong type.
            ValueError: it is in the group already, its name is taken, or an option makes no sense.
            GroupStoppingError: the group is stopping.
        """
        if isinstance(service, type):
            raise TypeError(f"{service.__name__} is a class: add an object of it")
        chosen = name is not None
        if name is None:
            name = _default_name(service)
        _require_name(f"add({service!r})" if chosen else type(service).__name__, name)
        given: tuple[object, ...] = (
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
        if isinstance(service, ServiceGroup):
            self._refuse_cycle(service, name)
            given = service._limits_as_service(given)
        options = self._resolver.resolve(service, name, given)
        self._vet(service, name, options)
        self._table.add(service, name, options, chosen=chosen)
        if isinstance(service, ServiceGroup):
            service._outer = self
        if self._run.begun:
            self._run.post(self._run.on_added)
        return service

    def defer(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call `fn(*args, **kwargs)` when the stop comes to this place, as Go's `defer`.

        It is a service like any other: named after the function, with a `stop_timeout`, its failure
        told. Called on the group's stopping thread, if the group's start came to it.

        Raises:
            TypeError: `fn` cannot be called, or is a coroutine function.
            GroupStoppingError: the group is stopping.
        """
        self.add(_Deferred(fn, args, kwargs))

    def subscribe(self, subscriber: Subscriber) -> None:
        """Have `subscriber(event)` called for every event from now on. Any thread may call it.

        All subscribers are called on one thread of their own; what one raises is logged.

        Raises:
            TypeError: it cannot be called, or is a coroutine function.
        """
        require_plain(subscriber, f"group {self.name!r}: a subscriber")
        self._subscribers.append(subscriber)
        if self._run.begun:
            self._run.post(self._run.on_subscribed)

    # -- from start to end ------------------------------------------------------------------------

    def start(self) -> Report:
        """Run the services; return when all have ended.

        In the main thread it takes the signals for that time. As a service of another group it
        follows that group.

        Raises:
            ServiceGroupError: services failed.
            SystemExit: a service called `sys.exit()` with something other than 0.
            GroupRunningError: the group runs, or a thread it abandoned does.
            RuntimeError: the machine has no thread left; nothing was started.
        """
        run = self._begin_run()
        if in_main_thread():
            self._run_in_main(run, None)
        else:
            run.decide()
        return _outcome(run)

    def run(self) -> NoReturn:
        """`start()` as a program's last line: prints failures and the report, ends the process.

        Once the stop has begun, the process ends within `shutdown_timeout` and two seconds,
        whatever threads are left, and whatever becomes of the `SystemExit`: where the process is
        meant to go on, call `start()`. It uses faulthandler's `dump_traceback_later`. While the
        process ends, one more signal ends it at once, with the same code.

        Raises:
            SystemExit: with 0, with 1 after a failure, or as a service asked for.
            GroupRunningError: as `start()`.
        """
        self._run_and_exit(_print_outcome)

    def _run_and_exit(self, tell: Callable[[Report, ServiceGroupError | None], object]) -> NoReturn:
        from servicegroup._exit import LastResort

        run = self._begin_run()
        last = LastResort()
        run.on_stop_begun = last.arm
        signals: Signals | None = None
        try:
            if in_main_thread():
                signals = self._run_in_main(run, last)
            else:
                run.decide()
        except BaseException as error:
            if run.crash is None:
                traceback.print_exception(error)  # a KeyboardInterrupt, say: the outcome stands
        if run.report is None:
            last.disarm()
            if signals is not None:
                signals.__exit__()
            _outcome(run)
        assert run.report is not None
        run.raised_in.append(threading.current_thread())
        last.watch(run.report.exit_code, signals)
        tell(run.report, run.error)
        if run.exit is not None:
            raise run.exit
        raise SystemExit(run.report.exit_code)

    def stop(self, reason: str = "stop() was called") -> None:
        """Ask for the stop, and return at once.

        Any thread may call it, a signal handler, a service, a subscriber; the first reason is kept.
        Before the start it keeps that start from starting anything; after the end it does nothing.
        """
        run = self._run
        if not run.over.is_set():
            run.post(run.on_stop, reason)

    def wait(self, timeout: float | None = None) -> Report:
        """Wait for the end, for at most `timeout` seconds; the outcome is that of `start()`.

        Raises:
            ServiceGroupError: services failed.
            TimeoutError: it has not ended yet.
            RuntimeError: this is a thread of the group, which would wait for itself.
        """
        run = self._run
        if not run.over.is_set() and self._has_thread(threading.current_thread()):
            raise RuntimeError(
                f"thread {threading.current_thread().name!r} belongs to group {self.name!r} and "
                "cannot wait for its end: call stop(), which returns at once"
            )
        if not run.over.wait(_checked_timeout("wait", timeout)):
            raise TimeoutError(f"group {self.name!r} has not ended within {timeout} s")
        return _outcome(run, raise_exit=False)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until all services are up, for at most `timeout` seconds. Any thread may call it.

        Raises:
            GroupStoppingError: the group stops, so it will not be ready.
            TimeoutError: it is not ready yet.
        """
        run = self._run
        left = _checked_timeout("wait_ready", timeout)
        until = time.monotonic() + (math.inf if left is None else left)
        while not run.is_ready:
            if not run.ready_or_never.wait(left):
                raise TimeoutError(f"group {self.name!r} is not ready within {timeout} s")
            if run.state in (GroupState.DRAINING, GroupState.STOPPING, GroupState.STOPPED):
                raise GroupStoppingError(f"group {self.name!r} stops and will not be ready")
            left = None if timeout is None else max(0.0, until - time.monotonic())

    @property
    def state(self) -> GroupState:
        """Where the group is. Any thread."""
        return self._run.state

    @property
    def is_ready(self) -> bool:
        """Whether all services are up and none has been asked to stop. Any thread."""
        return self._run.is_ready

    def status(self) -> tuple[ServiceStatus, ...]:
        """How each service stands, in the order of `add`. Any thread."""
        return self._run.status()

    @property
    def report(self) -> Report | None:
        """How the last run went; None before its end. Any thread."""
        return self._run.report

    @property
    def shutdown_timeout(self) -> float:
        """Seconds that the whole stop may take."""
        return self._settings.shutdown_timeout

    @property
    def services(self) -> dict[str, StartStop]:
        """The services by name, those of nested groups as `group/name`. Any thread."""
        return self._table.services()

    def __enter__(self) -> Self:
        """Start in the background, taking no signals; all are ready when the block begins.

        Raises:
            ServiceGroupError, SystemExit, GroupRunningError: as `start()`.
        """
        run = self._begin_run()
        thread = GroupThread(run.decide, f"{self.name} (deciding)", run.root)
        try:
            _launch(run, thread)
            run.ready_or_never.wait()
        except BaseException:
            self._stop_and_wait(run)
            raise
        if not run.is_ready and run.failing:
            self._stop_and_wait(run)
            _outcome(run)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        run = self._run
        self._stop_and_wait(run)
        if run.failing:
            _outcome(run)

    # -- for the command line, before the start ---------------------------------------------------

    def _set_limits(
        self, *, shutdown_timeout: float | None = None, drain_delay: float | None = None
    ) -> None:
        """Others than those it was made with; refused as in the constructor."""
        old = self._settings
        settings = attrs.evolve(
            old,
            shutdown_timeout=old.shutdown_timeout if shutdown_timeout is None else shutdown_timeout,
            drain_delay=old.drain_delay if drain_delay is None else drain_delay,
        )
        self._settings = self._run.settings = _checked_limits(settings)

    def _stop_on(self, number: int) -> None:
        """One more signal that stops it, unless it is to take none, or somebody has that one."""
        free = number != self._dump_signal and signal.getsignal(number) == signal.SIG_DFL
        if self._signals and free:
            self._signals = (*self._signals, number)

    # -- inside -----------------------------------------------------------------------------------

    def _new_run(self) -> Run:
        return Run(self._settings, self._table, self._subscribers, self._mailbox_type())

    def _begin_run(self) -> Run:
        if not_now is not None:
            raise RuntimeError(f"group {self.name!r} cannot be started now: {not_now}")
        with self._table.lock:
            run = self._run
            if run.begun and not run.over.is_set():
                raise GroupRunningError(f"group {self.name!r} runs already")
            left = run.abandoned()
            if left is not None:
                raise GroupRunningError(
                    f"group {self.name!r} cannot start again: the thread of service {left.name!r}, "
                    f"abandoned in the last run, still lives\n{left.take_stack()}"
                )
            if run.begun:
                self._run = run = self._new_run()
            run.begun = True
        _log.look()
        run.context = copy_context()
        runner = getattr(threading.current_thread(), "runner", None)
        if runner is not None and runner.service is self:
            run.nest(runner, runner.host)
        return run

    def _run_in_main(self, run: Run, last: LastResort | None) -> Signals | None:
        """Let a private thread decide, and wait for signals and the end.

        With `last`, the signals stay taken.
        """
        signals = Signals(self._signals, self._dump_signal)
        try:
            from servicegroup._exit import REPEAT_SECONDS, leave  # here: a third of a millisecond

            signals.__enter__()
        except ValueError:  # the main thread of another interpreter than the main one
            run.decide()
            return None
        except BaseException as error:  # no descriptor to be had, say
            run.close(error)
            raise
        interrupted: BaseException | None = None
        first: float | None = None
        heard: list[int] = []

        def hear(number: int) -> None:
            heard.append(number)
            run.on_stop(_signal_name(number), hurry=number == signal.SIGINT)

        def decide() -> None:
            run.decide()
            signals.wake()

        thread = GroupThread(decide, f"{self.name} (deciding)", run.root)
        launched = False
        while True:
            try:
                if not launched:
                    launched = True
                    _launch(run, thread)
                while not run.over.is_set():
                    for number in signals.wait():
                        if number == signals.dump:
                            self._dump()
                        elif number in signals.numbers:
                            now = time.monotonic()
                            if first is None:
                                first = now
                                run.post(hear, number)
                            elif now - first >= REPEAT_SECONDS:
                                leave(128 + number, partial(self._last_words, run, number))
                if thread.is_alive():
                    thread.join()
                break
            except BaseException as error:
                if error is run.crash:  # there was no thread to be had
                    signals.__exit__()
                    raise
                # Raised by a handler of the user's (SIGINT's own is one, where it is not taken).
                interrupted = interrupted or error
                run.post(run.on_stop, repr(error), True)
        if last is None:
            signals.__exit__()
            if signals.seen and not heard:
                signal.raise_signal(
                    min(signals.seen)
                )  # too late for the group: to whom it concerns
        if interrupted is not None:
            raise interrupted from run.error
        return signals

    def _stop_and_wait(self, run: Run) -> None:
        run.post(run.on_stop, "the with block has ended", True)
        interrupted: BaseException | None = None
        while not run.over.is_set():
            try:
                run.over.wait()
            except BaseException as error:  # KeyboardInterrupt: the stop is on its way, and bounded
                interrupted = interrupted or error
        if interrupted is not None:
            raise interrupted from run.error

    def _dump(self) -> None:
        """Log how things stand, on a thread of its own: any other may hang, or hold a lock."""
        if not any(thread.name == _DUMP_THREAD for thread in threading.enumerate()):
            threading.Thread(target=self._write_dump, name=_DUMP_THREAD, daemon=True).start()

    def _write_dump(self) -> None:
        text = "\n".join([f"group {self.name!r} is {self.state.value}", *table(self.status())])
        _log.logger().warning(
            "%s\n%s", text, all_stacks(), extra={"event": "Dump", "group": self.name}
        )

    def _last_words(self, run: Run, number: int) -> str:
        running = run.running()
        stacks = "".join(
            f"service {runner.name!r} is {runner.state.value}\n{runner.take_stack()}"
            for runner in running
        )
        return (
            f"group {self.name!r}: {_signal_name(number)} again, leaving at once; "
            f"still running: {len(running)}\n{stacks}"
        )

    def _parts(self) -> tuple[ServiceStatus, ...]:
        return self.status()

    def _drain(self) -> None:
        self._run.post(self._run.on_drain)

    def _stop_within(self, seconds: float, reason: str) -> None:
        """`stop()`, with `seconds` for a `shutdown_timeout`, unless that is shorter."""
        self._run.post(self._run.on_stop, reason, False, seconds)

    @property
    def _clean_exit(self) -> SystemExit | None:
        """What the first service raised that called `sys.exit()` without an error code."""
        return self._run.clean_exit

    def _has_thread(self, thread: threading.Thread) -> bool:
        """Whether the end of this group would have to wait for `thread`."""
        group: ServiceGroup | None = self
        while isinstance(thread, GroupThread) and group is not None:
            if group._run.root is thread.root:
                return True
            group = group._outer
        return False

    def _refuse_cycle(self, group: ServiceGroup, name: str) -> None:
        if group is self or group._contains(self):
            raise ValueError(f"group {name!r} cannot be put inside itself")

    def _contains(self, group: ServiceGroup) -> bool:
        return any(
            entry.service is group or entry.service._contains(group)
            for entry in self._table.entries
            if isinstance(entry.service, ServiceGroup)
        )

    def _limits_as_service(self, given: tuple[object, ...]) -> tuple[object, ...]:
        """What it is given as a service of another group: limits only in case its own fail."""
        own = self._settings.shutdown_timeout * NESTED_SHARE
        nested = {"ready_when": "announced", "start_timeout": math.inf, "stop_timeout": own}
        return tuple(
            nested.get(option) if value is None else value
            for option, value in zip(NAMES, given, strict=True)
        )

    def _vet(self, service: StartStop, name: str, options: Options) -> None:
        """Refuse what cannot be a service."""
        kind = type(service)
        instance = getattr(service, "__dict__", ())
        if (kind, options) in self._vetted and not ("start" in instance or "stop" in instance):
            return
        whose = f"service {name!r} ({kind.__name__})"
        if not isinstance(service, Managed) and options.heartbeat_timeout != math.inf:
            raise ValueError(
                f"{whose}: heartbeat_timeout needs a heartbeat() to call: subclass Service"
            )
        ready_when = options.ready_when
        if ready_when == "announced" and not isinstance(service, (Managed, ServiceGroup)):
            raise ValueError(
                f'{whose}: ready_when="announced" needs a mark_ready() to call: subclass Service'
            )
        if ready_when != "returned" and _is_thread_or_process(service):
            raise TypeError(
                f"{whose}: start() of a thread or process returns at once and does not block: "
                'say ready_when="returned", or add its target with with_start()'
            )
        for method in ("start", "stop"):
            fn = getattr(service, method, None)
            if fn is None:
                raise TypeError(
                    f"{whose} has no {method}(): a service has start() and stop(); "
                    "with_start(start, stop) makes one of two functions"
                )
            needed = required_arguments(require_plain(fn, f"{whose}: {method}"))
            if needed:
                raise TypeError(
                    f"{whose}: {method}() must need no argument, but needs "
                    f"{', '.join(p.name for p in needed)}: with_start() takes a functools.partial"
                )
        if isinstance(service, Service) and kind.start is Service.start:
            raise TypeError(f"{whose} does not override start(), where the work is done")
        self._vetted.add((kind, options))


LAUNCH_SECONDS = 1.0
_DUMP_THREAD = "servicegroup (dump)"


def _launch(run: Run, thread: GroupThread) -> None:
    """Start the deciding thread; whatever is raised, the run will be over, if it is asked to."""
    try:
        thread.start()
    except RuntimeError as error:  # no thread to be had
        run.close(error)
        raise
    except BaseException as error:
        # Raised by a signal's handler, perhaps just before there was a thread.
        if not run.deciding.wait(LAUNCH_SECONDS):
            run.close(error)
        raise


class _Deferred(Service):
    ready_when: ReadyWhen | None = "returned"

    def __init__(
        self, fn: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        require_plain(fn, "defer(): what is to be called")
        self.name = getattr(fn, "__name__", type(fn).__name__).strip("<>")
        self._fn, self._args, self._kwargs = fn, args, kwargs

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self._fn(*self._args, **self._kwargs)


def _outcome(run: Run, *, raise_exit: bool = True) -> Report:
    if run.failing:
        run.raised_in.append(threading.current_thread())
    if run.crash is not None:
        raise run.crash
    if raise_exit and run.exit is not None:
        if run.error is None:
            raise run.exit
        raise run.exit from run.error
    if run.error is not None:
        raise run.error
    assert run.report is not None
    return run.report


def _print_outcome(report: Report, error: ServiceGroupError | None) -> None:
    if sys.stderr is None:  # it was closed, and print() would take stdout
        return
    if error is not None:
        traceback.print_exception(error)
    print(report, file=sys.stderr)


def _checked_limits(settings: Settings) -> Settings:
    whose = f"group {settings.name!r}"
    whole = seconds(whose, "shutdown_timeout", settings.shutdown_timeout)
    delay = seconds(whose, "drain_delay", settings.drain_delay)
    if delay and delay >= whole:
        raise ValueError(
            f"{whose}: drain_delay ({delay}) must be shorter than shutdown_timeout ({whole}), "
            "which includes it"
        )
    return settings


def _default_name(service: object) -> str:
    name = getattr(service, "name", None)
    if isinstance(service, Managed) or (isinstance(name, str) and name):
        return name  # type: ignore[return-value]  # checked by the caller
    return type(service).__name__


def _require_name(whose: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{whose}: name must be a string, not {name!r}")
    if not name.strip():
        raise ValueError(f"{whose}: name must not be empty")


def _checked_signal(whose: str, option: str, number: object) -> int:
    known = isinstance(number, int) and number in signal.valid_signals()
    never = (getattr(signal, "SIGKILL", None), getattr(signal, "SIGSTOP", None))
    if not known or number in never:
        raise ValueError(f"{whose}: {option}: {number!r} is no signal that can be handled here")
    assert isinstance(number, int)
    return number


def _checked_timeout(method: str, timeout: float | None) -> float | None:
    if timeout is None:
        return None
    return min(seconds(method, "timeout", timeout), threading.TIMEOUT_MAX)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _is_thread_or_process(service: object) -> bool:
    process = sys.modules.get("multiprocessing.process")
    kinds = (threading.Thread, *([process.BaseProcess] if process is not None else []))
    return isinstance(service, kinds)
