"""A real browser for tests of pages: what a page asks for, what it complains of, and what axe-core finds in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
    "--no-first-run",
)


# A camera that shows a pattern, which no page has to ask for.
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """Chromium without a window; the test is skipped where none is installed."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)} is on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """A page at a file or an address. requests: what it asked for beside its own; complaints: of its console."""

    def __init__(self, browser: Browser, path: Path | str, *, width: int, scheme: str = "light"):
        self.requests: list[str] = []
        self.complaints: list[str] = []
        own = path if isinstance(path, str) else path.as_uri()
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        self.page: Page = context.new_page()
        self.page.on("request", lambda request: self._asked(request.url, own))
        self.page.on("console", lambda line: self._said(line.type, line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(own)

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.scrollingElement.scrollWidth - innerWidth"))

    def seen(self, width: int, scheme: str) -> None:
        """As a window of this width shows it, in this colour scheme."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]

    def pictures(self) -> list[tuple[str, int]]:
        """The start of each picture's address and the width that it has in truth: 0 where it cannot be shown."""
        script = """async () => {
            const images = [...document.querySelectorAll("img[src]")];
            await Promise.allSettled(images.map((image) => image.decode()));
            return images.map((image) => [image.src.slice(0, 30), image.naturalWidth]);
        }"""
        return [(address, width) for address, width in self.page.evaluate(script)]

    def violations(self) -> list[str]:
        """What axe-core calls serious or critical: the rule, and the first element that breaks it."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{entry['id']}: {json.dumps(entry['nodes'][0]['target'])} {entry['nodes'][0].get('failureSummary', '')}"
            for entry in found
            if entry["impact"] in ("serious", "critical")
        ]

    def close(self) -> None:
        self.page.context.close()

    def _asked(self, url: str, own: str) -> None:
        if not url.startswith(("data:", own)):
            self.requests.append(url)

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)
