"""Servers, consumers of queues and observers: what they take, and that they keep their types."""

import asyncio
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, assert_type

import grpc
from aiohttp import web
from fastapi import FastAPI
from flask import Flask

from servicegroup import AsyncGroup, AsyncService, InProcess, Periodic, Restart, ServiceGroup
from servicegroup.adapters.aiohttp import AiohttpServer
from servicegroup.adapters.asgi import AsgiServer
from servicegroup.adapters.grpc import GrpcAioServer, GrpcServer
from servicegroup.adapters.kafka import KafkaConsumer
from servicegroup.adapters.nats import NatsConsumer
from servicegroup.adapters.queue import Message, QueueConsumer, Reject, RetryPolicy
from servicegroup.adapters.rabbitmq import RabbitConsumer
from servicegroup.adapters.redis import RedisStreamConsumer
from servicegroup.adapters.socketserver import SocketServer
from servicegroup.adapters.sqlite import SqliteConsumer, SqliteQueue
from servicegroup.adapters.wsgi import WsgiServer
from servicegroup.observe.admin import AdminServer
from servicegroup.observe.health import Health, Verdict
from servicegroup.observe.metrics import register
from servicegroup.observe.systemd import notify_systemd
from servicegroup.observe.timeline import svg, write_report

orders = SqliteQueue(Path(tempfile.gettempdir()) / "shop.db", "orders")
group = ServiceGroup(name="shop")


def handle(message: Message) -> None:
    assert_type(message.body, bytes)
    assert_type(message.text(), str)
    raise Reject("not today")


async def handle_later(message: Message) -> int:
    await asyncio.sleep(0)
    return message.attempt


def register_rpcs(server: grpc.Server) -> None:
    assert_type(server, grpc.Server)


def register_coroutines(server: grpc.aio.Server) -> None:
    assert_type(server, grpc.aio.Server)


def put() -> None:
    assert_type(orders.put("tea", {"customer": "ann"}, delay=1.5), str)
    assert_type(orders.put_many(["tea", b"coffee"]), list[str])


async def bare(scope: Any, receive: Any, send: Any) -> None:
    pass


admin = group.add(AdminServer(group, port=0, health=Health(group, check_timeout=2)))
assert_type(admin, AdminServer)
consumer = group.add(SqliteConsumer(orders, handle, retry=RetryPolicy(3, delay=0.1)))
assert_type(consumer, SqliteConsumer)
assert_type(consumer.handled, int)
api = group.add(AsgiServer(FastAPI(), port=0, access_log=False), name="api")
assert_type(api, AsgiServer)
assert_type(api.port, int | None)

consumers: list[QueueConsumer] = [
    RedisStreamConsumer("redis://127.0.0.1", stream="orders", group="shop", handler=handle),
    RabbitConsumer("amqp://127.0.0.1", "orders", handle_later, dead_letter="refused"),
    KafkaConsumer("127.0.0.1:9092", "orders", "shop", handle, concurrency=4),
    NatsConsumer("nats://127.0.0.1", stream="orders", durable="shop", handler=handle_later),
]
coroutines: list[AsyncService] = [
    AsgiServer(bare, unix_socket="shop.sock"),
    AiohttpServer(web.Application(), port=0),
    GrpcAioServer(register_coroutines, port=0),
    *consumers,
]
loop = AsyncGroup(name="loop")
for coroutine in coroutines:
    loop.add(coroutine)

assert_type(group.add(WsgiServer(Flask("shop"), port=0, threads=8)), WsgiServer)
assert_type(group.add(GrpcServer(register_rpcs, port=0)), GrpcServer)
address = ("127.0.0.1", 0)
group.add(SocketServer(ThreadingHTTPServer, address, BaseHTTPRequestHandler), name="plain")
group.add(Periodic(put, every=60, first="after"), on_failure=Restart(delay=0.5))
group.add(InProcess(ServiceGroup, workers=2))

register(group)
notify_systemd(group)
write_report(group, Path(tempfile.gettempdir()) / "shop.svg")
assert_type(Health(group).readiness(), Verdict)


def where() -> str:
    return api.url


def draw() -> str:
    return svg(group.wait())
