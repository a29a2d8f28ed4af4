"""A bare ASGI application, whose work blocks and is done on threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio.to_thread

from servicegroup import ServiceGroup
from servicegroup.adapters.asgi import App, AsgiServer
from tests.adapters.programs.common import OPTIONS, answer, run

END = b"\0"


async def parts_of(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (part := await anyio.to_thread.run_sync(next, parts, END)) != END:
        yield part


def application(group: ServiceGroup) -> App:
    # Any: ASGI's messages are dictionaries of all kinds.
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        target = f"{scope['path']}?{scope['query_string'].decode()}"
        status, parts = await anyio.to_thread.run_sync(answer, scope["method"], target, body, group)
        await send({"type": "http.response.start", "status": status, "headers": []})
        async for part in parts_of(parts):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def make(group: ServiceGroup) -> AsgiServer:
    # Else a line is logged for each request.
    return AsgiServer(application(group), **{"port": 0, "access_log": False, **OPTIONS["server"]})


if __name__ == "__main__":
    run(make)
