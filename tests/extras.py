"""Each extra by itself, in a fresh environment: it installs, and what it is for works.

`make test-extras` runs this. It is no part of `make test`, since pip asks an index for packages.
"""

from __future__ import annotations

import configparser
import sys
import venv
from pathlib import Path

import pytest

from tests.dist import ROOT, copy_tree, run

NOT_OF_USERS = {"bench", "dev", "docs", "test"}

ALONE = """
from servicegroup import ServiceGroup, with_start

group = ServiceGroup()
group.add(with_start(lambda stopping: stopping.wait()), name="worker")
with group:
    assert group.is_ready
"""

SERVER = """
import urllib.request
from servicegroup import ServiceGroup
from servicegroup.adapters.{module} import {name}

{program}

group = ServiceGroup()
server = group.add({name}(app, port=0))
with group:
    with urllib.request.urlopen(server.url) as answer:
        assert answer.read() == b"hello", answer
"""

# There is no broker: it starts, is not ready, and stops all the same.
CONSUMER = """
import threading
from servicegroup import ServiceGroup
from servicegroup.adapters.{module} import {name}

group = ServiceGroup()
begun = threading.Event()
group.subscribe(lambda event: begun.set())
group.add({name}({arguments}))
running = threading.Thread(target=group.start)
running.start()
begun.wait()
assert not group.is_ready
group.stop()
running.join()
assert group.report.exit_code == 0, group.report
"""

PROGRAMS = {
    "aiohttp": SERVER.format(
        module="aiohttp",
        name="AiohttpServer",
        program="""
from aiohttp import web

async def hello(request):
    return web.Response(text="hello")

app = web.Application()
app.router.add_get("/", hello)
""",
    ),
    "asgi": SERVER.format(
        module="asgi",
        name="AsgiServer",
        program="""
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
""",
    ),
    "wsgi": SERVER.format(
        module="wsgi",
        name="WsgiServer",
        program="""
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]
""",
    ),
    "cli": """
import runpy, sys

sys.argv = ["servicegroup", "--help"]
runpy.run_module("servicegroup", run_name="__main__")
""",
    "cron": """
from servicegroup import Periodic, ServiceGroup

group = ServiceGroup()
group.add(Periodic(print, cron="0 3 * * *"))
with group:
    assert group.is_ready
""",
    "grpc": """
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servicegroup import ServiceGroup
from servicegroup.adapters.grpc import GrpcServer

group = ServiceGroup()
server = group.add(GrpcServer(lambda server: None, port=0))
with group, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
""",
    "metrics": """
import urllib.request
from servicegroup import ServiceGroup
from servicegroup.observe.admin import AdminServer

group = ServiceGroup()
admin = group.add(AdminServer(group, port=0))
with group, urllib.request.urlopen(f"{admin.url}/metrics") as answer:
    assert b"servicegroup_" in answer.read()
""",
    "kafka": CONSUMER.format(
        module="kafka",
        name="KafkaConsumer",
        arguments="'127.0.0.1:1', 'orders', 'shop', print",
    ),
    "nats": CONSUMER.format(
        module="nats",
        name="NatsConsumer",
        arguments="'nats://127.0.0.1:1', stream='orders', durable='shop', handler=print",
    ),
    "rabbitmq": CONSUMER.format(
        module="rabbitmq",
        name="RabbitConsumer",
        arguments="'amqp://127.0.0.1:1', 'orders', print",
    ),
    "redis": CONSUMER.format(
        module="redis",
        name="RedisStreamConsumer",
        arguments="'redis://127.0.0.1:1', stream='orders', group='shop', handler=print",
    ),
}


def declared() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def of_users() -> list[str]:
    """The extras that users are to install."""
    return sorted(declared()["options.extras_require"].keys() - NOT_OF_USERS)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree") / "servicegroup")


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """That of a fresh environment."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    return tmp_path / "venv" / "bin" / "python"


def pip(python: Path, *arguments: str) -> str:
    return run(python, "-m", "pip", "--disable-pip-version-check", *arguments)


def test_without_an_extra_there_is_attrs_and_nothing_else(
    python: Path, tree: Path, tmp_path: Path
) -> None:
    before = pip(python, "list", "--format=freeze").splitlines()
    pip(python, "install", "--quiet", str(tree))
    after = pip(python, "list", "--format=freeze").splitlines()
    names = {line.partition("==")[0] for line in after if line not in before}
    assert {name.partition(" ")[0] for name in names} == {"attrs", "servicegroup"}
    pip(python, "check")
    run(python, "-c", ALONE, cwd=tmp_path)


@pytest.mark.parametrize("extra", of_users())
def test_an_extra_by_itself_is_enough(extra: str, python: Path, tree: Path, tmp_path: Path) -> None:
    pip(python, "install", "--quiet", f"{tree}[{extra}]")
    pip(python, "check")
    run(python, "-W", "error", "-c", PROGRAMS[extra], cwd=tmp_path)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="old libraries are not built for it")
@pytest.mark.parametrize("extra", of_users())
def test_the_lowest_versions_are_enough(
    extra: str, python: Path, tree: Path, tmp_path: Path
) -> None:
    config = declared()
    needed = config["options"]["install_requires"] + config["options.extras_require"][extra]
    lowest = tmp_path / "lowest.txt"
    lowest.write_text(needed.replace(">=", "=="), encoding="utf-8")
    pip(python, "install", "--quiet", "--constraint", str(lowest), f"{tree}[{extra}]")
    run(python, "-c", PROGRAMS[extra], cwd=tmp_path)


def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    from tests.test_tutorial import follow_and_serve  # here, since only this needs it

    follow_and_serve(tmp_path, online=True)
