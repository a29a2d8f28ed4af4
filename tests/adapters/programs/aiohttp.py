"""An aiohttp application, whose work blocks and is done on threads."""

from __future__ import annotations

import asyncio

from aiohttp import web

from servicegroup import ServiceGroup
from servicegroup.adapters.aiohttp import AiohttpServer
from tests.adapters.programs.common import OPTIONS, answer, run

END = b"\0"


def make(group: ServiceGroup) -> AiohttpServer:
    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        status, parts = await asyncio.to_thread(
            answer, request.method, str(request.rel_url), body, group
        )
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        while (part := await asyncio.to_thread(next, parts, END)) != END:
            await response.write(part)
        await response.write_eof()
        return response

    app = web.Application(client_max_size=10**9)
    app.router.add_route("*", "/{path:.*}", handle)
    # Else a line is logged for each request.
    return AiohttpServer(app, **{"port": 0, "access_log": None, **OPTIONS["server"]})


if __name__ == "__main__":
    run(make)
