"""Every file imports only from those above it; the whole loads little and does nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "servicegroup"

# From top to bottom. A new file is given its place here on purpose, and by nothing else.
LAYERS = (
    "_version",
    "_deprecation",
    "errors",
    "restart",
    "service",
    "events",
    "report",
    "_options",
    "_stacks",
    "_mailbox",
    "_table",
    "_signals",
    "_runner",
    "_stopper",
    "_log",
    "_dispatcher",
    "_exit",
    "_supervision",
    "_run",
    "group",
    "_aio_executor",
    "_aio_tasks",
    "_aio_service",
    "_aio_agenda",
    "_aio_member",
    "_aio_crew",
    "_aio_group",
    "aio",
    "periodic",
    "_child_pipe",
    "_child_errors",
    "_child_log",
    "_child",
    "_child_process",
    "_child_worker",
    "process",
    "__init__",
    "sockets",
    "adapters/__init__",
    "adapters/_drain",
    "adapters/_loop_server",
    "adapters/_message",
    "adapters/_broker",
    "adapters/_handlers",
    "adapters/_queue_run",
    "adapters/queue",
    "adapters/_bell",
    "adapters/aiohttp",
    "adapters/asgi",
    "adapters/grpc",
    "adapters/_kafka_client",
    "adapters/kafka",
    "adapters/nats",
    "adapters/rabbitmq",
    "adapters/redis",
    "adapters/socketserver",
    "adapters/sqlite",
    "adapters/wsgi",
    "observe/__init__",
    "observe/systemd",
    "observe/_rows",
    "observe/_chain",
    "observe/_timeline_svg",
    "observe/_timeline_text",
    "observe/timeline",
    "observe/metrics",
    "observe/health",
    "observe/_snapshot",
    "observe/_stream",
    "observe/admin",
    "testing/_wait",
    "testing/_port",
    "testing/_lifo",
    "testing/_services",
    "testing/_clock",
    "testing/_kill",
    "testing/__init__",
    "testing/_guard",
    "cli/_address",
    "cli/_env",
    "cli/_json_log",
    "cli/_live",
    "cli/_logs",
    "cli/_target",
    "cli/_terminal",
    "cli/_worst_case",
    "cli/_admin",
    "cli/_standing",
    "cli/stacks",
    "cli/status",
    "cli/plot",
    "cli/_link",
    "cli/_watch",
    "cli/reload",
    "cli/_main",
    "cli/run",
    "cli/check",
    "cli/__init__",
    "__main__",
)

# What a file may import besides attrs and the standard library, where it is used.
FOREIGN: dict[str, set[str]] = {
    "periodic": {"cronsim"},
    "adapters/aiohttp": {"aiohttp"},
    "adapters/asgi": {"uvicorn", "uvloop"},
    "adapters/grpc": {"grpc", "grpc_health"},
    "adapters/_kafka_client": {"confluent_kafka"},
    "adapters/kafka": {"confluent_kafka"},
    "adapters/nats": {"nats"},
    "adapters/rabbitmq": {"pika"},
    "adapters/redis": {"redis"},
    "adapters/wsgi": {"waitress"},
    "observe/admin": {"prometheus_client"},
    "observe/metrics": {"prometheus_client"},
    "cli/_address": {"click"},
    "cli/_admin": {"click"},
    "cli/_env": {"click", "dotenv"},
    "cli/_live": {"rich"},
    "cli/_main": {"click"},
    "cli/_standing": {"rich"},
    "cli/_target": {"click"},
    "cli/_watch": {"click", "watchfiles"},
    "cli/check": {"click"},
    "cli/plot": {"click"},
    "cli/reload": {"click"},
    "cli/run": {"click"},
    "cli/stacks": {"click"},
    "cli/status": {"click", "rich"},
}

# What of ours an adapter may import: nothing of the group.
FOR_ADAPTERS = {
    *("errors", "service", "_stacks", "_aio_service", "_aio_tasks", "aio", "sockets"),
    *("_aio_executor", "restart", "adapters/_drain", "adapters/_loop_server"),
    *("adapters/_message", "adapters/_broker", "adapters/_handlers", "adapters/_queue_run"),
    *("adapters/queue", "adapters/_bell", "adapters/_kafka_client"),
}
# What runs in an event loop.
IN_A_LOOP = (
    *("aio", "_aio_"),
    *("adapters/_loop_server", "adapters/aiohttp", "adapters/asgi", "adapters/grpc"),
    *("adapters/_broker", "adapters/_handlers", "adapters/_queue_run", "adapters/kafka"),
    *("adapters/_kafka_client", "adapters/nats", "adapters/rabbitmq", "adapters/redis"),
    "adapters/sqlite",
)


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that the code below `tree` imports when it runs, with dots.

    Of `from a import b` it is `a.b`, since `b` may be a module.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from imports(ast.Module([other], []))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def imports_of(layer: str) -> list[str]:
    source = (PACKAGE / f"{layer}.py").read_text(encoding="utf-8")
    return list(imports(ast.parse(source)))


def layer_of(name: str) -> str | None:
    """The file of ours that `name`, as `imports` gives it, comes from."""
    package, *rest = name.split(".")
    if package not in ("servicegroup", ""):
        return None
    for end in (2, 1):
        if "/".join(rest[:end]) in LAYERS:
            return "/".join(rest[:end])
    return "__init__"


def test_every_file_has_its_place() -> None:
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    assert files == set(LAYERS)
    assert len(LAYERS) == len(set(LAYERS))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_file_imports_only_from_files_above_it(layer: str) -> None:
    above = LAYERS[: LAYERS.index(layer)]
    ours = [found for found in map(layer_of, imports_of(layer)) if found is not None]
    assert [found for found in ours if found not in above] == []


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.startswith("adapters/")])
def test_an_adapter_knows_services_and_its_library_and_no_group(layer: str) -> None:
    assert set(filter(None, map(layer_of, imports_of(layer)))) <= FOR_ADAPTERS


@pytest.mark.parametrize("layer", LAYERS)
def test_the_core_imports_attrs_and_the_standard_library_only(layer: str) -> None:
    foreign = [name.split(".")[0] for name in imports_of(layer) if layer_of(name) is None]
    assert "asyncio" not in foreign or layer.startswith(IN_A_LOOP)
    allowed = {"attrs", *FOREIGN.get(layer, ())}
    assert set(foreign) <= {*allowed, *sys.stdlib_module_names}


def test_the_reader_of_imports_sees_what_runs_and_nothing_else() -> None:
    source = """
        import a, b.c
        from d import e
        from .f import g
        from . import h
        if TYPE_CHECKING:
            import not_i
        else:
            import j
        if typing.TYPE_CHECKING:
            import not_k
        def function():
            try:
                import l
            except ImportError:
                from m.n import o
    """
    assert list(imports(ast.parse(textwrap.dedent(source)))) == [
        *("a", "b.c", "d.e", ".f.g", "..h", "j", "l", "m.n.o")
    ]


IMPORT = """
import os, signal, sys, threading

def state():
    descriptors = []
    for number in range(256):
        try:
            descriptors.append((number, os.fstat(number).st_ino))
        except OSError:
            pass
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    wakeup = signal.set_wakeup_fd(-1)
    return threading.enumerate(), descriptors, handlers, wakeup

before = state()
import servicegroup
for now, then in zip(state(), before):
    assert now == then, (now, then)
print(*sys.modules)
"""

UNWANTED = {
    *("asyncio", "concurrent.futures", "multiprocessing", "subprocess", "socket", "ssl", "http"),
    *("email", "urllib.request", "json", "tempfile", "unittest", "pdb", "argparse", "sqlite3"),
    *("servicegroup.aio", "servicegroup.periodic", "servicegroup.restart"),
    *("zoneinfo", "random", "cronsim"),
}


def test_the_import_loads_little_and_does_nothing() -> None:
    # Not under coverage, which loads much of its own into every child that it sees.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    child = subprocess.run(
        [sys.executable, "-c", IMPORT],
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": str(PACKAGE.parent)},
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert UNWANTED.isdisjoint(child.stdout.split())
