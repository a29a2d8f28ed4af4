"""`WsgiServer`: a WSGI application, served by waitress, with a drain."""

from __future__ import annotations

import math
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servicegroup._stacks import stack_of
from servicegroup.adapters._drain import CUT_SECONDS, FIRST_WORD, log_cut, seconds_to_drain
from servicegroup.service import ReadyWhen, Service
from servicegroup.sockets import ROUND_TRIP, Endpoint, close, port_of, refuse_new, url_of

try:
    from waitress import wasyncore
    from waitress.adjustments import Adjustments
    from waitress.channel import HTTPChannel
    from waitress.server import BaseWSGIServer, TcpWSGIServer, UnixWSGIServer
    from waitress.task import ThreadedTaskDispatcher, WSGITask
except ImportError as error:
    raise ImportError("WsgiServer needs waitress: pip install 'servicegroup[wsgi]'") from error

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# Waitress counts idle connections too, and accepts nobody else at its own limit of 100.
CONNECTION_LIMIT = 500
_OURS = {"listen", "sockets", "ipv4", "ipv6", "unix_socket_perms"}


class WsgiServer(Service):
    """Serves a WSGI application with waitress: one thread for all connections, some for the work.

    The server is made anew for each start, on the service's own thread. Waitress takes in the whole
    body of a request before it calls the application.

    On `drain()`, answers say `Connection: close`. On `stop()` the connections that wait to be
    accepted are served, the listener is closed, connections that ask for nothing are ended, and
    requests in flight are finished; what is not done shortly before the deadline is cut, and the
    log says what that was. A call of the application that hangs even then is left behind on its
    daemon thread.

    Args:
        app: the WSGI application.
        host, port: where to listen; port 0 chooses a free one.
        threads: how many requests are worked on at a time; others wait.
        sock: a bound socket to be used instead. It is closed with the server.
        unix_socket: the path of a Unix socket to be used instead.
        reuse_port: let other processes listen to the same port.
        backlog: how many connections may wait to be accepted.
        options: of waitress, `trusted_proxy` or `max_request_body_size` say. Of ours are the
            defaults `connection_limit=500` and `asyncore_use_poll=True`.

    Attributes:
        port: the port it listens to, once it is ready.
        url: where clients find it, once it is ready.

    Raises:
        TypeError, ValueError: an argument makes no sense; the message says which and why.
    """

    ready_when: ReadyWhen | None = "announced"

    def __init__(
        self,
        app: WSGIApplication,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        threads: int = 4,
        sock: socket.socket | None = None,
        unix_socket: str | Path | None = None,
        reuse_port: bool = False,
        backlog: int = 2048,
        **options: Any,  # whatever the waitress that is installed takes
    ) -> None:
        if not callable(app):
            raise TypeError(f"WsgiServer: app must be a WSGI application, not {app!r}")
        if threads < 1:
            raise ValueError(f"WsgiServer: threads must be 1 or more, not {threads!r}")
        for name in sorted(_OURS & set(options)):
            raise ValueError(
                f"WsgiServer: {name} is not passed to waitress, since the socket is made here: "
                "give host and port, unix_socket or sock"
            )
        self._endpoint = Endpoint(
            host=host,
            port=port,
            sock=sock,
            unix_socket=unix_socket,
            reuse_port=reuse_port,
            backlog=backlog,
        )
        # Without poll(), the loop fails once the process has 1,024 files and connections open.
        own = {"connection_limit": CONNECTION_LIMIT, "asyncore_use_poll": True}
        given = {"threads": threads, "backlog": backlog, "listen": ""}
        self._options = {**own, **options, **given}
        Adjustments(**self._options)  # raises ValueError for what it does not know
        self._app = app
        # Held to wake the server, and to forget it before its descriptors are closed.
        self._lock = threading.RLock()
        self._server: _Server | None = None

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
        server = self._server
        channels = [] if server is None else list(server.active_channels.values())
        return sum(not channel.idle for channel in channels)

    def start(self) -> None:
        """Serve until `stop()`. OSError when it cannot listen."""
        listener = self._endpoint.open()
        try:
            kind = _UnixServer if listener.family == socket.AF_UNIX else _TcpServer
            server = kind(self._app, listener, Adjustments(**self._options))
        except BaseException:
            close(listener)
            raise
        self._server = server
        try:
            server.task_dispatcher.set_thread_count(server.adj.threads)
            if not self.stopping.is_set():
                self.mark_ready()
            server.serve(self.stopping)
            limit = seconds_to_drain(self.remaining())
            server.leave(math.inf if limit is None else limit)
        finally:
            with self._lock:
                self._server = None
            server.end(self.name, min(CUT_SECONDS, self.remaining() / 4))

    def drain(self) -> None:
        """Have answers ask their clients to connect anew next time."""
        server = self._server
        if server is not None:
            server.draining = True

    def stop(self) -> None:
        """Stop accepting, answer what was asked, and end. Returns at once; any thread."""
        self.stopping.set()
        with self._lock:
            if self._server is not None:
                self._server.pull_trigger()


class _Task(WSGITask):
    """A request being answered."""

    channel: _Channel

    def build_response_header(self) -> bytes:
        if self.channel.server.draining and not self.channel.more_waits():
            self.request.headers["CONNECTION"] = "close"  # as if the client had asked for it
        header: bytes = super().build_response_header()
        return header


