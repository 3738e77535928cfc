"""The page of `fewshot try` in a real browser: a gallery that begins with a picture of the camera."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser import CAMERA, Opened, chromium
from made_pictures import encoded
from made_recognizer import drawn
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from served import WAIT, serving

import fewshot
from fewshot.app.tried_gallery import TriedGallery
from finetune.app.page.page import page_app

pytestmark = pytest.mark.slow

OWN = {"X-Fewtune-Page": "1"}


def file_of(number: int, drawer: int = 0) -> bytes:
    return encoded(Image.fromarray(drawn(number, drawer)), "PNG")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(*CAMERA) as opened:
        yield opened


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    return tmp_path / "gallery"


@pytest.fixture
def client(gallery: Path) -> Iterator[httpx.Client]:
    with serving(page_app(TriedGallery(gallery, "cpu"), token=None, hosts=None, most_megabytes=1)) as opened:
        yield opened


def undo(client: httpx.Client, number: int) -> httpx.Response:
    return client.post("/undo", params={"number": number}, headers=OWN)


def done(page: Page, *, said: str) -> None:
    expect(page.locator("#status")).to_contain_text(said, timeout=WAIT * 1000)
    expect(page.locator("#camera")).to_be_enabled(timeout=WAIT * 1000)


def assert_fits(opened: Opened) -> None:
    """The page is accessible, and no wider than the screen of a telephone or of a desk."""
    for width in (390, 1440):
        opened.page.set_viewport_size({"width": width, "height": 900})
        assert opened.violations() == []
        assert opened.overflow() <= 0


def test_a_gallery_is_made_of_pictures_of_the_camera_and_of_files(
    browser: Browser, client: httpx.Client, gallery: Path
) -> None:
    opened = Opened(browser, f"{client.base_url}/", width=390)
    page, card = opened.page, opened.page.locator("article").first
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Take a picture").click(timeout=WAIT * 1000)
    done(page, said="camera 1: nothing is enrolled")
    card.get_by_label("Enrol it as").fill("pattern")
    card.get_by_role("button", name="Enrol").click()
    done(page, said="enrolled as pattern, which has 1 example")
    page.set_input_files("#files", {"name": "sign.png", "mimeType": "image/png", "buffer": file_of(0)})
    done(page, said="sign.png: unknown")
    card.get_by_label("Enrol it as").fill("sign")
    card.get_by_role("button", name="Enrol").click()
    done(page, said="enrolled as sign, which has 1 example")
    assert fewshot.Recognizer.load(gallery).labels == ("pattern", "sign")
    assert page.locator("#about").inner_text().startswith("2 classes, ")
    page.set_input_files("#files", {"name": "other.png", "mimeType": "image/png", "buffer": file_of(0, 1)})
    done(page, said="other.png: sign")
    assert "threshold of 0." in card.locator(".sentence").inner_text()
    assert card.locator(".bars.marked li").count() == 2
    assert_fits(opened)
    page.reload()
    page.locator("#past summary").press("Enter")
    assert [each.inner_text() for each in page.locator("#changes li").all()] == [
        "enrolled as sign",
        "enrolled as pattern",
    ]
    assert_fits(opened)
    for _ in range(2):
        page.get_by_role("button", name="Undo the last change").click()
        done(page, said="undone: enrolled as ")
    page.set_input_files("#files", {"name": "sign.png", "mimeType": "image/png", "buffer": file_of(0)})
    done(page, said="sign.png: nothing is enrolled")
    assert not (gallery / "gallery.safetensors").exists()
    assert (opened.requests, opened.complaints) == ([], [])
    opened.close()


def test_undo_brings_back_the_gallery_byte_for_byte_unless_another_program_changed_it(
    client: httpx.Client, gallery: Path
) -> None:
    def add(label: str, number: int) -> httpx.Response:
        return client.post("/add", params={"label": label}, content=file_of(number), headers=OWN)

    file = gallery / "gallery.safetensors"
    assert add("zero", 0).json()["classes"] == ["zero"]
    before = file.read_bytes()
    assert [each["number"] for each in add("one", 1).json()["past"]] == [2, 1]
    assert undo(client, 2).json()["classes"] == ["zero"]
    assert file.read_bytes() == before
    assert "already enrolled as 'zero'" in add("one", 0).json()["detail"]
    assert add("zero", 0).json() == {
        "said": "zero has this picture already",
        "classes": ["zero"],
        "past": [{"number": 1, "text": "enrolled as zero", "undoable": True}],
        "about": "1 class, encoder omniglot",
    }
    with fewshot.change_gallery(gallery, None, device="cpu") as recognizer:
        recognizer.enrol("two", file_of(2))
    assert "changed by another page" in undo(client, 2).json()["detail"]
    assert "changed by another program" in undo(client, 1).json()["detail"]
    assert fewshot.Recognizer.load(gallery).labels == ("zero", "two")
