"""A newcomer who follows docs/tutorial.md in a fresh directory sees what is printed there.

Every command is typed as printed, on a terminal, and every file is saved; each printed line must be
the beginning of one that comes, in that order; figures and the bars of the report may differ. Two
things are not as printed: the ports, since those may be taken, and where pip finds packages. It
asks no index, since tests need no network: the environment finds what is installed where they run.
`make test-extras` follows the page without that.

Commands that need Docker or Kubernetes are not run. The instructions of the Dockerfile are, in a
fresh environment in place of the image, and its command must pass the probes of the manifest.
"""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from servicegroup.testing import find_free_port
from tests import debian, dist
from tests.extras import declared
from tests.test_docs import FENCE, shape

PAGE = dist.ROOT / "docs" / "tutorial.md"
PATIENCE = 60.0  # far more than any step takes without a network
ONLINE = 600.0  # pip may have to load much

PROMPT = re.compile(r"@@(\d+)@@")
# pip as those do who have no network. Its name notwithstanding, the last one turns isolation off.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
PLAIN = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": ""}


class Terminal:
    """A shell on a terminal of its own: what a reader types, and what comes."""

    def __init__(self, directory: Path, environment: dict[str, str], patience: float) -> None:
        self._master, slave = pty.openpty()
        modes = termios.tcgetattr(slave)
        modes[1] &= ~termios.ONLCR
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        # What the leader of a session opens first becomes its terminal.
        name = os.ttyname(slave)
        self._shell = subprocess.Popen(
            ["sh", "-c", f"exec bash --norc --noprofile --noediting -i <>{name} >&0 2>&1"],
            cwd=directory,
            env={**environment, "PS1": "@@$?@@", "VIRTUAL_ENV_DISABLE_PROMPT": "1"},
            start_new_session=True,
        )
        self._patience = patience
        self._output = ""
        self._typed = 0
        self._seen = 0
        self.wait_for_prompt()
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.send_signal(signal.SIGHUP)  # which it passes on
        os.close(self._master)
        try:
            self._shell.wait(PATIENCE)
        finally:
            self._shell.kill()

    def type(self, command: str) -> None:
        self.wait_for_prompt()
        os.write(self._master, f"{command}\n".encode())
        self._typed += 1

    def interrupt(self) -> None:
        os.write(self._master, b"\x03")

    def expect(self, line: str) -> None:
        """Wait for a line that begins like this, below the last that was expected."""

        def come() -> bool:
            lines = PROMPT.sub("\n", self._output).splitlines()
            for number, found in enumerate(lines[self._seen :], self._seen + 1):
                if shape(found).startswith(shape(line)):
                    self._seen = number
                    return True
            return False

        self._wait(come, line)

    def wait_for_prompt(self) -> None:
        """Wait until whatever was typed is done, and has not failed."""
        self._wait(lambda: len(PROMPT.findall(self._output)) > self._typed, "prompt")
        code = PROMPT.findall(self._output)[-1]
        assert code == "0", f"exit code {code}\n{self._output}"

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + self._patience
        while not done():
            left = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._master], [], [], left)
            assert ready, f"never came: {what}\n{self._output}"
            self._output += os.read(self._master, 65536).decode(errors="replace")


def follow(directory: Path, ports: dict[str, int], *, online: bool = False) -> Path:
    """Do what the page says; the shop's directory."""
    dist.copy_tree(directory / "servicegroup")
    shop = directory / "shop"
    environment = environment_of(Path(sys.executable).parent, online)
    with ExitStack() as stack:
        terminals: dict[str, Terminal] = {}
        for fence in FENCE.finditer(with_ports(PAGE.read_text(encoding="utf-8"), ports)):
            mark = (fence["mark"] or "").strip()[5:-4]
            if mark.startswith("file: "):
                (shop / mark.removeprefix("file: ")).write_text(fence["text"], encoding="utf-8")
                continue
            assert fence["kind"] == "console", f"it is not said what to do with\n{fence[0]}"
            if mark.startswith("not run: "):
                continue
            name = mark or "terminal 1"
            if name not in terminals:
                at = shop if shop.exists() else directory
                terminal = Terminal(at, environment, ONLINE if online else PATIENCE)
                terminals[name] = stack.enter_context(terminal)
            for line in fence["text"].splitlines():
                if line == "^C":
                    terminals[name].interrupt()
                elif line.startswith("$ "):
                    terminals[name].type(line[2:])
                    if line.startswith("$ python3 -m venv") and not online:
                        terminals[name].wait_for_prompt()
                        borrow(shop / ".venv")
                else:
                    terminals[name].expect(line)
        for terminal in terminals.values():
            terminal.wait_for_prompt()
    return shop


