"""A group in another interpreter of the same process, as far as CPython lets it.

The module that makes interpreters is private, and differs between the versions.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

RUN = """
try:
    import _interpreters as interpreters  # 3.13
except ImportError:
    import _xxsubinterpreters as interpreters

def run_inside(code, isolated):
    if interpreters.__name__ == "_interpreters":
        inside = interpreters.create("isolated" if isolated else "legacy")
    else:
        inside = interpreters.create(isolated=isolated)
    try:
        failure = interpreters.run_string(inside, code)  # 3.11 and 3.12 raise
        if failure is not None:
            raise RuntimeError(failure.formatted)
    finally:
        interpreters.destroy(inside)
"""

GROUP = """
import os
import threading
from servicegroup import Service, ServiceGroup, with_start

class Waiter(Service):
    ready_when = "announced"

    def start(self):
        print(self.name, "in", flush=True)
        self.mark_ready()
        self.stopping.wait()
        print(self.name, "out", flush=True)

group = ServiceGroup(name="inner")
for name in "ab":
    waiter = group.add(Waiter(), name=name)
    waiter.name = name

def join_all():
    # Of some threads the group waits for the last instructions a second at most.
    for thread in threading.enumerate():
        if thread not in (threading.current_thread(), threading.main_thread()):
            thread.join(30)
"""


def child(inside: str, outside: str = "run_inside(INSIDE, False)") -> subprocess.Popen[str]:
    """A program that has the group above; `inside` follows there, `outside` has it run."""
    # No interpreter can be destroyed while it has a thread.
    code = f"{GROUP}\n{textwrap.dedent(inside)}\njoin_all()"
    # Not under coverage, which would start anew in each interpreter.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return subprocess.Popen(
        [sys.executable, "-c", f"{RUN}\nINSIDE = {code!r}\n{textwrap.dedent(outside)}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT)},
    )


def printed(process: subprocess.Popen[str]) -> list[str]:
    with process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output.splitlines()


def test_a_group_runs_in_an_interpreter_that_shares_the_lock() -> None:
    inside = """
    group.add(with_start(lambda: None), name="once", on_return="stop")
    report = group.start()
    print(report.reason, [(one.name, one.state.value) for one in report.services])
    join_all()
    print([thread.name for thread in threading.enumerate()])
    """
    assert printed(child(inside)) == [
        *("a in", "b in", "b out", "a out"),
        "service 'once' returned [('a', 'stopped'), ('b', 'stopped'), ('once', 'finished')]",
        "['MainThread']",
    ]


def test_a_failure_in_there_is_raised_in_there() -> None:
    inside = """
    def fail():
        raise ConnectionError("the broker is away")

    group.add(with_start(fail), name="broken")
    try:
        group.start()
    except* ConnectionError as failures:
        print(failures.report.exit_code, *failures.exceptions)
    """
    assert printed(child(inside))[-1] == "1 the broker is away"


def test_it_can_be_a_service_of_a_group_in_the_main_interpreter() -> None:
    inside = """
    def listen():
        os.read(TOLD, 1)
        group.stop("told from outside")

    group.add(with_start(listen), name="listen", daemon=True)
    print(group.start().reason, flush=True)
    """
    outside = """
    import os
    from servicegroup import ServiceGroup, with_start

    told, tell = os.pipe()
    INSIDE = INSIDE.replace("TOLD", str(told))
    outer = ServiceGroup(name="outer")
    outer.add(
        with_start(lambda: run_inside(INSIDE, False), lambda: os.write(tell, b".")), name="inner"
    )
    print(outer.start().reason)
    """
    process = child(inside, outside)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["a in\n", "b in\n"]
    process.send_signal(signal.SIGTERM)
    assert printed(process) == ["b out", "a out", "told from outside", "SIGTERM"]


def test_in_one_with_a_lock_of_its_own_no_group_starts() -> None:
    # There are no daemon threads in such a one, and no group without.
    inside = """
    def start():
        try:
            group.start()
        except RuntimeError:
            print("refused:", group.state.value, flush=True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    """
    outside = """
    import sys
    try:
        run_inside(INSIDE, True)
    except Exception:
        assert sys.version_info < (3, 12), "there, any thread can start"
        print("refused: stopped")
    """
    assert printed(child(inside, outside)) == ["refused: stopped"]
