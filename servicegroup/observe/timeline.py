"""Who waited for whom at start and stop, and what was slow: as SVG, as text, and into a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from servicegroup import _log, events
from servicegroup.group import ServiceGroup
from servicegroup.observe._rows import run_rows
from servicegroup.observe._timeline_svg import timeline_svg
from servicegroup.observe._timeline_text import timeline_text
from servicegroup.report import Report

__all__ = ["svg", "text", "write_report"]


def svg(report: Report | Mapping[str, object]) -> str:
    """A run as a drawing, as `systemd-analyze plot` draws a boot.

    It stands alone, follows the reader's light or dark, and shows the slowest of very many.

    Args:
        report: what `start()` returned or its error has, or what `to_dict()` of that returned,
            also by way of JSON.

    Raises:
        TypeError: it is neither.
        ValueError: something is missing in the dictionary.
    """
    return timeline_svg(run_rows(report))


def text(report: Report | Mapping[str, object]) -> str:
    """A run as text, as `systemd-analyze` tells of a boot by `blame` and `critical-chain`.

    Raises:
        TypeError, ValueError: as `svg`.
    """
    return timeline_text(run_rows(report))


def write_report(group: ServiceGroup, path: str | os.PathLike[str]) -> None:
    """Have `path` written whenever `group` has ended, as its suffix says: .json, .svg or .txt.

    It is the way to a report for a program whose last line is `run()`. The group waits for it as
    for any subscriber, for a second at most; the file is there whole or not at all. What goes
    wrong is logged, and changes nothing for the group.

    Raises:
        TypeError: `group` is no `ServiceGroup`.
        ValueError: the suffix is another one.
        FileNotFoundError: the directory does not exist.
    """
    if not isinstance(group, ServiceGroup):
        raise TypeError(f"write_report() takes a ServiceGroup, not {group!r}")
    file = Path(path).absolute()  # the program may change its directory
    made = _FORMS.get(file.suffix)
    if made is None:
        raise ValueError(f"{os.fspath(path)!r} must end in one of {', '.join(_FORMS)}")
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"the directory {os.fspath(file.parent)!r} of the report does not exist: make it before"
        )

    def write(event: events.Event) -> None:
        if isinstance(event, events.GroupStopped) and event.group == group.name:
            report = group.report
            if report is None:
                _log.logger().warning("group %r: no report, for it runs again", group.name)
            else:
                _write(file, made(report))

    group.subscribe(write)


def _json(report: Report) -> str:
    return report.to_json(indent=2) + "\n"


_FORMS: dict[str, Callable[[Report], str]] = {".json": _json, ".svg": svg, ".txt": text}


def _write(file: Path, content: str) -> None:
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_text(content, encoding="utf-8", errors="backslashreplace")
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
