"""A run drawn, told as text, and written to a file when it has ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import attrs
import pytest

from servicegroup import (
    Report,
    Service,
    ServiceGroup,
    ServiceGroupError,
    ServiceStatus,
    State,
    with_start,
)
from servicegroup.observe import timeline
from servicegroup.observe._chain import start_chain, stop_chain
from servicegroup.observe._rows import run_rows
from servicegroup.observe._timeline_svg import ROWS
from tests.child import Child
from tests.observe.test_health import PATIENCE, wait_for

SVG = "{http://www.w3.org/2000/svg}"
BEGAN = 1_700_000_000.0


def status(
    name: str,
    start: tuple[float, float | None] | None = (0.0, 0.0),
    stop: tuple[float, float] | None = (10.0, 0.0),
    *,
    state: State = State.STOPPED,
    parts: tuple[ServiceStatus, ...] = (),
    restarts: int = 0,
) -> ServiceStatus:
    """Of a service: when it was started and stopped, each with the seconds that took."""
    return ServiceStatus(
        name=name,
        state=state,
        started_at=None if start is None else BEGAN + start[0],
        seconds_to_ready=None if start is None else start[1],
        stopping_at=None if stop is None else BEGAN + stop[0],
        seconds_to_stop=None if stop is None else stop[1],
        parts=parts,
        restarts=restarts,
    )


def report(*services: ServiceStatus, seconds: float = 20.0) -> Report:
    return Report(
        name="shop",
        reason="SIGTERM",
        started_at=BEGAN,
        seconds=seconds,
        exit_code=0,
        services=services,
    )


SHOP = report(
    status("database", (0.0, 4.0), (16.0, 2.0)),
    status(
        "inner",
        (4.0, 2.0),
        (12.0, 4.0),
        parts=(
            status("inner/cache", (4.0, 1.5), (12.5, 3.5)),
            status("inner/jobs", (5.5, 0.5), (12.0, 0.5)),
        ),
    ),
    attrs.evolve(
        status("api", (6.0, 0.25), (11.0, 1.0), state=State.ABANDONED),
        stack="thread 'shop/api' is at:\n  File \"a.py\", line 1, in <module>\n",
        error=TimeoutError("service 'api' did not stop"),
    ),
)


def names(links: Iterable[object]) -> list[str]:
    return [link.row.path for link in links]  # type: ignore[attr-defined]


def section(text: str, title: str) -> list[str]:
    """The lines below the title that begins so."""
    found = next(part for part in text.split("\n\n") if part.startswith(title))
    return found.strip().split("\n")[1:]


# -- the critical chain ---------------------------------------------------------------------------


def test_the_chain_leads_from_the_last_to_be_ready_to_those_it_waited_for() -> None:
    """Of a start in order that is all; `quick` overlaps, so nobody waited for it."""
    rows = run_rows(
        report(
            status("database", (0.0, 4.0), (16.0, 2.0)),
            status("quick", (4.0, 0.25), (15.0, 1.0)),
            status("slow", (4.0, 3.0), (12.0, 3.0)),
            status("api", (7.0, 1.0), (11.0, 1.0)),
        )
    ).rows
    assert names(start_chain(rows)) == ["database", "slow", "api"]
    assert names(stop_chain(rows)) == ["api", "slow", "quick", "database"]


def test_of_what_was_started_at_once_the_slowest_is_the_chain() -> None:
    rows = run_rows(report(*(status(f"s{n}", (0.0, 1.0 + n), (10.0, 5.0 - n)) for n in range(4))))
    assert names(start_chain(rows.rows)) == ["s3"]
    assert names(stop_chain(rows.rows)) == ["s0"]


def test_what_took_no_time_is_in_the_chain_once() -> None:
    rows = run_rows(report(*(status(f"s{n}", (0.0, 0.0), (10.0, 0.0)) for n in range(4)))).rows
    assert names(start_chain(rows)) == ["s0", "s1", "s2", "s3"]
    assert start_chain(()) == []


def test_the_chain_of_a_real_run_has_all_that_waited() -> None:
    class Gate(Service):
        ready_when = "announced"

        def start(self) -> None:
            self.mark_ready()
            self.stopping.wait()

        def stop(self) -> None:
            pass

    group = ServiceGroup(name="shop")
    for number in range(50):
        group.add(Gate(), name=f"s{number}")
    with group:
        pass
    rows = run_rows(group.wait(PATIENCE)).rows
    order = [f"s{number}" for number in range(50)]
    assert names(start_chain(rows)) == order
    assert names(stop_chain(rows)) == order[::-1]


def test_times_that_a_float_does_not_know_exactly_break_no_chain() -> None:
    """As a group reckons them: each one starts in the moment when the one before is ready."""
    moments = [5.1 + 0.013 * n for n in range(1001)]
    rows = run_rows(
        report(
            *(
                status(f"s{n}", (moment, moments[n + 1] - moment), (100.0, 0.0))
                for n, moment in enumerate(moments[:-1])
            )
        )
    ).rows
    assert len(start_chain(rows)) == 1000


def test_what_came_when_the_group_was_up_is_not_in_the_chain_of_its_start() -> None:
    rows = run_rows(
        report(
            status("database", (0.0, 4.0)),
            status("again", (9.0, 0.5), restarts=1),
            status("added", (9.75, 0.1)),
        )
    ).rows
    assert names(start_chain(rows)) == ["database"]
    assert [row.late for row in rows] == [False, True, True]


def test_one_that_was_never_ready_held_up_the_start_until_the_stop() -> None:
    rows = run_rows(
        report(
            status("database", (0.0, 1.0), (7.0, 0.0)),
            status("hangs", (1.0, None), (6.0, 1.0), state=State.FAILED),
            status("fails", (1.0, None), None, state=State.FAILED),
            status("never", None, None, state=State.NEW),
            status("timed out before", (5.0, 0.5), (6.0, 0.0)),
        )
    ).rows
    assert names(start_chain(rows))[0] == "database"
    assert start_chain(rows)[-1].span.end == 6.0
    assert not rows[1].ready
    assert not rows[4].late
    assert rows[3].start is None


# -- text -----------------------------------------------------------------------------------------


def test_the_text_blames_the_slowest_and_shows_the_chains_and_the_stack() -> None:
    assert timeline.text(SHOP).splitlines() == [
        "group 'shop' ended after 20.000 s, exit code 0: SIGTERM",
        "",
        "slowest to start:",
        "      4.000 s  database",
        "      1.500 s  inner/cache",
        "      0.500 s  inner/jobs",
        "      0.250 s  api",
        "",
        "slowest to stop:",
        "      3.500 s  inner/cache",
        "      2.000 s  database",
        "      1.000 s  api, abandoned",
        "      0.500 s  inner/jobs",
        "",
        "critical chain of the start, the last first, each after the one below it:",
        "  api  @6.000 s +0.250 s",
        "  inner  @4.000 s +2.000 s",
        "    inner/jobs  @5.500 s +0.500 s",
        "    inner/cache  @4.000 s +1.500 s",
        "  database  @0.000 s +4.000 s",
        "",
        "critical chain of the stop, the last first, each after the one below it:",
        "  database  @16.000 s +2.000 s",
        "  inner  @12.000 s +4.000 s",
        "    inner/cache  @12.500 s +3.500 s",
        "    inner/jobs  @12.000 s +0.500 s",
        "  api  @11.000 s +1.000 s, abandoned",
        "",
        "api was abandoned:",
        "  thread 'shop/api' is at:",
        '    File "a.py", line 1, in <module>',
    ]


def test_what_is_odd_about_a_start_is_noted() -> None:
    text = timeline.text(
        report(status("a", (0.0, None), state=State.FAILED), status("b", (0.0, 1.0), restarts=3))
    )
    assert section(text, "slowest to start") == [
        "     10.000 s  a, never ready",
        "      1.000 s  b, restarted 3 times",
    ]


def test_an_empty_group_has_a_headline() -> None:
    assert timeline.text(report()) == "group 'shop' ended after 20.000 s, exit code 0: SIGTERM\n"
    ElementTree.fromstring(timeline.svg(report()))


def test_of_ten_thousand_services_the_slowest_are_shown() -> None:
    many = report(
        *(status(f"s{n}", (n * 0.001, 0.001 * (n % 7 + 1)), (10.0, 0.001)) for n in range(9_999)),
        status("slow", (10.0, 5.0), (10.0, 3.0)),
    )
    began = time.thread_time()
    text, drawn = timeline.text(many), timeline.svg(many)
    assert time.thread_time() - began < 5.0
    assert len(text.splitlines()) < 150
    assert section(text, "slowest to start")[0].endswith("slow")
    assert section(text, "slowest to start")[-1] == "  (9970 that were quicker are left out)"
    assert len(drawn) < 500_000
    root = ElementTree.fromstring(drawn)
    assert len(root.findall(f"{SVG}g")) == ROWS
    assert "slow" in labels(root)
    assert f"{10_000 - ROWS} services that were quicker are left out" in [
        one.text for one in root.findall(f"{SVG}text")
    ]


# -- SVG ------------------------------------------------------------------------------------------


def labels(root: ElementTree.Element) -> list[str | None]:
    return [row.findall(f"{SVG}text")[0].text for row in root.findall(f"{SVG}g")]


def bars(row: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Where its bars begin and end, by their class."""
    found = {}
    for bar in row.findall(f"{SVG}rect"):
        x = float(bar.attrib["x"])
        found[bar.attrib["class"]] = (x, x + float(bar.attrib["width"]))
    return found


