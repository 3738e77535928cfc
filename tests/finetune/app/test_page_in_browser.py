"""The page of `finetune try` in a real browser: pictures, the camera, a correction that changes answers, undo."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import CAMERA, Opened, chromium
from made_pictures import encoded
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from served import WAIT, serving, small_run

import finetune
from finetune.app.page.page import page_app
from finetune.app.page.tried_run import TriedRun
from finetune.classifier.loading import load
from finetune.classifier.run_folder import ADDED

pytestmark = pytest.mark.slow

OWN = {"X-Fewtune-Page": "1"}
DROP = """([selector, name, content]) => {
    const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
    const dropped = new DataTransfer();
    dropped.items.add(new File([bytes], name, { type: "image/png" }));
    document.querySelector(selector).dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true }));
}"""


def green(seed: int) -> bytes:
    """A picture of a colour that the run does not know."""
    pixels = np.clip(np.random.default_rng(seed).normal((128, 216, 40), 15, (40, 40, 3)), 0, 255).astype(np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(*CAMERA) as opened:
        yield opened


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[httpx.Client]:
    with serving(page_app(TriedRun(run, "cpu"), token=None, hosts={"localhost"}, most_megabytes=1)) as opened:
        yield opened


def done(page: Page, *, cards: int, said: str) -> None:
    """The page has so many answers, says this, and waits for nothing."""
    within = WAIT * 1000
    expect(page.locator("article")).to_have_count(cards, timeout=within)
    expect(page.locator("#status")).to_contain_text(said, timeout=within)
    expect(page.locator("#camera")).to_be_enabled(timeout=within)


def assert_accessible_and_fits(opened: Opened) -> None:
    """On a telephone and in a wide window, in both colour schemes."""
    for width, scheme in ((1440, "dark"), (390, "light")):
        opened.seen(width, scheme)
        assert opened.violations() == []
        assert opened.overflow() <= 0


def test_a_dropped_picture_is_answered_corrected_and_the_correction_undone(
    browser: Browser, client: httpx.Client, run: Path
) -> None:
    opened = Opened(browser, f"{client.base_url}/", width=390)
    page = opened.page
    assert_accessible_and_fits(opened)
    page.evaluate(DROP, ["main", "new.png", base64.b64encode(green(1)).decode()])
    done(page, cards=1, said="new.png: ")
    card = page.locator("article")
    before = card.locator(".verdict").inner_text()
    assert before != "green"
    assert card.locator(".bars li").count() == 2
    assert card.locator(".near img").count() == 6
    assert page.locator("#undo").is_hidden()
    assert all(drawn > 0 for _, drawn in opened.pictures())
    assert_accessible_and_fits(opened)
    page.set_input_files("#files", {"name": "other.png", "mimeType": "image/png", "buffer": green(2)})
    done(page, cards=2, said="other.png: ")
    page.keyboard.press("Tab")
    card.last.locator("input").focus()
    page.keyboard.type("green")
    page.keyboard.press("Enter")
    done(page, cards=2, said="added to green in ")
    assert [each.inner_text() for each in card.locator(".verdict").all()] == ["green", "green"]
    assert load(run, device="cpu").predict(green(3)).label == "green"
    assert len(list((run / ADDED).iterdir())) == 1
    assert_accessible_and_fits(opened)
    page.locator("#past summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#changes li").inner_text().endswith("UTC: 1 picture and 1 class added")
    assert_accessible_and_fits(opened)
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#undo")).to_be_focused()
    page.keyboard.press("Enter")
    done(page, cards=2, said="undone: 1 picture and 1 class added")
    assert card.last.locator(".verdict").inner_text() == before
    assert page.locator("#undo").is_hidden()
    assert page.locator("#past").is_hidden()
    assert load(run, device="cpu").classes == ("blue", "red")
    assert list((run / ADDED).iterdir()) == []
    assert (opened.requests, opened.complaints, opened.overflow() <= 0) == ([], [], True)
    opened.close()


def test_a_picture_of_the_camera_is_answered_and_teaches_the_next(browser: Browser, client: httpx.Client) -> None:
    opened = Opened(browser, f"{client.base_url}/", width=390)
    page, card = opened.page, opened.page.locator("article").first
    page.get_by_role("button", name="Use the camera").press("Enter")
    shot = page.get_by_role("button", name="Take a picture")
    expect(shot).to_be_focused(timeout=WAIT * 1000)
    page.keyboard.press("Enter")
    done(page, cards=1, said="camera 1: ")
    assert opened.violations() == []
    card.get_by_label("Wrong? It is").fill("pattern")
    card.get_by_role("button", name="Add to the run").click()
    done(page, cards=1, said="added to pattern in ")
    shot.click()
    done(page, cards=2, said="camera 2: pattern")
    page.get_by_role("button", name="Close the camera").click()
    assert page.locator("video").is_hidden()
    page.get_by_role("button", name="Undo the last change").click()
    done(page, cards=2, said="undone")
    assert card.locator(".verdict").inner_text() != "pattern"
    assert (opened.requests, opened.complaints) == ([], [])
    opened.close()


def test_what_cannot_be_answered_is_said_on_the_page(browser: Browser, client: httpx.Client) -> None:
    opened = Opened(browser, f"{client.base_url}/", width=390)
    opened.page.set_input_files("#files", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
    done(opened.page, cards=0, said="no.png: not a picture")
    # Of several pictures, those without an answer are named at the end.
    parts = {"no.png": b"no picture", "yes.png": green(5), "nor.png": b"nor this", "last.png": green(6)}
    opened.page.set_input_files(
        "#files", [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in parts.items()]
    )
    done(opened.page, cards=2, said="no.png: not a picture; nor.png: not a picture")
    opened.close()


def test_options_of_the_page_decide_what_is_unsure_and_unknown(browser: Browser, client: httpx.Client) -> None:
    opened = Opened(browser, f"{client.base_url}/", width=390)
    page = opened.page
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": green(4)})
    done(page, cards=1, said="a.png: ")
    page.get_by_label("unsure below a probability of").select_option("90 %")
    expect(page.locator(".verdict")).to_have_text("unsure", timeout=WAIT * 1000)
    expect(page.locator("#status")).to_be_empty(timeout=WAIT * 1000)
    page.get_by_label("unsure below a probability of").select_option("never")
    expect(page.locator(".verdict")).not_to_have_text("unsure", timeout=WAIT * 1000)
    unknown = page.get_by_label("pictures of no class that may pass as one")
    texts = unknown.locator("option").all_inner_texts()
    assert texts[0] == "all of them"
    assert all(text.endswith("% of the classes refused") for text in texts[1:])
    unknown.select_option("0.1")
    expect(page.locator(".verdict")).to_have_text("unknown", timeout=WAIT * 1000)
    opened.close()


def test_other_pages_and_other_names_change_nothing(client: httpx.Client) -> None:
    for headers in ({}, OWN | {"Origin": "http://evil.example"}, OWN | {"Sec-Fetch-Site": "same-site"}):
        answer = client.post("/add", params={"label": "green"}, content=green(5), headers=headers)
        assert answer.status_code == 403
        assert client.post("/undo", params={"number": 1}, headers=headers).status_code == 403
    rebound = client.post("/add", params={"label": "green"}, content=green(5), headers=OWN | {"Host": "evil.example"})
    assert rebound.status_code == 421
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert "frame-ancestors 'none'" in client.get("/").headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("label", "content", "reason"),
    [
        (" \t", green(6), "visible characters"),
        ("a" * 101, green(6), "visible characters"),
        ("a\u202eb", green(6), "visible characters"),
        ("green", b"no picture", "not a picture"),
        ("green", b"", "has no picture"),
    ],
)
def test_what_cannot_be_added_changes_nothing(
    client: httpx.Client, run: Path, label: str, content: bytes, reason: str
) -> None:
    answer = client.post("/add", params={"label": label}, content=content, headers=OWN)
    assert answer.status_code in (400, 422)
    assert reason in answer.json()["detail"]
    assert load(run, device="cpu").classes == ("blue", "red")


def test_a_picture_that_the_run_has_is_not_added_again(client: httpx.Client, run: Path) -> None:
    known = (run.parent / "pictures" / "blue" / "03.png").read_bytes()
    answer = client.post("/add", params={"label": "red"}, content=known, headers=OWN)
    assert answer.status_code == 422
    assert f"the run has this picture as 'blue'; to take it out: finetune forget {run}" in answer.json()["detail"]


def undo(client: httpx.Client, number: int) -> httpx.Response:
    return client.post("/undo", params={"number": number}, headers=OWN)


def test_a_change_of_another_program_is_not_undone_unseen(client: httpx.Client, run: Path) -> None:
    assert "no change to undo" in undo(client, 1).json()["detail"]
    (change,) = client.post("/add", params={"label": "green"}, content=green(7), headers=OWN).json()["past"]
    assert (change["number"], change["undoable"]) == (1, True)
    finetune.forget(run, classes=["green"], device="cpu")
    assert "changed by another program" in undo(client, 1).json()["detail"]
    assert len(finetune.history(run)) == 2
    state = client.get("/state").json()
    assert state["classes"] == ["blue", "red"]
    assert [(each["number"], each["text"][22:]) for each in state["past"]] == [
        (2, "1 picture and 1 class forgotten"),
        (1, "1 picture and 1 class added"),
    ]
    assert undo(client, 2).json()["classes"] == ["blue", "green", "red"]
    assert len(list((run / ADDED).iterdir())) == 1
    assert undo(client, 1).json()["past"] == []
    assert list((run / ADDED).iterdir()) == []


def test_changes_from_before_the_page_was_opened_are_listed_and_undone_by_keyboard(browser: Browser, run: Path) -> None:
    TriedRun(run, "cpu").add(green(8), "green")
    finetune.forget(run, pictures=["blue/01.png"], device="cpu")
    finetune.drop_history(run)
    finetune.forget(run, pictures=["blue/02.png"], device="cpu")
    with serving(page_app(TriedRun(run, "cpu"), token=None, hosts=None, most_megabytes=1)) as again:
        opened = Opened(browser, f"{again.base_url}/", width=390)
        page = opened.page
        page.locator("#past summary").press("Enter")
        told = [each.inner_text()[22:] for each in page.locator("#changes li").all()]
        lost = " (cannot be undone)"
        assert told == ["1 picture forgotten", f"1 picture forgotten{lost}", f"1 picture and 1 class added{lost}"]
        assert opened.violations() == []
        assert opened.overflow() <= 0
        page.get_by_role("button", name="Undo the last change").press("Enter")
        done(page, cards=0, said="undone: 1 picture forgotten")
        expect(page.locator("#undo")).to_be_hidden()
        page.reload()
        assert page.locator("#changes li").count() == 2
        assert (opened.requests, opened.complaints) == ([], [])
        opened.close()
    finetune.forget(run, classes=["green"], for_good=True, device="cpu")
    pictures = run.parent / "pictures"
    finetune.extend(run, [(str(pictures / "blue" / "01.png"), "blue")], device="cpu")
    finetune.drop_history(run)


def test_what_is_forgotten_for_good_leaves_no_copy_in_the_run(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    tried = TriedRun(run, "cpu")
    for number, label in enumerate(("green", "green", "yellow")):
        tried.add(green(number), label)
    assert len(list((run / ADDED).iterdir())) == 3
    finetune.forget(run, classes=["yellow"], device="cpu")
    assert len(list((run / ADDED).iterdir())) == 3  # undo can bring it back
    finetune.drop_history(run)
    assert len(list((run / ADDED).iterdir())) == 2
    finetune.forget(run, classes=["green"], for_good=True, device="cpu")
    assert list((run / ADDED).iterdir()) == []


def test_without_the_extra_for_heat_maps_the_page_answers_without(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TriedRun(run, "cpu").answer(green(1), {}).heat_map is not None
    monkeypatch.setitem(sys.modules, "captum", None)
    answer = TriedRun(run, "cpu").answer(green(1), {})
    assert (answer.heat_map, len(answer.bars)) == (None, 2)
