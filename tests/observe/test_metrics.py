"""What Prometheus is told of groups, and that it takes it."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest, make_wsgi_app
from prometheus_client.parser import text_string_to_metric_families

from servicegroup import (
    AsyncGroup,
    AsyncService,
    Restart,
    Service,
    ServiceGroup,
    events,
    with_start,
)
from servicegroup.observe import metrics
from servicegroup.observe.metrics import GroupCollector, register, unregister
from tests.debian import require
from tests.observe.test_health import PATIENCE, wait_for

Samples = dict[tuple[str, ...], float]


def waits(stopping: threading.Event) -> None:
    stopping.wait()


def shop(name: str = "shop", **options: float) -> ServiceGroup:
    group = ServiceGroup(name=name, **options)  # type: ignore[arg-type]
    group.add(with_start(waits), name="database")
    group.add(with_start(waits), name="api")
    return group


def end_of(group: ServiceGroup) -> Callable[[], None]:
    """What waits until the subscribers before it have heard of the end of the next run."""
    told = SimpleQueue[events.Event]()
    group.subscribe(told.put)

    def wait() -> None:
        while not isinstance(told.get(timeout=PATIENCE), events.GroupStopped):
            pass

    return wait


def scrape(registry: CollectorRegistry) -> Samples:
    """The values by the metric's name and the values of its labels, in the order of their names."""
    found: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


def test_a_service_is_up_from_ready_to_stop(registry: CollectorRegistry) -> None:
    group = shop()
    register(group, registry)
    up, state = "servicegroup_service_up", "servicegroup_service_state"
    before = scrape(registry)
    assert before["servicegroup_ready", "shop"] == 0
    assert before[up, "shop", "api"] == 0
    assert before[state, "shop", "api", "new"] == 1
    with group:
        now = scrape(registry)
        assert now["servicegroup_ready", "shop"] == 1
        assert now[up, "shop", "api"] == now[up, "shop", "database"] == 1
        assert now[state, "shop", "api", "running"] == 1
        assert (state, "shop", "api", "new") not in now
        assert now["servicegroup_service_start_duration_seconds", "shop", "api"] >= 0
        assert ("servicegroup_service_stop_duration_seconds", "shop", "api") not in now
    after = scrape(registry)
    assert after["servicegroup_ready", "shop"] == 0
    assert after[up, "shop", "api"] == 0
    assert after[state, "shop", "api", "stopped"] == 1
    assert after["servicegroup_service_stop_duration_seconds", "shop", "api"] >= 0


def test_restarts_and_failures_are_counted_through_all_runs(registry: CollectorRegistry) -> None:
    tries: list[int] = []

    def fails() -> None:
        tries.append(1)
        if len(tries) % 3:
            raise ConnectionError

    def breaks() -> None:
        raise ValueError

    group = ServiceGroup(name="shop")
    group.add(with_start(fails), name="broker", on_failure=Restart(delay=0.0, jitter=0.0))
    group.add(with_start(breaks), name="bad", on_failure="continue")
    register(group, registry)
    ended = end_of(group)
    restarts, failures = (
        "servicegroup_service_restarts_total",
        "servicegroup_service_failures_total",
    )
    first = scrape(registry)
    assert first[restarts, "shop", "bad"] == first[failures, "shop", "bad"] == 0
    for runs in (1, 2):
        group.start()
        ended()
        told = scrape(registry)
        assert told[restarts, "shop", "broker"] == told[failures, "shop", "broker"] == 2 * runs
        assert told[restarts, "shop", "bad"] == 0
        assert told[failures, "shop", "bad"] == runs


def test_one_that_returned_and_is_restarted_has_not_failed(registry: CollectorRegistry) -> None:
    group = ServiceGroup(name="shop")
    tries: list[int] = []

    def returns() -> None:
        tries.append(1)
        if len(tries) == 2:
            group.stop()
            raise SystemExit

    group.add(with_start(returns), name="job", on_return=Restart(delay=0.0, jitter=0.0))
    register(group, registry)
    ended = end_of(group)
    group.start()
    ended()
    told = scrape(registry)
    assert told["servicegroup_service_restarts_total", "shop", "job"] == 1
    assert told["servicegroup_service_failures_total", "shop", "job"] == 0


def test_the_abandoned_and_the_stalled_are_counted(registry: CollectorRegistry) -> None:
    released = threading.Event()

    class Silent(Service):
        heartbeat_timeout = 0.01

        def start(self) -> None:
            released.wait()

    inner = ServiceGroup(name="inner")
    inner.add(Silent(), name="deaf", stop_timeout=0.01)
    group = ServiceGroup(name="shop")
    group.add(inner)
    register(group, registry)
    ended = end_of(group)

    running: list[Samples] = []

    def run() -> None:
        with group:
            wait_for(lambda: inner.status()[0].stalled)
            running.append(scrape(registry))

    with pytest.raises(ExceptionGroup):
        run()
    assert running[0]["servicegroup_stalled_services", "shop"] == 1
    ended()
    told = scrape(registry)
    released.set()
    assert told["servicegroup_abandoned_services", "shop"] == 1
    assert told["servicegroup_service_state", "shop", "inner/deaf", "abandoned"] == 1
    assert told["servicegroup_service_failures_total", "shop", "inner/deaf"] == 1


