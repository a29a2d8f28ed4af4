"""What is no service, and options that make no sense."""

import signal
import threading

from servicegroup import Service, ServiceGroup, events, with_context, with_start


class NoStop:
    def start(self) -> None:
        pass


class NeedsAPort:
    def start(self, port: int) -> None:
        pass

    def stop(self) -> None:
        pass


class Misspelt(Service):
    ready_when = "anounced"  # refused
    on_failure = "restart"  # refused
    stop_timeout = "10"  # refused
    daemon = "yes"  # refused
    expected_on_stop = OSError  # refused


class Worker(Service):
    def start(self) -> None:
        pass


def wait(seconds: float) -> None:
    pass


def stop_hard(hard: bool) -> None:
    pass


def two(first: threading.Event, second: threading.Event) -> None:
    pass


def only_failures(event: events.ServiceFailed) -> None:
    pass


group = ServiceGroup()
group.add(NoStop())  # refused
group.add(NeedsAPort())  # refused
group.add(threading.Thread())  # refused
group.add(object())  # refused
group.add(print)  # refused
group.add(Worker)  # refused

group.add(Worker(), ready_when="maybe")  # refused
group.add(Worker(), on_failure="ignore")  # refused
group.add(Worker(), on_return="restart")  # refused
group.add(Worker(), stop_timeout="10")  # refused
group.add(Worker(), daemon="no")  # refused
group.add(Worker(), expected_on_stop=(OSError(),))  # refused
group.add(Worker(), timeout=3)  # refused
group.add(Worker(), "worker")  # refused
print(group.add(Worker()).port)  # refused

ServiceGroup("group")  # refused
ServiceGroup(shutdown_timeout="25")  # refused
ServiceGroup(shutdown_timeout=None)  # refused
ServiceGroup(on_failure="ignore")  # refused
ServiceGroup(signals=signal.SIGTERM)  # refused
ServiceGroup(start_concurrently="no")  # refused

with_start(wait)  # refused
with_start(two)  # refused
with_start(wait, stop_hard)  # refused
with_start(None)  # refused
with_start(lambda: None, stop_hard)  # refused
with_context(Worker())  # refused

group.defer(wait)  # refused
group.defer(wait, "1")  # refused
group.subscribe(only_failures)  # refused
group.subscribe(None)  # refused
group.state = "stopped"  # refused
