"""The standard library's HTTP server, made to lose no request when it ends.

`ThreadingHTTPServer` drops what it has: the requests in flight, with their daemon threads, and the
connections that the kernel has accepted and the program has not. This one first answers everybody
whose connection was accepted. It ends when it is told to, and polls nothing meanwhile.
"""

import ctypes
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader

ROUND_TRIP = 0.05  # seconds, for those who are halfway through opening their connection


class Handler(BaseHTTPRequestHandler):
    """One connection, on a thread of its own."""

    protocol_version = "HTTP/1.1"  # many requests on one connection
    disable_nagle_algorithm = True
    timeout = 2  # for a new client to speak: so long a silent one can hold the end up
    server: "GentleServer"
    rfile: BufferedReader

    def do_GET(self) -> None:
        status, text = self.server.answer(self.path)
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection or self.server.draining:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        try:
            while self.rfile.peek(1):  # waits for a request; there is none once somebody hung up
                self.server.set_idle(self.connection, False)
                self.handle_one_request()
                if self.close_connection:
                    break
                self.connection.settimeout(None)
                self.server.set_idle(self.connection, True)
        except (TimeoutError, ConnectionError):
            pass  # the client was silent, or went away
        finally:
            self.server.set_idle(self.connection, False)

    def log_request(self, *_args: object, **_kwargs: object) -> None:
        """Not a line for every request."""


class GentleServer(ThreadingHTTPServer):
    """Answers GET requests with `answer(path)`, which returns a status and a text.

    `end()` may come from any thread, also before `serve()`, which then returns at once.
    """

    daemon_threads = False  # so that server_close() waits for the requests in flight
    request_queue_size = 1024  # the standard library's 5 turns clients away under load

    def __init__(self, host: str, port: int, answer: Callable[[str], tuple[int, str]]) -> None:
        super().__init__((host, port), Handler, bind_and_activate=False)
        self.answer = answer
        self.draining = False  # set it, and clients are asked not to use their connection again
        # Closing the one end wakes who waits for the other, also who begins to only later.
        self._to_wake, self._woken = socket.socketpair()
        self._idle: set[socket.socket] = set()
        self._hung_up = False
        self._lock = threading.Lock()  # guards the two above

    def open(self) -> int:
        """Listen; the port."""
        try:
            self.server_bind()
            self.server_activate()
        except OSError as error:  # the system does not say which address it is about
            self.server_close()
            where = "{}:{}".format(*self.server_address)
            raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from None
        self.socket.setblocking(False)  # so that _accept_all() can tell when nobody is left
        return self.server_port

    def end(self) -> None:
        """Have `serve()` return once everybody has been answered."""
        self._to_wake.close()

    def serve(self) -> None:
        """Answer requests until the end."""
        with selectors.DefaultSelector() as selector, self._woken:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while self._woken not in [key.fileobj for key, _ in selector.select()]:
                self._accept_all()
        drop_new_connections(self.socket)
        time.sleep(ROUND_TRIP)
        self._accept_all()  # or the kernel would reset those who still wait
        self.socket.close()
        with self._lock:
            self._hung_up = True
            for connection in self._idle:
                hang_up(connection)
        self.server_close()

    def _accept_all(self) -> None:
        try:
            while True:
                connection, address = self.get_request()
                connection.setblocking(True)
                self.process_request(connection, address)
        except OSError:
            pass  # nobody waits any more, or one who did has gone

    def set_idle(self, connection: socket.socket, idle: bool) -> None:
        """Whether `connection` was answered and asks for nothing now: such a one may be ended."""
        with self._lock:
            if not idle:
                self._idle.discard(connection)
            elif self._hung_up:
                hang_up(connection)
            else:
                self._idle.add(connection)


def hang_up(connection: socket.socket) -> None:
    """Have reads return what came already, and then nothing."""
    try:
        connection.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # the client was first


def drop_new_connections(listener: socket.socket) -> None:
    """Let nobody begin to open a connection; those who began can go on. On Linux only.

    Without it, a connection opened between the last accept() and close() would be reset though its
    client was let in: under load that happens now and then. Elsewhere, let the load balancer look
    away first: that is what `drain_delay` is for.
    """
    if sys.platform == "linux":
        # A packet filter: load byte 13, the TCP flags; is SYN among them? Drop it, else let it in.
        code = (0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)
        steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
        so_attach_filter = 26
        program = struct.pack("HP", len(code), ctypes.addressof(steps))
        listener.setsockopt(socket.SOL_SOCKET, so_attach_filter, program)
