"""The rules that are the same for all brokers: what is handled, told, retried and given back."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from servicegroup import ServiceGroup, ServiceGroupError, events
from servicegroup._aio_service import CANCEL_SHARE
from servicegroup.adapters import _queue_run
from servicegroup.adapters._broker import Delivery
from servicegroup.adapters._handlers import ThreadHandlers
from servicegroup.adapters.queue import (
    BrokerAwayError,
    Handler,
    Message,
    Reject,
    Retry,
    RetryPolicy,
)
from servicegroup.testing import wait_until
from tests.adapters.queues.running import PAUSE, patient_group
from tests.adapters.queues.scripted import Consumer, Scripted, Store
from tests.adapters.web import PATIENCE

wait_for = partial(wait_until, timeout=PATIENCE)


@contextmanager
def running(consumer: Consumer, **options: Any) -> Iterator[ServiceGroup]:
    group = patient_group(**options)
    group.add(consumer)
    with group:
        yield group


class Gate:
    """A handler that waits; `begun` has the bodies it was called with."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.open = threading.Event()

    def __call__(self, message: Message) -> None:
        # In one line, so that a stack shows it as soon as it has begun.
        self.open.wait(self._begin(message))

    def _begin(self, message: Message) -> float:
        self.begun.append(message.text())
        return 10 * PATIENCE

    async def asynchronously(self, message: Message) -> None:
        self.begun.append(message.text())
        while not self.open.is_set():
            await asyncio.sleep(0.001)


LATER = RetryPolicy(3, delay=1000.0, max_delay=1000.0)


def nothing(message: Message) -> None:
    pass


async def anothing(message: Message) -> None:
    pass


@pytest.mark.parametrize("handler", [nothing, anothing])
def test_what_a_handler_returns_from_is_acknowledged(handler: Handler) -> None:
    store = Store(*"abcdef")
    with running(consumer := Consumer(store, handler, concurrency=2)):
        wait_for(lambda: sorted(store.said("ack")) == list("abcdef"))
        wait_for(lambda: consumer.in_hand == 0)
    assert (consumer.handled, consumer.failed) == (6, 0)
    assert store.said("give_back") == []
    assert all(one.closed for one in store.connections)


def test_a_coroutine_method_and_an_object_that_is_called_are_handlers_too() -> None:
    class Handles:
        async def __call__(self, message: Message) -> None:
            await asyncio.sleep(0)

    store = Store("a")
    with running(Consumer(store, Handles())):
        wait_for(lambda: store.said("ack") == ["a"])


def test_no_more_are_in_hand_than_prefetch_nor_handled_than_concurrency() -> None:
    store, gate = Store(*map(str, range(100))), Gate()
    with running(consumer := Consumer(store, gate, concurrency=3, prefetch=7)):
        wait_for(lambda: len(gate.begun) == 3)
        wait_for(lambda: consumer.in_hand == 7)
        gate.open.set()
        wait_for(lambda: len(store.said("ack")) == 100)
    assert store.most <= 7


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stop_finishes_what_has_begun_and_gives_the_rest_back(asynchronous: bool) -> None:
    store, gate = Store(*"abcdef"), Gate()
    handler = gate.asynchronously if asynchronous else gate
    store.before["give_back"] = lambda _: gate.open.set()
    with running(Consumer(store, handler, concurrency=2)):
        wait_for(lambda: len(gate.begun) == 2)
        wait_for(lambda: not store.queue)
    assert sorted(store.said("give_back")) == list("cdef")
    assert sorted(store.said("ack")) == ["a", "b"]


def test_one_that_fails_is_tried_again_and_then_buried_with_its_reason() -> None:
    store = Store("bad", "good")
    attempts = []

    def handle(message: Message) -> None:
        attempts.append((message.text(), message.attempt))
        if message.text() == "bad":
            raise ValueError("no good")

    with running(consumer := Consumer(store, handle)):
        wait_for(lambda: store.said("bury") == ["bad"])
        wait_for(lambda: store.said("ack") == ["good"])
    assert [attempt for body, attempt in attempts if body == "bad"] == [1, 2, 3]
    assert store.said("reason") == ["ValueError('no good')"]
    assert (consumer.handled, consumer.failed) == (1, 3)