def test_the_age_of_a_heartbeat_is_told_of_those_that_owe_one(registry: CollectorRegistry) -> None:
    class Beats(Service):
        heartbeat_timeout = 60.0

        def start(self) -> None:
            self.stopping.wait()

    inner = ServiceGroup(name="inner")
    beats = inner.add(Beats(), name="beats")
    group = shop()
    group.add(inner)
    register(group, registry)
    name = "servicegroup_service_heartbeat_age_seconds"
    assert name not in {key[0] for key in scrape(registry)}
    with group:
        wait_for(lambda: scrape(registry)[name, "shop", "inner/beats"] > 0.05)
        before = time.monotonic()
        beats.heartbeat()
        told = scrape(registry)
        assert 0.0 <= told[name, "shop", "inner/beats"] <= time.monotonic() - before
        assert [key for key in told if key[0] == name] == [(name, "shop", "inner/beats")]
    assert name not in {key[0] for key in scrape(registry)}


def test_parts_of_nested_groups_are_told_under_their_path(registry: CollectorRegistry) -> None:
    class Coroutine(AsyncService):
        handled = 7

        async def run(self) -> None:
            await self.stopping.wait()

    loop = AsyncGroup(name="loop")
    loop.add(Coroutine(), name="consumer")
    inner = ServiceGroup(name="inner")
    inner.add(loop)
    group = ServiceGroup(name="shop")
    group.add(inner)
    register(group, registry)
    with group:
        told = scrape(registry)
        for name in ("inner", "inner/loop", "inner/loop/consumer"):
            assert told["servicegroup_service_up", "shop", name] == 1
        assert told["servicegroup_service_handled_total", "shop", "inner/loop/consumer"] == 7


def test_the_drain_is_told_while_it_lasts_and_afterwards(registry: CollectorRegistry) -> None:
    group = ServiceGroup(name="shop", drain_delay=60.0, shutdown_timeout=math.inf)
    name = ("servicegroup_drain_duration_seconds", "shop")
    drains, drained = threading.Event(), threading.Event()

    class Drains(Service):
        def start(self) -> None:
            self.stopping.wait()

        def drain(self) -> None:
            drains.set()
            drained.wait()

    group.add(Drains())
    register(group, registry)
    ended = end_of(group)
    watched = metrics._collectors[registry]._watched["shop"]
    with group:
        assert name not in scrape(registry)
        group.stop()
        drains.wait()
        wait_for(lambda: name in scrape(registry))
        assert watched._drain_began is not None
        watched._now = lambda: watched._drain_began + 5.0  # type: ignore[operator]
        assert scrape(registry)[name] == pytest.approx(5.0)
        watched._now = lambda: math.inf
        drained.set()
    ended()
    assert 0.0 <= scrape(registry)[name] < 60.0  # the end of the block is in a hurry
    with group:
        wait_for(lambda: name not in scrape(registry))


def test_the_drain_of_a_nested_group_is_not_that_of_the_whole(registry: CollectorRegistry) -> None:
    inner = shop("inner")
    group = shop()
    group.add(inner)
    register(group, registry)
    ended = end_of(group)  # the first that ends is the inner one
    with group:
        inner.stop()
        ended()
        assert ("servicegroup_drain_duration_seconds", "shop") not in scrape(registry)


# -- what services bring along --------------------------------------------------------------------


class Counting(Service):
    heartbeat_timeout = 60.0
    handled = 3
    failed = 2
    in_hand = 1

    def start(self) -> None:
        self.stopping.wait()


def test_a_service_with_counts_of_its_own_has_them_shown(registry: CollectorRegistry) -> None:
    group = shop()
    consumer = group.add(Counting(), name="consumer")
    register(group, registry)
    told = scrape(registry)
    assert told["servicegroup_service_handled_total", "shop", "consumer"] == 3
    assert told["servicegroup_service_handler_failures_total", "shop", "consumer"] == 2
    assert told["servicegroup_service_in_hand", "shop", "consumer"] == 1
    assert ("servicegroup_service_in_hand", "shop", "api") not in told
    consumer.in_hand = 9
    assert scrape(registry)["servicegroup_service_in_hand", "shop", "consumer"] == 9


def test_the_consumers_of_queues_have_these_counts() -> None:
    from servicegroup.adapters.queue import QueueConsumer

    for name in ("handled", "failed", "in_hand"):
        assert isinstance(getattr(QueueConsumer, name), property)


def test_what_a_service_has_of_such_a_name_and_is_no_count_is_left_out(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Counting):
        failed = True
        in_hand = "none"  # type: ignore[assignment]

        @property
        def handled(self) -> int:  # type: ignore[override]
            raise ConnectionError("nobody to ask")

    group = shop()
    group.add(Odd(), name="odd")
    register(group, registry)
    told = scrape(registry)
    assert told["servicegroup_service_up", "shop", "odd"] == 0
    assert not [key for key in told if "hand" in key[0] and key[-1] == "odd"]
    assert "service 'odd': handled cannot be had" in caplog.text


