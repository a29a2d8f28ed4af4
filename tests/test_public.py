"""What users may rely on: the names, their signatures, that they are documented and typed."""

from __future__ import annotations

import importlib
import inspect
import re
import signal
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import servicegroup
from servicegroup import (
    AsyncGroup,
    AsyncService,
    InProcess,
    Periodic,
    Report,
    Service,
    ServiceGroup,
    ServiceStatus,
    with_context,
    with_start,
)

ROOT = Path(__file__).resolve().parent.parent

NAMES = [
    "AsyncGroup",
    "AsyncService",
    "GroupRunningError",
    "GroupState",
    "GroupStoppingError",
    "InProcess",
    "OnFailure",
    "OnReturn",
    "Periodic",
    "OnStall",
    "ReadyWhen",
    "Report",
    "Restart",
    "RestartLimitError",
    "Service",
    "ServiceCrashedError",
    "ServiceGroup",
    "ServiceGroupError",
    "ServiceStalledError",
    "ServiceStatus",
    "ServiceTimeoutError",
    "StartStop",
    "StartTimeoutError",
    "State",
    "StopTimeoutError",
    "events",
    "with_context",
    "with_start",
]
EVENTS = [
    "Event",
    "GroupDraining",
    "GroupEvent",
    "GroupReady",
    "GroupStarting",
    "GroupStopped",
    "GroupStopping",
    "ServiceAbandoned",
    "ServiceEvent",
    "ServiceFailed",
    "ServiceFinished",
    "ServiceNotReady",
    "ServiceReady",
    "ServiceRecovered",
    "ServiceRestarting",
    "ServiceStalled",
    "ServiceStarting",
    "ServiceStopped",
    "ServiceStopping",
]

