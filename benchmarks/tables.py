"""The results as text and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from attrs import frozen

from benchmarks.kinds import Kinds
from benchmarks.observers import Observers
from benchmarks.queues import Queues
from benchmarks.results import Entry
from benchmarks.statistic import Comparison

Row = tuple[str, ...]

_COSTS = """\
Measured by `make bench`, of which [Performance](performance.md) tells more, with {}.
"The first" is a whole process with one service, from its start until that is running, "one more"
what each further one adds."""
_SERVER_COSTS = """\
Each in a group, and its library alone, by the same clients in turn: [Performance](performance.md)
tells how. Measured by `python -m benchmarks --only servers`, with {}."""
_KINDS = {"AsyncGroup": "`AsyncService` in an `AsyncGroup`"}


@frozen
class Table:
    """Rows under a head; the first column is text, the others are figures."""

    head: Row
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """For a terminal."""
        rows = [self.head, *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.head))]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*(lines if self.rows else ()), *self.notes])

    def markdown(self) -> str:
        """For the documentation."""
        lines = [f"| {' | '.join(row)} |" for row in (self.head, *self.rows)]
        lines.insert(1, f"|---|{'--:|' * (len(self.head) - 1)}")
        shown = ["\n".join(lines)] if self.rows else []
        return "\n\n".join([*shown, *self.notes])


def text(entry: Entry) -> str:
    """One entry, for a terminal."""
    return "\n\n".join([_title(entry), *(table.text() for table in _tables(entry))])


def markdown(entries: Iterable[Entry]) -> str:
    """All entries, for the page on performance."""
    return "\n\n".join(
        "\n\n".join([f"### {_title(entry)}", *(table.markdown() for table in _tables(entry))])
        for entry in entries
    )


def costs(entries: Sequence[Entry]) -> str:
    """What the kinds cost with the newest interpreter, for the page on kinds."""
    entry = entries[-1]
    shown = [_COSTS.format(_title(entry))]
    if "kinds" in entry:
        shown.append(_kinds(entry["kinds"]).markdown())
    others = [*_restarts(entry), *_heartbeat(entry)]
    if others:
        shown.append(Table(("", "median", "min..max"), others).markdown())
    if "http_latency" in entry:
        shown.append(_http_latency(entry).markdown())
    return "\n\n".join(shown)


def server_costs(entries: Sequence[Entry]) -> str:
    """What the servers cost with the newest interpreter, for the page on servers."""
    entry = entries[-1]
    shown = [_SERVER_COSTS.format(_title(entry))]
    if "servers" in entry:
        shown.append(_servers(entry).markdown())
    return "\n\n".join(shown)


def _title(entry: Entry) -> str:
    return f"Python {entry['python']} on {entry['cpu']}, {entry['cores']} cores, {entry['date']}"


def _tables(entry: Entry) -> Iterator[Table]:
    head = ("measured", "servicegroup", "bare", "ratio", "min..max")
    if rows := [*_scale(entry), *_first_stop(entry), *_imports(entry), *_command_line(entry)]:
        yield Table(head, rows)
    if "async_services" in entry:
        yield _async_services(entry)
    if "http_latency" in entry:
        yield _http_latency(entry)
    if "servers" in entry:
        yield _servers(entry)
    if "queues" in entry:
        yield _queues(entry["queues"])
        if entry["queues"]["tasks"]:
            yield _tasks(entry["queues"])
    if "observers" in entry:
        yield _observers(entry["observers"])
    if "kinds" in entry:
        yield _kinds(entry["kinds"])
    if rows := [*_restarts(entry), *_heartbeat(entry)]:
        yield Table(("measured", "median", "min..max"), rows)


def _scale(entry: Entry) -> Iterator[Row]:
    for scale in entry.get("scale", ()):
        for what, one, show in (
            ("process start to all running", scale["up"], _time),
            ("SIGTERM to exit", scale["down"], _time),
            ("both together", scale["both"], _time),
            ("both, imports left out", scale["work"], _time),
            ("memory for each", scale["memory"], _memory),
        ):
            yield f"{scale['services']:,} services: {what}", *_compared(one, show)


def _first_stop(entry: Entry) -> Iterator[Row]:
    if "first_stop" in entry:
        first = entry["first_stop"]
        between = f"{_time(first['min'])}..{_time(first['max'])}"
        yield "SIGTERM to first `stop()` entered", _time(first["median"]), "", "", between


def _imports(entry: Entry) -> Iterator[Row]:
    if "imports" in entry:
        imports = entry["imports"]
        for what, one in (
            ("import, against that of attrs, logging, threading and signal", imports["inside"]),
            ("the same, as a whole process", imports["process"]),
        ):
            ours, other, _, between = _compared(one, _time)
            yield what, ours, other, f"{one['ratio_of_medians']:.2f}", between


def _command_line(entry: Entry) -> Iterator[Row]:
    if "command_line" in entry:
        found = entry["command_line"]
        yield "`servicegroup run`: process start to all running", *_compared(found["up"], _time)
        yield "`servicegroup run`: SIGTERM to exit", *_compared(found["down"], _time)
        yield "`servicegroup --help`, against `python -c pass`", *_compared(found["help"], _time)


def _async_services(entry: Entry) -> Table:
    found = entry["async_services"]
    rows = [
        (f"{one['services']:,} in {one['contender']}: {what}", *_compared(comparison, show))
        for one in found["measured"]
        for what, comparison, show in (
            ("all running", one["up"], _time),
            ("all ended", one["down"], _time),
            ("both together", one["both"], _time),
            ("memory of all", one["memory"], _memory),
        )
    ]
    return Table(
        ("coroutines in one loop", "measured", "bare tasks", "ratio", "min..max"),
        rows,
        [f"{one['contender']} is left out: {one['why']}." for one in found["left_out"]],
    )


def _http_latency(entry: Entry) -> Table:
    found = entry["http_latency"]
    rows = [
        (f"{where}, {name}", *_compared(one, _time))
        for where, latency in (
            ("`Service`", found["thread"]),
            ("`InProcess`", found["process"]),
        )
        for name, one in (("median", latency["p50"]), ("99th percentile", latency["p99"]))
    ]
    others = {name: f"{share:.0%}" for name, share in found["others"].items()}
    return Table(
        ("an HTTP answer beside code that computes", "beside", "alone", "ratio", "min..max"),
        rows,
        [
            f"Meanwhile other processes took {others['median']} of the processors "
            f"({others['min']}..{others['max']})."
        ],
    )


def _servers(entry: Entry) -> Table:
    found = entry["servers"]
    rows = [
        (f"{_several(one['servers'])}: {what}", *_compared(comparison, show))
        for one in found["measured"]
        for what, comparison, show in (
            ("answers/s", one["rate"], _count),
            ("99th percentile", one["p99"], _time),
            ("processor for each", one["cost"], _time),
            ("SIGTERM to exit", one["down"], _time),
        )
    ]
    others = {name: f"{share:.0%}" for name, share in found["others"].items()}
    notes = [
        "When nobody asks, they wake up so often a second (bare in brackets): "
        + ", ".join(
            f"{_several(one['servers'])} {one['wakes']['ours']:.3g} ({one['wakes']['other']:.3g})"
            for one in found["measured"]
        )
        + f". Other processes took {others['median']} of the processors "
        f"({others['min']}..{others['max']})."
    ]
    return Table(
        ("a server, against its library alone", "in a group", "bare", "ratio", "min..max"),
        rows,
        [
            *(notes if rows else ()),
            *(
                f"{_several(one['servers'])} is left out: {one['why']}."
                for one in found["left_out"]
            ),
        ],
    )


def _several(servers: Sequence[str]) -> str:
    return f"{'two ' if len(servers) > 1 else ''}`{servers[0]}`"


def _queues(found: Queues) -> Table:
    rows = [
        (f"`{one['consumer']}`: {what}", *_compared(comparison, show))
        for one in found["measured"]
        for what, comparison, show in (
            ("messages/s", one["rate"], _count),
            ("put to handled", one["latency"], _time),
            ("99th percentile", one["p99"], _time),
        )
    ]
    others = {name: f"{share:.0%}" for name, share in found["others"].items()}
    notes = [
        "When there is nothing to handle, they wake up so often a second (bare in brackets): "
        + ", ".join(
            f"`{one['consumer']}` {one['wakes']['ours']:.3g} ({one['wakes']['other']:.3g})"
            for one in found["measured"]
        )
        + f". Other processes took {others['median']} of the processors "
        f"({others['min']}..{others['max']})."
    ]
    return Table(
        ("a consumer, against a loop by hand", "in a group", "bare", "ratio", "min..max"),
        rows,
        [
            *(notes if rows else ()),
            *(f"{one['what']} is left out: {one['why']}." for one in found["left_out"]),
        ],
    )


def _tasks(found: Queues) -> Table:
    rows = [
        (f"`{one['consumer']}`, against {one['library']}", *_compared(one["rate"], _count))
        for one in found["tasks"]
    ]
    return Table(("messages/s, tasks/s", "in a group", "the other", "ratio", "min..max"), rows)


def _observers(found: Observers) -> Table:
    services = f"{found['services']:,} services"
    rows = [
        (f"{services}: {what}", *_compared(one, _time))
        for what, one in (
            ("process start to all running", found["up"]),
            ("SIGTERM to exit", found["down"]),
            ("both together", found["both"]),
            ("both, imports left out", found["work"]),
        )
    ]
    notes = []
    if "metrics" in found:
        one = found["metrics"]
        between = f"{_time(one['min'])}..{_time(one['max'])}"
        rows.append((f"{services}: GET /metrics", _time(one["median"]), "", "", between))
    if "left_out" in found:
        notes.append(f"GET /metrics is left out: {found['left_out']}.")
    head = ("a group with all observers", "observed", "not", "ratio", "min..max")
    return Table(head, rows, notes)


def _kinds(kinds: Kinds) -> Table:
    rows = [
        (
            _KINDS.get(one["kind"], f"`{one['kind']}`"),
            _time(one["first_up"]["median"]),
            _memory(one["first_memory"]["median"]),
            # What is less than nothing is too little to be measured.
            *(_time(max(0.0, one[which]["median"])) for which in ("up", "down")),
            _memory(max(0.0, one["memory"]["median"])),
        )
        for one in kinds["kinds"]
    ]
    head = ("kind", "the first: start", "memory", "one more: start", "stop", "memory")
    return Table(head, rows)


def _restarts(entry: Entry) -> Iterator[Row]:
    if "restarts" in entry:
        found = entry["restarts"]
        away = found["away"]
        between = f"{_time(away['min'])}..{_time(away['max'])}"
        yield "a restart without a pause", _time(away["median"]), between
        yield "the same, 99th percentile", _time(found["p99"]), ""


def _heartbeat(entry: Entry) -> Iterator[Row]:
    if "kinds" in entry:
        one = entry["kinds"]["heartbeat"]
        between = f"{_time(one['min'])}..{_time(one['max'])}"
        yield "a call of `heartbeat()`", _time(one["median"]), between


def _compared(one: Comparison, show: Callable[[float], str]) -> tuple[str, str, str, str]:
    between = f"{one['min']:.2f}..{one['max']:.2f}"
    return show(one["ours"]), show(one["other"]), f"{one['ratio']:.2f}", between


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    milliseconds = seconds * 1000
    return f"{milliseconds:.3g} ms" if milliseconds >= 0.01 else f"{milliseconds * 1000:.2g} µs"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _memory(size: float) -> str:
    return f"{size / 1024:.1f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"