def test_the_drawing_has_a_row_a_service_and_bars_that_follow_one_another() -> None:
    root = ElementTree.fromstring(timeline.svg(SHOP))
    rows = root.findall(f"{SVG}g")
    assert labels(root) == ["database", "inner", "cache", "jobs", "api"]
    indents = [float(row.findall(f"{SVG}text")[0].attrib["x"]) for row in rows]
    assert indents[0] == indents[1] < indents[2] == indents[3]
    drawn = [bars(row) for row in rows]
    start, stop = "start critical", "stop critical"
    database, inner, cache, jobs, api = drawn
    assert database[start][1] == pytest.approx(inner[start][0], abs=0.2)
    assert inner[start][1] == pytest.approx(api[start][0], abs=0.2)
    assert cache[start][1] == pytest.approx(jobs[start][0], abs=0.2)
    assert api[stop][1] == pytest.approx(inner[stop][0], abs=0.2)
    assert inner[stop][1] == pytest.approx(database[stop][0], abs=0.2)
    assert max(bar[start][1] for bar in drawn) < min(bar[stop][0] for bar in drawn)
    width = float(root.attrib["width"])
    assert all(0 <= x <= width for bar in drawn for edges in bar.values() for x in edges)


def test_only_what_was_waited_for_is_outlined() -> None:
    root = ElementTree.fromstring(
        timeline.svg(report(status("slow", (0.0, 2.0)), status("quick", (0.0, 1.0))))
    )
    slow, quick = root.findall(f"{SVG}g")
    assert "start critical" in bars(slow)
    assert "start" in bars(quick)


