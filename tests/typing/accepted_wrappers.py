"""Services out of functions and of context managers."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import assert_type

from servicegroup import Service, ServiceGroup, with_context, with_start


def work() -> int:
    return 1


def wait(stopping: threading.Event) -> None:
    stopping.wait()


def wait_for(seconds: float, stopping: threading.Event) -> bool:
    return stopping.wait(seconds)


@contextmanager
def connection() -> Generator[dict[str, int], None, None]:
    yield {"port": 80}


group = ServiceGroup()
assert_type(with_start(work), Service)
assert_type(group.add(with_start(work, work), name="work"), Service)
group.add(with_start(wait))
group.add(with_start(partial(wait_for, 1.0)))
group.add(with_start(lambda: None), name="nothing")
group.add(with_start(lambda stopping: stopping.wait()), name="lambda")
with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
    group.add(with_start(server.serve_forever, server.shutdown))

held = group.add(with_context(connection()))


def use() -> None:
    assert_type(held.value, dict[str, int])
    assert_type(with_context(threading.Lock()).value, bool)