def test_without_dead_letters_it_is_given_back_after_a_pause_and_the_log_has_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store("bad", dead_letters=False)

    def handle(message: Message) -> None:
        raise ValueError("no good")

    with running(Consumer(store, handle, retry=RetryPolicy(1, delay=0.05, jitter=0.0))):
        wait_for(lambda: store.said("give_back") == ["bad"])
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "message bad failed in attempt 1" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize(("dead_letters", "told"), [(True, "bury"), (False, "ack")])
def test_a_rejected_one_is_not_tried_again(dead_letters: bool, told: str) -> None:
    store = Store("bad", dead_letters=dead_letters)
    begun = []

    def handle(message: Message) -> None:
        begun.append(message.attempt)
        message.json()

    with running(Consumer(store, handle)):
        wait_for(lambda: store.said(told) == ["bad"])
    assert begun == [1]
    if dead_letters:
        assert store.said("reason")[0].startswith("the body is no JSON")


def test_a_handler_may_ask_for_later_as_often_as_it_likes() -> None:
    store = Store("a")

    def handle(message: Message) -> None:
        if message.attempt < 10:
            raise Retry("not yet", after=0.001)

    with running(Consumer(store, handle, retry=RetryPolicy(1))):
        wait_for(lambda: store.said("ack") == ["a"])
    assert store.said("bury") == []


