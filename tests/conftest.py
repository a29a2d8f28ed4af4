"""What several tests need."""

from __future__ import annotations

from collections.abc import Generator

import pytest

pytest_plugins = ["pytest_servicegroup", "pytester"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Some tests log what is no Unicode, which pytest-xdist cannot pass on."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report
