"""What the programs of all HTTP servers have in common: what they answer, and how they are run."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from servicegroup import ServiceGroup, events

BIG = b"x" * 1_000_000

# Any: what the test passes to the server and to the group.
OPTIONS: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}


def hang() -> None:
    """What never returns."""
    threading.Event().wait()


def answer(
    method: str, target: str, body: bytes, group: ServiceGroup
) -> tuple[int, Iterator[bytes]]:
    """A status, and the parts of the answer. It may block."""
    url = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    if url.path == "/hello":
        return 200, iter([b"hello"])
    if url.path == "/ready":
        return (200 if group.is_ready else 503), iter([b""])
    if url.path == "/slow":
        time.sleep(float(query["seconds"]))
        return 200, iter([b"slow"])
    if url.path == "/stream":
        return 200, _stream(int(query["parts"]), float(query["pause"]))
    if url.path == "/big":
        return 200, (BIG for _ in range(100))
    if url.path == "/upload" and method == "POST":
        return 200, iter([str(len(body)).encode()])
    if url.path == "/hang":
        hang()
    return 404, iter([b"not here"])


def _stream(parts: int, pause: float) -> Iterator[bytes]:
    for number in range(parts):
        time.sleep(pause)
        yield f"part {number}\n".encode()


# Any: the service, whose kind the programs choose.
def run(make: Callable[[ServiceGroup], Any]) -> None:
    """Run the server in a group; say where it is, and what becomes of the group."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    group = ServiceGroup(**OPTIONS.get("group", {}))
    server = make(group)

    def tell(event: events.Event) -> None:
        said = type(event).__name__
        if isinstance(event, events.GroupReady):
            said = f"ready {server.url}"
        os.write(1, f"{said}\n".encode())

    group.subscribe(tell)
    group.add(server, name="web")
    group.run()
