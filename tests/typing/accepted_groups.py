"""What is added keeps its type; a group is a service of another one."""

from typing import assert_type

from servicegroup import GroupState, Report, Service, ServiceGroup, ServiceStatus, StartStop


class Worker(Service):
    jobs = 0

    def start(self) -> None:
        while self.sleep(5):
            self.jobs += 1


class Pool(ServiceGroup):
    pass


outer = ServiceGroup(name="outer", shutdown_timeout=30, on_failure="continue", dump_signal=None)
inner = outer.add(ServiceGroup(name="inner"))
assert_type(inner, ServiceGroup)
worker = inner.add(Worker(), name="first", stop_timeout=5, on_return="stop")
assert_type(worker, Worker)
assert_type(worker.jobs, int)
assert_type(outer.add(Pool(name="pool"), ready_when="announced"), Pool)

service: StartStop = outer
assert_type(outer.state, GroupState)
assert_type(outer.is_ready, bool)
assert_type(outer.status(), tuple[ServiceStatus, ...])
assert_type(outer.stop(), None)
outer.defer(print, "the end", flush=True)
outer.subscribe(print)


def serve(group: ServiceGroup) -> None:
    with group as same:
        assert_type(same, ServiceGroup)
    with Pool() as pool:
        assert_type(pool, Pool)
    assert_type(group.start(), Report)
    assert_type(group.wait(timeout=1), Report)
    assert_type(group.wait_ready(), None)
