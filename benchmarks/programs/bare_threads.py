"""As many bare threads as the argument says; SIGTERM ends them one by one, the last one first."""

import signal
import sys
import threading
import time


def main() -> None:
    begun = time.monotonic()
    # Blocked and waited for: no handler to run, so nothing comes sooner.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    running: list[tuple[threading.Thread, threading.Event]] = []
    for _ in range(int(sys.argv[1])):
        stopping = threading.Event()
        thread = threading.Thread(target=stopping.wait, daemon=True)
        thread.start()
        running.append((thread, stopping))
    print(begun, time.monotonic(), flush=True)
    signal.sigwait({signal.SIGTERM})
    for thread, stopping in reversed(running):
        stopping.set()
        thread.join()


if __name__ == "__main__":
    main()
