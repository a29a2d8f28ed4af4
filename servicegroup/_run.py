"""One run of a group: a mailbox, and the decisions of the one thread that takes from it."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable
from contextvars import Context

from attrs import frozen

from servicegroup import _log, events
from servicegroup._dispatcher import Dispatcher, Subscriber
from servicegroup._mailbox import Mailbox, Message
from servicegroup._runner import Runner
from servicegroup._stopper import Stopper
from servicegroup._supervision import ALL_FINISHED, Supervision
from servicegroup._table import Table
from servicegroup.errors import ServiceGroupError, StopTimeoutError
from servicegroup.report import GroupState, Report, ServiceStatus, State, one_line

# Of the time a stop may take: when the services not asked yet are asked all at once, and when the
# last are abandoned, so that a little is left to tell of it.
RESERVE_SHARE = 0.9
ABANDON_SHARE = 0.98
FLUSH_SECONDS = 1.0
# A nested group ends its own stop that much sooner than the outer one would abandon it.
NESTED_SHARE = 1.1

# Told of each run that ends in failure, on the thread that decided; for the plugin of pytest.
on_failed_run: list[Callable[[Run], object]] = []


@frozen(kw_only=True, eq=False, repr=False)
class Settings:
    """What a group was made with, as far as a run needs it."""

    name: str
    shutdown_timeout: float
    drain_delay: float
    start_concurrently: bool
    stop_concurrently: bool


class Run(Supervision[Runner]):
    """The state of one run.

    Everything here is read and written by the deciding thread alone, but for the mailbox, the two
    events and what `status()` reads. That thread calls no user code and writes no log.

    Invariant: a runner is asked to stop at most once, and only after every runner started later is
    settled, unless `_at_once` is set or one of those was abandoned.
    """

    def __init__(
        self, settings: Settings, table: Table, subscribers: list[Subscriber], mailbox: Mailbox
    ) -> None:
        super().__init__(settings.name)
        self.settings = settings
        self.post = mailbox.put
        self.now = mailbox.now
        self.begun = False  # guarded by the table's lock
        self.ready_or_never = threading.Event()  # set while ready, and for good once stopping
        self.deciding = threading.Event()
        self.over = threading.Event()
        self.report: Report | None = None
        self.error: ServiceGroupError | None = None
        self.crash: BaseException | None = None  # the machine has no thread left, or a bug of ours
        self.raised_in: list[threading.Thread] = []  # those that were given the failure
        self.context = Context()  # that of the caller of start()
        self.root: Run = self
        self.on_stop_begun: Callable[[float], None] = lambda _seconds: None

        self._table = table
        self._mailbox = mailbox
        self._subscribers = subscribers
        self._parent: Runner | None = None
        self._outer: Run | None = None
        self._dispatcher: Dispatcher | None = None
        self._stopper = Stopper(settings.name, self)
        self._runners: list[Runner] = []
        self._more = True  # there is something to do even if no message comes
        self._awaited: Runner | None = None  # the next one starts when this one is ready
        self._was_ready = False
        self._drainable: list[Runner] = []
        self._draining: Runner | None = None
        self._held = False  # draining until the outer group says stop
        self._left = 0  # runners that may be owed a stop: the first so many
        self._at_once = False
        self._joining: Runner | None = None  # nothing else is to be waited for
        self._deadlines: list[tuple[float, int, Runner]] = []  # a heap; see _until
        self._watches: list[tuple[float, int, Runner, int]] = []  # a heap, of heartbeats due
        self._serial = itertools.count()  # so that the heap never compares runners
        self._delay_until: float | None = None
        self._reserve_at = math.inf
        self._abandon_at = math.inf
        self._end_at = math.inf

    # -- the loop ---------------------------------------------------------------------------------

    def nest(self, parent: Runner, outer: Run) -> None:
        """This group is a service of another one."""
        self._parent, self._outer, self.root = parent, outer, outer.root

    def decide(self) -> None:
        """Run from beginning to end, on the calling thread; raises nothing."""
        crash: BaseException | None = None
        self.deciding.set()
        try:
            self._begin()
            while self.state is not GroupState.STOPPED:
                message = self._next_message()
                if message is not None:
                    handler, args = message
                    handler(*args)
                    del message, args  # they would keep a service's error while this waits
                if self.state is GroupState.RUNNING:
                    self._details = self.wants_details()
                self._expire()
                self._advance()
            self._end()
        except BaseException as error:
            crash = error
        self.close(crash)

    def close(self, crash: BaseException | None) -> None:
        """Let those go who wait for the end, also where there was no beginning."""
        self.crash = crash
        self.state = GroupState.STOPPED
        self._table.reopen()
        if self.failing:
            for tell in on_failed_run:
                tell(self)
        self.ready_or_never.set()
        self.over.set()

    def _next_message(self) -> Message | None:
        if self._more:
            return self._mailbox.poll()
        if self._joining is not None:
            runner, self._joining = self._joining, None
            assert runner.thread is not None
            event = runner.stop_event
            return self._mailbox.join(runner.thread, self._until(), event)
        return self._mailbox.get(self._until())

    def _begin(self) -> None:
        self._started_at = self.now()
        self.wall_offset = time.time() - self._started_at
        if self._outer is None or self._subscribers:
            self.on_subscribed()
        self._stopper.start()
        self._details = self.wants_details()
        self.state = GroupState.STARTING
        self._tell(events.GroupStarting)

    def _until(self) -> float | None:
        """When to look again though no message came; None: never."""
        deadlines = self._deadlines
        # Those that were met are left in the heap until they come up, and are thrown away here: one
        # of them must not wake an idle group.
        while deadlines and deadlines[0][2].deadline != deadlines[0][0]:
            heapq.heappop(deadlines)
        until = min(self._reserve_at, deadlines[0][0] if deadlines else math.inf)
        watches = self._watches
        while watches and watches[0][2].state is not State.RUNNING:
            heapq.heappop(watches)
        if watches:
            until = min(until, watches[0][0])
        if self._delay_until is not None:
            until = min(until, self._delay_until)
        return None if until == math.inf else until

    def _expire(self) -> None:
        deadlines = self._deadlines
        if not deadlines and not self._watches and self._reserve_at == math.inf:
            return
        now = self.now()
        if self._watches:
            self._look_for_stalled(now)
        while deadlines and deadlines[0][0] <= now:
            when, _, runner = heapq.heappop(deadlines)
            if runner.deadline != when:
                continue
            runner.deadline = None
            if runner.state is State.BACKING_OFF:
                if self._goes_on():
                    self._start_again(runner)
            elif runner.asked:
                self._abandon(runner)
            elif runner is self._draining:
                self._drain_timed_out(runner)
            else:
                self._start_timed_out(runner)
        if now >= self._reserve_at:
            self._reserve_at = math.inf
            self._at_once = True

    def _advance(self) -> None:
        if self.state is GroupState.STARTING or self.state is GroupState.RUNNING:
            if self._may_start():
                self._start_next()
            # Between two starts it looks into the mailbox: a stop must not wait for thousands.
            self._more = self._may_start()
            if self.state is GroupState.STARTING and not self._more and self._awaited is None:
                self.state = GroupState.RUNNING
            if self.state is GroupState.RUNNING:
                self._update_ready()
                self._end_if_done()
        if self.state is GroupState.DRAINING:
            self._more = False
            self._drain_next()
        if self.state is GroupState.STOPPING:
            self._stop_next()

    def _set_deadline(self, runner: Runner, when: float) -> None:
        runner.deadline = when
        if when != math.inf:
            heapq.heappush(self._deadlines, (when, next(self._serial), runner))

    # -- starting ---------------------------------------------------------------------------------

    def on_added(self) -> None:
        """The table has grown."""

    def _may_start(self) -> bool:
        return self._awaited is None and len(self._runners) < len(self._table.entries)

    def _start_next(self) -> None:
        entry = self._table.entries[len(self._runners)]
        options = entry.options
        context = self.context.copy() if self.context else None
        runner = Runner(entry.service, entry.name, options, self, context)
        self._runners.append(runner)
        self._unready += 1
        if not options.daemon:
            self._working += 1
            self._had_work = True
        if runner.drain is not None:
            self._drainable.append(runner)
        if (
            options.ready_when != "entered"
            and self.state is GroupState.STARTING
            and not self.settings.start_concurrently
        ):
            self._awaited = runner
        self._launch(runner)

    def _launch(self, runner: Runner) -> None:
        options = runner.options
        runner.state = State.STARTING
        runner.started_at = self.now()
        if self._details:
            self._tell_of(runner, events.ServiceStarting)
        if options.ready_when != "entered":
            self._set_deadline(runner, runner.started_at + options.start_timeout)
        try:
            entered = runner.launch(f"{self.settings.name}/{runner.name}")
        except Exception as error:  # no thread to be had
            self.on_ended(runner, error, one_line(error))
        else:
            if entered:
                self.on_entered(runner)

    def on_entered(self, runner: Runner) -> None:
        """Its thread runs `start()`."""
        runner.entered = True
        if runner.options.ready_when == "entered":
            self._set_ready(runner, True)

    def on_announced(self, runner: Runner, ready: bool) -> None:
        """It called `mark_ready()` or `mark_not_ready()`."""
        returned = runner.options.ready_when == "returned"
        if runner.ended == returned and (ready or runner.ready_at is not None):
            self._set_ready(runner, ready)

    def _await_no_more(self, runner: Runner) -> None:
        runner.deadline = None
        if self._awaited is runner:
            self._awaited = None

    def _update_ready(self) -> None:
        ready = self._unready == 0
        if ready is not self.is_ready:
            self.is_ready = ready
            if ready:
                self._was_ready = True
                self._tell(events.GroupReady)
                self.ready_or_never.set()
            else:
                self.ready_or_never.clear()
            if self._parent is not None:
                self._parent.announce(ready)

    # -- running ----------------------------------------------------------------------------------

    def on_ended(self, runner: Runner, error: BaseException | None, line: str = "") -> None:
        """Its `start()` returned, or raised `error`, of which a reason says `line`."""
        if runner.settled:
            return  # abandoned: what comes late counts no more
        runner.ended = True
        if error is not None:
            self._raised(runner, error, line)
        elif not runner.asked:
            self._returned(runner)
        self._settle_if_over(runner)

    def _end_if_done(self) -> None:
        done = self._working == 0 and (self._had_work or not self._runners)
        if done and self._table.close_after(len(self._runners)):
            self.on_stop(ALL_FINISHED)

    # -- restarting -------------------------------------------------------------------------------

    def _start_again(self, runner: Runner) -> None:
        runner.reset()
        runner.restarts += 1
        self._launch(runner)

    # -- heartbeats -------------------------------------------------------------------------------

    def _watch(self, runner: Runner, when: float) -> None:
        heapq.heappush(self._watches, (when, next(self._serial), runner, runner.restarts))

    def _look_for_stalled(self, now: float) -> None:
        while self._watches and self._watches[0][0] <= now:
            _, _, runner, restarts = heapq.heappop(self._watches)
            if runner.state is not State.RUNNING or runner.restarts != restarts:
                continue
            self._look_at_heartbeat(runner, now)

    # -- draining ---------------------------------------------------------------------------------

    def on_stop(self, reason: str, hurry: bool = False, within: float = math.inf) -> None:
        """Somebody asks for the stop, `within` seconds; with `hurry`, without the drain delay."""
        now = self.now()
        if self.state is GroupState.DRAINING and not self._held:
            if hurry:
                self._delay_until = None
            return
        if self.state in (GroupState.STOPPING, GroupState.STOPPED):
            return
        seconds = min(within, self.settings.shutdown_timeout)
        if self._parent is not None and self._parent.asked and self._outer is not None:
            reason = f"group {self._outer.settings.name!r} stops"
            seconds = min(seconds, self._parent.remaining() / NESTED_SHARE)
        self._reason = reason
        self._reserve_at = now + RESERVE_SHARE * seconds
        self._abandon_at = now + ABANDON_SHARE * seconds
        self._end_at = now + seconds
        for runner in self._under_way:  # to be started again, which they will not be now
            self._set_deadline(runner, min(runner.deadline or math.inf, self._abandon_at))
        self.on_stop_begun(seconds)
        if self._held:
            self._held = False
        else:
            if self._was_ready and not hurry and self.settings.drain_delay:
                self._delay_until = now + self.settings.drain_delay
            self._begin_drain()

    def on_drain(self) -> None:
        """The outer group drains, and will say stop."""
        if self.state in (GroupState.STARTING, GroupState.RUNNING):
            self._held = True
            self._begin_drain()

    def _begin_drain(self) -> None:
        self._table.close()
        self._details = self.wants_details()
        self.state = GroupState.DRAINING
        self.is_ready = False
        self.ready_or_never.set()
        self._tell(events.GroupDraining)

    def _drain_next(self) -> None:
        """One drain at a time, the last added first; then the delay; then the stop."""
        while self._draining is None and self._drainable and not self._at_once:
            runner = self._drainable.pop()
            if runner.entered and runner.state in (State.STARTING, State.RUNNING):
                self._draining = runner
                self._set_deadline(runner, self.now() + runner.options.stop_timeout)
                self._stopper.drain(runner)
        if self._delay_until is not None and self.now() >= self._delay_until:
            self._delay_until = None
        waits = self._held or self._draining is not None or self._delay_until is not None
        if self._at_once or not waits:
            self._delay_until = self._draining = None
            self._left = len(self._runners)
            self.state = GroupState.STOPPING
            self._tell(events.GroupStopping)

    def on_drained(self, runner: Runner, error: BaseException | None, line: str = "") -> None:
        """Its `drain()` returned, or raised `error`."""
        if runner is self._draining:
            self._draining = runner.deadline = None
        if error is not None and self.state is GroupState.DRAINING:
            self._fail(runner, error, "while draining", line)
            self._follow_failure(runner, error, line)

    def _drain_timed_out(self, runner: Runner) -> None:
        self._draining = None
        error = StopTimeoutError(runner.name, runner.options.stop_timeout, runner.take_stack())
        self._fail(runner, error, "while draining")
        self._replace_stopper()

    # -- stopping ---------------------------------------------------------------------------------

    def _stop_next(self) -> None:
        runners = self._runners
        if self._at_once or self.settings.stop_concurrently:
            self._at_once = True
            for runner in reversed(runners[: self._left]):
                if not (runner.asked or runner.settled):
                    self._ask(runner)
        while self._left:
            runner = runners[self._left - 1]
            if not (runner.asked or runner.settled):
                self._ask(runner)
            if not runner.settled:
                if runner.stop_returned and not self._at_once:
                    self._joining = runner
                return
            self._left -= 1
        self.state = GroupState.STOPPED

    def _ask(self, runner: Runner) -> None:
        if self._ask_no_more(runner):
            runner.deadline = None
            return
        if runner.claim():
            runner.settled = True
            runner.state = State.NEW
            return
        now = self.now()
        runner.final = State.FINISHED if runner.state is State.FINISHED else State.STOPPED
        self._under_way.add(runner)
        self._set_deadline(runner, min(now + runner.options.stop_timeout, self._abandon_at))
        runner.asked = True  # from here on its threads go by the deadline
        runner.asked_at = now
        runner.state = State.STOPPING
        runner.ready = False
        if self._details:
            self._tell_of(runner, events.ServiceStopping)
        event = runner.stop_event
        if event is not None:
            # Not worth another thread: two switches saved for each of many services.
            if runner.ended or self._at_once or runner.again:
                event.set()  # otherwise it is set just before the join
            runner.stop_returned = True
            self._settle_if_over(runner)
        elif self._at_once or runner.again:
            self._stopper.stop_apart(runner)
        else:
            self._stopper.stop(runner)

    def on_stopped(self, runner: Runner, error: BaseException | None, line: str = "") -> None:
        """Its `stop()` returned, or raised `error`."""
        if runner.settled:
            return
        runner.stop_returned = True
        if error is not None and not isinstance(error, runner.options.expected_on_stop):
            runner.final = State.FAILED
            restarts = runner.again and self._may_restart(runner.options.on_failure)
            if restarts and not isinstance(error, SystemExit):
                runner.error = error
            else:
                self._fail(runner, error, "while stopping", line)
                self._follow_failure(runner, error, line)
        self._settle_if_over(runner)

    def _settle_if_over(self, runner: Runner) -> None:
        if runner.asked and runner.stop_returned and runner.ended:
            runner.deadline = None
            self._settle(runner, self.now())

    def _abandon(self, runner: Runner) -> None:
        apart = self._at_once or runner.again
        super()._abandon(runner)
        if not runner.stop_returned and not apart:
            self._replace_stopper()

    def _replace_stopper(self) -> None:
        try:
            self._stopper.replace()
        except RuntimeError as error:  # no thread to be had: the rest cannot be asked
            self._failures.append(error)

    # -- the end ----------------------------------------------------------------------------------

    def _end(self) -> None:
        now = self.now()
        self.report = self._report()
        self.error = self._failure(self.report)
        brief = self._reason == ALL_FINISHED and self.report.seconds < 1 and self._had_work
        self._tell(events.GroupStopped, brief)
        left = max(0.0, min(FLUSH_SECONDS, self._end_at - now))
        if self._dispatcher is not None:
            self._dispatcher.close(left)
        self._stopper.close(left)
        until = time.monotonic() + left
        for runner in self._runners:
            # Their start() has ended; this waits for the last few instructions of each thread.
            if runner.thread is not None and runner.state is not State.ABANDONED:
                runner.thread.join(max(0.0, until - time.monotonic()))
                runner.thread = None

    def status(self) -> tuple[ServiceStatus, ...]:
        """How the services stand. Any thread."""
        statuses = [runner.status() for runner in self._runners]
        for entry in self._table.entries[len(statuses) :]:
            statuses.append(ServiceStatus(name=entry.name, state=State.NEW))
        return tuple(statuses)

    @property
    def failing(self) -> bool:
        """Whether the outcome will be a failure. Any thread."""
        return bool(self._failures or self.exit or self.crash)

    def abandoned(self) -> Runner | None:
        """One whose abandoned thread still lives, if there is one."""
        for runner in self._runners:
            for thread in (runner.thread, runner.stop_thread):
                if runner.state is State.ABANDONED and thread is not None and thread.is_alive():
                    return runner
        return None

    def running(self) -> list[Runner]:
        """Those whose `start()` or `stop()` has not ended. Any thread."""
        return [runner for runner in list(self._runners) if runner.has_thread]

    # -- telling ----------------------------------------------------------------------------------

    def on_subscribed(self) -> None:
        """There is somebody to tell."""
        if self._dispatcher is None:
            # What a nested group does is logged by the outermost.
            first = (_log.write,) if self._outer is None else ()
            self._dispatcher = Dispatcher(self.settings.name, self.root, first, self._subscribers)
            self._dispatcher.start()

    def wants_details(self) -> bool:
        """Whether anybody reads of each start and stop. Any thread."""
        if self._subscribers:
            return True
        return _log.wants_details() if self._outer is None else self._outer.wants_details()

    def _emit(self, event: events.Event, below: str = "") -> None:
        if self._dispatcher is not None:
            self._dispatcher.put(event)
        if self._parent is not None:
            self._parent.tell(event, below)
