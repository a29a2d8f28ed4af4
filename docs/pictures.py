"""Make the pictures of the docs: `make pictures`. Needs Debian's chromium."""

from __future__ import annotations

import linecache
import shutil
from pathlib import Path
from typing import Any

from playwright import sync_api

from servicegroup import Restart, Service, ServiceGroup
from servicegroup.observe.admin import AdminServer
from servicegroup.observe.timeline import write_report

IMAGES = Path(__file__).parent / "images"
# A file of its own that is none: no picture is to show where on which machine it was made.
SHOP = """\
import time
from servicegroup import Service

class Database(Service):
    def start(self):
        self.stopping.wait()

    def stop(self):
        time.sleep(4)  # it writes down what it has not yet
        self.stopping.set()

class Orders(Service):
    failures = 1

    def start(self):
        if self.failures and self.sleep(0.4):
            self.failures -= 1
            raise ConnectionResetError("the broker has hung up")
        self.stopping.wait()

class Api(Service):
    ready_when = "announced"

    def start(self):
        time.sleep(0.3)  # it reads the catalogue
        self.mark_ready()
        self.stopping.wait()

    def stop(self):
        time.sleep(0.6)  # requests in flight
        self.stopping.set()
"""


def main() -> None:
    linecache.cache["shop.py"] = (len(SHOP), None, SHOP.splitlines(keepends=True), "shop.py")
    shop: dict[str, Any] = {}
    exec(compile(SHOP, "shop.py", "exec"), shop)
    group = ServiceGroup(name="shop", drain_delay=0.5)
    admin = group.add(AdminServer(group, port=0))
    for name, options in (
        ("Database", {}),
        ("Orders", {"on_failure": Restart(delay=0.8, jitter=0.0)}),
        ("Api", {}),
    ):
        service: Service = shop[name]()
        group.add(service, name=name.lower(), **options)
    write_report(group, IMAGES / "timeline.svg")
    with sync_api.sync_playwright() as playwright:
        # Its sandbox does not let root in, and nothing but our own page is loaded.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        with group:
            page.goto(admin.url)
            restarts = page.locator('#services tr[data-service="orders"] td[data-label=restarts]')
            sync_api.expect(restarts).to_have_text("1")
            sync_api.expect(page.locator("#state")).to_have_text("running")
            page.wait_for_timeout(1500)  # so that there is something to see
            page.screenshot(path=IMAGES / "page-running.png", full_page=True)
            group.stop()
            stack = page.locator('#services tr[data-service="database"] pre')
            sync_api.expect(stack).to_contain_text("time.sleep(4)")
            page.screenshot(path=IMAGES / "page-stopping.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
