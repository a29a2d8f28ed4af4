"""A bare WSGI application, served by waitress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from servicegroup import ServiceGroup
from servicegroup.adapters.wsgi import WsgiServer
from tests.adapters.programs.common import OPTIONS, answer, run

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def make(group: ServiceGroup) -> WsgiServer:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        if environ["PATH_INFO"] == "/raise":
            raise ValueError("no luck")
        if environ["PATH_INFO"] == "/exit":
            raise SystemExit(3)
        status, parts = answer(environ["REQUEST_METHOD"], environ["REQUEST_URI"], body, group)
        start_response(f"{status} said", [])
        # What has no length ends its connection, so only a stream is left as one.
        return parts if environ["PATH_INFO"] in ("/stream", "/big") else [b"".join(parts)]

    return WsgiServer(app, **{"port": 0, **OPTIONS["server"]})


if __name__ == "__main__":
    run(make)
