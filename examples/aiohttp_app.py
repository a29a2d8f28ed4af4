"""Two applications of aiohttp in one event loop: one for clients, one for whoever operates it.

    python examples/aiohttp_app.py
    curl http://127.0.0.1:8080/
    curl http://127.0.0.1:8081/ready

PORT and ADMIN_PORT in the environment choose other ports, 0 any that is free. End it with Ctrl-C or
SIGTERM.
"""

import os

from aiohttp import web

from servicegroup import AsyncGroup, ServiceGroup
from servicegroup.adapters.aiohttp import AiohttpServer
from servicegroup.events import Event, GroupReady


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello\n")


async def ready(request: web.Request) -> web.Response:
    return web.Response(status=200 if group.is_ready else 503)


def tell(event: Event) -> None:
    if isinstance(event, GroupReady) and event.group == group.name:  # not the inner one
        print(f"serving at {shop.url}, and at {admin.url}", flush=True)


shop_app, admin_app = web.Application(), web.Application()
shop_app.add_routes([web.get("/", hello)])
admin_app.add_routes([web.get("/ready", ready)])

shop = AiohttpServer(shop_app, port=int(os.environ.get("PORT", "8080")))
admin = AiohttpServer(admin_app, port=int(os.environ.get("ADMIN_PORT", "8081")))
servers = AsyncGroup(name="servers")
servers.add(admin, name="admin")  # first, so that it answers to the end
servers.add(shop, name="shop")
group = ServiceGroup(name="shop", drain_delay=0.5)
group.add(servers)
group.subscribe(tell)
group.run()
