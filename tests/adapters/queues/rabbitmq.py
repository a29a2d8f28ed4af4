"""RabbitMQ, with one server for all tests: it takes seconds to start."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError

from servicegroup.adapters.queue import Handler, QueueConsumer
from servicegroup.adapters.rabbitmq import RabbitConsumer
from servicegroup.testing import find_free_port
from tests.adapters.queues import rig
from tests.debian import require

START_SECONDS = 120.0  # far more than it takes
# The applications that the server needs of those that come with it: the more there are, the longer
# the search for each module takes, which is most of what a start costs.
UNNEEDED = ("rabbitmq_", "cow", "gun", "jose", "prometheus", "accept", "eetcd", "amqp10_client")
NEEDED = ("rabbitmq_prelaunch",)


class Server:
    """A server without plugins and without epmd, which answers on the loopback interface only.

    It is killed with the process that started it.
    """

    def __init__(self) -> None:
        require("erl", "rabbitmq-server")
        script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        if not script.exists():
            require("rabbitmq-server")
            pytest.fail(f"{script} is missing: where has rabbitmq-server put it?")
        self._temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.directory = Path(self._temporary.name)
        self.port, self._distribution_port = find_free_port(), find_free_port()
        self._process: subprocess.Popen[bytes] | None = None
        applications = self.directory / "applications"
        applications.mkdir()
        for path in (script.resolve().parents[1] / "plugins").glob("*-*"):
            if path.name.startswith(NEEDED) or not path.name.startswith(UNNEEDED):
                (applications / path.name).symlink_to(path)
        (self.directory / "plugins").write_text("[].")
        (self.directory / "rabbit.conf").write_text("")
        (self.directory / "environment").write_text("")
        # Names are looked up in here, and not by a process of its own.
        names = '{lookup, [file]}.\n{host, {127,0,0,1}, ["localhost"]}.\n'
        (self.directory / "inetrc").write_text(names)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, if it does not run; return when it answers."""
        if self._process is not None:
            return
        node = f"rabbit{self.port}@localhost"
        applications = str(self.directory / "applications")
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("erl", "-noinput", "-boot", "start_sasl", "-s", "rabbit", "boot"),
                    *("-sname", node, "-start_epmd", "false"),
                    *("-erl_epmd_port", str(self._distribution_port)),
                    *("-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
                    *("-syslog", "logger", "[]", "-syslog", "syslog_error_logger", "false"),
                    *("+W", "w", "+S", "1:1", "+SDcpu", "1:1", "+SDio", "2"),
                    *("+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.directory),  # for the cookie
                    "SYS_PREFIX": "",
                    # The server looks for epmd once a minute, by an erl that would start one.
                    "ERL_FLAGS": "-start_epmd false",
                    "ERL_CRASH_DUMP_SECONDS": "0",
                    "ERL_INETRC": str(self.directory / "inetrc"),
                    "ERL_LIBS": applications,
                    "RABBITMQ_PLUGINS_DIR": applications,
                    "RABBITMQ_NODENAME": node,
                    "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
                    "RABBITMQ_NODE_PORT": str(self.port),
                    "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
                    "RABBITMQ_LOG_BASE": str(self.directory / "logs"),
                    "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
                    "RABBITMQ_CONF_ENV_FILE": str(self.directory / "environment"),
                    "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbit"),
                },
            )
        until = time.monotonic() + START_SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            code = self._process.poll()
            if code is not None or time.monotonic() > until:
                said = (self.directory / "log").read_text(errors="replace")
                pytest.fail(f"the server did not start (exit code {code}):\n{said[-4000:]}")
            time.sleep(0.02)

    def end(self, number: int) -> None:
        """Send it a signal, and wait for its end."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.end(signal.SIGKILL)
        self._temporary.cleanup()


_shared: Server | None = None


def shared() -> Server:
    """The server of all tests."""
    global _shared
    if _shared is None:
        _shared = Server()
        atexit.register(_shared.close)
    return _shared


class Rig(rig.Rig):
    """A queue of its own on the server of all.

    A test may stop that, or kill it; it runs again for the next.
    """

    arguments: dict[str, Any] = {}  # noqa: RUF012 - for each kind of queue

    _connection: Any = None
    _channel: BlockingChannel | None = None

    @property
    def port(self) -> int:
        return shared().port

    @property
    def url(self) -> str:
        return shared().url

    def start(self) -> None:
        shared().start()

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        self._disconnect()
        shared().end(number)

    def set_up(self) -> None:
        self.queue = f"orders-{uuid.uuid4()}"
        self.channel.queue_declare(self.queue, durable=True, arguments=self.arguments)
        self.channel.queue_declare(f"{self.queue}-dead", durable=True)

    def close(self) -> None:
        self.start()
        for queue in (self.queue, f"{self.queue}-dead"):
            self.channel.queue_delete(queue)
        self._disconnect()

    @property
    def channel(self) -> Any:  # pika has no types
        if self._channel is None or not self._channel.is_open:
            self._disconnect()
            parameters = pika.URLParameters(f"{self.url}?heartbeat=0")
            self._connection = pika.BlockingConnection(parameters)
            self._channel = self._connection.channel()
        return self._channel

    def _disconnect(self) -> None:
        try:
            if self._connection is not None:
                self._connection.close()
        except AMQPError:
            pass  # the server was first
        self._connection = self._channel = None

    def options(self, port: int | None = None) -> dict[str, Any]:
        # Of a silent network the broker, too, learns by heartbeats only.
        url = f"{self.url.replace(str(self.port), str(port or self.port))}?heartbeat=4"
        return {"url": url, "queue": self.queue, "arguments": self.arguments}

    @staticmethod
    def consumer(options: dict[str, Any], handler: Handler, **others: Any) -> QueueConsumer:
        dead_letter = f"{options['queue']}-dead"
        return RabbitConsumer(handler=handler, **{"dead_letter": dead_letter, **options, **others})

    def publish(self, *bodies: str) -> None:
        channel = self.channel
        channel.tx_select()
        for body in bodies:
            self.send(body)
        channel.tx_commit()
        self._disconnect()  # a channel is in this mode for good

    def send(self, body: str | bytes, queue: str = "", **properties: Any) -> None:
        """Put one message, which need not be safe when this returns."""
        persistent = pika.BasicProperties(**{"delivery_mode": 2, **properties})
        self.channel.basic_publish("", queue or self.queue, body, persistent)

    def left(self) -> int:
        """Those that no consumer has in hand; the broker tells no more of them."""
        count: int = self.channel.queue_declare(self.queue, passive=True).method.message_count
        return count

    def dead(self) -> list[tuple[str, str]]:
        return [(body.decode(), has.headers["reason"]) for body, has in self.dead_letters()]

    def dead_letters(self) -> list[tuple[bytes, Any]]:
        """With their properties; they stay where they are."""
        found = []
        channel = self.channel
        while (got := channel.basic_get(f"{self.queue}-dead"))[0] is not None:
            found.append((got[2], got[1]))
        channel.basic_recover(requeue=True)
        return found
