"""Servers of the kinds that the arguments say, in one group; SIGTERM ends them.

Prints their ports once all of them serve.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from benchmarks.programs import answers
from servicegroup import ServiceGroup
from servicegroup.events import GroupReady

# Each loads what it needs and nothing else: that it is there would cost the others, too.


def socket_server() -> Any:
    from http.server import ThreadingHTTPServer

    from servicegroup.adapters.socketserver import SocketServer

    return SocketServer(ThreadingHTTPServer, ("127.0.0.1", 0), answers.Handler)


def asgi_server() -> Any:
    from servicegroup.adapters.asgi import AsgiServer

    return AsgiServer(answers.asgi_app, port=0, access_log=False)


def wsgi_server() -> Any:
    from servicegroup.adapters.wsgi import WsgiServer

    # It tells of each request that waits for a thread, which would cost more than to answer.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    return WsgiServer(answers.wsgi_app, port=0)


def aiohttp_server() -> Any:
    from servicegroup.adapters.aiohttp import AiohttpServer

    return AiohttpServer(answers.aiohttp_app(), port=0, access_log=None)


def grpc_server() -> Any:
    from servicegroup.adapters.grpc import GrpcServer

    return GrpcServer(answers.add_shop, port=0)


def grpc_aio_server() -> Any:
    from servicegroup.adapters.grpc import GrpcAioServer

    return GrpcAioServer(answers.add_aio_shop, port=0)


KINDS = {
    "SocketServer": socket_server,
    "AsgiServer": asgi_server,
    "WsgiServer": wsgi_server,
    "AiohttpServer": aiohttp_server,
    "GrpcServer": grpc_server,
    "GrpcAioServer": grpc_aio_server,
}


def main() -> None:
    servers = [KINDS[kind]() for kind in sys.argv[1:]]
    group = ServiceGroup()
    for server in servers:
        group.add(server)

    def tell(event: object) -> None:
        if isinstance(event, GroupReady):
            print(*(server.port for server in servers), flush=True)

    group.subscribe(tell)
    group.start()


if __name__ == "__main__":
    main()
