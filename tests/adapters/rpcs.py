"""A gRPC service without generated code, and clients that watch the health of its server."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE = "tests.Shop"
PATIENCE = 30.0

Status = health_pb2.HealthCheckResponse


def hang() -> None:
    """What never returns, and says that it has begun."""
    print("hanging", flush=True)
    threading.Event().wait()


# Any: the context, of which nothing is used.
def where(_request: bytes, _context: Any) -> bytes:
    return str(os.getpid()).encode()


def hello(request: bytes, _context: Any) -> bytes:
    return b"hello " + request


def slow(request: bytes, _context: Any) -> bytes:
    time.sleep(float(request))
    return b"slow"


def count(request: bytes, _context: Any) -> Iterator[bytes]:
    for number in range(int(request)):
        time.sleep(0.1)
        yield str(number).encode()


def total(requests: Iterator[bytes], _context: Any) -> bytes:
    return str(sum(map(int, requests))).encode()


def echo(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    yield from requests


def fail(_request: bytes, _context: Any) -> bytes:
    raise ValueError("no luck")


def hang_here(_request: bytes, _context: Any) -> bytes:
    hang()
    return b""


def hang_in_stream(_request: bytes, _context: Any) -> Iterator[bytes]:
    yield b"first"
    hang()


async def aio_where(_request: bytes, _context: Any) -> bytes:
    return str(os.getpid()).encode()


async def aio_hello(request: bytes, _context: Any) -> bytes:
    return b"hello " + request


async def aio_slow(request: bytes, _context: Any) -> bytes:
    await asyncio.sleep(float(request))
    return b"slow"


async def aio_count(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for number in range(int(request)):
        await asyncio.sleep(0.1)
        yield str(number).encode()


async def aio_total(requests: AsyncIterator[bytes], _context: Any) -> bytes:
    return str(sum([int(one) async for one in requests])).encode()


async def aio_echo(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for one in requests:
        yield one


async def aio_fail(_request: bytes, _context: Any) -> bytes:
    raise ValueError("no luck")


async def aio_hang_here(_request: bytes, _context: Any) -> bytes:
    print("hanging", flush=True)
    await asyncio.Event().wait()
    return b""


async def aio_hang_in_stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
    yield b"first"
    print("hanging", flush=True)
    await asyncio.Event().wait()


def _registering(**behaviors: Callable[..., object]) -> Callable[[Any], None]:
    kinds = {
        "total": grpc.stream_unary_rpc_method_handler,
        "count": grpc.unary_stream_rpc_method_handler,
        "hang_in_stream": grpc.unary_stream_rpc_method_handler,
        "echo": grpc.stream_stream_rpc_method_handler,
    }
    # Any: the four functions have types of their own, which are no others' supertype.
    handlers: dict[str, Any] = {}
    for name, behavior in behaviors.items():
        make: Callable[..., object] = kinds.get(name, grpc.unary_unary_rpc_method_handler)
        handlers[name] = make(behavior)

    def register(server: Any) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    return register


register = _registering(
    where=where,
    hello=hello,
    slow=slow,
    count=count,
    total=total,
    echo=echo,
    fail=fail,
    hang=hang_here,
    hang_in_stream=hang_in_stream,
)
aio_register = _registering(
    where=aio_where,
    hello=aio_hello,
    slow=aio_slow,
    count=aio_count,
    total=aio_total,
    echo=aio_echo,
    fail=aio_fail,
    hang=aio_hang_here,
    hang_in_stream=aio_hang_in_stream,
    sync_hello=hello,
    sync_hang=hang_here,
)


class Shop:
    """The client's side of one channel."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        # Else channels to one target share their connection, also a broken one.
        options = (("grpc.use_local_subchannel_pool", 1),)
        if credentials is None:
            self.channel = grpc.insecure_channel(target, options)
        else:
            self.channel = grpc.secure_channel(target, credentials, options)

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def unary(self, method: str, request: bytes = b"") -> bytes:
        answer: bytes = self.begin(method, request).result()
        return answer

    # Any: a call, whose type is the library's own.
    def begin(self, method: str, request: bytes = b"") -> Any:
        call: Any = self.channel.unary_unary(f"/{SERVICE}/{method}")
        return call.future(request, timeout=PATIENCE)

    # Any: an iterator that is a call, too.
    def stream(self, method: str, request: bytes = b"") -> Any:
        call: Any = self.channel.unary_stream(f"/{SERVICE}/{method}")
        return call(request, timeout=PATIENCE)

    def health(self, service: str = "") -> int:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        request = health_pb2.HealthCheckRequest(service=service)
        status: int = stub.Check(request, timeout=PATIENCE).status
        return status

    def watch(self, service: str = "") -> Iterator[int]:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        for response in stub.Watch(health_pb2.HealthCheckRequest(service=service)):
            yield response.status


class Watcher(threading.Thread):
    """Calls one server until that says NOT_SERVING, and then the next one."""

    def __init__(self, targets: list[str]) -> None:
        super().__init__(daemon=True)
        self.answered = 0
        self.moved = 0
        self.watches = threading.Event()  # it has heard of the first server's health
        self.failed: list[str] = []
        self.told_to_end = threading.Event()
        self._targets = targets

    def run(self) -> None:
        for target in itertools.cycle(self._targets):
            with Shop(target) as shop:
                away = threading.Event()
                watching = threading.Thread(target=self._watch, args=(shop, away), daemon=True)
                watching.start()
                while not (away.is_set() or self.told_to_end.is_set()):
                    self._call(shop)
            watching.join(PATIENCE)
            if self.told_to_end.is_set():
                return
            self.moved += 1

    def _watch(self, shop: Shop, away: threading.Event) -> None:
        try:
            for status in shop.watch():
                self.watches.set()
                if status != Status.SERVING:
                    return
        except grpc.RpcError:
            pass
        finally:
            away.set()

    def _call(self, shop: Shop) -> None:
        try:
            assert shop.unary("hello", b"you") == b"hello you"
            assert shop.unary("slow", b"0.02") == b"slow"
            assert list(shop.stream("count", b"1")) == [b"0"]
        except Exception as error:
            self.failed.append(repr(error))
        else:
            self.answered += 3
