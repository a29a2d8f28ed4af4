"""A server object that was there before, as a service: one method blocks, another ends it.

    python examples/existing_server.py

PORT in the environment chooses another port, 0 any that is free. End it with Ctrl-C or SIGTERM.
"""

import os
from xmlrpc.server import SimpleXMLRPCServer

from servicegroup import ServiceGroup, with_start
from servicegroup.events import Event, GroupReady


def tell(event: Event) -> None:
    if isinstance(event, GroupReady):
        print(f"serving at http://127.0.0.1:{server.server_address[1]}", flush=True)


server = SimpleXMLRPCServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))))
server.register_introspection_functions()

group = ServiceGroup(name="calls")
group.add(with_start(server.serve_forever, server.shutdown), name="rpc")
group.subscribe(tell)
group.run()
