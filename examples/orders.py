"""An HTTP API that takes orders, and a consumer that handles them, in one process.

    python examples/orders.py
    curl --data 'two coffees' http://127.0.0.1:8080/

PORT in the environment chooses another port, 0 any that is free; ORDERS another directory for the
queue and the ledger. An order that was answered with 202 is handled, in this run or the next.
"""

import logging
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from servicegroup import ServiceGroup
from servicegroup.adapters.queue import Message
from servicegroup.adapters.socketserver import SocketServer
from servicegroup.adapters.sqlite import SqliteConsumer, SqliteQueue

directory = Path(os.environ.get("ORDERS", "."))
queue = SqliteQueue(directory / "orders.db", "orders")


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        order = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        queue.put(order)  # from here on it is safe
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def handle(message: Message) -> None:
    time.sleep(0.01)  # the work
    with open(directory / "ledger.txt", "a", encoding="utf-8") as ledger:
        ledger.write(f"{message.text()}\n")


logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
group = ServiceGroup(name="shop", drain_delay=0.2)
group.add(SqliteConsumer(queue, handle, concurrency=4, name="consumer"))
port = int(os.environ.get("PORT", "8080"))
api = group.add(SocketServer(ThreadingHTTPServer, ("127.0.0.1", port), Api), name="api")
group.subscribe(lambda event: logging.info("at %s", api.url) if group.is_ready else None)
group.run()
