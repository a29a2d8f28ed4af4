"""What `add` and the constructor refuse, and the names and options they give."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from servicegroup import Service, ServiceGroup, with_context, with_start


class Worker(Service):
    def start(self) -> None:
        self.stopping.wait()


class Plain:
    def start(self) -> None: ...

    def stop(self) -> None: ...


class NoStop:
    def start(self) -> None: ...


class NeedsArgument(Plain):
    def start(self, port: int) -> None: ...  # type: ignore[override]


class Async(Plain):
    async def start(self) -> None: ...  # type: ignore[override]


class Forgot(Service):
    pass


class Background(threading.Thread):
    def stop(self) -> None: ...


def refused(error: type[Exception], *words: str) -> contextlib.AbstractContextManager[object]:
    """The error comes, with the culprit and the remedy in its text."""

    @contextlib.contextmanager
    def check() -> Iterator[None]:
        with pytest.raises(error) as caught:
            yield
        for word in words:
            assert word in str(caught.value), str(caught.value)

    return check()


BAD_SERVICES: list[tuple[Any, type[Exception], list[str]]] = [
    (NoStop(), TypeError, ["'NoStop'", "no stop()", "with_start"]),
    (object(), TypeError, ["'object'", "no start()"]),
    (NeedsArgument(), TypeError, ["'NeedsArgument'", "port", "functools.partial"]),
    (Async(), TypeError, ["'Async'", "coroutine function", "AsyncService"]),
    (Forgot(), TypeError, ["'Forgot'", "does not override start()"]),
    (Background(name="beat"), TypeError, ["'beat'", "returned", "with_start"]),
    (Worker, TypeError, ["Worker is a class"]),
]


@pytest.mark.parametrize(("service", "error", "words"), BAD_SERVICES)
def test_what_is_no_service_is_refused(
    service: Any, error: type[Exception], words: list[str]
) -> None:
    group = ServiceGroup()
    with refused(error, *words):
        group.add(service)
    assert group.status() == ()


def test_a_process_is_refused_unless_its_start_may_return() -> None:
    class Child(multiprocessing.Process):
        def stop(self) -> None: ...

    group = ServiceGroup()
    with refused(TypeError, "returns at once"):
        group.add(Child())
    group.add(Child(), ready_when="returned")


def test_an_attribute_that_is_no_method_is_refused() -> None:
    service: Any = Plain()
    service.stop = "now"
    group = ServiceGroup()
    group.add(Plain())  # its class is fine
    with refused(TypeError, "stop must be callable", "'now'"):
        group.add(service)


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"name": ""}, ValueError, ["name must not be empty"]),
    ({"name": "  "}, ValueError, ["name must not be empty"]),
    ({"name": 7}, TypeError, ["name must be a string", "7"]),
    ({"ready_when": "soon"}, ValueError, ["'Worker'", "ready_when", "'announced'", "'soon'"]),
    ({"ready_when": ["entered"]}, ValueError, ["ready_when"]),
    ({"on_failure": "retry"}, ValueError, ["on_failure", "'continue'", "'retry'"]),
    ({"on_return": "again"}, ValueError, ["on_return", "'again'"]),
    ({"ready_when": "returned", "on_return": "stop"}, ValueError, ["on_return", "no meaning"]),
    ({"start_timeout": -1}, ValueError, ["start_timeout", "-1"]),
    ({"stop_timeout": math.nan}, ValueError, ["stop_timeout", "nan"]),
    ({"stop_timeout": "10"}, TypeError, ["stop_timeout", "'10'", "math.inf"]),
    ({"stop_timeout": True}, TypeError, ["stop_timeout", "True"]),
    ({"daemon": 1}, TypeError, ["daemon", "True or False"]),
    ({"expected_on_stop": (OSError, 3)}, TypeError, ["expected_on_stop", "exception types"]),
    ({"expected_on_stop": 3}, TypeError, ["expected_on_stop"]),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD_OPTIONS)
def test_a_wrong_option_is_refused(
    options: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    group = ServiceGroup()
    group.add(Worker(), name="first", stop_timeout=1)
    with refused(error, *words):
        group.add(Worker(), **options)
    assert len(group.status()) == 1


def test_a_wrong_option_on_the_class_is_refused_when_it_is_added() -> None:
    class Hasty(Worker):
        stop_timeout = -2.0

    with refused(ValueError, "'Hasty'", "stop_timeout"):
        ServiceGroup().add(Hasty())


BAD_GROUPS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"name": ""}, ValueError, ["name must not be empty"]),
    ({"name": None}, TypeError, ["name must be a string"]),
    ({"start_timeout": -1}, ValueError, ["group 'group'", "start_timeout"]),
    ({"stop_timeout": math.nan}, ValueError, ["stop_timeout"]),
    ({"shutdown_timeout": "1"}, TypeError, ["shutdown_timeout"]),
    ({"drain_delay": -0.1}, ValueError, ["drain_delay"]),
    ({"drain_delay": 25.0}, ValueError, ["drain_delay", "shorter than shutdown_timeout"]),
    ({"on_failure": "again"}, ValueError, ["on_failure"]),
    ({"on_return": None}, ValueError, ["on_return"]),
    ({"start_concurrently": 1}, TypeError, ["start_concurrently"]),
    ({"stop_concurrently": "yes"}, TypeError, ["stop_concurrently"]),
    ({"signals": [0]}, ValueError, ["signals", "0"]),
    ({"signals": [9999]}, ValueError, ["signals", "9999"]),
    ({"signals": ["SIGTERM"]}, ValueError, ["signals", "'SIGTERM'"]),
    ({"signals": [signal.SIGKILL]}, ValueError, ["SIGKILL"]),
    ({"dump_signal": signal.SIGSTOP}, ValueError, ["dump_signal", "SIGSTOP"]),
    ({"dump_signal": signal.SIGTERM}, ValueError, ["dump_signal", "one of signals"]),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD_GROUPS)
def test_a_group_that_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with refused(error, *words):
        ServiceGroup(**options)


def test_the_same_object_twice_is_refused() -> None:
    group = ServiceGroup()
    worker = group.add(Worker())
    with refused(ValueError, "in the group already"):
        group.add(worker, name="other")


def test_a_name_that_is_taken_is_refused_when_it_was_chosen() -> None:
    group = ServiceGroup()
    group.add(Worker(), name="api")
    with refused(ValueError, "'api' is taken", "name="):
        group.add(Worker(), name="api")


def test_a_group_inside_itself_is_refused_however_deep() -> None:
    outer, middle, inner = ServiceGroup(name="o"), ServiceGroup(name="m"), ServiceGroup(name="i")
    outer.add(middle)
    middle.add(inner)
    for group in (outer, middle, inner):
        with refused(ValueError, "inside itself"):
            inner.add(group)


def test_announced_needs_somebody_who_can_announce() -> None:
    with refused(ValueError, "'Plain'", "mark_ready", "subclass Service"):
        ServiceGroup().add(Plain(), ready_when="announced")


def test_a_subscriber_that_cannot_be_called_is_refused() -> None:
    group: Any = ServiceGroup()

    async def subscriber(event: object) -> None: ...

    with refused(TypeError, "subscriber", "callable"):
        group.subscribe(None)
    with refused(TypeError, "subscriber", "coroutine function"):
        group.subscribe(subscriber)


def test_what_cannot_be_deferred_is_refused() -> None:
    group: Any = ServiceGroup()
    with refused(TypeError, "defer()", "callable"):
        group.defer("print")


def test_a_timeout_for_wait_is_checked() -> None:
    group: Any = ServiceGroup()
    with refused(ValueError, "wait: timeout"):
        group.wait(-1)
    with refused(TypeError, "wait_ready: timeout"):
        group.wait_ready("1")


def test_default_names_are_made_unique() -> None:
    group = ServiceGroup()
    for _ in range(3):
        group.add(Worker())
    group.add(Worker(), name="Worker-4")
    group.add(Worker())
    names = [status.name for status in group.status()]
    assert names == ["Worker", "Worker-2", "Worker-3", "Worker-4", "Worker-5"]


@contextlib.contextmanager
def pool() -> Iterator[int]:
    yield 3


@dataclass
class Named(Service):
    name: str
    size: int = 1

    def start(self) -> None: ...


def test_default_names_come_from_what_is_wrapped() -> None:
    def poll(stopping: threading.Event) -> None: ...

    group = ServiceGroup()
    lock = threading.Condition()
    group.add(with_start(poll))
    group.add(with_start(lambda: None))
    group.add(with_start(lock.wait, lock.notify))
    group.add(with_start(functools.partial(poll, threading.Event())))
    group.add(with_context(pool()))
    group.add(with_context(threading.Lock()))
    group.add(ServiceGroup(name="payments"))
    group.add(Named("mails"))
    group.add(Background(name="beat"), ready_when="returned")
    group.defer(print)
    assert [status.name for status in group.status()] == [
        "poll",
        "lambda",
        "Condition",
        "partial",
        "pool",
        "lock",
        "payments",
        "mails",
        "beat",
        "print",
    ]


def test_services_need_not_be_hashable_or_comparable() -> None:
    group = ServiceGroup()
    one, other = Named("a"), Named("a")
    assert one == other
    group.add(one)
    group.add(other)
    assert [status.name for status in group.status()] == ["a", "a-2"]


def test_the_keyword_goes_before_the_class_and_the_class_before_the_group() -> None:
    class Slow(Worker):
        stop_timeout = 3.0
        on_failure = "continue"

    group = ServiceGroup(stop_timeout=7.0, start_timeout=8.0, on_return="stop")
    group.add(Slow(), stop_timeout=1.0)
    late = Slow()
    late.stop_timeout = 2.0
    group.add(late)
    group.add(with_start(print), ready_when="returned")
    first, second, third = (entry.options for entry in group._table.entries)
    assert (first.stop_timeout, first.start_timeout, first.on_failure) == (1.0, 8.0, "continue")
    assert second.stop_timeout == 2.0
    assert (first.on_return, first.daemon) == ("stop", False)
    # Its start() returns by nature, so it is a daemon, and the group's on_return is not for it.
    assert (third.on_return, third.daemon) == ("continue", True)


def test_one_expected_exception_needs_no_tuple() -> None:
    class Loop(Worker):
        expected_on_stop: Any = OSError

    group = ServiceGroup()
    group.add(Loop())
    assert group._table.entries[0].options.expected_on_stop == (OSError,)


def test_services_with_the_same_options_share_them() -> None:
    group = ServiceGroup()
    for _ in range(2):
        group.add(Worker())
    first, second = group._table.entries
    assert first.options is second.options


def test_repr_names_the_group_and_its_state() -> None:
    group = ServiceGroup(name="app")
    group.add(Worker())
    assert repr(group) == "<ServiceGroup 'app': new, 1 services>"


def test_services_added_by_several_threads_keep_each_its_own_options() -> None:
    class Short(Service):
        stop_timeout = 1.0

        def start(self) -> None: ...

    class Long(Short):
        stop_timeout = 2.0

    def add(kind: type[Service]) -> None:
        ready.wait(30)
        for _ in range(2000):
            group.add(kind())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            group, ready = ServiceGroup(), threading.Barrier(2)
            threads = [threading.Thread(target=add, args=(kind,)) for kind in (Short, Long)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for entry in group._table.entries:
                assert isinstance(entry.service, Service)
                assert entry.options.stop_timeout == entry.service.stop_timeout
    finally:
        sys.setswitchinterval(interval)