def test_the_title_of_a_row_has_all_that_is_known_of_it() -> None:
    root = ElementTree.fromstring(timeline.svg(SHOP))
    told = root.findall(f"{SVG}g")[-1].findtext(f"{SVG}title")
    assert told is not None
    assert told.splitlines() == [
        "api: abandoned",
        "started @6.000 s, ready +0.250 s",
        "stopped @11.000 s +1.000 s",
        "TimeoutError: service 'api' did not stop",
        "thread 'shop/api' is at:",
        '  File "a.py", line 1, in <module>',
    ]


def test_a_late_start_has_no_bar_but_says_when() -> None:
    root = ElementTree.fromstring(
        timeline.svg(report(status("a", (0.0, 1.0)), status("b", (9.0, 0.5), restarts=2)))
    )
    late = root.findall(f"{SVG}g")[1]
    assert not [kind for kind in bars(late) if kind.startswith("start")]
    assert "started again at 9.000 s" in [one.text for one in late.findall(f"{SVG}text")]


def test_the_drawing_is_well_formed_whatever_the_names() -> None:
    name = "<b a='1'>&amp;\"]]>\0\x1b\ud800\ufffe\nü"
    odd = attrs.evolve(status(name, state=State.ABANDONED), stack=f"<{name}>", error=OSError(name))
    root = ElementTree.fromstring(
        timeline.svg(attrs.evolve(report(odd), name=name, reason=name)).encode()
    )
    told = root.findall(f"{SVG}g")[0].findtext(f"{SVG}title")
    assert told is not None
    assert told.startswith("<b a='1'>&amp;\"]]>\ufffd\ufffd\ufffd\ufffd\nü: abandoned\n")
    assert [one.tag for one in root.iter()].count(f"{SVG}b") == 0


def test_the_drawing_stands_alone_and_has_light_and_dark() -> None:
    drawn = timeline.svg(SHOP)
    assert "prefers-color-scheme: dark" in drawn
    assert drawn.count("http") == 1  # the namespace
    assert "<script" not in drawn


# -- what it is made of ---------------------------------------------------------------------------


