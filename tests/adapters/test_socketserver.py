"""A server of the standard library as a service: what it alone has to keep to."""

from __future__ import annotations

import errno
import http.client
import logging
import os
import socket
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from socketserver import (
    BaseRequestHandler,
    ForkingTCPServer,
    StreamRequestHandler,
    TCPServer,
    ThreadingTCPServer,
    ThreadingUDPServer,
    ThreadingUnixStreamServer,
)
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

import pytest

from servicegroup import Restart, ServiceGroup, ServiceGroupError, State
from servicegroup.adapters.socketserver import SocketServer
from tests.adapters.web import LONG_STOP, PATIENCE, held_port
from tests.fake_time import wait_until

LOCAL = ("127.0.0.1", 0)


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: object) -> None:
        pass


class Echo(StreamRequestHandler):
    """Line by line, until the client has no more."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


@contextmanager
def served(server: SocketServer, **options: Any) -> Iterator[ServiceGroup]:
    group = ServiceGroup(**options)
    group.add(server)
    with group:
        yield group


def address_of(server: SocketServer) -> tuple[str, int]:
    assert server.port is not None
    return "127.0.0.1", server.port


def get(server: SocketServer, path: str = "/") -> bytes:
    connection = http.client.HTTPConnection(*address_of(server), timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.mark.parametrize("kind", [HTTPServer, ThreadingHTTPServer])
def test_http_is_served_and_the_address_told(kind: type[HTTPServer]) -> None:
    server = SocketServer(kind, LOCAL, Hello)
    assert server.port is None
    with pytest.raises(RuntimeError, match="does not listen: it has a url once ready"):
        _ = server.url
    with served(server):
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert get(server) == b"hello"
    assert server.port is None


def test_wsgi_applications_are_served() -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["SERVER_PORT"].encode()]

    class Quiet(WSGIRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = SocketServer(WSGIServer, LOCAL, Quiet, setup=lambda made: made.set_app(app))
    with served(server):
        assert get(server) == str(server.port).encode()


def test_functions_are_served_by_xmlrpc() -> None:
    class Quiet(SimpleXMLRPCRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    def double(number: Any) -> Any:
        return 2 * number

    def register(made: SimpleXMLRPCServer) -> None:
        made.register_function(double)

    server = SocketServer(SimpleXMLRPCServer, LOCAL, Quiet, setup=register)
    with served(server), xmlrpc.client.ServerProxy(server.url) as proxy:
        assert proxy.double(21) == 42


def test_a_partial_of_a_handler_is_a_handler(tmp_path: Path) -> None:
    from http.server import SimpleHTTPRequestHandler

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / "page").write_text("words")
    handler = partial(Quiet, directory=str(tmp_path))
    server = SocketServer(ThreadingHTTPServer, LOCAL, handler)
    with served(server):
        assert get(server, "/page") == b"words"


def test_a_unix_socket_is_served(tmp_path: Path) -> None:
    path = tmp_path / "web"
    server = SocketServer(ThreadingUnixStreamServer, path, Hello)
    with served(server):
        assert server.url == f"unix:{path}"
        assert server.port is None
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"hello")
    assert not path.exists()


def test_other_protocols_are_served_and_idle_clients_hold_nobody_up() -> None:
    server = SocketServer(ThreadingTCPServer, LOCAL, Echo)
    with served(server):
        client = socket.create_connection(address_of(server), timeout=PATIENCE)
        client.sendall(b"one\n")
        assert client.recv(10) == b"one\n"
    assert client.recv(10) == b""
    client.close()


def test_a_bound_socket_is_used_and_closed() -> None:
    bound = socket.socket()
    bound.bind(LOCAL)
    port = bound.getsockname()[1]
    server = SocketServer(ThreadingHTTPServer, LOCAL, Hello, sock=bound)
    with served(server):
        assert server.port == port
        assert get(server) == b"hello"
    assert bound.fileno() == -1


def test_the_address_is_told_while_the_last_request_is_answered() -> None:
    class Slow(Hello):
        def do_GET(self) -> None:
            entered.set()
            assert go_on.wait(PATIENCE)
            super().do_GET()

    entered, go_on = threading.Event(), threading.Event()
    server = SocketServer(ThreadingHTTPServer, LOCAL, Slow)
    group = ServiceGroup(**LONG_STOP)
    group.add(server)
    thread = threading.Thread(target=group.start)
    thread.start()
    group.wait_ready(PATIENCE)
    port = server.port
    with closing(http.client.HTTPConnection(*address_of(server), timeout=PATIENCE)) as client:
        client.request("GET", "/")
        assert entered.wait(PATIENCE)
        group.stop()
        wait_until(lambda: refused(port), timeout=PATIENCE)
        assert (server.port, server.url) == (port, f"http://127.0.0.1:{port}")
        go_on.set()
        assert client.getresponse().read() == b"hello"
    thread.join(PATIENCE)
    assert server.port is None


def refused(port: int | None) -> bool:
    with socket.socket() as client:
        client.settimeout(0.05)
        try:
            client.connect(("127.0.0.1", port))
        except TimeoutError:  # it lets nobody begin, and is about to go
            return False
        except ConnectionRefusedError:
            return True
        return False


# -- again and again ------------------------------------------------------------------------------


def test_one_object_is_started_again_and_again_on_its_port() -> None:
    with held_port() as port:
        server = SocketServer(ThreadingHTTPServer, ("127.0.0.1", port), Hello)
        group = ServiceGroup()
        group.add(server)
        for _ in range(3):
            with group:
                assert server.port == port
                assert get(server) == b"hello"


def test_a_port_that_is_taken_fails_the_start_and_a_restart_finds_it_free() -> None:
    with held_port() as port:
        server = SocketServer(ThreadingHTTPServer, ("127.0.0.1", port), Hello)
        with socket.create_server(("127.0.0.1", port)):
            with pytest.raises(ServiceGroupError) as caught, served(server):
                pass
            (error,) = caught.value.exceptions
            assert isinstance(error, OSError)
            assert error.errno == errno.EADDRINUSE
            assert f"127.0.0.1:{port}" in str(error)
            assert error.__notes__ == ["in service 'ThreadingHTTPServer', while starting"]
            group = ServiceGroup()
            group.add(server, on_failure=Restart(max_restarts=10_000, delay=0.01, factor=1.0))
            thread = threading.Thread(target=group.start)
            thread.start()
            wait_until(lambda: group.status()[0].restarts > 0, timeout=PATIENCE)
        group.wait_ready(PATIENCE)
        assert get(server) == b"hello"
        group.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_stop_before_the_start_and_a_second_stop_do_no_harm() -> None:
    server = SocketServer(ThreadingHTTPServer, LOCAL, Hello)
    server.stop()
    server.drain()
    server.start()  # in this thread, and it returns: the stop was kept
    server.stop()
    assert server.port is None


def test_it_serves_without_a_group_and_several_may_stop_it() -> None:
    server = SocketServer(ThreadingHTTPServer, LOCAL, Hello)
    thread = threading.Thread(target=server.start)
    thread.start()
    wait_until(lambda: server.port, timeout=PATIENCE)
    assert get(server) == b"hello"
    stoppers = [threading.Thread(target=server.stop) for _ in range(3)]
    for one in (*stoppers, thread):
        if one is not thread:
            one.start()
    for one in (*stoppers, thread):
        one.join(PATIENCE)
        assert not one.is_alive()


def test_a_handler_may_shut_its_server_down() -> None:
    class Last(Hello):
        def do_GET(self) -> None:
            self.server.shutdown()
            super().do_GET()

    server = SocketServer(ThreadingHTTPServer, LOCAL, Last)
    group = ServiceGroup()
    group.add(server)
    thread = threading.Thread(target=group.start)
    thread.start()
    group.wait_ready(PATIENCE)
    assert get(server) == b"hello"
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert group.wait().services[0].state is State.FINISHED


# -- what goes wrong ------------------------------------------------------------------------------


def test_what_a_handler_raises_is_logged_with_the_client_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Bad(Hello):
        def do_GET(self) -> None:
            if self.path == "/bad":
                raise ValueError("boom")
            super().do_GET()

    server = SocketServer(ThreadingHTTPServer, LOCAL, Bad)
    with served(server):
        with pytest.raises(http.client.RemoteDisconnected):
            get(server, "/bad")
        assert get(server) == b"hello"
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert "service 'ThreadingHTTPServer': request of 127.0.0.1:" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


def test_a_server_class_may_handle_its_errors_itself(capsys: pytest.CaptureFixture[str]) -> None:
    class Own(ThreadingTCPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            told.append(client_address)

    class Bad(BaseRequestHandler):
        def handle(self) -> None:
            raise ValueError("boom")

    told: list[object] = []
    server = SocketServer(Own, LOCAL, Bad)
    with served(server), socket.create_connection(address_of(server)) as client:
        assert client.recv(1) == b""
    assert len(told) == 1
    assert capsys.readouterr().err == ""


def test_clients_may_be_turned_away_by_the_server_class(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(ThreadingHTTPServer):
        def verify_request(self, request: object, client_address: object) -> bool:
            if not picked:
                picked.append(True)
                return False
            if len(picked) == 1:
                picked.append(True)
                raise ValueError("cannot tell")
            return True

    picked: list[bool] = []
    server = SocketServer(Picky, LOCAL, Hello)
    with served(server):
        for _ in range(2):
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                get(server)
        assert get(server) == b"hello"
    assert [one.levelname for one in caplog.records if one.levelno >= logging.ERROR] == ["ERROR"]


def test_without_a_descriptor_left_it_pauses_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed = threading.Event()

    class Short(ThreadingHTTPServer):
        def get_request(self) -> Any:
            if not failed.is_set():
                failed.set()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().get_request()

    server = SocketServer(Short, LOCAL, Hello)
    with served(server):
        assert get(server) == b"hello"
    assert failed.is_set()
    assert "service 'Short' cannot accept: [Errno 24]" in caplog.text


def test_a_hung_handler_of_a_server_without_threads_is_cut_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rest is for a busy machine to tell of it.
    monkeypatch.setattr(f"{SocketServer.__module__}.seconds_to_drain", lambda left: left / 16)

    class Waits(BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"?")
            self.request.recv(1)  # in the midst of something: what came was not answered
            entered.set()
            self.request.recv(1)

    entered = threading.Event()
    server = SocketServer(TCPServer, LOCAL, Waits)
    with served(server, stop_timeout=8.0) as group:
        client = socket.create_connection(address_of(server))
        client.sendall(b"!")
        assert entered.wait(PATIENCE)
    client.close()
    assert group.wait().services[0].state is State.STOPPED
    assert "service 'TCPServer' cut 1 requests in flight, since its time was up" in caplog.text


def test_an_idle_connection_does_not_hold_up_a_server_without_threads() -> None:
    server = SocketServer(HTTPServer, LOCAL, Hello)
    with served(server, **LONG_STOP):
        client = http.client.HTTPConnection(*address_of(server), timeout=PATIENCE)
        client.request("GET", "/")
        assert client.getresponse().read() == b"hello"
        at = time.monotonic()
    assert time.monotonic() - at < PATIENCE
    client.close()


def test_a_body_announced_and_asked_for_comes_also_while_it_drains() -> None:
    class Takes(Hello):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = SocketServer(ThreadingHTTPServer, LOCAL, Takes)
    with served(server), socket.create_connection(address_of(server), timeout=PATIENCE) as client:
        server.drain()
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = client.makefile("rb")
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answer.readline() == b"\r\n"
        client.sendall(b"12345")
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        rest = answer.read()
        assert b"Connection: close" in rest
        assert rest.endswith(b"12345")


def test_it_waits_without_waking_up() -> None:
    server = SocketServer(ThreadingHTTPServer, LOCAL, Hello)
    with served(server):
        thread = next(
            one for one in threading.enumerate() if one.name.startswith("group/Threading")
        )
        status = Path(f"/proc/self/task/{thread.native_id}/status")
        if not status.exists():
            pytest.skip("this system does not tell of context switches")
        assert get(server) == b"hello"
        wait_until(lambda: settled(status), timeout=PATIENCE)


def settled(status: Path) -> bool:
    before = [line for line in status.read_text().splitlines() if "ctxt_switches" in line]
    time.sleep(0.7)  # longer than the library's poll_interval
    return before == [line for line in status.read_text().splitlines() if "ctxt_switches" in line]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((object, LOCAL, Hello), "must be a subclass of socketserver.TCPServer"),
        ((ThreadingUDPServer, LOCAL, Hello), "takes datagrams"),
        ((ForkingTCPServer, LOCAL, Hello), "forks, which a process with threads must not"),
        ((HTTPServer, LOCAL, 5), "handler must be a handler class"),
        ((HTTPServer, ("127.0.0.1", "80"), Hello), "port"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(wrong: tuple[Any, ...], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        SocketServer(*wrong)
