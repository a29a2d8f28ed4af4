"""What `AsgiServer` and `AiohttpServer` have in common, beside the table of all HTTP servers."""

from __future__ import annotations

import asyncio
import errno
import http.client
import importlib
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_websocket

from servicegroup import AsyncGroup, ServiceGroup, ServiceGroupError, StopTimeoutError
from servicegroup.adapters.asgi import AsgiServer
from tests.adapters.bare import refused_to_nobody, serving
from tests.adapters.loop_servers import (
    MAKERS,
    PATIENCE,
    Server,
    Site,
    asking,
    connect,
    get,
    hang,
    served,
    wait_for_requests,
)
from tests.adapters.test_http_servers import receive_all
from tests.adapters.web import LONG_STOP, ROOT, is_free
from tests.fake_time import wait_until

Make = Callable[..., Server]

# What is in flight is cut then, instead of so late that a busy machine has little time to tell.
EARLY = 0.5


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.hold.set()


def test_one_object_serves_three_times_and_leaves_nothing_behind(
    make: Make, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servicegroup.adapters._loop_server.FIRST_WORD", 2 * PATIENCE)
    server = make(site)
    with pytest.raises(RuntimeError, match="does not listen: it has a url once ready"):
        _ = server.url
    group = ServiceGroup(**LONG_STOP)
    group.add(server)
    before = set(threading.enumerate())
    for _ in range(3):
        with group:
            port = server.port
            assert port is not None
            assert server.url == f"http://127.0.0.1:{port}"
            assert get(server) == (200, b"hello")
            kept = connect(server)
            kept.request("GET", "/hello")
            assert kept.getresponse().read() == b"hello"
            at = time.monotonic()
        assert time.monotonic() - at < PATIENCE  # it did not wait for the one that was kept
        kept.close()
        assert is_free(port)
        wait_until(lambda: set(threading.enumerate()) <= before, timeout=PATIENCE)
    assert site.trace == ["start", "end"] * 3


def test_without_a_group_it_serves_until_another_thread_stops_it(make: Make, site: Site) -> None:
    server = make(site)
    with serving(server) as thread:
        assert get(server) == (200, b"hello")
        server.stop()
        thread.join(PATIENCE)
        server.stop()  # which does no harm
    assert site.trace == ["start", "end"]


def test_a_stop_before_the_start_is_kept(make: Make, site: Site) -> None:
    server = make(site)
    server.stop()
    server.start()
    assert site.trace == []


def test_a_stop_while_the_application_starts_ends_that(make: Make) -> None:
    begun = threading.Event()

    async def for_ever() -> None:
        begun.set()
        await asyncio.Event().wait()

    site = Site(on_start=for_ever)
    server = make(site)
    group = ServiceGroup(**LONG_STOP)
    group.add(server)
    starter = threading.Thread(target=group.start, daemon=True)
    starter.start()
    assert begun.wait(PATIENCE)
    group.stop()
    starter.join(PATIENCE)
    assert not starter.is_alive()
    assert site.trace == ["start"]


def test_what_the_application_raises_when_it_starts_is_the_failure(make: Make) -> None:
    async def refuse() -> None:
        raise ConnectionRefusedError("no database")

    server = make(Site(on_start=refuse))
    group = ServiceGroup()
    group.add(server, name="web")
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    (error,) = caught.value.exceptions
    assert type(error) is ConnectionRefusedError
    assert error.__notes__ == ["in service 'web', while starting"]
    assert server.port is None


def test_what_the_application_raises_when_it_ends_is_the_failure(make: Make) -> None:
    async def fail() -> None:
        raise LookupError("nothing to write to")

    server = make(Site(on_end=fail))
    with pytest.raises(ServiceGroupError) as caught, served(server):
        assert get(server) == (200, b"hello")
    (error,) = caught.value.exceptions
    assert type(error) is LookupError
    assert error.__notes__ == ["in service 'web', while stopping"]


def test_a_port_in_use_is_told_with_its_address_and_the_application_ends(
    make: Make, site: Site
) -> None:
    with served(make(Site())) as _, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        group = ServiceGroup()
        group.add(make(site, port=port), name="web")
        with pytest.raises(ServiceGroupError) as caught:
            group.start()
    (error,) = caught.value.exceptions
    assert isinstance(error, OSError)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in str(error)
    assert site.trace == ["start", "end"]


def test_a_bad_host_is_told_with_its_address(make: Make, site: Site) -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:8000: .*no such address"):
        make(site, host="192.0.2.1", port=8000).start()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_privileged_port_is_told_with_its_address_and_the_remedy(kind: str) -> None:
    first = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not first.exists() or int(first.read_text()) <= 80:
        pytest.skip("every user may listen to any port here")
    said = refused_to_nobody(
        "import encodings.idna\nfrom tests.adapters.loop_servers import MAKERS, Site",
        f"MAKERS[{kind!r}](Site(), port=80).start()",
    )
    assert "PermissionError: [Errno 13] cannot listen on 127.0.0.1:80: Permission denied" in said
    assert "ports below 1024 are for root" in said


def test_an_application_that_raises_answers_500_and_is_logged_once(
    make: Make, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    server = make(site)
    with served(server):
        assert get(server, "/boom")[0] == 500
        assert get(server) == (200, b"hello")
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is not None
    assert isinstance(errors[0].exc_info[1], LookupError)


@pytest.mark.parametrize("path", ["/hang", "/hang-in-executor", "/stuck"])
def test_a_request_that_hangs_is_cut_and_told_once_with_its_stack(
    make: Make, site: Site, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = make(site)
    assert server._cancel_delay(8.0) == 6.0
    server.cancel_after = EARLY
    with served(server, stop_timeout=8.0):
        connection = connect(server)
        connection.request("GET", path)
        assert site.busy.wait(PATIENCE)
        at = time.monotonic()
    assert time.monotonic() - at > 0.8 * EARLY
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        connection.getresponse()
    connection.close()
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors[0].startswith("service 'web' cut 1 requests in flight, since its time was up: ")
    assert f"(GET {path})" in errors[0]
    assert "in answer" in errors[0]
    if path == "/stuck":
        assert len(errors) == 1
    else:
        assert "in hang" in errors[-1]


def test_in_an_async_group_servers_share_a_loop_and_requests_that_hang_are_told_once(
    make: Make, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    servers = [make(Site()), make(site)]
    group = ServiceGroup()
    loop = group.add(AsyncGroup(stop_timeout=8.0))
    for number, server in enumerate(servers):
        server.name = f"web-{number}"
        server.cancel_after = EARLY
        loop.add(server)
    with group:
        assert [get(server) for server in servers] == [(200, b"hello")] * 2
        connection = connect(servers[1])
        connection.request("GET", "/hang")
        assert site.busy.wait(PATIENCE)
    connection.close()
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith("service 'web-1' cut 1 requests")
    assert site.trace == ["start", "end"]


def test_an_application_that_does_not_end_is_told_with_its_stack(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    server = make(Site(on_end=never))
    server.cancel_after = EARLY
    group = ServiceGroup(stop_timeout=8.0)
    group.add(server)
    # With a request that is cut, there is little time left for the application.
    with pytest.raises(ServiceGroupError) as caught, group, asking(server, "/stuck"):
        group.stop()
    (error,) = caught.value.exceptions
    assert isinstance(error, StopTimeoutError)
    assert "in never" in error.stack
    assert "cut 1 requests" in caplog.text


def test_a_thread_that_hangs_without_a_request_is_a_failure(make: Make, site: Site) -> None:
    async def leave_behind() -> None:
        asyncio.get_running_loop().run_in_executor(None, hang, site)

    site.on_start = leave_behind
    server = make(site)
    with pytest.raises(ServiceGroupError) as caught, served(server, stop_timeout=8.0):
        assert (get(server), site.busy.wait(PATIENCE)) == ((200, b"hello"), True)
    (error,) = caught.value.exceptions
    assert isinstance(error, StopTimeoutError)
    assert "in hang" in error.stack


@pytest.mark.slow
def test_all_are_let_in_though_few_may_wait(make: Make, site: Site) -> None:
    server = make(site, backlog=1)
    with served(server, **LONG_STOP) as group:
        assert server.port is not None
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
        for client in clients:
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for_requests(server, 10)
        group.stop()
        wait_until(lambda: server.port is None, timeout=PATIENCE)
        site.hold.set()
        for client in clients:
            assert receive_all(client).endswith(b"slow")
            client.close()


def websocket(server: Server) -> ClientConnection:
    return connect_websocket(f"ws://127.0.0.1:{server.port}/ws", open_timeout=PATIENCE)


def code_of_end(client: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed) as caught:
        client.recv(timeout=PATIENCE)
    return None if caught.value.rcvd is None else caught.value.rcvd.code


def test_a_message_in_flight_is_answered_and_then_its_websocket_closed(
    make: Make, site: Site
) -> None:
    server = make(site)
    code = 1012 if isinstance(server, AsgiServer) else 1001
    with served(server, **LONG_STOP) as group, websocket(server) as busy, websocket(server) as idle:
        busy.send("hello")
        assert site.busy.wait(PATIENCE)
        group.stop()
        assert code_of_end(idle) == code
        site.hold.set()
        assert busy.recv(timeout=PATIENCE) == "HELLO"
        assert code_of_end(busy) == code
    assert len(site.trace) == 4


def test_a_websocket_at_work_is_cut_at_the_deadline(
    make: Make, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    server = make(site)
    server.cancel_after = EARLY
    with served(server, stop_timeout=8.0) as group, websocket(server) as busy:
        busy.send("hello")
        assert site.busy.wait(PATIENCE)
        group.stop()
        with pytest.raises(ConnectionClosed):
            busy.recv(timeout=PATIENCE)
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert " cut 1 requests" in errors[0]
    assert "/ws)" in errors[0]


def test_server_sent_events_end_at_the_stop_when_they_are_told_of_it(
    make: Make, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    server = make(site)
    with served(server, **LONG_STOP):
        connection = connect(server)
        connection.request("GET", "/events")
        response = connection.getresponse()
        assert response.readline() == b"data: tick\n"
        at = time.monotonic()
    assert time.monotonic() - at < PATIENCE
    rest = response.read()  # whole, or it would raise
    assert rest.endswith(b"\n")
    connection.close()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_server_sent_events_that_go_on_are_cut_at_the_deadline(
    make: Make, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    server = make(site)
    server.cancel_after = EARLY
    with served(server, stop_timeout=8.0):
        connection = connect(server)
        connection.request("GET", "/events-for-ever")
        response = connection.getresponse()
        assert response.readline() == b"data: tick\n"
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        response.read()
    connection.close()
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert "cut 1 requests" in record.getMessage()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certified(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    """The options of a server for TLS."""
    issued = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for part in issued.cert_chain_pems:
        part.write_to_path(chain, append=True)
    issued.private_key_pem.write_to_path(key)
    return {"ssl_certfile": chain, "ssl_keyfile": key}


def test_tls(
    make: Make,
    site: Site,
    authority: trustme.CA,
    certified: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("servicegroup.adapters._loop_server.FIRST_WORD", 2 * PATIENCE)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    server = make(site, **certified)
    with served(server, **LONG_STOP) as group:
        assert server.url == f"https://127.0.0.1:{server.port}"
        port = server.port
        assert port is not None
        kept = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=trusting)
        kept.request("GET", "/hello")
        assert kept.getresponse().read() == b"hello"
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain:
            plain.sendall(b"GET /hello HTTP/1.1\r\n\r\n" * 20)
            assert b"hello" not in plain.recv(1000)
        # In the midst of connecting when the stop comes.
        late = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        kept.request("GET", "/slow")
        assert site.busy.wait(PATIENCE)
        group.stop()
        wait_until(lambda: server.port is None, timeout=PATIENCE)
        with trusting.wrap_socket(late, server_hostname="127.0.0.1") as connection:
            connection.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = receive_all(connection)
        assert answer.endswith(b"hello")
        assert b"connection: close" in answer.lower()
        site.hold.set()
        response = kept.getresponse()
        assert response.read() == b"slow"
        assert response.headers["Connection"] == "close"
        kept.close()


def test_who_connects_for_tls_and_is_silent_holds_nobody_up(
    make: Make, site: Site, certified: dict[str, Path]
) -> None:
    server = make(site, **certified)
    with served(server, **LONG_STOP) as group:
        assert server.port is not None
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as silent:
            group.stop()
            assert silent.recv(1) == b""
            group.wait(PATIENCE)


def test_a_unix_socket_is_served_and_its_file_goes(make: Make, site: Site, tmp_path: Path) -> None:
    path = tmp_path / "web"
    server = make(site, unix_socket=path)
    with served(server, **LONG_STOP) as group:
        assert server.url == f"unix:{path}"
        assert server.port is None
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(path))
            connection.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = receive_all(connection)
            assert answer.endswith(b"hello")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            wait_for_requests(server, 1)
        group.stop()
        wait_until(lambda: not path.exists(), timeout=PATIENCE)
        site.hold.set()
    assert not path.exists()


def test_a_bound_socket_is_taken_over_and_answers_without_delay(make: Make, site: Site) -> None:
    with socket.socket() as bound:  # of no named protocol, so asyncio would set no TCP_NODELAY
        bound.bind(("127.0.0.1", 0))
        server = make(site, sock=bound)
        with served(server):
            assert server.port is not None
            connection = connect(server)
            seconds = []
            for _ in range(40):
                at = time.monotonic()
                connection.request("POST", "/hello", body=b"x" * 20)
                assert connection.getresponse().read() == b"hello"
                seconds.append(time.monotonic() - at)
            # The client's delay, each time but the first few; some are late on a busy machine.
            assert sorted(seconds[20:])[5] < 0.04
            connection.close()
        assert bound.fileno() == -1


def test_several_servers_share_a_port_when_asked_to(make: Make, site: Site) -> None:
    first = make(site, reuse_port=True)
    with served(first):
        second = make(Site(), port=first.port, reuse_port=True)
        with served(second):
            assert first.port == second.port
            assert get(second) == (200, b"hello")


ACTIVATED = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.dup2(int(sys.argv[1]), 3)
from servicegroup import ServiceGroup
from servicegroup.sockets import systemd_socket
from tests.adapters.loop_servers import MAKERS, Site
group = ServiceGroup()
group.add(MAKERS[sys.argv[2]](Site(), sock=systemd_socket("web.socket")))
group.run()
"""


@pytest.mark.parametrize("kind", MAKERS)
def test_systemd_can_activate_it(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        child = subprocess.Popen(
            [sys.executable, "-c", ACTIVATED, str(listener.fileno()), kind],
            cwd=ROOT,
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web.socket"},
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
        )
    try:
        # The connection waits until the program is up.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", "/hello")
        assert connection.getresponse().read() == b"hello"
        child.terminate()
        child.communicate(timeout=PATIENCE)
        connection.close()
        assert child.returncode == 0
    finally:
        child.kill()
        child.communicate()


def test_it_is_refused_at_once_what_makes_no_sense(make: Make, site: Site) -> None:
    with pytest.raises(ValueError, match="port must be from 0"):
        make(site, port=70_000)
    with pytest.raises(TypeError, match="takes no option 'colour'"):
        make(site, colour="red")


@pytest.mark.parametrize(("kind", "library"), [("asgi", "uvicorn"), ("aiohttp", "aiohttp")])
def test_without_the_library_the_extra_is_named(
    kind: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"servicegroup.adapters.{kind}")
    with pytest.raises(ImportError, match=rf"pip install 'servicegroup\[{kind}\]'"):
        importlib.import_module(f"servicegroup.adapters.{kind}")


def test_an_idle_server_is_woken_at_most_twice_a_second(make: Make, site: Site) -> None:
    server = make(site)
    server.loop_factory = asyncio.new_event_loop
    with served(server):
        assert get(server) == (200, b"hello")
        assert server._control is not None
        loop: Any = server._control.loop
        turns = 0
        original = loop._run_once

        def counted() -> None:
            nonlocal turns
            turns += 1
            original()

        def quiet() -> bool:
            before = turns
            time.sleep(2.0)
            return turns - before <= 4

        loop._run_once = counted
        wait_until(quiet, timeout=PATIENCE)  # not before the connection is closed


def test_when_no_descriptor_is_left_it_accepts_later(
    make: Make, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = make(site)
    failures = [OSError(errno.EMFILE, "Too many open files"), ConnectionAbortedError()]

    class Poor(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            if failures:
                raise failures.pop(0)
            return super().accept()

    bound = Poor()
    bound.bind(("127.0.0.1", 0))
    server = make(site, sock=bound)
    with served(server):
        assert get(server) == (200, b"hello")
    assert failures == []
    assert "service 'web' cannot accept: [Errno 24] Too many open files" in caplog.text