def test_a_report_a_dictionary_and_one_by_way_of_json_give_the_same() -> None:
    by_json = json.loads(SHOP.to_json())
    assert timeline.svg(SHOP) == timeline.svg(SHOP.to_dict()) == timeline.svg(by_json)
    assert timeline.text(SHOP) == timeline.text(by_json)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"services": None}, "the report has no list 'services'"),
        ({"seconds": "20"}, "the report has no number 'seconds'"),
        ({"seconds": float("nan")}, "the report has no number 'seconds'"),
        ({"name": 7}, "the report has no text 'name'"),
        ({"services": [{}]}, r"services\[0\] of the report has no text 'name'"),
        ({"services": [7]}, r"services\[0\] of the report is no dictionary"),
    ],
)
def test_what_is_no_report_is_refused_by_name(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        timeline.text({**SHOP.to_dict(), **change})


def test_json_text_is_to_be_parsed_first() -> None:
    with pytest.raises(TypeError, match=r"not of str: json.loads\(\) makes one"):
        timeline.svg(SHOP.to_json())  # type: ignore[arg-type]


# -- into a file ----------------------------------------------------------------------------------


def shop() -> ServiceGroup:
    group = ServiceGroup(name="shop")
    group.add(with_start(threading.Event.wait), name="api")
    return group


def test_the_suffix_says_what_is_written_when_the_group_has_ended(tmp_path: Path) -> None:
    group = shop()
    for suffix in ("json", "svg", "txt"):
        timeline.write_report(group, tmp_path / f"report.{suffix}")
    with group:
        assert list(tmp_path.iterdir()) == []
    ended = group.wait(PATIENCE)
    wait_for((tmp_path / "report.txt").exists)  # the last of them
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(ended.to_json())
    assert (tmp_path / "report.svg").read_text() == timeline.svg(ended)
    assert (tmp_path / "report.txt").read_text() == timeline.text(ended)
    assert len(list(tmp_path.iterdir())) == 3


def test_each_run_writes_anew_and_a_nested_group_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outer = ServiceGroup(name="outer")
    inner = outer.add(shop())
    file = tmp_path / "report.json"
    timeline.write_report(outer, file)
    for _ in range(2):
        with outer:
            inner.stop()
            inner.wait(PATIENCE)
        wait_for(file.exists)
        assert json.loads(file.read_text())["name"] == "outer"
        file.unlink()
    assert "no report" not in caplog.text


def test_whoever_reads_the_last_report_reads_it_to_the_end(tmp_path: Path) -> None:
    file = tmp_path / "report.txt"
    file.write_text("the last one")
    group = shop()
    timeline.write_report(group, file)
    with file.open() as last:
        with group:
            pass
        wait_for(lambda: file.read_text() != "the last one")
        assert last.read() == "the last one"
    assert file.read_text().startswith("group 'shop'")


def test_a_report_is_written_also_of_a_failure(tmp_path: Path) -> None:
    group = shop()
    group.add(with_start(lambda: 1 / 0), name="bad")
    file = tmp_path / "report.txt"
    timeline.write_report(group, file)
    with pytest.raises(ServiceGroupError) as caught:
        group.start()
    wait_for(file.exists)
    assert file.read_text() == timeline.text(caught.value.report)


def test_a_disk_that_takes_nothing_is_logged_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "reports"
    directory.mkdir()
    group = shop()
    timeline.write_report(group, directory / "report.json")
    with group:
        directory.rmdir()
    assert group.wait(PATIENCE).exit_code == 0
    wait_for(lambda: "raised at GroupStopped" in caplog.text)
    assert "No such file or directory" in caplog.text


def test_what_was_there_stays_whole_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Path, content: str, **_options: str) -> int:
        self.write_bytes(content[:10].encode())
        raise OSError("No space left on device")

    file = tmp_path / "report.json"
    file.write_bytes(b"the last one")
    monkeypatch.setattr(Path, "write_text", full)
    group = shop()
    timeline.write_report(group, file)
    with group:
        pass
    wait_for(lambda: "No space left" in caplog.text)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [
        ("report.json", b"the last one")
    ]


def test_the_directory_is_that_of_the_moment_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    group = shop()
    timeline.write_report(group, "report.txt")
    monkeypatch.chdir(elsewhere)
    with group:
        pass
    wait_for((tmp_path / "report.txt").exists)


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report.html' must end in one of .json, .svg, .txt"):
        timeline.write_report(shop(), tmp_path / "report.html")
    with pytest.raises(FileNotFoundError, match="does not exist: make it before"):
        timeline.write_report(shop(), tmp_path / "missing" / "report.svg")
    with pytest.raises(TypeError, match="takes a ServiceGroup, not 'shop'"):
        timeline.write_report("shop", tmp_path / "report.svg")  # type: ignore[arg-type]


def test_a_program_that_ends_with_run_leaves_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Child(
        """
        from servicegroup import _run
        from servicegroup.observe.timeline import write_report

        _run.FLUSH_SECONDS = 30.0  # the subscribers' thread may come late
        group = ServiceGroup(name="shop", stop_timeout=0.1)
        group.add(with_start(lambda: time.sleep(60)), name="deaf")
        group.add(with_start(group.stop), name="once")
        write_report(group, "report.json")
        group.run()
        """
    ) as child:
        assert child.end() == 1
    told = json.loads((tmp_path / "report.json").read_text())
    deaf = told["services"][0]
    assert deaf["state"] == "abandoned"
    assert "  thread 'shop/deaf' is at:\n" in timeline.text(told)