# -- registries -----------------------------------------------------------------------------------


def test_two_groups_share_a_registry_and_one_group_has_two(registry: CollectorRegistry) -> None:
    other = CollectorRegistry()
    shops = shop("one"), shop("two")
    for group in shops:
        register(group, registry)
    register(shops[0], other)
    for name in ("one", "two"):
        assert ("servicegroup_service_up", name, "api") in scrape(registry)
    assert ("servicegroup_service_up", "two", "api") not in scrape(other)
    assert generate_latest(registry).count(b"# HELP servicegroup_ready ") == 1


def test_a_collector_may_be_registered_by_hand(registry: CollectorRegistry) -> None:
    registry.register(GroupCollector(shop("one"), shop("two")))
    assert ("servicegroup_service_up", "two", "api") in scrape(registry)
    Counter("others", "Something else.", registry=registry).inc()
    assert scrape(registry)["others_total",] == 1
    assert [
        family.name
        for family in registry.restricted_registry(["servicegroup_service_up"]).collect()
    ] == ["servicegroup_service_up"]
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(GroupCollector(shop("three")))


def test_what_was_unregistered_is_shown_no_more(registry: CollectorRegistry) -> None:
    one, two = shop("one"), shop("two")
    register(one, registry)
    register(two, registry)
    unregister(one, registry)
    assert ("servicegroup_ready", "one") not in scrape(registry)
    assert ("servicegroup_ready", "two") in scrape(registry)
    with pytest.raises(KeyError, match="one"):
        unregister(one, registry)
    unregister(two, registry)
    assert generate_latest(registry) == b""
    register(one, registry)
    assert ("servicegroup_ready", "one") in scrape(registry)


def test_the_registry_of_prometheus_client_is_the_default() -> None:
    group = shop("of-the-default")
    register(group)
    try:
        assert REGISTRY.get_sample_value("servicegroup_ready", {"group": group.name}) == 0
    finally:
        unregister(group)


def test_two_groups_of_one_name_are_refused(registry: CollectorRegistry) -> None:
    register(shop(), registry)
    with pytest.raises(ValueError, match="of a group 'shop' are there already: give each"):
        register(shop(), registry)
    with pytest.raises(TypeError, match="are those of a ServiceGroup, not of 'shop'"):
        register("shop", registry)  # type: ignore[arg-type]


def test_a_registry_is_not_kept(registry: CollectorRegistry) -> None:
    other = CollectorRegistry()
    gone = weakref.ref(other)
    register(shop(), other)
    del other
    gc.collect()
    assert gone() is None


def test_without_prometheus_client_the_import_says_what_to_install() -> None:
    source = (
        "import sys; sys.modules['prometheus_client'] = None; import servicegroup.observe.metrics"
    )
    child = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    assert child.returncode == 1
    assert "needs prometheus-client: pip install 'servicegroup[metrics]'" in child.stderr


# -- what is told ---------------------------------------------------------------------------------


def everything() -> Iterator[CollectorRegistry]:
    registry = CollectorRegistry()
    group = ServiceGroup(name='a "quoted" \\ name\nof two lines')
    group.add(Counting(), name="täglich")
    register(group, registry)
    register(shop(), registry)
    with group:
        yield registry
    yield registry


def test_prometheus_finds_no_fault() -> None:
    promtool = require("promtool", "prometheus")
    names: set[str] = set()
    for registry in everything():
        text = generate_latest(registry)
        names |= {key[0] for key in scrape(registry)}
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    described = {family.name for family in GroupCollector().describe()}
    assert {name.removesuffix("_total") for name in names} == described


def test_a_thousand_services_are_told_within_fifty_milliseconds(
    registry: CollectorRegistry,
) -> None:
    group = ServiceGroup(name="shop")
    for number in range(1000):
        group.add(with_start(waits), name=f"service-{number}")
    register(group, registry)
    with group:
        used = []
        for _ in range(10):
            began = time.thread_time()
            text = generate_latest(registry)
            used.append(time.thread_time() - began)
    assert text.count(b"\n") > 5000
    assert min(used) < 0.05


def test_the_metrics_are_served_by_a_service_of_the_group(registry: CollectorRegistry) -> None:
    class Quiet(WSGIRequestHandler):
        def log_message(self, *_args: object) -> None:
            pass

    server = make_server("127.0.0.1", 0, make_wsgi_app(registry), handler_class=Quiet)
    group = shop()
    register(group, registry)
    group.add(with_start(server.serve_forever, server.shutdown), name="metrics")
    with server, group:
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert b'servicegroup_service_up{group="shop",service="metrics"} 1.0\n' in answer.read()


def test_a_status_that_cannot_be_had_costs_a_scrape_and_no_service(
    registry: CollectorRegistry,
) -> None:
    group = shop()
    register(group, registry)
    with group:
        real = group.status
        group.status = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(ZeroDivisionError):
            generate_latest(registry)
        group.status = real  # type: ignore[method-assign]
        assert scrape(registry)["servicegroup_ready", "shop"] == 1
    assert group.wait(30).exit_code == 0
