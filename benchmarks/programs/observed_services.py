"""As many services as the argument says, in a group with all observers on; SIGTERM ends them."""

import logging
import sys
import time

from benchmarks.programs.services import Last, Waiter
from servicegroup import ServiceGroup
from servicegroup.observe.admin import AdminServer
from servicegroup.observe.systemd import notify_systemd
from servicegroup.observe.timeline import write_report


class Told(Last):
    """Prints where the admin server is, too."""

    def __init__(self, group: ServiceGroup, begun: float, admin: AdminServer) -> None:
        super().__init__(group, begun)
        self.admin = admin

    def start(self) -> None:
        self.group.wait_ready()
        print(self.begun, time.monotonic(), self.admin.port, flush=True)
        self.stopping.wait()


def main() -> None:
    number, report = sys.argv[1:]
    begun = time.monotonic()
    logging.basicConfig()  # for what the observers could not do
    group = ServiceGroup(stop_timeout=600, shutdown_timeout=600)
    admin = AdminServer(group, port=0)
    group.add(admin)
    notify_systemd(group)
    write_report(group, report)
    for _ in range(int(number) - 1):
        group.add(Waiter())
    group.add(Told(group, begun, admin))
    group.start()


if __name__ == "__main__":
    main()