class _Channel(HTTPChannel):
    """A connection."""

    server: _Server
    task_class = _Task
    thread: threading.Thread | None = None  # that works for it now

    def service(self) -> None:
        self.thread = threading.current_thread()
        try:
            super().service()
        except BaseException:  # SystemExit, say: waitress would never look at this connection again
            self.cancel()
            self.server.pull_trigger()
            raise
        finally:
            self.thread = None

    @property
    def silent(self) -> bool:
        """Whether nothing was ever asked: waitress has set both in one statement."""
        return bool(self.last_activity == self.creation_time)

    @property
    def idle(self) -> bool:
        """Whether all that was asked is answered."""
        # In this order, since the answer is written before its request is taken away.
        busy = self.requests or self._half_asked() or self.total_outbufs_len
        return not busy

    def _half_asked(self) -> bool:
        request = self.request
        # Some clients send an empty line after a body, which begins no request.
        return request is not None and (
            request.headers_finished or bool(request.header_plus.strip())
        )

    def more_waits(self) -> bool:
        """Whether the client has sent more already, which must not be closed away."""
        if len(self.requests) > 1 or self._half_asked():
            return True
        connection = self.socket
        try:
            return connection is not None and bool(connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def hang_up(self) -> None:
        """Let it read what has arrived, and then the end."""
        try:
            self.socket.shutdown(socket.SHUT_RD)
        except OSError:
            pass  # the client was first

    def __str__(self) -> str:
        # Of a Unix socket, the second is None.
        where = ":".join(str(part) for part in self.addr[:2] if part is not None)
        request = next(iter(self.requests), self.request)
        if request is None or not request.headers_finished or request.error:
            return where
        return f"{where} ({request.command} {request.request_uri[:200]})"


class _Server(BaseWSGIServer):
    """What is put before waitress' server classes. For one thread."""

    channel_class = _Channel
    active_channels: dict[int, _Channel]

    def __init__(
        self, app: WSGIApplication, listener: socket.socket, adjustments: Adjustments
    ) -> None:
        self.draining = False
        self.port = port_of(listener)
        self.url = url_of(listener)
        self._listener = listener
        where = (listener.family, listener.type, listener.proto, listener.getsockname())
        super().__init__(
            app,
            map={},
            _sock=listener,
            dispatcher=ThreadedTaskDispatcher(),  # whose threads come later, for they may fail
            adj=adjustments,
            sockinfo=where,
            bind_socket=False,
        )

    def serve(self, stopping: threading.Event) -> None:
        """Serve until `stopping`, of which `pull_trigger` tells."""
        while not stopping.is_set():
            self._turn(self.adj.asyncore_loop_timeout)

    def leave(self, limit: float) -> None:
        """Accept who waits, close the listener, and answer, for `limit` seconds at most."""
        self.draining = True
        begun = time.monotonic()
        refuse_new(self._listener)
        time.sleep(ROUND_TRIP)
        self._accept_all()  # or the kernel would reset those who still wait
        self._close_listener()
        first_word = min(FIRST_WORD, limit / 2)
        spent = 0.0
        while self.active_channels and spent < limit:
            for channel in list(self.active_channels.values()):
                if channel.idle and (spent >= first_word or not channel.silent):
                    channel.hang_up()
            ahead = first_word if spent < first_word else limit
            self._turn(min(ahead - spent, self.adj.asyncore_loop_timeout))
            spent = time.monotonic() - begun

    def end(self, name: str, patience: float) -> None:
        """Cut what is left, wait `patience` seconds for its threads, and tell the log of it."""
        left = list(self.active_channels.values())
        texts = [str(channel) for channel in left]
        for channel in left:
            channel.handle_close()
        tasks = self.task_dispatcher
        tasks.set_thread_count(0)
        with tasks.lock:  # its own shutdown() looks at the clock every 0.1 s only
            tasks.thread_exit_cv.wait_for(lambda: not tasks.threads, patience)
        tasks.shutdown(timeout=0)
        self._close_listener()
        if tasks.threads:
            # One that hangs may wake the loop yet, by a descriptor that must not be another's then.
            # So it is closed after that thread; and never at the exit, during which threads run on.
            weakref.finalize(self, self.trigger.close).atexit = False
        else:
            self.trigger.close()
        if left:
            log_cut(name, texts, [stack_of(channel.thread) for channel in left])

    def _turn(self, timeout: float) -> None:
        wasyncore.loop(timeout, self.adj.asyncore_use_poll, self._map, count=1)

    def _accept_all(self) -> None:
        # As many as can have waited: nobody keeps others from coming to a Unix socket.
        for _ in range(self.adj.backlog + 1):
            try:
                connection, address = self._listener.accept()
                self.set_socket_options(connection)
            except ConnectionError:
                continue  # this one has gone already
            except OSError:
                return
            self.channel_class(self, connection, self.fix_addr(address), self.adj, map=self._map)

    def _close_listener(self) -> None:
        if self._listener.fileno() >= 0:
            self.del_channel()
            close(self._listener)


class _TcpServer(_Server, TcpWSGIServer):
    pass


class _UnixServer(_Server, UnixWSGIServer):
    pass
