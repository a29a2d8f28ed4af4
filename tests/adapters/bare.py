"""A server without a group: `start()` in a thread, `stop()` from another."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tests.adapters.web import PATIENCE, ROOT


class Server(Protocol):
    """What of an adapter is used here."""

    @property
    def url(self) -> str: ...

    def start(self) -> object: ...

    def stop(self) -> object: ...


@contextmanager
def serving(server: Server) -> Iterator[threading.Thread]:
    """It serves inside the block, and has ended after it. Its thread."""
    raised: list[BaseException] = []

    def start() -> None:
        try:
            server.start()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    try:
        wait_for_url(server, thread)
        yield thread
    finally:
        server.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert raised == []


def wait_for_url(server: Server, thread: threading.Thread) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and thread.is_alive():
        try:
            assert server.url
        except RuntimeError:
            time.sleep(0.001)
        else:
            return


def refused_to_nobody(imports: str, code: str) -> str:
    """What `code`, which must fail, says when the process has no rights any more."""
    drop = "import os; os.getuid() or os.setuid(65534)"
    child = subprocess.run(
        [sys.executable, "-c", f"{imports}\n{drop}\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert child.returncode == 1
    return child.stderr
