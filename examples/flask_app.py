"""A Flask application, and a pool of threads that does what its clients need not wait for.

    python examples/flask_app.py
    curl -X POST http://127.0.0.1:8080/mails/ann

PORT in the environment chooses another port, 0 any that is free. End it with Ctrl-C or SIGTERM: the
pool is closed after the server, and waits for what it was given.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from flask import Flask

from servicegroup import ServiceGroup, with_context
from servicegroup.adapters.wsgi import WsgiServer
from servicegroup.events import Event, GroupReady

app = Flask(__name__)
pool = ThreadPoolExecutor(max_workers=2)
server = WsgiServer(app, port=int(os.environ.get("PORT", "8080")))
group = ServiceGroup(name="post", drain_delay=0.5)


@app.post("/mails/<name>")
def mail(name: str) -> tuple[str, int]:
    pool.submit(print, f"mail for {name} is sent", flush=True)
    return f"{name} will get a mail\n", 202


@app.get("/ready")
def ready() -> tuple[str, int]:
    return ("yes\n", 200) if group.is_ready else ("no\n", 503)


def tell(event: Event) -> None:
    if isinstance(event, GroupReady):
        print(f"serving at {server.url}", flush=True)


group.add(with_context(pool), name="pool")
group.add(server, name="web")
group.subscribe(tell)
group.run()
