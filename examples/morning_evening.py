"""Two HTTP services in one process: 127.0.0.1:8080/morning and 127.0.0.1:8081/evening.

    python examples/morning_evening.py

MORNING_PORT and EVENING_PORT in the environment choose other ports, 0 any that is free; REPORT is a
file for the report, .json, .svg or .txt. End it with Ctrl-C or SIGTERM: whoever was let in is
answered first.
"""

import logging
import os
import time
from urllib.parse import parse_qs, urlsplit

from gentle_server import GentleServer

from servicegroup import Service, ServiceGroup
from servicegroup.observe.timeline import write_report

HOST = "127.0.0.1"


class Greeter(Service):
    """Greets at one time of day."""

    ready_when = "announced"  # up when it says so: the next one is started only then

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        # It does not listen yet. But it is there, should stop() come before start() got anywhere.
        self.server = GentleServer(HOST, port, self.answer)

    def start(self) -> None:
        port = self.server.open()
        logging.info("%s: at http://%s:%d/%s", self.name, HOST, port, self.name)
        self.mark_ready()
        self.server.serve()  # returns once the last request in flight is answered

    def drain(self) -> None:
        # The stop is near: from now on every answer asks its client to connect anew next time, so
        # that it will do so elsewhere.
        self.server.draining = True

    def stop(self) -> None:
        self.server.end()

    def answer(self, path: str) -> tuple[int, str]:
        url = urlsplit(path)
        if url.path != f"/{self.name}":
            return 404, "not here\n"
        for seconds in parse_qs(url.query).get("seconds", []):
            time.sleep(float(seconds))  # /morning?seconds=2 is a slow request
        return 200, f"good {self.name}\n"


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
group = ServiceGroup(name="day", drain_delay=0.5)
group.add(Greeter("morning", int(os.environ.get("MORNING_PORT", "8080"))))
group.add(Greeter("evening", int(os.environ.get("EVENING_PORT", "8081"))))
if "REPORT" in os.environ:
    write_report(group, os.environ["REPORT"])
group.run()
