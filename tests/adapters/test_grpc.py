"""The gRPC servers: in processes of their own, and side by side in this one."""

from __future__ import annotations

import importlib
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckRequest

from servicegroup import AsyncGroup, AsyncService, ServiceGroup, ServiceGroupError
from servicegroup.adapters.grpc import GrpcAioServer, GrpcServer, _Calls, _Health, _Watch
from tests.adapters.bare import refused_to_nobody, serving
from tests.adapters.rpcs import PATIENCE, Shop, Status, Watcher, aio_register, register
from tests.adapters.web import CUT_EARLY, LONG_DRAIN, LONG_STOP, UNHURRIED, Web, is_free
from tests.fake_time import wait_until

KINDS = [pytest.param(False, id="threads"), pytest.param(True, id="aio")]
each_kind = pytest.mark.parametrize("aio", KINDS)


# Any: the options, which are those of either.
def make(aio: bool, **options: Any) -> GrpcServer | GrpcAioServer:
    options = {"port": 0, **options}
    return GrpcAioServer(aio_register, **options) if aio else GrpcServer(register, **options)


def shop(web: Web) -> Shop:
    return Shop("{}:{}".format(*web.address))


def lose_nothing(aio: bool, times: int) -> None:
    for _ in range(times):
        with (
            Web("rpc", server={"aio": aio}, first=UNHURRIED, **LONG_DRAIN) as first,
            Web("rpc", server={"aio": aio}) as second,
        ):
            targets = ["{}:{}".format(*web.address) for web in (first, second)]
            clients = [Watcher(targets) for _ in range(4)]
            for client in clients:
                client.start()
            wait_for_each(clients, lambda client: client.answered and client.watches.is_set())
            time.sleep(random.uniform(0, 0.5))  # some moment
            first.terminate()
            wait_for_each(clients, lambda client: client.moved)
            first.end_drain()
            assert first.end() == 0
            time.sleep(0.3)
            wait_for_each(clients, lambda client: client.answered > 3)
            for client in clients:
                client.told_to_end.set()
            for client in clients:
                client.join(PATIENCE)
                assert not client.is_alive()
                assert client.failed == []
                assert client.moved == 1
            second.terminate()
            assert second.end() == 0
            assert " cut " not in first.stderr + second.stderr


def wait_for_each(clients: list[Watcher], reached: Callable[[Watcher], object]) -> None:
    """Until each has `reached` it, or a call of somebody has failed."""

    def settled() -> bool:
        return any(one.failed for one in clients) or all(map(reached, clients))

    wait_until(settled, timeout=PATIENCE)


@pytest.mark.slow
@each_kind
def test_nobody_who_watches_health_loses_a_call(aio: bool) -> None:
    lose_nothing(aio, 7)  # on each of three interpreters


@pytest.mark.slow
@each_kind
def test_clients_of_the_library_that_go_by_health_lose_no_call(aio: bool) -> None:
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
    with (
        Web("rpc", server={"aio": aio}, first=UNHURRIED, **LONG_DRAIN) as first,
        Web("rpc", server={"aio": aio}) as second,
    ):
        target = "ipv4:" + ",".join("{}:{}".format(*web.address) for web in (first, second))
        options = (("grpc.service_config", json.dumps(config)),)
        with grpc.insecure_channel(target, options) as channel:
            call: Any = channel.unary_unary("/tests.Shop/where")
            pids = [str(web.process.pid).encode() for web in (first, second)]

            def answering() -> set[bytes]:  # they take turns
                return {call(b"", timeout=PATIENCE) for _ in range(10)}

            wait_until(lambda: answering() == set(pids), timeout=PATIENCE)
            first.terminate()
            wait_until(lambda: answering() == {pids[1]}, timeout=PATIENCE)
            first.end_drain()
            until = time.monotonic() + PATIENCE
            while first.process.poll() is None:
                assert answering() == {pids[1]}
                assert time.monotonic() < until
            assert first.process.poll() == 0


def test_one_that_is_cancelled_stops_too() -> None:
    server = GrpcAioServer(aio_register, port=0)
    server.cancel_after = 0.0
    with serving(server), Shop(server.url) as client:
        assert client.unary("hello", b"you") == b"hello you"
        port = server.port
    assert port is not None
    assert is_free(port)


