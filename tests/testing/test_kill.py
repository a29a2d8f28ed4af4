from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from servicegroup.testing import kill_at_random
from tests.observe.test_health import wait_for

# Takes what is in todo.txt line by line; a line counts as done once it is in done.txt.
WORKER = """
import os, time
done = os.open("done.txt", os.O_CREAT | os.O_APPEND | os.O_RDWR)
seen = os.read(done, 1 << 20).decode().split()
todo = open("todo.txt").read().split()
print("at work", flush=True)
for line in todo[len(seen):]:
    time.sleep(0.001)
    os.write(done, (line + "\\n").encode())
print("all done", flush=True)
time.sleep(3600)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("up", "w").close()
time.sleep(3600)
"""
# Leaves a child behind that ignores whatever happens to its parent.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
with open("pids.txt", "a") as file:
    print(child.pid, file=file)
print("up", flush=True)
time.sleep(3600)
"""
# Done in its second life, and ends.
BATCH = """
import os, time
if os.path.exists("begun"):
    open("done", "w").write(str(os.getpid()))
else:
    open("begun", "w")
    time.sleep(3600)
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


def python(source: str) -> list[str]:
    return [sys.executable, "-c", source]


def alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"  # its new parent may be slow to reap it


def test_it_is_killed_so_often_and_then_let_finish(tmp_path: Path) -> None:
    lines = [str(number) for number in range(300)]
    (tmp_path / "todo.txt").write_text("\n".join(lines))
    done = tmp_path / "done.txt"
    kills = kill_at_random(
        python(WORKER),
        up="at work",
        until=lambda: len(done.read_text().split()) == len(lines),
        times=3,
        within=0.05,
        cwd=tmp_path,
    )
    assert Counter(done.read_text().split()) == Counter(lines)
    assert [life.exit_code for life in kills.lives] == [-9, -9, -9, -15]
    *killed, last = kills.lives
    assert last.moment is None
    for life in killed:
        assert life.moment is not None
        assert 0 <= life.moment <= 0.05
        assert life.seconds_to_up > 0
        assert life.output.startswith("at work")


def test_the_same_seed_gives_the_same_moments_and_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = python("print('up', flush=True); import time; time.sleep(3600)")
    options = {"up": "up", "until": lambda: True, "times": 2, "within": 0.01}
    first = kill_at_random(program, **options)  # type: ignore[arg-type]
    again = kill_at_random(program, **options, seed=first.seed)  # type: ignore[arg-type]
    moments = [life.moment for life in first.lives]
    assert [life.moment for life in again.lives] == moments
    assert str(first) == str(again)
    told = f"seed={first.seed}): kills {moments[0]:.3f}, {moments[1]:.3f} s after"
    assert capsys.readouterr().out.count(told) == 2


def test_a_sigterm_is_waited_for() -> None:
    ends = python("""if True:
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.05), sys.exit(3)))
        print("up", flush=True)
        time.sleep(3600)
    """)
    kills = kill_at_random(
        ends, up="up", until=lambda: True, times=2, within=0.01, by=signal.SIGTERM
    )
    assert [life.exit_code for life in kills.lives] == [3, 3, 3]


@needs_proc
def test_what_it_started_does_not_outlive_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids.txt"
    kill_at_random(
        python(PARENT),
        up="up",
        until=lambda: not any(alive(int(pid)) for pid in pids.read_text().split()[:-1]),
        times=2,
        within=0.01,
        by=signal.SIGTERM,
        cwd=tmp_path,
    )
    children = [int(pid) for pid in pids.read_text().split()]
    assert len(children) == 3
    wait_for(lambda: not any(map(alive, children)))


def test_the_condition_may_be_a_callable(tmp_path: Path) -> None:
    up = tmp_path / "up"
    program = python(f"open({str(up)!r}, 'w'); import time; time.sleep(3600)")

    def is_up() -> bool:
        found = up.exists()
        if found:  # else one that came just now would be lost
            up.unlink()
        return found

    kills = kill_at_random(program, up=is_up, until=lambda: True, times=2, within=0.0)
    assert len(kills.lives) == 3


@needs_proc
def test_one_that_ends_by_itself_once_all_is_done_is_none(tmp_path: Path) -> None:
    done = tmp_path / "done"
    kills = kill_at_random(
        python(BATCH),
        up=(tmp_path / "begun").exists,
        until=lambda: done.exists() and not alive(int(done.read_text() or "1")),
        times=1,
        within=0.0,
        cwd=tmp_path,
    )
    assert [life.exit_code for life in kills.lives] == [-9, 0]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("print('oh'); raise SystemExit(4)", r"by itself, with exit code 4, before it was up"),
        ("print('oh up')", r"by itself, with exit code 0, before it was killed"),
    ],
)
def test_one_that_ends_by_itself_is_a_failure(source: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said) as caught:
        kill_at_random(python(source), up="up", until=lambda: True, within=60.0, seed=7)
    (note,) = caught.value.__notes__
    assert note.startswith("life 1 of 6, kill_at_random(seed=7): kills ")
    assert note.rstrip().endswith(("it printed:\noh", "it printed:\noh up"))


@pytest.mark.parametrize(
    ("up", "until", "said"),
    [
        ("never", lambda: True, "not within 0.5 s: up: printing 'never'"),
        (lambda: True, lambda: False, "not within 0.5 s: done: .*lambda: False"),
        (lambda: False, lambda: True, "not within 0.5 s: up: .*lambda: False"),
    ],
)
def test_what_does_not_come_true_is_a_failure(
    up: str, until: type[bool], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            pids.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    program = python("print('up', flush=True); import time; time.sleep(3600)")
    with pytest.raises(AssertionError, match=said):
        kill_at_random(program, up=up, until=until, times=1, within=0.0, timeout=0.5)
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_that_does_not_end_in_time_is_a_failure_and_is_killed(tmp_path: Path) -> None:
    def up() -> bool:
        wait_for((tmp_path / "up").exists)  # however long that takes
        return True

    with pytest.raises(AssertionError, match=r"did not end within 0\.3 s of SIGTERM"):
        kill_at_random(
            python(STUBBORN), up=up, until=bool, within=0.0, by=15, timeout=0.3, cwd=tmp_path
        )


@needs_proc
def test_no_process_is_left_when_a_condition_raises(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        wait_for(lambda: (tmp_path / "pids.txt").exists())
        wait_for(lambda: (tmp_path / "pids.txt").read_text().strip())
        pids.append(int((tmp_path / "pids.txt").read_text()))
        raise KeyError("oh")

    with pytest.raises(KeyError) as caught:
        kill_at_random(python(PARENT), up=fail, until=lambda: True, cwd=tmp_path)
    assert caught.value.__notes__[0].startswith("life 1 of 6")
    wait_for(lambda: not alive(pids[0]))


def test_it_gets_the_environment_that_is_given() -> None:
    program = python("import os, time; print(os.environ['WHAT'], flush=True); time.sleep(3600)")
    env = {**os.environ, "WHAT": "given"}
    kills = kill_at_random(program, up="given\n", until=lambda: True, times=1, within=0, env=env)
    assert kills.lives[0].output == "given\n"


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a list of words, not 'python shop.py'"):
        kill_at_random("python shop.py", up="up", until=bool)
    with pytest.raises(ValueError, match="times must be 1 or more, not 0"):
        kill_at_random(["python"], up="up", until=bool, times=0)
    for within in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="within must be 0 or more seconds"):
            kill_at_random(["python"], up="up", until=bool, within=within)
    with pytest.raises(FileNotFoundError):
        kill_at_random([str(tmp_path / "no such program")], up="up", until=bool)
