"""A small HTTP server, and beside it a consumer that computes without end.

The argument says where the consumer is: `alone` (there is none), `thread` or `process`.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from servicegroup import InProcess, Service, ServiceGroup


class Consumer(Service):
    def start(self) -> None:
        while not self.stopping.is_set():
            sum(n * n for n in range(1_000))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # many requests on one connection
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one write, as any server in earnest has it

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_request(self, *_args: object, **_kwargs: object) -> None:
        pass


class Api(Service):
    def __init__(self, group: ServiceGroup) -> None:
        self.group = group
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def start(self) -> None:
        self.group.wait_ready()
        print(self.server.server_port, flush=True)
        self.server.serve_forever(poll_interval=0.05)
        self.server.server_close()

    def stop(self) -> None:
        self.server.shutdown()


def main() -> None:
    group = ServiceGroup()
    if sys.argv[1] == "thread":
        group.add(Consumer())
    if sys.argv[1] == "process":
        group.add(InProcess(Consumer))
    group.add(Api(group))
    group.start()


if __name__ == "__main__":
    main()