SIGNATURES: list[tuple[Callable[..., object], str]] = [
    (
        ServiceGroup,
        f"""(*, name: str = 'group', start_timeout: float = 60.0, stop_timeout: float = 10.0,
        shutdown_timeout: float = 25.0, drain_delay: float = 0.0, on_failure: OnFailure = 'stop',
        on_return: OnReturn = 'continue', start_concurrently: bool = False,
        stop_concurrently: bool = False,
        signals: Iterable[int] = ({signal.SIGINT!r}, {signal.SIGTERM!r}),
        dump_signal: int | None = {signal.SIGUSR1!r}) -> None""",
    ),
    (
        ServiceGroup.add,
        """(self, service: S, *, name: str | None = None, ready_when: ReadyWhen | None = None,
        daemon: bool | None = None, start_timeout: float | None = None,
        stop_timeout: float | None = None, on_failure: OnFailure | None = None,
        on_return: OnReturn | None = None, heartbeat_timeout: float | None = None,
        on_stall: OnStall | None = None,
        expected_on_stop: tuple[type[BaseException], ...] | None = None) -> S""",
    ),
    (
        ServiceGroup.defer,
        "(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None",
    ),
    (ServiceGroup.start, "(self) -> Report"),
    (ServiceGroup.run, "(self) -> NoReturn"),
    (ServiceGroup.stop, "(self, reason: str = 'stop() was called') -> None"),
    (ServiceGroup.wait, "(self, timeout: float | None = None) -> Report"),
    (ServiceGroup.wait_ready, "(self, timeout: float | None = None) -> None"),
    (ServiceGroup.subscribe, "(self, subscriber: Subscriber) -> None"),
    (ServiceGroup.status, "(self) -> tuple[ServiceStatus, ...]"),
    (Service.start, "(self) -> object"),
    (Service.stop, "(self) -> object"),
    (Service.drain, "(self) -> None"),
    (Service.sleep, "(self, seconds: float) -> bool"),
    (Service.remaining, "(self) -> float"),
    (Service.mark_ready, "(self) -> None"),
    (Service.mark_not_ready, "(self) -> None"),
    (
        AsyncGroup,
        """(*, name: str = 'AsyncGroup', start_timeout: float = 60.0, stop_timeout: float = 10.0,
        shutdown_timeout: float = 25.0, on_failure: OnFailure = 'stop',
        on_return: OnReturn = 'continue',
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None""",
    ),
    (
        AsyncGroup.add,
        """(self, service: A, *, name: str | None = None, ready_when: ReadyWhen | None = None,
        daemon: bool | None = None, start_timeout: float | None = None,
        stop_timeout: float | None = None, on_failure: OnFailure | None = None,
        on_return: OnReturn | None = None, heartbeat_timeout: float | None = None,
        on_stall: OnStall | None = None,
        expected_on_stop: tuple[type[BaseException], ...] | None = None) -> A""",
    ),
    (
        AsyncGroup.add_context,
        """(self, cm: AbstractAsyncContextManager[T] | AbstractContextManager[T], *,
        name: str | None = None) -> AsyncContext[T]""",
    ),
    (AsyncGroup.status, "(self) -> tuple[ServiceStatus, ...]"),
    (AsyncService.run, "(self) -> object"),
    (AsyncService.start, "(self) -> None"),
    (AsyncService.stop, "(self) -> object"),
    (AsyncService.sleep, "(self, seconds: float) -> bool"),
    (
        AsyncService.until_stopping,
        "(self, items: AsyncIterable[T]) -> AsyncGenerator[T, None]",
    ),
    (
        with_start,
        """(start: Callable[[], object] | Callable[[threading.Event], object],
        stop: Callable[[], object] | None = None) -> Service""",
    ),
    (with_context, "(cm: AbstractContextManager[T]) -> _Context[T]"),
    (
        Periodic,
        """(fn: Callable[[], object] | Callable[[threading.Event], object], *,
        every: float | None = None, cron: str | None = None,
        timezone: str | tzinfo | None = None, first: Literal['now', 'after'] | None = None,
        jitter: float = 0.0, missed: Literal['skip', 'once'] = 'skip',
        on_error: Literal['fail', 'log'] = 'fail', name: str | None = None) -> None""",
    ),
    (
        InProcess,
        """(factory: Callable[[], StartStop], *, workers: int = 1,
        name: str | None = None) -> None""",
    ),
    (
        Report,
        """(*, name: str, reason: str, started_at: float, seconds: float, exit_code: int,
        services: tuple[ServiceStatus, ...]) -> None""",
    ),
    (Report.to_dict, "(self) -> dict[str, object]"),
    (Report.to_json, "(self, indent: int | None = None) -> str"),
    (
        ServiceStatus,
        """(*, name: str, state: State, ready: bool = False, stalled: bool = False,
        started_at: float | None = None, seconds_to_ready: float | None = None,
        stopping_at: float | None = None, seconds_to_stop: float | None = None,
        restarts: int = 0, seconds_since_heartbeat: float | None = None,
        error: BaseException | None = None, stack: str | None = None,
        parts: tuple[ServiceStatus, ...] = ()) -> None""",
    ),
    (ServiceStatus.to_dict, "(self) -> dict[str, object]"),
]


