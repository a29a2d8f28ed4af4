"""A program that is killed again and again: does it lose anything?"""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from attrs import frozen

from servicegroup.testing._wait import described, poll

__tracebackhide__ = True  # by pytest, for all of this file

SHOWN = 20_000  # characters of the output of a life that failed
SWEEP_SECONDS = 0.2  # for what it left behind to go: a zombie that nobody reaps never does


@frozen(kw_only=True)
class Life:
    """One run of the program.

    Attributes:
        seconds_to_up: from its start until it was up.
        moment: seconds from then until the signal; None for the last one, which was let finish.
        exit_code: minus the number of the signal that killed it, or what it ended with.
        output: what it printed, stdout and stderr as they came.
    """

    seconds_to_up: float
    moment: float | None
    exit_code: int
    output: str


@frozen(kw_only=True)
class Kills:
    """What `kill_at_random` did. `str()` says how to do it again.

    Attributes:
        seed: the same seed gives the same moments.
        lives: the runs of the program; the last is the one that was let finish.
    """

    seed: int
    lives: tuple[Life, ...]

    def __str__(self) -> str:
        moments = [life.moment for life in self.lives if life.moment is not None]
        return _summary(self.seed, moments)


def kill_at_random(
    program: Sequence[str | os.PathLike[str]],
    *,
    up: str | Callable[[], object],
    until: Callable[[], object],
    times: int = 5,
    within: float = 1.0,
    by: int = signal.SIGKILL,
    seed: int | None = None,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Kills:
    """Start a program, kill it at a random moment, `times` times; then let it finish its work.

    Each life is a process (and a session) of its own; what it leaves running is killed when it has
    ended. No process is left when this returns or raises. What is lost or done twice is for the
    caller to count, where the program keeps it. Prints the seed, for the case that the count fails;
    a seed brings the same moments again, though not the same load or order of threads.

    Args:
        program: the command, as for `subprocess`: `[sys.executable, "shop.py"]`.
        up: when a life counts as up: a text that it prints, and flushes, since it prints into a
            file; or a condition.
        until: what becomes true in the last life, once all work is done; it is then ended by a
            SIGTERM.
        times: how often to kill it.
        within: seconds after it is up in which the moment lies.
        by: the signal: SIGKILL, as when memory runs out or a container is ended by force; or
            SIGTERM, as at a deploy, after which it is waited for.
        seed: for the moments; by default another one each time.
        timeout: seconds for each single thing that is waited for: up, the end, `until`.
        env: its environment; by default this process's.
        cwd: its working directory; by default this process's.

    Returns:
        What was done, with each life's exit code and output.

    Raises:
        AssertionError: it ended by itself, was not up, did not end or was not done in time; the
            message has the seed and the output.
        TypeError: `program` is a text and not a list of words.
        ValueError: a number makes no sense.
    """
    if isinstance(program, (str, bytes)):
        raise TypeError(f"kill_at_random(): program is a list of words, not {program!r}")
    if times < 1:
        raise ValueError(f"kill_at_random(): times must be 1 or more, not {times!r}")
    if not 0 <= within < math.inf:
        raise ValueError(f"kill_at_random(): within must be 0 or more seconds, not {within!r}")
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    moments = [chance.uniform(0.0, within) for _ in range(times)]
    print(_summary(seed, moments))
    lives: list[Life] = []
    for moment in (*moments, None):
        title = f"life {len(lives) + 1} of {times + 1}, {_summary(seed, moments)}"
        with _Child(program, env, cwd, timeout, title) as child:
            seconds = child.wait_until_up(up)
            if moment is not None:
                child.live(moment)
                code = child.end_by(by)
            else:
                child.wait_for(until, f"done: {described(until)}")
                code = child.end_by(signal.SIGTERM)
            life = Life(seconds_to_up=seconds, moment=moment, exit_code=code, output=child.output)
            lives.append(life)
    return Kills(seed=seed, lives=tuple(lives))


class _Child:
    """One life; when the block is left it is over, with all that it started."""

    def __init__(
        self,
        program: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        timeout: float,
        title: str,
    ) -> None:
        self._timeout = timeout
        self._title = title
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the block is left
        try:
            self._process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=self._file,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            if self._process.poll() is None:
                self._signal_all(signal.SIGKILL)
                self._process.wait()
            self._sweep()
            if error is not None:
                error.add_note(f"{self._title}\nit printed:\n{self.output[-SHOWN:]}")
        finally:
            self._file.close()

    @property
    def output(self) -> str:
        return os.pread(self._file.fileno(), 2**30, 0).decode(errors="replace")

    def wait_until_up(self, up: str | Callable[[], object]) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        if callable(up):
            self.wait_for(up, f"up: {described(up)}")
        else:
            self.wait_for(lambda: up in self.output, f"up: printing {up!r}")
        return time.monotonic() - began

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        code: int | None = None
        holds = False

        def look() -> bool:
            nonlocal code, holds
            code = self._process.poll()  # first: what it did before it ended counts
            holds = bool(condition())
            return holds or code is not None

        poll(look, self._timeout)
        if not holds and code is not None:
            raise AssertionError(f"it ended by itself, with exit code {code}, before it was {what}")
        if not holds:
            raise AssertionError(f"not within {self._timeout:g} s: {what}")

    def live(self, seconds: float) -> None:
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        raise AssertionError(f"it ended by itself, with exit code {code}, before it was killed")

    def end_by(self, number: int) -> int:
        """Its exit code."""
        if number == signal.SIGKILL:
            self._signal_all(number)
        else:
            self._process.send_signal(number)
        try:
            code = self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"it did not end within {self._timeout:g} s of {signal.Signals(number).name}"
            ) from None
        if number == signal.SIGKILL and code != -number:
            raise AssertionError(f"it ended by itself, with exit code {code}, before it was killed")
        return code

    def _signal_all(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):  # all gone; on macOS, all zombies
            pass

    def _sweep(self) -> None:
        """End what it started and did not end: the next life must not meet it."""
        self._signal_all(signal.SIGKILL)
        poll(self._is_alone, SWEEP_SECONDS)

    def _is_alone(self) -> bool:
        try:
            os.killpg(self._process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return True
        return False


def _summary(seed: int, moments: Sequence[float]) -> str:
    said = ", ".join(f"{moment:.3f}" for moment in moments)
    return f"kill_at_random(seed={seed}): kills {said} s after it is up"