def test_what_a_handler_asked_for_later_uses_up_no_attempt() -> None:
    store = Store()
    store.queue.append(("a", 1, None))
    attempts = []

    def handle(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt < 5:
            raise Retry(after=0.001)
        raise ValueError

    with running(Consumer(store, handle, retry=RetryPolicy(2, delay=0.0))):
        wait_for(lambda: store.said("bury") == ["a"])
    assert attempts == [1, 2, 3, 4, 5, 6]


def test_where_the_broker_can_put_off_it_does() -> None:
    store = Store("a", "b")
    store.native_put_off = True

    def handle(message: Message) -> None:
        raise Retry(after=1000.0)

    with running(consumer := Consumer(store, handle)):
        wait_for(lambda: store.said("put_off") == ["a", "b"])
        wait_for(lambda: consumer.in_hand == 0)


def test_what_waits_for_its_next_attempt_is_given_back_at_the_stop() -> None:
    store = Store("a")

    def handle(message: Message) -> None:
        raise ValueError

    with running(consumer := Consumer(store, handle, retry=LATER)):
        wait_for(lambda: consumer.failed == 1)
    assert store.said("give_back") == ["a"]


def test_one_that_never_came_to_its_end_is_buried_when_it_has_come_too_often() -> None:
    store = Store()
    store.queue.append(("killer", 4, None))
    begun: list[str] = []
    with running(Consumer(store, lambda message: begun.append(message.id))):
        wait_for(lambda: store.said("bury") == ["killer"])
    assert store.said("reason") == ["delivered 4 times, and not finished once"]
    assert begun == []


def test_a_lane_is_handled_in_order_and_a_failure_holds_up_its_lane_only() -> None:
    store = Store()
    store.queue.extend((f"{lane}{number}", 1, lane) for number in range(20) for lane in "xyz")
    order: list[str] = []

    def handle(message: Message) -> None:
        if message.text() == "x3" and message.attempt < 3:
            raise ValueError
        order.append(message.text())

    with running(Consumer(store, handle, concurrency=4, prefetch=100)):
        wait_for(lambda: len(store.said("ack")) == 60)
    for lane in "xyz":
        assert [one for one in order if one[0] == lane] == [f"{lane}{n}" for n in range(20)]


def test_a_lane_goes_on_when_its_first_is_buried() -> None:
    store = Store()
    store.queue.extend((body, 1, "lane") for body in ("bad", "good"))

    def handle(message: Message) -> None:
        if message.text() == "bad":
            raise Reject("bad")

    with running(Consumer(store, handle)):
        wait_for(lambda: store.said("ack") == ["good"])
    assert store.told.index(("bury", ["bad"])) < store.told.index(("ack", ["good"]))


def test_lanes_that_are_left_are_finished_first_and_forgotten() -> None:
    store, gate = Store(), Gate()
    store.queue.extend((f"{lane}{number}", 1, lane) for number in range(3) for lane in "xy")
    with running(consumer := Consumer(store, gate, concurrency=2)):
        wait_for(lambda: len(gate.begun) == 2)
        wait_for(lambda: consumer.in_hand == 6)
        broker = store.connections[0]
        loop = consumer._control.loop  # type: ignore[union-attr]  # it runs
        left = asyncio.run_coroutine_threadsafe(_leave(broker, "x"), loop)
        wait_for(lambda: consumer.in_hand == 4)
        assert not left.done()
        gate.open.set()
        left.result(PATIENCE)
        wait_for(lambda: len(store.said("ack")) == 4)
        assert set(store.said("ack")) == {"x0", "y0", "y1", "y2"}
    assert store.said("give_back") == []


async def _leave(broker: Scripted, lane: str) -> None:
    await broker.owner.leave_lanes({lane})


def test_it_starts_while_the_broker_is_away_and_is_ready_once_it_is_there() -> None:
    store = Store("a")
    there = threading.Event()

    def away(broker: Scripted) -> None:
        if not there.is_set():
            raise BrokerAwayError("nobody there")

    store.before["open"] = away
    group = ServiceGroup()
    group.add(Consumer(store, nothing))
    thread = threading.Thread(target=group.start)
    thread.start()
    wait_for(lambda: len(store.connections) > 3)
    assert not group.is_ready
    there.set()
    group.wait_ready(PATIENCE)
    wait_for(lambda: store.said("ack") == ["a"])
    group.stop()
    thread.join(PATIENCE)
    assert all(one.closed for one in store.connections)


@pytest.mark.parametrize("where", ["open", "pause"])
def test_a_stop_while_the_broker_is_away_is_answered_at_once(where: str) -> None:
    store = Store()
    if where == "open":
        store.before["open"] = lambda _: asyncio.Event().wait()
    else:
        store.before["open"] = lambda broker: broker.lose()
    seconds = []
    for number in range(7):  # any of which may be late on a busy machine
        group = patient_group()
        group.add(Consumer(store, nothing, reconnect=PAUSE))
        thread = threading.Thread(target=group.start, daemon=True)
        thread.start()
        wait_for(lambda n=number: len(store.connections) > n)  # type: ignore[misc]
        at = time.monotonic()
        group.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        seconds.append(time.monotonic() - at)
    assert min(seconds) < 0.1


def test_a_lost_connection_is_made_anew_and_readiness_tells() -> None:
    store = Store("a")
    seen: list[str] = []
    group = ServiceGroup()
    group.subscribe(lambda event: seen.append(type(event).__name__))
    group.add(Consumer(store, nothing))
    with group:
        wait_for(lambda: store.said("ack") == ["a"])
        store.connections[0].lose()
        wait_for(lambda: len(store.connections) == 2)
        store.queue.append(("b", 1, None))
        store.connections[1].wake()
        wait_for(lambda: store.said("ack") == ["a", "b"])
        wait_for(lambda: group.is_ready)
    wait_for(lambda: "GroupStopped" in seen)
    assert seen.count("ServiceNotReady") == 1
    assert store.connections[0].closed


def test_what_was_handled_without_a_broker_is_acknowledged_to_the_next_connection() -> None:
    store, gate = Store("a"), Gate()
    with running(Consumer(store, gate)):
        wait_for(lambda: gate.begun == ["a"])
        store.connections[0].lose()
        wait_for(lambda: len(store.connections) == 2)
        gate.open.set()
        wait_for(lambda: store.said("ack") == ["a"])
    assert gate.begun == ["a"]


def test_an_acknowledgement_that_was_lost_is_said_again() -> None:
    store = Store("a")
    store.before["ack"] = lambda broker: broker._lose() if broker is store.connections[0] else None
    with running(Consumer(store, nothing)):
        wait_for(lambda: store.said("ack") == ["a"])
        assert len(store.connections) == 2


def test_what_comes_again_by_itself_is_forgotten_with_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, gate = Store("a", "b", "c", volatile=True), Gate()
    with running(consumer := Consumer(store, gate)):
        wait_for(lambda: gate.begun == ["a"])
        wait_for(lambda: consumer.in_hand == 3)
        store.connections[0].lose()
        wait_for(lambda: len(store.connections) == 2)
        gate.open.set()
        wait_for(lambda: sorted(store.said("ack")) == ["a", "b", "c"])
    assert sorted(gate.begun) == ["a", "a", "b", "c"]
    assert "message a was finished too late, and comes again" in caplog.text


def test_wrong_options_fail_the_service() -> None:
    store = Store()

    def refuse(broker: Scripted) -> None:
        raise LookupError("no such queue: 'orders'")

    store.before["open"] = refuse
    group = ServiceGroup()
    group.add(Consumer(store, nothing))
    with pytest.raises(ServiceGroupError) as raised:
        group.start()
    assert isinstance(raised.value.exceptions[0], LookupError)
    assert store.connections[0].closed


@pytest.mark.parametrize("asynchronous", [False, True])
def test_sys_exit_of_a_handler_gives_the_message_back_and_ends_the_group(
    asynchronous: bool,
) -> None:
    store = Store("a")

    def leave(message: Message) -> None:
        raise SystemExit(7)

    async def aleave(message: Message) -> None:
        raise SystemExit(7)

    group = ServiceGroup()
    group.add(Consumer(store, aleave if asynchronous else leave))
    with pytest.raises(SystemExit) as raised:
        group.start()
    assert raised.value.code == 7
    if not asynchronous:  # in a task, it ends the loop itself
        assert store.said("give_back") == ["a"]


def test_a_thread_whose_handler_hangs_is_named_and_replaced(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, gate = Store("hang", "a", "b"), Gate()
    look = ThreadHandlers._look

    def look_at_the_gate(handlers: ThreadHandlers) -> None:
        wait_for(lambda: gate.begun)  # however late the thread is
        look(handlers)

    def handle(message: Message) -> None:
        if message.text() == "hang":
            gate(message)

    monkeypatch.setattr(ThreadHandlers, "_look", look_at_the_gate)
    with running(consumer := Consumer(store, handle, handler_timeout=0.05)):
        # In any order: on a busy machine the first of them may be replaced, too.
        wait_for(lambda: sorted(store.said("ack")) == ["a", "b"])
        wait_for(lambda: consumer.in_hand == 1)
        assert "the handler of message hang has run for more than 0.05 s" in caplog.text
        assert "self.open.wait(" in caplog.text
        gate.open.set()
        wait_for(lambda: store.said("ack")[2:] == ["hang"])


def test_a_thread_that_has_just_taken_a_message_is_looked_after() -> None:
    async def look() -> None:
        handlers = ThreadHandlers(nothing, 0, 1000.0, "orders", lambda *_: None)
        message = Delivery(message=Message(body=b""), token=None, broker=Scripted(Store()))
        handlers.handle(message)
        handlers._jobs.get()  # as a thread does, before it notes that it has begun
        handlers._look()
        assert handlers._timer is not None
        handlers.close()

    asyncio.run(look())


def test_a_task_whose_handler_hangs_is_named_and_has_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store("hang")

    async def handle(message: Message) -> None:
        await asyncio.Event().wait()

    with running(Consumer(store, handle, handler_timeout=0.05, retry=RetryPolicy(2, delay=0.0))):
        wait_for(lambda: store.said("bury") == ["hang"])
    assert "await asyncio.Event().wait()" in caplog.text
    assert store.said("reason") == ["TimeoutError('its handler took more than 0.05 s')"]


def test_a_timeout_of_the_handlers_own_is_a_failure_like_any_other() -> None:
    store = Store("a")

    async def handle(message: Message) -> None:
        raise TimeoutError("its own")

    with running(Consumer(store, handle, handler_timeout=1000.0, retry=RetryPolicy(1))):
        wait_for(lambda: store.said("bury") == ["a"])
    assert store.said("reason") == ["TimeoutError('its own')"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_at_the_deadline_what_hangs_is_named_given_back_and_left(
    asynchronous: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue_run, "HANDLERS_SHARE", 0.03)
    store, gate = Store("a"), Gate()
    handler = gate.asynchronously if asynchronous else gate
    at = 0.0
    with running(Consumer(store, handler), stop_timeout=20.0) as group:
        wait_for(lambda: gate.begun == ["a"])
        at = time.monotonic()
    assert time.monotonic() - at < 20.0
    assert group.status()[0].state.value == "stopped"
    assert store.said("give_back") == ["a"]
    assert "1 messages are not settled, since the time to stop is over" in caplog.text
    assert "Gate" in caplog.text or "asynchronously" in caplog.text or "self.open" in caplog.text
    gate.open.set()


def test_the_steps_of_a_stop_end_before_it_is_cancelled() -> None:
    steps = 4  # the end of fetching, what goes back before and after the handlers, the good bye
    shares = _queue_run.HANDLERS_SHARE + steps * _queue_run.STEP_SHARE
    assert round(shares, 9) <= CANCEL_SHARE


def test_a_stop_without_a_broker_waits_for_handlers_and_tells_what_comes_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, gate = Store("a"), Gate()
    store.before["open"] = lambda broker: broker.lose() if len(store.connections) > 1 else None
    with running(Consumer(store, gate)):
        wait_for(lambda: gate.begun == ["a"])
        store.connections[0].lose()
        wait_for(lambda: len(store.connections) > 2)
        threading.Timer(0.05, gate.open.set).start()
    assert "1 messages are not settled, since the broker is away" in caplog.text


def test_a_broker_that_does_not_answer_at_the_stop_holds_nobody_up() -> None:
    store, gate = Store("a", "b"), Gate()
    store.before["give_back"] = lambda _: asyncio.Event().wait()
    with running(Consumer(store, gate), stop_timeout=20.0) as group:
        wait_for(lambda: gate.begun == ["a"])
        gate.open.set()
    assert group.status()[0].state.value == "stopped"


def test_what_is_in_hand_for_long_is_kept() -> None:
    store, gate = Store("a"), Gate()
    store.keep_seconds = 0.01
    with running(Consumer(store, gate)):
        wait_for(lambda: [told for told, _ in store.told].count("keep") > 2)
        gate.open.set()


def test_an_ordinary_handler_that_returns_a_coroutine_is_told_to_be_one() -> None:
    store = Store("a")

    def handle(message: Message) -> Awaitable[None]:
        return anothing(message)

    with running(Consumer(store, handle, retry=RetryPolicy(1))):
        wait_for(lambda: store.said("bury") == ["a"])
    assert "make it an async def itself" in store.said("reason")[0]


def test_the_same_consumer_runs_again() -> None:
    store = Store()
    consumer = Consumer(store, nothing)
    for body in "abc":
        store.queue.append((body, 1, None))
        with running(consumer):
            wait_for(lambda body=body: store.said("ack")[-1:] == [body])  # type: ignore[misc]
    assert [one.closed for one in store.connections] == [True] * 3


def test_it_is_a_part_of_an_async_group_too() -> None:
    from servicegroup import AsyncGroup

    store = Store("a")
    group = ServiceGroup()
    loop = group.add(AsyncGroup())
    loop.add(Consumer(store, nothing))
    with group:
        wait_for(lambda: store.said("ack") == ["a"])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"concurrency": 0}, ValueError, "Consumer: concurrency must be 1 or more, not 0"),
        ({"concurrency": True}, TypeError, "concurrency must be an int, not True"),
        ({"prefetch": 0}, ValueError, "prefetch must be 1 or more, not 0"),
        ({"prefetch": 2, "concurrency": 3}, ValueError, "some of concurrency=3 handlers"),
        ({"handler_timeout": 0}, ValueError, "handler_timeout must be more than 0"),
        ({"handler_timeout": math.nan}, ValueError, "handler_timeout must be more than 0"),
        ({"handler_timeout": "1"}, TypeError, "handler_timeout must be a number"),
        ({"retry": 3}, TypeError, "retry must be a RetryPolicy, not 3"),
        ({"reconnect": 1.0}, TypeError, "reconnect must be a Restart, not 1.0"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Consumer(Store(), nothing, **options)


@pytest.mark.parametrize("handler", [None, 3, lambda: None, lambda a, b: None])
def test_a_handler_that_cannot_be_called_with_a_message_is_refused(handler: Any) -> None:
    with pytest.raises(TypeError, match="Consumer: handler must"):
        Consumer(Store(), handler)


def test_a_retry_policy_grows_its_pauses() -> None:
    policy = RetryPolicy(5, delay=1.0, factor=2.0, max_delay=5.0, jitter=0.5)
    assert [policy.pause(attempt, 0.5) for attempt in (1, 2, 3, 4, 5000)] == [1, 2, 4, 5, 5]
    assert policy.pause(1, 0.0) == 0.5
    assert policy.pause(1, 1.0) == 1.5


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"attempts": 0}, ValueError),
        ({"attempts": math.nan}, ValueError),
        ({"attempts": "5"}, TypeError),
        ({"delay": -1.0}, ValueError),
        ({"delay": math.inf}, ValueError),
        ({"factor": 0.5}, ValueError),
        ({"max_delay": math.nan}, ValueError),
        ({"jitter": 1.1}, ValueError),
        ({"jitter": True}, TypeError),
    ],
)
def test_a_retry_policy_that_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception]
) -> None:
    (name,) = options
    with pytest.raises(error, match=f"RetryPolicy: {name} must be"):
        RetryPolicy(**options)
    assert RetryPolicy(math.inf).pause(1, 0.5) == 1.0


@pytest.mark.parametrize("after", [-1.0, math.inf, math.nan])
def test_retry_after_what_is_no_time_is_refused(after: float) -> None:
    with pytest.raises(ValueError, match="Retry: after must be 0 or more seconds"):
        Retry(after=after)


def test_a_message_reads_as_text_and_json_or_is_rejected() -> None:
    assert Message(body=b'{"a": 1}').json() == {"a": 1}
    with pytest.raises(Reject, match=r"the body is no UTF-8"):
        Message(body=b"\xff").json()


def test_readiness_is_told_to_a_group_of_groups() -> None:
    store = Store()
    seen: list[events.Event] = []
    outer, inner = ServiceGroup(), ServiceGroup(name="inner")
    outer.subscribe(seen.append)
    outer.add(inner)
    inner.add(Consumer(store, nothing))
    with outer:
        store.connections[0].lose()
        wait_for(lambda: any(isinstance(one, events.ServiceNotReady) for one in seen))
        wait_for(lambda: outer.is_ready)
