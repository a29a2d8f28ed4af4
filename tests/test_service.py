"""`Service`, `with_start` and `with_context`, without and with a group."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import attrs
import pytest

from servicegroup import Service, ServiceGroup, StartStop, State, with_context, with_start
from tests.fake_time import FakeClock, fake_time_group, mailbox_of, wait_until
from tests.scripted import end, is_quiet, run_in_thread


class Worker(Service):
    def __init__(self, size: int = 1) -> None:  # without super().__init__()
        self.size = size

    def start(self) -> None:
        self.stopping.wait()


@dataclass(frozen=True)
class Frozen(Service):
    size: int

    def start(self) -> None:
        self.stopping.wait()


@attrs.define
class Slotted(Service):
    size: int

    def start(self) -> None:
        self.stopping.wait()


@pytest.mark.parametrize("service", [Worker(2), Frozen(2), Slotted(2)])
def test_all_is_there_without_super_init(service: Service) -> None:
    assert service.name == type(service).__name__
    assert not service.stopping.is_set()
    assert service.remaining() == math.inf
    service.mark_ready()
    service.mark_not_ready()
    service.drain()
    group = ServiceGroup()
    group.add(service)
    with group:
        assert service.remaining() == math.inf
    assert service.stopping.is_set()


def test_two_services_have_an_event_each() -> None:
    one, other = Worker(), Worker()
    one.stop()
    assert one.stopping.is_set()
    assert not other.stopping.is_set()
    assert copy.copy(one).stopping is one.stopping


def test_a_name_on_the_class_goes_for_all_its_objects() -> None:
    class Api(Worker):
        name = "api"

    assert Api().name == "api"


def test_sleep_tells_whether_it_was_slept_through() -> None:
    worker = Worker()
    assert worker.sleep(0) is True
    worker.stop()
    assert worker.sleep(3600) is False


def test_start_must_be_overridden() -> None:
    with pytest.raises(NotImplementedError, match="Service does not override start"):
        Service().start()


def test_a_stop_that_is_overridden_needs_no_super() -> None:
    seen = []

    class Loud(Worker):
        def stop(self) -> None:
            seen.append(self.stopping.is_set())

    group = ServiceGroup()
    group.add(Loud())
    with group:
        pass
    assert seen == [True]


def test_remaining_counts_down_to_the_deadline_once_asked() -> None:
    clock = FakeClock()
    group = fake_time_group(clock)
    seen: list[float] = []

    class Patient(Worker):
        stop_timeout = 4.0

        def start(self) -> None:
            super().start()
            wait_until(lambda: mailbox_of(group).waiting)
            for seconds in (0.0, 1.5, 9.0):
                clock.time += seconds  # unseen by the group, which would abandon it meanwhile
                seen.append(self.remaining())

    group.add(Patient())
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    group.stop()
    thread.join(30)
    assert seen == [4.0, 2.5, 0.0]


def test_nothing_remains_once_it_is_abandoned() -> None:
    clock = FakeClock()
    group = fake_time_group(clock)
    released = threading.Event()
    service = group.add(with_start(released.wait), stop_timeout=4.0)
    thread, _ = run_in_thread(group)
    group.wait_ready(30)
    assert service.remaining() == math.inf
    group.stop()
    end(group, clock, thread)
    assert group.status()[0].state is State.ABANDONED
    assert service.remaining() == 0.0
    released.set()


def test_with_start_passes_the_event_only_to_who_must_have_it() -> None:
    seen: list[object] = []

    def must(stopping: threading.Event) -> None:
        seen.append(stopping)

    def may(stopping: object = None) -> None:
        seen.append(stopping)

    def none() -> None:
        seen.append("none")

    def many(*args: object, **kwargs: object) -> None:
        seen.append((args, kwargs))

    services = [with_start(fn) for fn in (must, may, none, many)]
    for service in services:
        service.start()
    assert seen == [services[0].stopping, None, "none", ((), {})]


def test_with_start_calls_its_stop_with_the_event_set() -> None:
    seen: list[bool] = []
    services: list[Service] = []
    services.append(with_start(print, lambda: seen.append(services[0].stopping.is_set())))
    services[0].stop()
    assert seen == [True]
    bare = with_start(print)
    bare.stop()
    assert bare.stopping.is_set()


def test_with_start_takes_a_server_with_serve_forever_and_shutdown() -> None:
    ended = threading.Event()

    class Server:
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            ended.wait(30)

        def shutdown(self) -> None:
            ended.set()

    server = Server()
    group = ServiceGroup()
    service = group.add(with_start(server.serve_forever, server.shutdown))
    assert service.name == "Server"
    with group:
        assert group.is_ready
    assert ended.is_set()


class Made:
    @classmethod
    def build(cls) -> None: ...


def test_with_start_names_what_it_wraps() -> None:
    class Call:
        def __call__(self) -> None: ...

    assert with_start(Made.build).name == "Made"
    assert with_start(Call()).name == "Call"
    assert with_start(dict).name == "dict"  # a built-in that shows no signature
    assert with_start(threading.main_thread).name == "main_thread"


BAD: list[tuple[Any, Any, str]] = [
    ("x", None, "start must be callable"),
    (lambda a, b: None, None, "needs a, b"),
    (functools.partial(lambda *, a: None), None, "needs a"),
    (print, "x", "stop must be callable"),
    (print, lambda a: None, "stop must need no argument"),
]


@pytest.mark.parametrize(("start", "stop", "words"), BAD)
def test_with_start_refuses(start: Any, stop: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        with_start(start, stop)


def test_with_start_refuses_coroutine_functions() -> None:
    async def start() -> None: ...

    async def items() -> Any:
        yield 1

    for fn in (start, items):
        with pytest.raises(TypeError, match="coroutine function"):
            with_start(fn)


def test_with_context_enters_holds_and_leaves_on_one_thread() -> None:
    seen: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def pool() -> Iterator[str]:
        seen.append(("enter", threading.current_thread().name))
        yield "connections"
        seen.append(("leave", threading.current_thread().name))

    group = ServiceGroup(name="app")
    service = group.add(with_context(pool()))
    with pytest.raises(RuntimeError, match="'pool' is not entered"):
        print(service.value)
    with group:
        assert service.value == "connections"
    with pytest.raises(RuntimeError, match="not entered"):
        print(service.value)
    assert seen == [("enter", "app/pool"), ("leave", "app/pool")]


def test_a_context_does_not_keep_a_group() -> None:
    group = ServiceGroup()
    group.add(with_context(contextlib.nullcontext()))
    group.add(with_start(lambda: None), name="job")
    report = group.start()
    assert [status.state.value for status in report.services] == ["stopped", "finished"]


def test_with_context_refuses_what_cannot_be_entered() -> None:
    broken: Any = 3
    with pytest.raises(TypeError, match="takes a context manager, not 3"):
        with_context(broken)
    broken = contextlib.AsyncExitStack()
    with pytest.raises(TypeError, match="event loop"):
        with_context(broken)


def test_a_service_is_known_by_its_shape() -> None:
    assert isinstance(Worker(), StartStop)
    assert isinstance(ServiceGroup(), StartStop)
    assert not isinstance(object(), StartStop)


def test_a_service_that_runs_again_is_re_armed() -> None:
    clock = FakeClock()
    group = fake_time_group(clock)
    worker = group.add(Worker())
    for _ in range(2):
        thread, raised = run_in_thread(group)
        wait_until(lambda: group.is_ready and is_quiet(group))
        assert not worker.stopping.is_set()
        group.stop()
        thread.join(30)
        assert not raised
        assert worker.stopping.is_set()
