"""The documentation in a browser, as `make docs` built it: accessibility, widths, the search without a network."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import Opened, chromium
from playwright.sync_api import Browser

SITE = Path(__file__).parents[1] / "build" / "docs"
PAGES = (
    "index.html",
    "start/which-command.html",
    "howto/index.html",
    "reference/generated/commands/finetune-fit.html",
    "reference/generated/errors.html",
    "numbers/accuracy.html",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site is not built: make docs"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The site on a server of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_site_has_nothing_serious_and_loads_nothing_from_elsewhere(
    browser: Browser, address: str, name: str, width: int
) -> None:
    opened = Opened(browser, f"{address}{name}", width=width)
    assert opened.violations() == []
    assert opened.overflow() <= 0
    assert [picture for picture, pixels in opened.pictures() if not pixels] == []
    assert [url for url in opened.requests if not url.startswith(address)] == []
    assert opened.complaints == []
    opened.close()


def test_the_search_finds_pages_without_a_network(browser: Browser, address: str) -> None:
    opened = Opened(browser, f"{address}search.html?q=unknown+gallery", width=1440)
    first = opened.page.locator("ul.search li a").first
    first.wait_for()
    assert "gallery" in str(first.text_content()).lower()
    assert [url for url in opened.requests if not url.startswith(address)] == []
    first.click()
    opened.page.locator("h1").wait_for()
    opened.close()


def test_every_page_that_llms_txt_lists_is_there_as_markdown() -> None:
    listed = re.findall(r"\]\(([^)]+)\)", (SITE / "llms.txt").read_text(encoding="utf-8"))
    assert len(listed) > 60
    assert [name for name in listed if not (SITE / name).read_text(encoding="utf-8").strip()] == []