def test_the_public_names() -> None:
    assert servicegroup.__all__ == sorted(NAMES)
    namespace: dict[str, object] = {}
    exec("from servicegroup import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(NAMES)


def test_nothing_else_looks_public() -> None:
    others = vars(servicegroup).keys() - set(NAMES)
    public = {name for name in others if not name.startswith("_")} - {"TYPE_CHECKING"}
    assert {name for name in public if not inspect.ismodule(vars(servicegroup)[name])} == set()


def test_the_events() -> None:
    events = vars(servicegroup.events).values()
    kinds = [one for one in events if isinstance(one, type) and one.__module__.endswith("events")]
    assert sorted(kind.__name__ for kind in kinds) == EVENTS


def test_the_states() -> None:
    assert [state.value for state in servicegroup.State] == [
        *("new", "starting", "running", "backing_off", "finished", "stopping", "stopped"),
        *("failed", "abandoned"),
    ]
    assert [state.value for state in servicegroup.GroupState] == [
        *("new", "starting", "running", "draining", "stopping", "stopped")
    ]


@pytest.mark.parametrize(
    ("what", "expected"),
    [pytest.param(what, text, id=what.__qualname__) for what, text in SIGNATURES],
)
def test_the_signatures(what: Callable[..., object], expected: str) -> None:
    signature = inspect.signature(what)
    # Annotations are kept as text; without quotes they read as they are written.
    unquoted = [
        parameter.replace(annotation=_Bare(parameter.annotation))
        for parameter in signature.parameters.values()
    ]
    returned = _Bare(signature.return_annotation)
    shown = str(signature.replace(parameters=unquoted, return_annotation=returned))
    assert shown.replace(": <empty>", "") == " ".join(expected.split())


class _Bare:
    def __init__(self, annotation: object) -> None:
        self._text = getattr(annotation, "__name__", None) or str(annotation)
        if annotation is inspect.Parameter.empty:
            self._text = "<empty>"

    def __repr__(self) -> str:
        return "None" if self._text == "NoneType" else self._text


def documented() -> Iterator[tuple[str, object]]:
    events = [(f"events.{name}", getattr(servicegroup.events, name)) for name in EVENTS]
    for name, thing in [(name, getattr(servicegroup, name)) for name in NAMES] + events:
        if typing.get_origin(thing) is None:  # an alias has no place for a docstring
            yield name, thing
        # What StartStop's two methods are for stands in its own docstring.
        if isinstance(thing, type) and thing is not servicegroup.StartStop:
            for attribute, value in vars(thing).items():
                if is_our_method(attribute, value, thing):
                    yield f"{name}.{attribute}", value


def is_our_method(name: str, value: object, owner: type) -> bool:
    """Whether it is a public one, and none that Python documents."""
    kinds = (types.FunctionType, property, classmethod, staticmethod)
    bases = [base for base in owner.__bases__ if not base.__module__.startswith("servicegroup")]
    inherited = any(hasattr(base, name) for base in bases)
    return isinstance(value, kinds) and not name.startswith("_") and not inherited


@pytest.mark.parametrize("thing", [pytest.param(thing, id=name) for name, thing in documented()])
def test_everything_public_has_a_docstring(thing: object) -> None:
    assert thing.__doc__


STABILITY = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
# The public names of other modules, which stand there for people to read.
ROW = re.compile(r"^\| `(servicegroup[.\w]+)` \| (.*) \|$", re.MULTILINE)
OF_MODULES = {module: re.findall(r"`(\w+)`", names) for module, names in ROW.findall(STABILITY)}


@pytest.mark.parametrize("module", OF_MODULES)
def test_a_module_has_the_names_it_is_to_have(module: str) -> None:
    names = OF_MODULES[module]
    found = importlib.import_module(module)
    assert names == sorted(getattr(found, "__all__", names))
    assert [name for name in names if not getattr(found, name).__doc__] == []


def test_every_adapter_and_observer_has_its_names_listed() -> None:
    package = ROOT / "servicegroup"
    files = [file for part in ("adapters", "observe") for file in (package / part).glob("[!_]*.py")]
    modules = {f"servicegroup.{file.parent.name}.{file.stem}" for file in files}
    assert modules <= set(OF_MODULES)


def test_the_names_listed_are_all_that_docs_and_examples_use() -> None:
    public = {"servicegroup": NAMES, "servicegroup.events": EVENTS, **OF_MODULES}
    imported = re.compile(r"^from (servicegroup[.\w]*) import (?:\(([^)]*)\)|(.*))$", re.MULTILINE)
    places = ("README.md", "docs/*.md", "examples/*.py", "tests/typing/*.py")
    for page in (page for place in places for page in ROOT.glob(place)):
        for module, several, some in imported.findall(page.read_text(encoding="utf-8")):
            for name in re.findall(r"\w+", several or some.partition("#")[0]):
                known = name in public.get(module, ()) or f"{module}.{name}" in public
                assert known, f"{page.name}: {module}.{name} is private"
