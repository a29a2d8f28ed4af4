"""`register`: groups as metrics of a `prometheus_client` registry, read when they are scraped."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from weakref import WeakKeyDictionary

from servicegroup import _log, events
from servicegroup.group import ServiceGroup
from servicegroup.report import ServiceStatus, State

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Sample
except ImportError as error:
    raise ImportError(
        "servicegroup.observe.metrics needs prometheus-client: pip install 'servicegroup[metrics]'"
    ) from error

__all__ = ["GroupCollector", "register", "unregister"]

_lock = threading.Lock()
_collectors: WeakKeyDictionary[CollectorRegistry, GroupCollector] = WeakKeyDictionary()


def register(group: ServiceGroup, registry: CollectorRegistry | None = None) -> None:
    """Show `group` in `registry`, by default the one of prometheus_client. Any thread.

    All groups of a registry share a collector, for each metric may be described only once.

    Raises:
        TypeError: `group` is no `ServiceGroup`.
        ValueError: a group of that name is there already, or another's metric of such a name.
    """
    registry = REGISTRY if registry is None else registry
    with _lock:
        collector = _collectors.get(registry)
        if collector is not None:
            collector.add(group)
            return
        collector = GroupCollector(group)
        registry.register(collector)
        _collectors[registry] = collector


def unregister(group: ServiceGroup, registry: CollectorRegistry | None = None) -> None:
    """Show it no more. Any thread.

    Raises:
        KeyError: it was not registered there.
    """
    registry = REGISTRY if registry is None else registry
    with _lock:
        collector = _collectors[registry]
        collector.remove(group)
        if not collector.groups:
            del _collectors[registry]
            registry.unregister(collector)


class GroupCollector(Collector):
    """Groups as Prometheus sees them, for `CollectorRegistry.register`: one for each registry.

    Gauges are read from `ServiceGroup.status()` when they are asked for. Restarts and failures are
    counted from events, from the moment the group is added, through all of its runs. Of any
    service that has an int `handled`, `failed` or `in_hand`, as the queue consumers have, that is
    shown, too. Any thread may call what is here.

    Raises:
        TypeError: one is no `ServiceGroup`.
        ValueError: two have the same name.
    """

    def __init__(self, *groups: ServiceGroup) -> None:
        self._watched: dict[str, _Watched] = {}
        for group in groups:
            self.add(group)

    @property
    def groups(self) -> tuple[ServiceGroup, ...]:
        """Those it shows."""
        return tuple(one.group for one in list(self._watched.values()))

    def add(self, group: ServiceGroup) -> None:
        """Show `group`, too.

        Raises:
            TypeError: it is no `ServiceGroup`.
            ValueError: a group of that name is there already.
        """
        if not isinstance(group, ServiceGroup):
            raise TypeError(f"metrics are those of a ServiceGroup, not of {group!r}")
        if group.name in self._watched:
            raise ValueError(
                f"metrics of a group {group.name!r} are there already: give each group a name of "
                "its own, or unregister() the other"
            )
        watched = _Watched(group)
        group.subscribe(watched.on_event)
        self._watched = {**self._watched, group.name: watched}

    def remove(self, group: ServiceGroup) -> None:
        """Show it no more.

        Raises:
            KeyError: it is not there.
        """
        if group not in self.groups:
            raise KeyError(group.name)
        self._watched = {key: one for key, one in self._watched.items() if one.group is not group}

    def describe(self) -> Iterable[Metric]:
        """The metrics without a value, for the registry to refuse what would clash."""
        return _Families().all

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""
        families = _Families()
        for watched in self._watched.values():
            watched.collect(families)
        return families.all


class _Families:
    """All metrics, empty: a gauge is named after what it is, a counter with _total at its end."""

    def __init__(self) -> None:
        self.all: list[Metric] = []
        gauge, counter = self._gauge, self._counter
        self.ready = gauge("ready", "Whether all services of the group are up.")
        self.stalled = gauge(
            "stalled_services", "How many services give no heartbeat, nested ones included."
        )
        self.abandoned = gauge(
            "abandoned_services", "How many services did not stop in time, nested ones included."
        )
        self.drain = gauge(
            "drain_duration_seconds", "Time from the end of readiness to the first stop."
        )
        self.up = gauge("service_up", "Whether the service counts as up.")
        # One series a service: with one for each state it could be in, a thousand services would
        # take longer to tell of than a scrape should.
        self.state = gauge("service_state", "1 for the state in which the service is.")
        self.start = gauge(
            "service_start_duration_seconds", "Time from its last start until it was ready."
        )
        self.stop = gauge(
            "service_stop_duration_seconds", "Time it took to stop, or until it was abandoned."
        )
        self.heartbeat_age = gauge(
            "service_heartbeat_age_seconds", "Time since its last heartbeat, or since it was ready."
        )
        self.restarts = counter("service_restarts", "How often it ended and was to be restarted.")
        self.failures = counter(
            "service_failures", "How often it failed or was abandoned, restarted or not."
        )
        self.handled = counter("service_handled", "What the service has handled in this run.")
        self.failed = counter(
            "service_handler_failures", "How often its handler has failed in this run."
        )
        self.in_hand = gauge("service_in_hand", "What the service has taken and not settled.")

    def _gauge(self, name: str, text: str) -> Put:
        family = GaugeMetricFamily(f"servicegroup_{name}", text)
        return self._put(family, family.name)

    def _counter(self, name: str, text: str) -> Put:
        family = CounterMetricFamily(f"servicegroup_{name}", text)
        return self._put(family, f"{family.name}_total")

    def _put(self, family: Metric, name: str) -> Put:
        self.all.append(family)
        samples = family.samples  # past add_metric(), which takes half as long again

        def put(labels: dict[str, str], value: float) -> None:
            samples.append(Sample(name, labels, value))

        return put


Put = Callable[[dict[str, str], float], None]


class _Watched:
    """A group, and what is counted of it: on its subscribers' thread, for any other to read."""

    def __init__(self, group: ServiceGroup) -> None:
        self.group = group
        self._restarts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._drain_began: float | None = None
        self._drained: float | None = None
        self._now = time.monotonic

    def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.ServiceEvent):
            kind = type(event)
            if kind is events.ServiceRestarting:
                self._restarts[event.service] += 1
                self._failures[event.service] += event.error is not None
            elif kind is events.ServiceFailed or kind is events.ServiceAbandoned:
                self._failures[event.service] += 1
        elif event.group == self.group.name:
            if isinstance(event, events.GroupStarting):
                self._drain_began = self._drained = None
            elif isinstance(event, events.GroupDraining):
                self._drain_began = event.monotonic
            elif isinstance(event, events.GroupStopping) and self._drain_began is not None:
                self._drained = event.monotonic - self._drain_began

    def collect(self, to: _Families) -> None:
        group = self.group
        labels = {"group": group.name}
        to.ready(labels, group.is_ready)
        began, drained = self._drain_began, self._drained
        if began is not None:
            to.drain(labels, self._now() - began if drained is None else drained)
        services = group.services
        stalled = abandoned = 0
        for status in _flat(group.status()):
            stalled += status.stalled
            abandoned += status.state is State.ABANDONED
            self._collect_service(to, status, services.get(status.name))
        to.stalled(labels, stalled)
        to.abandoned(labels, abandoned)

    def _collect_service(self, to: _Families, status: ServiceStatus, service: object) -> None:
        name = status.name
        labels = {"group": self.group.name, "service": name}
        to.up(labels, status.ready)
        to.state({**labels, "state": status.state.value}, 1)
        if status.seconds_to_ready is not None:
            to.start(labels, status.seconds_to_ready)
        if status.seconds_to_stop is not None:
            to.stop(labels, status.seconds_to_stop)
        if status.seconds_since_heartbeat is not None:
            to.heartbeat_age(labels, status.seconds_since_heartbeat)
        to.restarts(labels, self._restarts.get(name, 0))
        to.failures(labels, self._failures.get(name, 0))
        for put, attribute in (
            (to.handled, "handled"),
            (to.failed, "failed"),
            (to.in_hand, "in_hand"),
        ):
            value = _count_of(service, attribute, name)
            if value is not None:
                put(labels, value)


def _flat(services: Iterable[ServiceStatus]) -> Iterator[ServiceStatus]:
    for service in services:
        yield service
        yield from _flat(service.parts)


def _count_of(service: object, attribute: str, name: str) -> int | None:
    """An int of a service that has one of that name: whose it is, it need not know of this file."""
    try:
        value = getattr(service, attribute, None)
    except Exception:  # a property of the user's, which must not cost the other metrics
        _log.logger().exception("service %r: %s cannot be had", name, attribute)
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
