"""What is particular to `WsgiServer`; the table in test_http_servers.py has the rest."""

from __future__ import annotations

import errno
import gc
import http.client
import importlib
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from waitress.task import ThreadedTaskDispatcher

from servicegroup import ServiceGroup
from servicegroup.adapters.wsgi import WsgiServer, _Channel
from tests.adapters.bare import refused_to_nobody, serving
from tests.adapters.test_http_servers import receive_all
from tests.adapters.web import PATIENCE, ROOT, Web, is_free
from tests.fake_time import wait_until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def hello(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def ask(port: int | None, path: str = "/") -> tuple[int, bytes]:
    assert port is not None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def tasks() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("waitress-")]


def cut_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half a second, of eight; the rest is for a busy machine to tell of it."""
    monkeypatch.setattr(f"{WsgiServer.__module__}.seconds_to_drain", lambda left: left / 16)


def test_one_object_serves_three_times_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{WsgiServer.__module__}.FIRST_WORD", 2 * PATIENCE)
    server = WsgiServer(hello, port=0, asyncore_loop_timeout=2 * PATIENCE)
    for _ in range(3):
        with serving(server):
            port = server.port
            assert server.url == f"http://127.0.0.1:{port}"
            assert ask(port) == (200, b"hello")
            kept = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            kept.request("GET", "/")
            assert kept.getresponse().read() == b"hello"
            at = time.monotonic()
        assert time.monotonic() - at < PATIENCE  # it did not wait for the one that was kept
        kept.close()
        assert server.port is None
        assert port is not None
        assert is_free(port)
        wait_until(lambda: not tasks(), timeout=PATIENCE)
        server.stopping.clear()


def test_a_stop_before_the_start_is_kept() -> None:
    server = WsgiServer(hello, port=0)
    server.stop()
    server.stop()
    server.start()
    wait_until(lambda: not tasks(), timeout=PATIENCE)


def test_it_stops_twice() -> None:
    server = WsgiServer(hello, port=0)
    with serving(server) as thread:
        server.stop()
        server.stop()
        thread.join(PATIENCE)
    server.drain()  # and does nothing


def test_it_has_no_url_before_it_listens() -> None:
    server = WsgiServer(hello)
    with pytest.raises(RuntimeError, match="'WsgiServer' does not listen"):
        server.url  # noqa: B018
    assert server.port is None


def test_a_bad_host_is_told_with_its_address() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:8000: .*no such address"):
        WsgiServer(hello, "192.0.2.1").start()


def test_a_privileged_port_is_told_with_its_address_and_the_remedy() -> None:
    said = refused_to_nobody(
        "import encodings.idna; from servicegroup.adapters.wsgi import WsgiServer as Server",
        "Server(print, port=80).start()",
    )
    assert "cannot listen on 127.0.0.1:80: Permission denied" in said
    assert "CAP_NET_BIND_SERVICE" in said


# Any: the options of waitress are not typed.
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "threads must be 1 or more, not 0"),
        ({"thread": 1}, "'thread'"),
        ({"listen": "*:80"}, "listen is not passed to waitress"),
        ({"unix_socket_perms": "600"}, "unix_socket_perms is not passed to waitress"),
        ({"port": 70_000}, "port must be from 0"),
        ({"trusted_proxy_count": 1}, "without setting trusted_proxy"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WsgiServer(hello, **options)


def test_what_is_no_application_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="app must be a WSGI application, not 'shop:app'"):
        WsgiServer("shop:app")  # type: ignore[arg-type]


def test_options_of_waitress_are_passed_on() -> None:
    with serving(server := WsgiServer(hello, port=0, ident="shop", url_prefix="/shop")):
        assert server.port is not None
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request("GET", "/shop/")
        response = connection.getresponse()
        assert (response.status, response.headers["Server"]) == (200, "shop")
        assert response.read() == b"hello"
        connection.close()


def test_a_unix_socket_is_served_and_its_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with serving(server := WsgiServer(hello, unix_socket=path)):
        assert server.url == f"unix:{path}"
        assert server.port is None
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer = receive_all(connection)
        assert answer.startswith(b"HTTP/1.0 200 OK")
        assert answer.endswith(b"hello")
    assert not path.exists()


def test_a_bound_socket_is_taken_over() -> None:
    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    with serving(server := WsgiServer(hello, sock=bound)):
        assert server.port == port
        assert ask(port) == (200, b"hello")
    assert bound.fileno() == -1
    with pytest.raises(OSError, match="one that is to start again needs host and port"):
        server.start()


def test_several_servers_share_a_port_when_asked_to() -> None:
    with (
        serving(first := WsgiServer(hello, port=0, reuse_port=True)),
        serving(WsgiServer(hello, port=first.port or 0, reuse_port=True)),
    ):
        assert ask(first.port) == (200, b"hello")


def test_an_app_that_raises_answers_500_and_is_logged_once() -> None:
    with Web("wsgi") as web:
        connection = web.http()
        connection.request("GET", "/raise")
        response = connection.getresponse()
        assert response.status == 500
        assert b"no luck" not in response.read()
        connection.close()
        assert web.get("/hello") == (200, b"hello")
        web.terminate()
        assert web.end() == 0
        assert web.stderr.count("ValueError: no luck") == 1


def test_an_app_that_exits_ends_its_connection_and_no_more() -> None:
    with Web("wsgi", server={"threads": 1}) as web:
        with pytest.raises(http.client.RemoteDisconnected):
            web.get("/exit")
        assert web.get("/hello") == (200, b"hello")
        web.terminate()
        assert web.end() == 0
        assert web.stderr.count("SystemExit: 3") == 1
        assert " cut " not in web.stderr


def test_an_old_client_is_told_of_the_drain_too() -> None:
    with serving(server := WsgiServer(hello, port=0)):
        assert server.port is not None
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
            request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
            connection.sendall(request)
            assert b"Connection: Keep-Alive" in connection.recv(4096)
            server.drain()
            connection.sendall(request)
            answer = receive_all(connection)
    assert answer.count(b"Connection: ") == 1
    assert b"Connection: close" in answer
    assert answer.endswith(b"hello")


def test_a_client_that_waits_for_100_continue_is_answered_during_the_stop() -> None:
    with serving(server := WsgiServer(hello, port=0)) as thread:
        assert server.port is not None
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
            connection.sendall(
                b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            )
            assert connection.recv(4096).startswith(b"HTTP/1.1 100")
            server.stop()
            thread.join(0.2)
            assert thread.is_alive()
            connection.sendall(b"12345")
            assert receive_all(connection).endswith(b"hello")


def test_an_empty_line_after_a_request_begins_no_other() -> None:
    with serving(server := WsgiServer(hello, port=0)) as thread:
        assert server.port is not None
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1\r\n")
            answer = b""
            while not answer.endswith(b"hello"):
                answer += connection.recv(4096)
            server.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_all_in_flight_are_named_and_a_hung_thread_that_comes_late_does_no_harm(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_early(monkeypatch)
    entered, go_on = threading.Semaphore(0), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        entered.release()
        go_on.wait()
        return hello(environ, start_response)

    server = WsgiServer(app, port=0, threads=1)
    group = ServiceGroup(stop_timeout=8.0)
    server.name = "web"
    group.add(server)
    connections = []
    caplog.set_level(logging.ERROR, "servicegroup.adapters")
    with group:
        assert server.port is not None
        for path in ("/first", "/second"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
            connection.request("GET", path)
            connections.append(connection)
        assert entered.acquire(timeout=PATIENCE)
        wait_until(lambda: server.in_hand == 2, timeout=PATIENCE)
    (record,) = [one for one in caplog.records if one.name == "servicegroup.adapters"]
    said = record.getMessage()
    assert "service 'web' cut 2 requests in flight, since its time was up" in said
    assert "(GET /first)" in said
    assert "(GET /second)" in said
    assert "; 1 hang:" in said
    assert "in app" in said
    for connection in connections:
        with pytest.raises(ConnectionError):
            connection.getresponse()
        connection.close()
    (thread,) = tasks()
    go_on.set()
    thread.join(PATIENCE)
    assert tasks() == []


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))


def test_a_hung_thread_that_wakes_the_loop_late_writes_to_nobody_elses_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        entered.set()
        go_on.wait()
        raise SystemExit  # after which the loop is woken in any case

    cut_early(monkeypatch)
    # The log would keep the traceback, and with it the server.
    monkeypatch.setattr(logging.getLogger("waitress"), "disabled", True)
    before = descriptors()
    server = WsgiServer(app, port=0, threads=1)
    group = ServiceGroup(stop_timeout=8.0)
    group.add(server)
    with group:
        assert server.port is not None
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        client.request("GET", "/")
        assert entered.wait(PATIENCE)
    client.close()
    (thread,) = tasks()
    others = [one for _ in range(10) for one in socket.socketpair()]
    go_on.set()
    thread.join(PATIENCE)
    assert select.select(others, [], [], 0)[0] == []
    for one in others:
        one.close()
    wait_until(lambda: descriptors() <= before, timeout=PATIENCE)


LATE = """
import atexit, select, socket, threading
entered, go_on = threading.Event(), threading.Event()