@each_kind
def test_it_says_not_serving_while_it_still_serves(aio: bool) -> None:
    with (
        Web(
            "rpc",
            server={"aio": aio, "services": ["tests.Shop"]},
            first=UNHURRIED,
            **LONG_DRAIN,
        ) as web,
        shop(web) as client,
    ):
        assert client.health() == client.health("tests.Shop") == Status.SERVING
        watch = client.watch()
        assert next(watch) == Status.SERVING
        web.terminate()
        web.wait_for("GroupDraining")
        assert next(watch) == Status.NOT_SERVING
        assert client.health() == client.health("tests.Shop") == Status.NOT_SERVING
        assert client.unary("hello", b"you") == b"hello you"
        with shop(web) as another:
            assert another.unary("hello", b"you") == b"hello you"
        web.end_drain()
        assert web.end() == 0
        with pytest.raises(grpc.RpcError):
            client.unary("hello", b"you")
        assert is_free(web.address[1])


@each_kind
def test_calls_in_flight_are_finished_and_watches_hold_nobody_up(aio: bool) -> None:
    with Web("rpc", server={"aio": aio}, **LONG_STOP) as web, shop(web) as client:
        watch = client.watch()
        assert next(watch) == Status.SERVING
        slow = client.begin("slow", b"1")
        stream = client.stream("count", b"10")
        assert next(stream) == b"0"
        web.terminate()
        assert slow.result() == b"slow"
        assert list(stream) == [str(number).encode() for number in range(1, 10)]
        assert web.end() == 0
        assert " cut " not in web.stderr


@each_kind
def test_an_idle_one_stops_at_once(aio: bool) -> None:
    with Web("rpc", server={"aio": aio}, **LONG_STOP) as web, shop(web) as client:
        assert client.unary("hello", b"you") == b"hello you"
        web.terminate()
        assert web.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aio", "method", "where"),
    [
        (False, "hang", "in hang"),
        (False, "hang_in_stream", "in hang"),
        (True, "hang", "in aio_hang_here"),
        (True, "hang_in_stream", "in aio_hang_in_stream"),
        (True, "sync_hang", "in hang"),
    ],
)
def test_a_hung_handler_is_cut_and_named_with_its_stack(aio: bool, method: str, where: str) -> None:
    with (
        Web("rpc", server={"aio": aio}, first=CUT_EARLY, stop_timeout=8.0) as web,
        shop(web) as client,
    ):
        if method == "hang_in_stream":
            answers = client.stream(method)
            assert next(answers) == b"first"
        else:
            call = client.begin(method)
        web.wait_for("hanging")
        web.terminate()
        assert web.end() == 0
        assert " cut 1 requests in flight" in web.stderr
        assert f"/tests.Shop/{method}" in web.stderr
        assert where in web.stderr
        if method != "hang_in_stream":
            assert call.exception() is not None


def test_calls_that_wait_for_a_thread_are_counted() -> None:
    with (
        Web("rpc", server={"max_workers": 1}, first=CUT_EARLY, stop_timeout=8.0) as web,
        shop(web) as client,
    ):
        assert client.unary("hello", b"you") == b"hello you"
        calls = [client.begin("hang") for _ in range(3)]
        web.wait_for("hanging")
        # Refused without a thread, and behind the others: so they have arrived.
        assert client.begin("nothing").exception().code() == grpc.StatusCode.UNIMPLEMENTED
        web.terminate()
        assert web.end() == 0
        assert " cut 3 requests in flight" in web.stderr
        assert web.stderr.count("a call that has not begun") == 2
        for call in calls:
            assert call.exception() is not None


@each_kind
def test_a_handler_that_raises_is_told_to_its_client_and_logged_once(aio: bool) -> None:
    with Web("rpc", server={"aio": aio}) as web, shop(web) as client:
        error = client.begin("fail").exception()
        assert error.code() == grpc.StatusCode.UNKNOWN
        assert client.unary("hello", b"you") == b"hello you"
        web.terminate()
        assert web.end() == 0
        assert web.stderr.count("Traceback") == 1


@each_kind
def test_a_second_server_on_the_port_is_refused_with_address_and_service(aio: bool) -> None:
    with Web("rpc", server={"aio": aio}) as web, shop(web) as client:
        port = web.address[1]
        with pytest.raises(AssertionError) as caught:
            Web("rpc", server={"aio": aio, "port": port})
        said = str(caught.value)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said
        assert "in service 'web', while starting" in said
        assert client.unary("hello", b"you") == b"hello you"


