"""The standard library's threading HTTP server."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from servicegroup import ServiceGroup
from servicegroup.adapters.socketserver import SocketServer
from tests.adapters.programs.common import OPTIONS, answer, run


def make(group: ServiceGroup) -> SocketServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, parts = answer(self.command, self.path, body, group)
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in parts:
                if part:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")

        do_POST = do_GET  # noqa: N815  # the library's name

        def log_message(self, *args: object) -> None:
            pass

    options = OPTIONS["server"]
    address = ("127.0.0.1", options.pop("port", 0))
    return SocketServer(ThreadingHTTPServer, address, Handler, **options)


if __name__ == "__main__":
    run(make)
