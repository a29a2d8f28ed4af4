"""The page in a real browser: what is on screen follows what happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from playwright import sync_api

from servicegroup import Restart, Service, ServiceGroup, with_start
from servicegroup.observe.admin import AdminServer
from tests.debian import require
from tests.observe.test_health import PATIENCE, Announces, started, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def page() -> Iterator[sync_api.Page]:
    browser = require("chromium")
    with sync_api.sync_playwright() as playwright:
        # Its sandbox does not let root in, and nothing but our own page is loaded.
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        sync_api.expect.set_options(1000 * PATIENCE)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        yield page
        opened.close()
        assert [error for error in errors if "ERR_" not in error] == []


def row(page: sync_api.Page, service: str) -> sync_api.Locator:
    return page.locator(f'#services tr[data-service="{service}"]')


class Flaky(Service):
    on_failure = Restart(max_restarts=1000, delay=0.2, factor=1.0, jitter=0.0)

    def __init__(self) -> None:
        self.fails = threading.Event()

    def start(self) -> None:
        self.fails.wait()
        self.fails.clear()
        if not self.stopping.is_set():
            raise ValueError("out of <b>milk</b>")

    def stop(self) -> None:
        self.stopping.set()
        self.fails.set()


def test_the_page_follows_failures_restarts_drain_and_a_stop_that_hangs(
    page: sync_api.Page,
) -> None:
    expect = sync_api.expect
    release = threading.Event()
    group = ServiceGroup(name="shop", drain_delay=3600.0, shutdown_timeout=7200.0)
    admin = group.add(AdminServer(group, port=0))
    api = group.add(Announces())
    flaky = group.add(Flaky())

    def hang() -> None:
        release.wait()  # here it hangs

    group.add(with_start(lambda stopping: stopping.wait(), hang), name="slow", stop_timeout=3600.0)
    with started(group):
        wait_for(lambda: admin.port is not None)
        page.goto(admin.url)
        expect(page.locator("#group")).to_have_text("shop")
        expect(page.locator("#link")).to_have_text("live")
        expect(row(page, "api")).to_contain_text("starting")
        api.go.set()
        expect(row(page, "api")).to_contain_text("running")
        expect(page.locator("#state")).to_have_text("running")
        api.mark_not_ready()
        expect(row(page, "api")).to_contain_text("running, not ready")
        api.mark_ready()
        flaky.fails.set()
        expect(row(page, "Flaky").locator("td[data-label=restarts]")).to_have_text("1")
        failure = row(page, "Flaky").locator("summary")
        expect(failure).to_have_text("ValueError: out of <b>milk</b>")  # as text, not as HTML
        failure.focus()
        page.keyboard.press("Enter")
        expect(row(page, "Flaky").locator("pre").first).to_contain_text("Traceback")
        expect(page.locator("#lines svg")).to_have_count(4)
        expect(page.locator("#log")).to_contain_text("ServiceRestarting")
        group.stop()
        expect(page.locator("#state")).to_have_text("draining")
        group._run.post(group._run.on_stop, "now", True)  # as Ctrl-C: no delay
        expect(row(page, "slow")).to_contain_text("stopping")
        expect(row(page, "slow").locator("pre")).to_contain_text("release.wait()  # here it hangs")
        page.set_viewport_size({"width": 400, "height": 800})
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        release.set()
        expect(page.locator("#link")).to_have_text("not connected")


def test_the_page_connects_again_to_the_next_run(page: sync_api.Page, free_port: int) -> None:
    expect = sync_api.expect
    group = ServiceGroup(name="shop")
    admin = group.add(AdminServer(group, port=free_port))
    with group:
        page.goto(admin.url)
        expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#link")).to_have_text("not connected")
    again = ServiceGroup(name="next")
    again.add(AdminServer(again, port=free_port))
    with again:
        expect(page.locator("#group")).to_have_text("next")
        expect(page.locator("#link")).to_have_text("live")


def test_it_is_announced_to_screen_readers_and_worked_by_keys(page: sync_api.Page) -> None:
    group = ServiceGroup(name="shop")
    admin = group.add(AdminServer(group, port=0))
    with group:
        page.goto(admin.url)
        sync_api.expect(page.get_by_role("row")).to_have_count(2)
        sync_api.expect(page.get_by_role("rowheader", name="admin")).to_be_visible()
        sync_api.expect(page.get_by_role("log")).to_be_visible()
        sync_api.expect(page.get_by_role("img", name="admin: running")).to_be_visible()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "log"
