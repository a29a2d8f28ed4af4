"""What all consumers of queues hold, with their real brokers."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.adapters.queues.program import SOON
from tests.adapters.queues.rig import KINDS, Rig, rig_of
from tests.child import PATIENCE, Child

MESSAGES = 2_000
MOMENTS = 7  # by three interpreters
# Seconds for which nobody else gets what a consumer has, unless that gives it back. A third of them
# may pass between two signs of life; the rest is more than a machine stands still.
LEASE = 6.0

each_kind = pytest.mark.parametrize(
    "rig",
    # Those with a server take long.
    [pytest.param(one, marks=() if one == "sqlite" else pytest.mark.slow) for one in KINDS],
    indirect=True,
)
both_handlers = pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "tasks"])


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig_of(request.param)() as rig:
        rig.kind = request.param
        yield rig


class Consumer(Child):
    """A consumer in a process of its own; see program.py for the options."""

    def __init__(self, rig: Rig, port: int | None = None, **options: Any) -> None:
        self._log = rig.directory / "handled.log"
        arguments = rig.kind, rig.options(port), str(self._log)
        super().__init__(
            f"from tests.adapters.queues.program import main\nmain(*{arguments!r}, **{options!r})"
        )

    @property
    def seconds_to_stop(self) -> float:
        """What its stop took, once it has ended."""
        (line,) = self.said("stopped")
        return float(line.split()[1])


def handled(rig: Rig) -> list[str]:
    """The bodies that were handled, by all consumers so far."""
    log = rig.directory / "handled.log"
    # One is just writing, maybe, what has no end of line yet.
    lines = log.read_text().rpartition("\n")[0].splitlines() if log.exists() else []
    return [line.rstrip() for line in lines]


def wait_for(condition: Callable[[], object], what: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, what()
        time.sleep(0.005)


def wait_until_handled(rig: Rig, wanted: set[str]) -> None:
    wait_for(
        lambda: wanted <= set(handled(rig)),
        lambda: f"missing: {sorted(wanted - set(handled(rig)))}",
    )


def is_idle(child: Child, seconds: float, limit: float) -> bool:
    """Whether its threads go to sleep less than `limit` times in so many seconds; if what came
    before is not over yet, in the next or the last of three such times."""

    def switches() -> int:
        return sum(int(line.split()[1]) for line in child.stat("voluntary_ctxt_switches"))

    for _ in range(3):
        before = switches()
        time.sleep(seconds)
        if switches() - before < limit:
            return True
    return False


def bodies(number: int) -> list[str]:
    return [f"order-{one}" for one in range(number)]


@each_kind
@both_handlers
def test_what_is_published_is_handled_once_and_acknowledged(rig: Rig, asynchronous: bool) -> None:
    wanted = bodies(200)
    rig.publish(*wanted[:100])
    with Consumer(rig, asynchronous=asynchronous, concurrency=4, **rig.kept(LEASE)) as consumer:
        consumer.wait_for("ready")
        rig.publish(*wanted[100:])
        wait_until_handled(rig, set(wanted))
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
        assert consumer.said("handled") == ["handled 200 failed 0 left 0"]
    assert Counter(handled(rig)) == Counter(wanted)
    assert rig.left() == 0


@each_kind
@both_handlers
def test_poison_goes_to_the_dead_letters_with_its_reason(rig: Rig, asynchronous: bool) -> None:
    rig.publish("raise it", "one", "reject it", "two", "retry it")
    # It asks for more attempts than there are, which is its right.
    with Consumer(
        rig, asynchronous=asynchronous, concurrency=2, attempts=2, **rig.kept(LEASE)
    ) as consumer:
        wait_until_handled(rig, {"one", "two", "retry it"})
        wait_for(lambda: len(rig.dead()) == 2, rig.dead)
        wait_for(lambda: rig.left() == 0, rig.left)
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
        # Two attempts, one rejected, three times put off.
        assert consumer.said("handled") == ["handled 3 failed 6 left 0"]
    assert sorted(rig.dead()) == [
        ("raise it", "ValueError('no good: raise it')"),
        ("reject it", "not wanted"),
    ]


@each_kind
@both_handlers
def test_a_handler_that_hangs_is_named_and_its_message_comes_again(
    rig: Rig, asynchronous: bool
) -> None:
    rig.publish("hang", *bodies(20))
    with Consumer(
        rig,
        asynchronous=asynchronous,
        concurrency=1,
        handler_timeout=0.2,
        attempts=100,
        stop_timeout=15.0,
    ) as consumer:
        wait_until_handled(rig, {"hangs hang", *bodies(20)})
        wait_for(lambda: "has run for more than 0.2 s" in consumer.stderr, lambda: consumer.stderr)
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
        assert consumer.seconds_to_stop < 15.0
        assert "program.py" in consumer.stderr
    before = handled(rig).count("hangs hang")
    with Consumer(rig, asynchronous=asynchronous):
        wait_for(lambda: handled(rig).count("hangs hang") > before, lambda: handled(rig))


@each_kind
def test_a_stop_finishes_what_has_begun_and_gives_the_rest_back_at_once(rig: Rig) -> None:
    rig.publish("wait 1 0.5", "wait 2 0.5", *bodies(10))
    kept = rig.kept(3 * SOON)
    with Consumer(rig, concurrency=2, prefetch=12, **kept) as consumer:
        wait_until_handled(rig, {"waits wait 1 0.5", "waits wait 2 0.5"})
        consumer.send(signal.SIGTERM)
        assert consumer.end() == 0, consumer.stderr
    assert {"wait 1 0.5", "wait 2 0.5"} <= set(handled(rig))
    # That they were here before is no attempt.
    with Consumer(rig, attempts=1, **kept) as consumer:
        consumer.wait_for("ready")
        at = time.monotonic()
        wait_until_handled(rig, set(bodies(10)))
        assert time.monotonic() - at < SOON
        wait_for(lambda: rig.left() == 0, rig.left)
    assert max(Counter(handled(rig)).values()) == 1
    assert rig.dead() == []


@each_kind
def test_two_stops_and_a_stop_at_once_do_no_harm(rig: Rig) -> None:
    rig.publish(*bodies(5))
    for _ in range(3):
        with Consumer(rig, **rig.kept(LEASE)) as consumer:
            consumer.wait_for("ready")
            consumer.send(signal.SIGTERM)
            assert consumer.end() == 0, consumer.stderr
    with Consumer(rig, **rig.kept(LEASE)):
        wait_until_handled(rig, set(bodies(5)))
    assert max(Counter(handled(rig)).values()) == 1


@pytest.mark.slow
@each_kind
def test_kill_9_loses_nothing(rig: Rig) -> None:
    wanted, prefetch = bodies(MESSAGES), 20
    rig.publish(*wanted)
    step = MESSAGES // (MOMENTS + 1)
    # What Kafka's consumer has handled is committed a while later: fewer than are in hand by then.
    seconds = 0.02 if rig.kind == "kafka" else 0.001
    for moment in range(MOMENTS):
        with Consumer(rig, concurrency=4, prefetch=prefetch, seconds=seconds, attempts=99) as one:
            at = step * moment + random.randrange(1, step)
            wait_for(lambda at=at: len(handled(rig)) >= at, lambda: len(handled(rig)))  # type: ignore[misc]
            os.kill(one.pid, signal.SIGKILL)
    with Consumer(rig, concurrency=4, prefetch=prefetch, attempts=99):
        wait_until_handled(rig, set(wanted))
        wait_for(lambda: rig.left() == 0, rig.left)
    counts = Counter(handled(rig))
    assert set(counts) == set(wanted)
    assert sum(counts.values()) - len(wanted) <= prefetch * MOMENTS
    assert rig.dead() == []


@pytest.mark.slow
@each_kind
@both_handlers
def test_sigterm_under_load_makes_no_duplicate(rig: Rig, asynchronous: bool) -> None:
    wanted = bodies(MESSAGES)
    rig.publish(*wanted)
    options: dict[str, Any] = {
        "asynchronous": asynchronous,
        "concurrency": 4,
        "prefetch": 20,
        # So long that enough is left for all of them, if some get their signal late.
        "seconds": 0.03,
        **rig.kept(LEASE),
    }
    seconds_to_stop = []
    for _ in range(MOMENTS):
        before = len(handled(rig))
        with Consumer(rig, **options) as consumer:
            wait_for(
                lambda before=before: len(handled(rig)) > before,  # type: ignore[misc]
                lambda: handled(rig)[-1:],
            )
            time.sleep(random.uniform(0.0, 0.05))  # any moment
            consumer.send(signal.SIGTERM)
            assert consumer.end() == 0, consumer.stderr
            # Not until the end of the process, which has an interpreter to take apart.
            seconds_to_stop.append(consumer.seconds_to_stop)
    assert statistics.median(seconds_to_stop) < 1.0
    with Consumer(rig, concurrency=4, prefetch=200, **rig.kept(LEASE)):
        wait_until_handled(rig, set(wanted))
        wait_for(lambda: rig.left() == 0, rig.left)
    assert Counter(handled(rig)) == Counter(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
@each_kind
def test_others_take_over_what_a_killed_consumer_had(rig: Rig, number: int) -> None:
    wanted, prefetch = bodies(200), 10
    options: dict[str, Any] = {
        "concurrency": 2,
        "prefetch": prefetch,
        # For fewer than `prefetch` of a partition of Kafka until what is handled is committed.
        "seconds": 0.05,
        "attempts": 99,
        **rig.kept(LEASE),
    }
    consumers = [Consumer(rig, **options) for _ in range(number)]
    try:
        meet(rig, consumers)
        rig.publish(*wanted)
        wait_for(lambda: len(set(wanted) & set(handled(rig))) > 50, lambda: handled(rig))
        os.kill(consumers[0].pid, signal.SIGKILL)
        wait_until_handled(rig, set(wanted))
        wait_for(lambda: rig.left() == 0, rig.left)
    finally:
        for consumer in consumers:
            consumer.__exit__(None, None, None)
    counts = Counter(handled(rig))
    assert sum(counts[one] - 1 for one in wanted) <= prefetch


def meet(rig: Rig, consumers: Sequence[Consumer]) -> None:
    """Return when each has handled something, and all of a later round is acknowledged: a group of
    Kafka whose members still come, or come once more, has offsets that are not committed yet."""
    for consumer in consumers:
        consumer.wait_for("ready")
    rounds, met = 0, False
    while not met:
        met = all(consumer.said("first") for consumer in consumers)
        rounds += 1
        hellos = [f"hello {rounds} {one}" for one in range(10 * len(consumers))]
        rig.publish(*hellos)
        wait_until_handled(rig, set(hellos))
        wait_for(lambda: rig.left() == 0, rig.left)
