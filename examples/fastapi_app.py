"""A FastAPI application, and a consumer of what it takes in.

    python examples/fastapi_app.py
    curl -X POST http://127.0.0.1:8080/orders/1

PORT in the environment chooses another port, 0 any that is free. End it with Ctrl-C or SIGTERM: the
API goes first, so the consumer gets every order that was taken.
"""

import os
import queue

from fastapi import FastAPI, Response

from servicegroup import ServiceGroup, with_start
from servicegroup.adapters.asgi import AsgiServer
from servicegroup.events import Event, GroupReady

app = FastAPI()
orders: queue.Queue[int | None] = queue.Queue()
server = AsgiServer(app, port=int(os.environ.get("PORT", "8080")))
group = ServiceGroup(name="shop", drain_delay=0.5)


@app.post("/orders/{number}", status_code=202)
async def take(number: int) -> dict[str, int]:
    orders.put(number)
    return {"order": number}


@app.get("/ready")
async def ready() -> Response:
    return Response(status_code=200 if group.is_ready else 503)


def pack() -> None:
    for number in iter(orders.get, None):  # None comes last, from the stop below
        print(f"order {number} is packed", flush=True)


def tell(event: Event) -> None:
    if isinstance(event, GroupReady):
        print(f"serving at {server.url}", flush=True)


group.add(with_start(pack, lambda: orders.put(None)), name="packer")
group.add(server, name="api")
group.subscribe(tell)
group.run()
