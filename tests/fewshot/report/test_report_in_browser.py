from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Opened, chromium
from drawings import small
from playwright.sync_api import Browser
from small_omniglot import small_omniglot, small_splits

from fewshot.report.report import write_report
from fewshot.training.train import train_omniglot

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run on a made-up Omniglot, with every section that there is."""
    folder = small_omniglot(tmp_path_factory.mktemp("omniglot"))
    run = tmp_path_factory.mktemp("runs") / "run"
    with small_splits():
        train_omniglot(run, config=small(alphabets=1, epochs=4), data=folder)
        return write_report(str(run), data=folder, device="cpu").path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_the_page_is_complete_accessible_and_fits(browser: Browser, page: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, page, width=width, scheme=scheme)
    assert opened.overflow() <= 0
    shown = opened.pictures()
    assert len(shown) > 50
    assert all(natural > 0 for _, natural in shown)
    assert opened.violations() == []
    assert opened.requests == []
    assert opened.complaints == []
    opened.close()


def test_every_linked_section_exists(browser: Browser, page: Path) -> None:
    opened = Opened(browser, page, width=1440)
    links = opened.page.eval_on_selector_all("nav a", "links => links.map(link => link.getAttribute('href'))")
    assert links == ["#figures", "#ways", "#hard", "#wrong", "#same", "#map", "#training"]
    assert all(opened.page.locator(link).count() == 1 for link in links)
    opened.close()


def test_a_point_of_the_map_shows_its_picture(browser: Browser, page: Path) -> None:
    opened = Opened(browser, page, width=1440)
    tip = opened.page.locator("svg.map + .tip")
    assert not tip.is_visible()
    first = opened.page.locator("svg.map .point").first
    first.focus()
    assert tip.is_visible()
    assert tip.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 105
    before = tip.inner_text()
    opened.page.keyboard.press("ArrowRight")
    assert tip.inner_text() != before
    opened.page.locator("svg.map .point").nth(5).hover(force=True)
    assert "drawer" in tip.inner_text()
    opened.close()