@each_kind
def test_a_privileged_port_is_told_with_its_address_and_the_remedy(aio: bool) -> None:
    kind = "GrpcAioServer" if aio else "GrpcServer"
    said = refused_to_nobody(
        f"import encodings.idna; from servicegroup.adapters.grpc import {kind} as Server",
        "Server(print, port=80).start()",
    )
    assert "cannot listen on 127.0.0.1:80: Permission denied" in said
    assert "CAP_NET_BIND_SERVICE" in said


@each_kind
def test_a_bad_host_is_told_with_its_address(aio: bool) -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0: .*no such address"):
        make(aio, host="192.0.2.1").start()


@each_kind
def test_one_object_serves_three_times(aio: bool) -> None:
    server = make(aio)
    for _ in range(3):
        group = ServiceGroup()
        group.add(server)
        with group, Shop(server.url) as client:
            port = server.port
            assert server.url == f"127.0.0.1:{port}"
            assert client.unary("hello", b"you") == b"hello you"
            assert client.health() == Status.SERVING
        assert server.port is None
        assert port is not None
        assert is_free(port)


@each_kind
def test_all_four_kinds_of_calls_without_a_group(aio: bool) -> None:
    with serving(server := make(aio)), Shop(server.url) as client:
        assert client.unary("hello", b"you") == b"hello you"
        assert list(client.stream("count", b"2")) == [b"0", b"1"]
        numbers = [b"1", b"2", b"3"]
        to_unary: Any = client.channel.stream_unary("/tests.Shop/total")
        assert to_unary(iter(numbers), timeout=PATIENCE) == b"6"
        to_stream: Any = client.channel.stream_stream("/tests.Shop/echo")
        assert list(to_stream(iter(numbers), timeout=PATIENCE)) == numbers
        error = client.begin("nothing").exception()
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED
        if aio:
            assert client.unary("sync_hello", b"you") == b"hello you"


@each_kind
def test_a_stop_before_the_start_is_kept_and_a_second_one_does_nothing(aio: bool) -> None:
    server = make(aio)
    server.stop()
    server.stop()
    server.drain()
    server.start()
    with serving(server := make(aio)) as thread:
        server.stop()
        server.stop()
        thread.join(PATIENCE)
    with pytest.raises(RuntimeError, match="does not listen"):
        server.url  # noqa: B018


@each_kind
def test_a_call_that_its_client_gave_up_holds_nobody_up(aio: bool) -> None:
    with serving(server := make(aio)), Shop(server.url) as client:
        stream = client.stream("count", b"1000")  # for longer than `serving` waits for the end
        assert next(stream) == b"0"
        stream.cancel()


@each_kind
def test_servers_share_a_port_only_when_asked_to(aio: bool) -> None:
    with serving(first := make(aio, reuse_port=True)), Shop(first.url) as client:
        with pytest.raises(OSError, match="Address already in use"):
            make(aio, port=first.port).start()
        group = ServiceGroup()
        group.add(make(aio, port=first.port, reuse_port=True))
        if not aio:  # those belong in one loop
            with group:
                assert client.unary("hello", b"you") == b"hello you"


@each_kind
def test_a_unix_socket_is_served_and_not_taken_from_another(aio: bool, tmp_path: Path) -> None:
    path = tmp_path / "rpc.sock"
    with serving(server := make(aio, unix_socket=path)), Shop(server.url) as client:
        assert server.url == f"unix:{path}"
        assert server.port is None
        with pytest.raises(OSError, match=rf"cannot listen on {path}: Address already in use"):
            make(aio, unix_socket=path).start()
        assert client.unary("hello", b"you") == b"hello you"
    assert not path.exists()


@each_kind
def test_tls(aio: bool) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    pair = (made.private_key_pem.bytes(), made.cert_chain_pems[0].bytes())
    trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    server = make(aio, credentials=grpc.ssl_server_credentials([pair]))
    with serving(server):
        with Shop(server.url, trusted) as client:
            assert client.unary("hello", b"you") == b"hello you"
        with Shop(server.url) as client:
            assert client.begin("hello").exception().code() == grpc.StatusCode.UNAVAILABLE


