"""`AdminServer`: probes, metrics, a live page and stacks over HTTP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib.resources
import ipaddress
import json
import logging
import math
import re
import threading
from collections.abc import Callable
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from servicegroup.adapters.socketserver import SocketServer
from servicegroup.events import Event, ServiceStopping
from servicegroup.group import ServiceGroup
from servicegroup.observe._snapshot import Snapshot, event_dict, stacks
from servicegroup.observe._stream import Stream
from servicegroup.observe.health import Health, Verdict

log = logging.getLogger("servicegroup.observe")

LAST_SECONDS = 2.0  # for answers that are being sent at the stop
TELL_SECONDS = 0.5  # for subscribers to hear of that stop, so that those who listen hear it, too
CLIENT_SECONDS = 10.0  # a client may take to send its request, or to take the answer
SECURITY = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'",
}
NO_METRICS = "metrics need prometheus_client: pip install 'servicegroup[metrics]'\n"


class AdminServer(SocketServer):
    """Answers probes and shows the group. Add it first: so it stops last.

    `/livez`, `/readyz` and `/startupz` answer 200 or 503 (with `?verbose` a line for each service;
    in JSON if that is asked for by `Accept`); `/metrics` is for Prometheus (extra `metrics`);
    `/status.json` is how all stands, `/events` what happens, as server-sent events; `/stacks` where
    every thread is; `/` a page for people.

    Everything is GET, but for POST `/stop`, which stops the group and is there only with a `token`.
    Bound to a loopback address, it answers only requests that are addressed to one.

    Args:
        group: what it shows, and is added to.
        host, port: where to listen; port 0 chooses a free one.
        token: what `/stop` asks for, as `Authorization: Bearer …`; None: there is no `/stop`.
        health: how readiness is found; by default `Health(group)`.

    Attributes:
        port: the port it listens to, once it is ready.
        url: where clients find it, once it is ready.

    Raises:
        ValueError: `token` is too short to keep anybody out.
    """

    daemon: bool | None = True

    def __init__(
        self,
        group: ServiceGroup,
        host: str = "127.0.0.1",
        port: int = 9090,
        *,
        token: str | None = None,
        health: Health | None = None,
    ) -> None:
        if token is not None and len(token) < 16:
            raise ValueError("AdminServer: token must have 16 characters or more")
        self._group = group
        self._token = token
        self._local = _is_local(host)
        self._health = Health(group) if health is None else health
        self._snapshot = Snapshot(group)
        self._stream = Stream()
        self._entry: str | None = None  # its name in the group, while it runs there
        self._told = threading.Event()  # all events up to its own stop
        self._metrics: Callable[[], bytes] | None = _metrics_of(group)
        super().__init__(ThreadingHTTPServer, (host, port), partial(_Handler, self))
        self.name = "admin"
        group.subscribe(self._on_event)

    def _on_event(self, event: Event) -> None:
        self._snapshot.note(event)
        self._stream.tell(lambda: event_dict(event))
        if isinstance(event, ServiceStopping) and event.service == self._entry:
            self._told.set()

    def start(self) -> None:
        """Serve until `stop()`. OSError when it cannot listen."""
        services = self._group.services
        self._told.clear()
        self._entry = next((name for name, one in services.items() if one is self), None)
        if next(iter(services.values()), self) is not self:
            log.warning(
                "service %r is not the first of group %r: it stops before those added earlier, "
                "whose stop no probe can see then. Add it first",
                self.name,
                self._group.name,
            )
        self._stream.begin()
        super().start()

    def drain(self) -> None:
        """Nothing: probes go on until the end."""

    def remaining(self) -> float:
        """Seconds for the stop: few, since nobody's work is in flight here."""
        return min(super().remaining(), LAST_SECONDS) if self.stopping.is_set() else math.inf

    def stop(self) -> None:
        """Stop; those who listen to events are sent home. Any thread."""
        if self._entry is not None:
            self._told.wait(TELL_SECONDS)
        self._stream.end()
        super().stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body in one piece
    timeout = CLIENT_SECONDS
    server_version = "servicegroup"
    sys_version = ""

    def __init__(self, admin: AdminServer, *arguments: object) -> None:
        self._admin = admin
        super().__init__(*arguments)  # type: ignore[arg-type]  # as it was called

    def do_GET(self) -> None:
        if not self._is_for_us():
            return
        path = urlsplit(self.path).path
        routes: dict[str, Callable[[], None]] = {
            "/": self._page,
            "/livez": lambda: self._probe(self._admin._health.liveness()),
            "/readyz": lambda: self._probe(self._admin._health.readiness()),
            "/startupz": lambda: self._probe(self._admin._health.startup()),
            "/metrics": self._metrics,
            "/status.json": lambda: self._json(200, self._admin._snapshot.now()),
            "/events": self._events,
            "/stacks": lambda: self._text(200, stacks(self._admin._group)),
        }
        route = routes.get(path)
        if route is None:
            self._text(404, f"there are {' '.join(sorted(routes))}\n")
        else:
            route()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.close_connection = True  # whatever else was sent
        if not self._is_for_us():
            return
        token = self._admin._token
        if token is None or urlsplit(self.path).path != "/stop":
            self._text(405, "everything is to be had by GET\n", Allow="GET, HEAD")
            return
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            self._text(401, "a token is needed\n", **{"WWW-Authenticate": "Bearer"})
            return
        self._admin._group.stop("asked for by POST /stop")
        self._text(202, "it stops\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class'
        log.debug("%s: %s", self.address_string(), format % args)

    # -- the answers ------------------------------------------------------------------------------

    def _is_for_us(self) -> bool:
        """Not of a web page elsewhere whose name was made to lead here."""
        host = self.headers.get("Host", "")
        if not self._admin._local or not host or _is_local(urlsplit(f"//{host}").hostname or ""):
            return True
        self._text(421, "this server is asked for by a loopback address only\n")
        return False

    def _probe(self, verdict: Verdict) -> None:
        code = 200 if verdict.ok else 503
        if "application/json" in self.headers.get("Accept", ""):
            self._json(code, verdict.to_dict())
        elif "verbose" in parse_qs(urlsplit(self.path).query, keep_blank_values=True):
            self._text(code, f"{verdict}\n")
        else:
            self._text(code, "ok\n" if verdict.ok else f"{verdict}\n")

    def _metrics(self) -> None:
        metrics = self._admin._metrics
        if metrics is None:
            self._text(404, NO_METRICS)
            return
        self._answer(200, "text/plain; version=0.0.4; charset=utf-8", metrics())

    def _page(self) -> None:
        page, policy = _page()
        self._answer(200, "text/html; charset=utf-8", page, **{"Content-Security-Policy": policy})

    def _events(self) -> None:
        stream = self._admin._stream
        listener = stream.listen()
        if listener is None:
            self._text(503, "too many listen already\n")
            return
        try:
            self.close_connection = True
            self._head(200, {"Content-Type": "text/event-stream", "Connection": "close"})
            for chunk in listener.chunks():
                self.wfile.write(chunk)
                self.wfile.flush()
        except OSError:
            pass  # it has gone
        finally:
            stream.leave(listener)

    def _json(self, code: int, what: object) -> None:
        self._answer(code, "application/json", json.dumps(what).encode())

    def _text(self, code: int, text: str, **headers: str) -> None:
        self._answer(code, "text/plain; charset=utf-8", text.encode(errors="replace"), **headers)

    def _answer(self, code: int, kind: str, body: bytes, **headers: str) -> None:
        self._head(code, {"Content-Type": kind, "Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in (SECURITY | headers).items():
            self.send_header(name, value)
        self.end_headers()


@cache
def _page() -> tuple[bytes, str]:
    """The page, and what it may do: nothing but run its own script and ask this server."""
    page = importlib.resources.files("servicegroup.observe").joinpath("page.html").read_bytes()
    hashes = {
        tag: base64.b64encode(hashlib.sha256(found[1]).digest()).decode()
        for tag in ("script", "style")
        if (found := re.search(rb"<%s>(.*?)</%s>" % (tag.encode(), tag.encode()), page, re.DOTALL))
    }
    policy = "; ".join(
        [
            "default-src 'none'",
            "connect-src 'self'",
            "img-src data:",
            f"script-src 'sha256-{hashes['script']}'",
            # The lengths of the bars are set by the script, which this does not forbid.
            f"style-src 'sha256-{hashes['style']}'",
        ]
    )
    return page, policy


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _metrics_of(group: ServiceGroup) -> Callable[[], bytes] | None:
    try:
        from prometheus_client import CollectorRegistry, generate_latest

        from servicegroup.observe.metrics import GroupCollector
    except ImportError:
        return None
    # Of its own: two groups of one process have the same metrics.
    registry = CollectorRegistry()
    registry.register(GroupCollector(group))
    return lambda: generate_latest(registry)
