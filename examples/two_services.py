"""Two HTTP services in one process, with nothing but the standard library.

    python examples/two_services.py
    curl http://127.0.0.1:8080/servers.md
    curl http://127.0.0.1:8081/two_services.py

Run it where docs/ and examples/ are. Two arguments are other ports. End it with Ctrl-C or SIGTERM.
"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from servicegroup import ServiceGroup
from servicegroup.adapters.socketserver import SocketServer

group = ServiceGroup(name="sites")
for folder, port in zip(("docs", "examples"), sys.argv[1:] or ("8080", "8081"), strict=True):
    site = partial(SimpleHTTPRequestHandler, directory=folder)
    group.add(SocketServer(ThreadingHTTPServer, ("127.0.0.1", int(port)), site), name=folder)
group.run()
