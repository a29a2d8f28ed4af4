"""Clients of an HTTP server, each with a connection that it keeps and a request now and then.

The arguments are the port and for how many seconds to ask; it prints how many seconds each answer
took.
"""

import socket
import sys
import threading
import time

CLIENTS = 4
EVERY = 0.08  # seconds: 50 requests a second in all, so that the clients take next to no processor
WARM_UP = 5  # requests of each client that do not count
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def ask(port: int, first: float, count: int, took: list[float]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(count):
            begun = first + number * EVERY
            # Late because of the answer before: then the wait for that counts here, too, as it does
            # for whoever has to ask again.
            if (wait := begun - time.perf_counter()) > 0:
                time.sleep(wait)
                begun = time.perf_counter()
            connection.sendall(REQUEST)
            answer = b""
            while not answer.endswith(b"ok\n"):
                received = connection.recv(4096)
                if not received:
                    raise SystemExit("the server hung up")
                answer += received
            if number >= WARM_UP:
                took.append(time.perf_counter() - begun)


def main() -> None:
    port, seconds = int(sys.argv[1]), float(sys.argv[2])
    count = WARM_UP + max(1, round(seconds / EVERY))
    took: list[float] = []
    begun = time.perf_counter() + 0.05
    threads = [
        threading.Thread(
            target=ask, args=(port, begun + EVERY * number / CLIENTS, count, took), daemon=True
        )
        for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(took) < CLIENTS * (count - WARM_UP):
        raise SystemExit("a client failed")
    print(*took)


if __name__ == "__main__":
    main()
