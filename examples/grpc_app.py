"""A gRPC server that says when to look away.

    python examples/grpc_app.py

PORT in the environment chooses another port, 0 any that is free. End it with Ctrl-C or SIGTERM: for
the second of the drain, its health service says NOT_SERVING, and calls are still served.
"""

import os

import grpc

from servicegroup import ServiceGroup
from servicegroup.adapters.grpc import GrpcServer
from servicegroup.events import Event, GroupReady


def greet(request: bytes, context: grpc.ServicerContext) -> bytes:
    return b"hello " + request


def register(server: grpc.Server) -> None:
    # With generated code it is add_GreeterServicer_to_server(Greeter(), server).
    handler = grpc.method_handlers_generic_handler(
        "shop.Greeter", {"Greet": grpc.unary_unary_rpc_method_handler(greet)}
    )
    server.add_generic_rpc_handlers([handler])


def tell(event: Event) -> None:
    if isinstance(event, GroupReady):
        print(f"serving at {server.url}", flush=True)


server = GrpcServer(register, port=int(os.environ.get("PORT", "8080")), services=["shop.Greeter"])
group = ServiceGroup(name="shop", drain_delay=1)
group.add(server, name="api")
group.subscribe(tell)
group.run()