@atexit.register  # before the server had a reason to do the same, so it is called after that
def last():
    (thread,) = (one for one in threading.enumerate() if one.name.startswith("waitress-"))
    others = [one for _ in range(10) for one in socket.socketpair()]
    go_on.set()
    thread.join()
    print("written:", len(select.select(others, [], [], 0)[0]))

from servicegroup import ServiceGroup
from servicegroup.adapters import wsgi

def app(environ, start_response):
    entered.set()
    go_on.wait()
    raise SystemExit

wsgi.seconds_to_drain = lambda left: left / 16  # the rest is for a busy machine
server = wsgi.WsgiServer(app, port=0, threads=1)
group = ServiceGroup(stop_timeout=8.0)
group.add(server)
with group:
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    entered.wait()
"""


def test_nor_does_it_while_the_process_ends() -> None:
    child = subprocess.run(
        [sys.executable, "-c", LATE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (child.returncode, child.stdout) == (0, "written: 0\n"), child.stderr


def test_on_a_unix_socket_without_end_of_clients_only_those_who_waited_are_accepted(
    tmp_path: Path,
) -> None:
    class Listener(socket.socket):
        come = 0

        def accept(self) -> tuple[socket.socket, Any]:
            if server.stopping.is_set() and self.come < 100:
                self.come += 1  # another one, each time
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
            return super().accept()

    path = tmp_path / "web.sock"
    listener = Listener(socket.AF_UNIX)
    listener.bind(str(path))
    server = WsgiServer(hello, sock=listener, backlog=3)
    with serving(server):
        pass
    assert listener.come == 4


def test_a_start_without_enough_threads_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = ThreadedTaskDispatcher.start_new_thread

    # Any: of waitress, which has no types.
    def start_one(self: Any, target: Any, number: int) -> None:
        if number == 1:
            raise RuntimeError("can't start new thread")
        start(self, target, number)

    monkeypatch.setattr(ThreadedTaskDispatcher, "start_new_thread", start_one)
    before = descriptors()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        WsgiServer(hello, port=0).start()
    for thread in tasks():
        thread.join(PATIENCE)
    assert descriptors() == before
    assert tasks() == []


def test_a_start_that_fails_leaves_no_socket_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def pipe() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    bound = socket.create_server(("127.0.0.1", 0))
    server = WsgiServer(hello, sock=bound)
    monkeypatch.setattr("waitress.trigger.os.pipe", pipe)
    with pytest.raises(OSError, match="Too many open files"):
        server.start()
    monkeypatch.undo()
    assert bound.fileno() == -1


def test_what_comes_late_or_goes_early_does_no_harm() -> None:
    class Listener(socket.socket):
        gone = 0  # of those who wait, so many have left again

        def accept(self) -> tuple[socket.socket, Any]:
            if self.gone:
                self.gone -= 1
                raise ConnectionAbortedError(errno.ECONNABORTED, "gone")
            return super().accept()

    listener = Listener()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with serving(server := WsgiServer(hello, sock=listener)):
        assert ask(server.port) == (200, b"hello")
        listener.gone = 2
    channel = SimpleNamespace(socket=listener)
    _Channel.hang_up(channel)  # type: ignore[arg-type]  # what of it is used


def test_without_waitress_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "waitress", None)
    monkeypatch.delitem(sys.modules, "servicegroup.adapters.wsgi")
    with pytest.raises(ImportError, match=r"pip install 'servicegroup\[wsgi\]'"):
        importlib.import_module("servicegroup.adapters.wsgi")
