"""`SocketServer`: a server of the standard library's `socketserver` family, with a drain."""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler, BaseServer, TCPServer, ThreadingMixIn, UDPServer
from typing import Any

from servicegroup._stacks import stack_of
from servicegroup.adapters._drain import (
    CUT_SECONDS,
    FIRST_WORD,
    log,
    log_cut,
    seconds_to_drain,
)
from servicegroup.service import ReadyWhen, Service
from servicegroup.sockets import BACKLOG, ROUND_TRIP, Endpoint, close, port_of, refuse_new, url_of

ACCEPTS_AT_ONCE = 64  # then it looks whether it is to stop: there may always be one more
PAUSE_SECONDS = 0.1  # before accepting again when there was no descriptor left
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class SocketServer(Service):
    """Serves with a `socketserver` class: of http.server, wsgiref, xmlrpc, or your own.

    The server is made anew for each start, on the service's own thread. It waits in a selector
    instead of polling. A class with `ThreadingMixIn` gets a thread for each connection, any other
    handles one connection after the other.

    On `drain()`, HTTP answers say `Connection: close`. On `stop()` the connections that wait to be
    accepted are served, the listener is closed, connections that ask for nothing are ended, and
    requests in flight are finished; what is not done shortly before the deadline is cut, and the
    log says what that was.

    Args:
        server_class: a subclass of `socketserver.TCPServer`, `http.server.ThreadingHTTPServer` say.
        address: host and port (0 chooses a free one), or the path of a Unix socket.
        handler: the request handler class, or a `functools.partial` of one.
        setup: is called with each server that is made, before it listens: to register functions
            with, say.
        sock: a bound socket to be used instead of one for `address`.
        reuse_port: let other processes listen to the same port.
        backlog: how many connections may wait to be accepted.

    Attributes:
        port: the port it listens to, once it is ready.
        url: where clients find it, once it is ready.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    ready_when: ReadyWhen | None = "announced"

    def __init__(
        self,
        server_class: type[TCPServer],
        address: tuple[str, int] | str | Path,
        # What takes (request, client_address, server): a class, or a partial of one.
        handler: Callable[[Any, Any, Any], BaseRequestHandler],
        *,
        # Any: each server class has methods of its own, which is what this is for.
        setup: Callable[[Any], object] | None = None,
        sock: socket.socket | None = None,
        reuse_port: bool = False,
        backlog: int = BACKLOG,
    ) -> None:
        _require_fitting(server_class)
        if not callable(handler):
            raise TypeError(f"SocketServer: handler must be a handler class, not {handler!r}")
        self.name = server_class.__name__
        if isinstance(address, (str, Path)):
            self._endpoint = Endpoint(
                unix_socket=None if sock is not None else address, sock=sock, backlog=backlog
            )
        else:
            host, port = address
            self._endpoint = Endpoint(
                host=host, port=port, sock=sock, reuse_port=reuse_port, backlog=backlog
            )
        self._class = _drained(server_class)
        self._handler = _drained_handler(handler)
        self._setup = setup
        self._lock = threading.Lock()  # guards the server while it is made and unmade
        self._server: _Drained | None = None

    @property
    def port(self) -> int | None:
        """The port it listens to; None for a Unix socket, or while it does not listen."""
        server = self._server
        return None if server is None else server.port

    @property
    def url(self) -> str:
        """Where clients find it.

        Raises:
            RuntimeError: it does not listen.
        """
        server = self._server
        if server is None:
            raise RuntimeError(f"service {self.name!r} does not listen: it has a url once ready")
        return server.url

    @property
    def in_hand(self) -> int:
        """How many requests are in flight. Any thread."""
        with self._lock:
            opened = [] if self._server is None else list(self._server.open.values())
        return sum(not (one.idle or one.silent) for one in opened)

    def start(self) -> None:
        """Serve until `stop()`. OSError when it cannot listen."""
        listener = self._endpoint.open()
        try:
            server = self._class(self._handler, listener, self._setup, self)
        except BaseException:
            close(listener)
            raise
        try:
            with self._lock:
                self._server = server
            if not self.stopping.is_set():
                self.mark_ready()
                server.serve(self.stopping)
            server.leave()
        finally:
            with self._lock:
                self._server = None
            server.over.set()
            server.server_close()

    def drain(self) -> None:
        """Have answers ask their clients to connect anew next time."""
        with self._lock:
            if self._server is not None:
                self._server.draining = True

    def stop(self) -> None:
        """Stop accepting; return when all requests are answered, or were cut."""
        self.stopping.set()
        with self._lock:
            server = self._server
            if server is None:
                return
            server.wake()
        server.end(seconds_to_drain(self.remaining()))


class _Open:
    """A connection that is open.

    Attributes:
        silent: nothing was ever asked.
        idle: all that was asked is answered.
    """

    def __init__(self, connection: socket.socket, address: object) -> None:
        self.connection = connection
        self.address = address
        self.silent = True
        self.idle = False
        self.thread: threading.Thread | None = None

    def asked(self) -> None:
        self.idle = self.silent = False

    def answered(self, server: _Drained) -> None:
        """It asks for nothing now. Where the server is leaving, that is its end."""
        # No lock, for each request comes by here. Should both sides see the old state of the other,
        # the connection is ended with those that are silent.
        self.idle = not self.silent
        if self.idle and server.leaving:
            self.shut(socket.SHUT_RD)

    def shut(self, how: int) -> None:
        try:
            # Not the method of a TLS socket, which would take the session from under its thread.
            socket.socket.shutdown(self.connection, how)
        except OSError:
            pass  # the client was first


class _Connection(socket.socket):
    """An accepted connection that notes that something was asked."""

    opened: _Open
    server: _Drained

    # Any, here and below: the parameters are those of `socket.socket`.
    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        count = super().recv_into(*args, **kwargs)
        if count:
            self.opened.asked()
        return count

    def recv(self, *args: Any, **kwargs: Any) -> bytes:
        data = super().recv(*args, **kwargs)
        if data:
            self.opened.asked()
        return data


class _Turn(_Connection):
    """One of a protocol that is not known: whatever is sent counts as the answer."""

    def send(self, *args: Any, **kwargs: Any) -> int:
        count = super().send(*args, **kwargs)
        self.opened.answered(self.server)
        return count

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        super().sendall(*args, **kwargs)
        self.opened.answered(self.server)


class _Drained(TCPServer):
    """What is put before the user's server class."""

    request_queue_size = 0  # the endpoint's backlog counts

    def __init__(
        self,
        handler: Callable[[Any, Any, Any], BaseRequestHandler],
        listener: socket.socket,
        setup: Callable[[Any], object] | None,
        service: SocketServer,
    ) -> None:
        address = listener.getsockname()
        super().__init__(address, handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._name_itself(address)
        listener.setblocking(False)
        self.port = port_of(listener)  # kept, for the listener goes before the last request
        self.url = url_of(listener)
        self.draining = False
        self.over = threading.Event()
        self._service = service
        self._threads_wanted = isinstance(self, ThreadingMixIn)
        kind = handler.func if isinstance(handler, partial) else handler
        speaks_http = isinstance(kind, type) and issubclass(kind, _HttpHandler)
        self._connection_class = _Connection if speaks_http else _Turn
        self._to_wake, self._woken = socket.socketpair()
        self.leaving = False
        self.open: dict[socket.socket, _Open] = {}
        self._changed = threading.Condition()  # guards the one above, and the next
        self._given_up = False
        if setup is not None:
            setup(self)

    def _name_itself(self, address: object) -> None:
        # What server_bind() of http.server and wsgiref would do, without its DNS request.
        self.server_address = address  # type: ignore[assignment]  # a path for a Unix socket
        self.server_name, self.server_port = "localhost", 0
        if isinstance(address, tuple):
            self.server_name, self.server_port = address[:2]
        if hasattr(self, "setup_environ"):
            self.setup_environ()

    # -- the service's thread ---------------------------------------------------------------------

    def serve(self, stopping: threading.Event) -> None:
        """Accept connections until `stopping`."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(self.socket, selectors.EVENT_READ)
            while not stopping.is_set():
                selector.select()
                if not self._accept(ACCEPTS_AT_ONCE):
                    stopping.wait(PAUSE_SECONDS)

    def _accept(self, most: int) -> bool:
        """Accept whoever waits; False: some wait, but the process has no descriptor left."""
        for _ in range(most):
            try:
                request, address = self.get_request()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in _OUT_OF:
                    log.error("service %r cannot accept: %s", self._service.name, error)
                    return False
                continue  # this one has gone already
            self._take(request, address)
        return True

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if type(connection) is socket.socket:
            connection = self._connection_class(fileno=connection.detach())
        connection.setblocking(True)
        return connection, address or ("unix", 0)  # http.server logs the first of the two

    def _take(self, request: socket.socket, address: object) -> None:
        opened = _Open(request, address)
        if isinstance(request, _Connection):
            request.opened, request.server = opened, self
        with self._changed:
            self.open[request] = opened
        try:
            wanted = self.verify_request(request, address)
        except Exception:
            self.handle_error(request, address)
            wanted = False
        if not wanted:
            self._end(request)
        elif self._threads_wanted:
            name = f"{self._service.name} {_text(address)}"
            opened.thread = threading.Thread(
                target=self._work, args=(request, address), name=name, daemon=True
            )
            try:
                opened.thread.start()
            except RuntimeError as error:  # no thread to be had
                log.error("service %r drops %s: %s", self._service.name, _text(address), error)
                self._end(request)
        else:
            opened.thread = threading.current_thread()
            self._work(request, address)

    def leave(self) -> None:
        """Accept who waits, close the listener, and wait until all are answered or cut."""
        refuse_new(self.socket)
        time.sleep(ROUND_TRIP)
        self._accept(BACKLOG + 1)  # or the kernel would reset those who still wait
        close(self.socket)
        with self._changed:
            self._changed.wait_for(lambda: not self.open or self._given_up)

    def server_close(self) -> None:
        for one in (self._to_wake, self._woken, self.socket):
            one.close()

    # -- the connections' threads -----------------------------------------------------------------

    def _work(self, request: socket.socket, address: object) -> None:
        try:
            self.finish_request(request, address)
        except BaseException:
            self.handle_error(request, address)
        finally:
            self._end(request)

    def _end(self, request: socket.socket) -> None:
        try:
            self.shutdown_request(request)
        finally:
            with self._changed:
                self.open.pop(request, None)
                if self.leaving:
                    self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a handler raised, instead of printing it."""
        error = sys.exc_info()[1]
        gone = isinstance(error, (ConnectionError, TimeoutError))
        level = logging.DEBUG if gone else logging.ERROR
        what = (self._service.name, _text(client_address))
        log.log(level, "service %r: request of %s failed", *what, exc_info=True)

    # -- any thread -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have `serve` look at `stopping`."""
        self._to_wake.send(b"\0")

    def shutdown(self) -> None:
        """Ask for the stop, and return at once: handlers may. (The library's own would wait.)"""
        threading.Thread(target=self._service.stop, daemon=True).start()

    def end(self, seconds: float | None) -> None:
        """Have `leave` come to its end, in `seconds` at most."""
        self._hang_up(lambda opened: opened.idle)
        first = FIRST_WORD if seconds is None else min(FIRST_WORD, seconds)
        if not self.over.wait(first):
            self._hang_up(lambda opened: opened.idle or opened.silent)
            if not self.over.wait(None if seconds is None else seconds - first):
                self._cut()

    def _hang_up(self, which: Callable[[_Open], bool]) -> None:
        with self._changed:
            self.leaving = True
            for opened in self.open.values():
                if which(opened):
                    opened.shut(socket.SHUT_RD)

    def _cut(self) -> None:
        with self._changed:
            left = list(self.open.values())
            for opened in left:
                opened.shut(socket.SHUT_RDWR)
            patience = min(CUT_SECONDS, self._service.remaining() / 2)
            self._changed.wait_for(lambda: not self.open, patience)
            hung = list(self.open.values())
            self._given_up = True
            self._changed.notify_all()
        if left:
            texts = [_text(opened.address) for opened in left]
            log_cut(self._service.name, texts, [stack_of(opened.thread) for opened in hung])


class _HttpHandler(BaseHTTPRequestHandler):
    """What is put before the user's handler class, where that speaks HTTP."""

    server: _Drained

    def setup(self) -> None:
        # Else an answer of two packets waits until the client has said that the first one came.
        if self.request.family != socket.AF_UNIX:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._opened = self.server.open[self.request]
        super().setup()

    def handle_one_request(self) -> None:
        self._opened.answered(self.server)
        super().handle_one_request()

    def parse_request(self) -> bool:
        self._opened.asked()
        return super().parse_request()

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        super().end_headers()
        return True

    def end_headers(self) -> None:
        if self.server.draining and not self.close_connection and not self._more_waits():
            self.send_header("Connection", "close")
        super().end_headers()

    def _more_waits(self) -> bool:
        """Whether the client has sent more already, which must not be closed away."""
        timeout = self.connection.gettimeout()
        self.connection.settimeout(0)
        try:
            return bool(self.rfile.peek(1))  # type: ignore[attr-defined]  # a BufferedReader
        except (OSError, ValueError):
            return False
        finally:
            self.connection.settimeout(timeout)


def _require_fitting(kind: object) -> None:
    if not (isinstance(kind, type) and issubclass(kind, TCPServer)):
        raise TypeError(
            f"SocketServer: server_class must be a subclass of socketserver.TCPServer, not {kind!r}"
        )
    if issubclass(kind, UDPServer):
        raise TypeError(
            f"SocketServer: {kind.__name__} takes datagrams, where there is nothing to finish: use "
            "with_start(server.serve_forever, server.shutdown)"
        )
    if any(base.__name__ == "ForkingMixIn" for base in kind.__mro__):
        raise TypeError(
            f"SocketServer: {kind.__name__} forks, which a process with threads must not: use "
            "ThreadingMixIn"
        )


def _drained(server_class: type[TCPServer]) -> type[_Drained]:
    logs = server_class.handle_error is not BaseServer.handle_error
    kept = {"handle_error": server_class.handle_error} if logs else {}
    return type(server_class.__name__, (_Drained, server_class), kept)


def _drained_handler(
    handler: Callable[[Any, Any, Any], BaseRequestHandler],
) -> Callable[[Any, Any, Any], BaseRequestHandler]:
    kind: object = handler
    if isinstance(handler, partial):
        return partial(_drained_handler(handler.func), *handler.args, **handler.keywords)
    if isinstance(kind, type) and issubclass(kind, BaseHTTPRequestHandler):
        return type(kind.__name__, (_HttpHandler, kind), {})
    return handler


def _text(address: object) -> str:
    return "{}:{}".format(*address[:2]) if isinstance(address, tuple) else str(address)