@each_kind
def test_what_makes_no_sense_is_refused_at_once(aio: bool) -> None:
    kind: Any = GrpcAioServer if aio else GrpcServer
    with pytest.raises(TypeError, match="register must be a function of the server"):
        kind(object())
    with pytest.raises(ValueError, match="max_workers must be 1 or more, not 0"):
        kind(print, max_workers=0)
    with pytest.raises(TypeError, match="services must be several names"):
        kind(print, services="tests.Shop")
    with pytest.raises(ValueError, match="port must be from 0"):
        kind(print, port=-1)


@each_kind
def test_a_register_that_raises_fails_the_start(aio: bool) -> None:
    def register(_server: object) -> None:
        raise LookupError("no such servicer")

    kind: Any = GrpcAioServer if aio else GrpcServer
    group = ServiceGroup()
    group.add(kind(register, port=0))
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    assert [type(error) for error in caught.value.exceptions] == [LookupError]


def test_interceptors_of_users_are_called() -> None:
    seen = []

    class Interceptor(grpc.ServerInterceptor):
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            seen.append(details.method)
            return continuation(details)

    server = GrpcServer(register, port=0, interceptors=[Interceptor()])
    with serving(server), Shop(server.url) as client:
        assert client.unary("hello", b"you") == b"hello you"
    assert seen == ["/tests.Shop/hello"]


def test_the_aio_server_beside_another_service_of_its_loop() -> None:
    ended = []

    class Clock(AsyncService):
        async def run(self) -> None:
            while await self.sleep(0.01):
                pass
            ended.append((self.name, server.port))

    group = ServiceGroup()
    loop = group.add(AsyncGroup())
    loop.add(Clock(), name="before")
    server = loop.add(GrpcAioServer(aio_register, port=0))
    second = loop.add(GrpcAioServer(aio_register, port=0), name="second")
    loop.add(Clock(), name="after")
    with group, Shop(server.url) as client, Shop(second.url) as other:
        stream = client.stream("count", b"5")
        assert next(stream) == b"0"
        assert other.unary("hello", b"you") == b"hello you"
        group.stop()
        assert list(stream) == [b"1", b"2", b"3", b"4"]
    assert [port is None for _, port in ended] == [False, True]


@each_kind
def test_services_without_a_health_are_said_to_be_unknown(aio: bool) -> None:
    with serving(server := make(aio)), Shop(server.url) as client:
        with pytest.raises(grpc.RpcError) as caught:
            client.health("tests.Cinema")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = client.watch("tests.Cinema")
        assert next(watch) == Status.SERVICE_UNKNOWN
        server.drain()
        server.drain()
        late = client.watch()
        assert next(late) == Status.NOT_SERVING
        kept = server.drain
    kept()  # and nobody is there any more


def test_a_drain_that_comes_with_the_end_of_the_loop_does_nothing() -> None:
    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    server = GrpcAioServer(aio_register)
    server._look_away = closed
    server.drain()


@each_kind
def test_a_bind_that_fails_for_no_known_reason(aio: bool) -> None:
    # Any: the server, on which the library's method is replaced.
    def register(server: Any) -> None:
        server.add_insecure_port = broken

    def broken(address: str) -> int:
        raise RuntimeError(f"Failed to bind to address {address}")

    kind: Any = GrpcAioServer if aio else GrpcServer
    with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:0: gRPC does not say why"):
        kind(register, port=0).start()


class Over:
    """The context of a call that has ended already."""

    def add_callback(self, _callback: object) -> bool:
        return False


def test_calls_that_end_before_they_begin_leave_nothing_behind() -> None:
    calls = _Calls()
    context: Any = Over()
    assert calls._answer("/tests.Shop/hello", lambda request, _: request, b"you", context) == b"you"
    assert calls.open == set()
    said: list[object] = []
    health = _Health("tests", [""])
    health.Watch(HealthCheckRequest(), context, said.append)
    assert health._watches == set()
    health.end_watches()
    health.Watch(HealthCheckRequest(), context, said.append)
    assert said == [None]
    watch = _Watch("", said.append, ended=True)
    watch.tell(Status.SERVING)
    watch.end()
    assert said == [None]
    health.close()


def test_without_grpcio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "servicegroup.adapters.grpc")
    with pytest.raises(ImportError, match=r"pip install 'servicegroup\[grpc\]'"):
        importlib.import_module("servicegroup.adapters.grpc")