def with_ports(text: str, ports: dict[str, int]) -> str:
    return re.sub("|".join(ports), lambda printed: str(ports[printed[0]]), text)


def environment_of(programs: Path, online: bool) -> dict[str, str]:
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **PLAIN, **({} if online else OFFLINE), "PATH": path}


def borrow(environment: Path) -> None:
    """Let pip find what is installed here, its setuptools before that of an older Python."""
    dist.borrow(environment)
    pip = environment / "bin" / "pip"
    dist.run(pip, "uninstall", "--yes", "--quiet", "setuptools")


def image(directory: Path, shop: Path, online: bool) -> tuple[list[str], dict[str, str], Path]:
    """Do what the Dockerfile says; the command, its environment and its directory."""
    dist.run(sys.executable, "-m", "venv", directory / "python")
    environment = environment_of(directory / "python" / "bin", online)
    if not online:
        borrow(directory / "python")
    at, command = directory, list[str]()
    for line in (shop / "Dockerfile").read_text(encoding="utf-8").splitlines():
        match line.split(maxsplit=1):
            case ["FROM", base]:
                version = base.removeprefix("python:").removesuffix("-slim")
                assert f"Python :: {version}\n" in declared()["metadata"]["classifiers"]
            case ["WORKDIR", path]:
                at = directory / path.lstrip("/")
                at.mkdir()
            case ["COPY", what]:
                source, target = what.split()
                if (shop / source).is_dir():
                    shutil.copytree(shop / source, at / target)
                else:
                    shutil.copy(shop / source, at / target)
            case ["RUN", script]:
                dist.run("sh", "-c", script, cwd=at, **environment)
            case ["ENV", setting]:
                name, _, value = setting.partition("=")
                environment[name] = value
            case ["USER", user]:
                assert int(user) > 0
            case ["EXPOSE", _]:
                pass
            case ["CMD", text]:
                command = json.loads(text)
            case _:
                pytest.fail(f"no test knows what {line!r} does")
    return command, environment, at


def status(port: int, path: str, method: str = "GET") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


def serve(directory: Path, shop: Path, ports: dict[str, int], *, online: bool = False) -> None:
    """Run the image's command as a kubelet would, from the first probe to the end."""
    command, environment, at = image(directory, shop, online)
    manifest: dict[str, Any] = yaml.safe_load((shop / "shop.yaml").read_text(encoding="utf-8"))
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    named = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert set(named.values()) == set(ports.values())
    (mount,) = container["volumeMounts"]
    assert (directory / mount["mountPath"].lstrip("/")).is_dir()
    program = shutil.which(command[0], path=environment["PATH"])
    assert program is not None
    with subprocess.Popen(
        [program, *command[1:]], cwd=at, env=environment, stderr=subprocess.PIPE, text=True
    ) as child:
        guard = threading.Timer(PATIENCE, child.kill)
        guard.start()
        try:
            assert child.stderr is not None
            said = ""
            while "shop: ready" not in said:
                line = child.stderr.readline()
                assert line, said
                said += line
            for probe in ("startup", "readiness", "liveness"):
                get = container[f"{probe}Probe"]["httpGet"]
                assert status(named[get["port"]], get["path"]) == 200
            assert status(named["http"], "/orders/tea", "POST") == 202
            child.send_signal(signal.SIGTERM)
            _, rest = child.communicate(timeout=pod["terminationGracePeriodSeconds"])
            assert child.returncode == 0, rest
            assert "shipped tea" in rest
        finally:
            guard.cancel()
            child.kill()


def follow_and_serve(directory: Path, *, online: bool = False) -> None:
    debian.require("bash")
    debian.require("curl")
    ports = {"8080": find_free_port(), "9090": find_free_port()}
    shop = follow(directory, ports, online=online)
    (directory / "image").mkdir()
    serve(directory / "image", shop, ports, online=online)


@pytest.mark.slow
def test_the_page_is_right_and_its_container_passes_its_probes(tmp_path: Path) -> None:
    follow_and_serve(tmp_path)
