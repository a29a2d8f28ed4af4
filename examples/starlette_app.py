"""A Starlette application with an endless answer, which ends when the server stops.

    python examples/starlette_app.py
    curl -N http://127.0.0.1:8080/ticks

PORT in the environment chooses another port, 0 any that is free. End it with Ctrl-C or SIGTERM.
"""

import asyncio
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from servicegroup import ServiceGroup
from servicegroup.adapters.asgi import AsgiServer
from servicegroup.events import Event, GroupReady


async def ticks() -> AsyncIterator[str]:
    while True:
        yield "data: tick\n\n"
        await asyncio.sleep(0.1)


async def stream(request: Request) -> Response:
    items = server.until_stopping(ticks())
    return StreamingResponse(items, media_type="text/event-stream")


async def ready(request: Request) -> Response:
    return Response(status_code=200 if group.is_ready else 503)


def tell(event: Event) -> None:
    if isinstance(event, GroupReady):
        print(f"serving at {server.url}", flush=True)


app = Starlette(routes=[Route("/ticks", stream), Route("/ready", ready)])
server = AsgiServer(app, port=int(os.environ.get("PORT", "8080")))
group = ServiceGroup(name="clock", drain_delay=0.5)
group.add(server, name="web")
group.subscribe(tell)
group.run()
