"""Servers of the kinds that the arguments say, as their libraries have them; SIGTERM ends them.

One runs in the main thread, several in a thread each. Prints their ports.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from typing import Any

from benchmarks.programs import answers


def socket_server(listener: socket.socket) -> None:
    from http.server import ThreadingHTTPServer

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # it would print that the clients have hung up at the end

    server = Server(("127.0.0.1", 0), answers.Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()


def asgi_server(listener: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(answers.asgi_app, log_config=None, access_log=False)
    uvicorn.Server(config).run([listener])


def wsgi_server(listener: socket.socket) -> None:
    import waitress

    # As in the group.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    waitress.serve(answers.wsgi_app, sockets=[listener])


def aiohttp_server(listener: socket.socket) -> None:
    from aiohttp import web

    web.run_app(answers.aiohttp_app(), sock=listener, access_log=None, print=None)


def grpc_server(listener: socket.socket) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(10))
    answers.add_shop(server)
    _rebind(server, listener)
    server.start()
    signal.pause()  # wait_for_termination() looks ten times a second


def grpc_aio_server(listener: socket.socket) -> None:
    import grpc.aio

    async def serve() -> None:
        server = grpc.aio.server()
        answers.add_aio_shop(server)
        _rebind(server, listener)
        await server.start()
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
        await asked.wait()
        await server.stop(None)

    asyncio.run(serve())


def _rebind(server: Any, listener: socket.socket) -> None:
    # gRPC takes no socket, but the port that was chosen is known already.
    host, port = listener.getsockname()
    listener.close()
    server.add_insecure_port(f"{host}:{port}")


KINDS = {
    "SocketServer": socket_server,
    "AsgiServer": asgi_server,
    "WsgiServer": wsgi_server,
    "AiohttpServer": aiohttp_server,
    "GrpcServer": grpc_server,
    "GrpcAioServer": grpc_aio_server,
}


def main() -> None:
    # For those that have no handler of their own: the interpreter ends as after the last line.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    kinds = [KINDS[kind] for kind in sys.argv[1:]]
    listeners = []
    for _ in kinds:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        listeners.append(listener)
    print(*(listener.getsockname()[1] for listener in listeners), flush=True)
    if len(kinds) == 1:
        kinds[0](listeners[0])
        return
    for kind, listener in zip(kinds, listeners, strict=True):
        threading.Thread(target=kind, args=[listener], daemon=True).start()
    signal.pause()


if __name__ == "__main__":
    main()
