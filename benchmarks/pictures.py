"""The README's pictures, made by the project's own commands from the digits and from Omniglot: a training curve, a
gallery of wrong pictures, a confusion matrix, the map of an embedding.

Command: FEWTUNE_DATA=FOLDER python benchmarks/pictures.py [OUT]; OUT is docs/pictures where not given. It wants
Chromium, and Omniglot below FEWTUNE_DATA; each picture is a section of a report, light, and below 150 KB.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops
from playwright.sync_api import Page

from finetune.files.writing import replacing

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import chromium  # type: ignore[import-not-found]

LARGEST = 150_000  # bytes
MARGIN = 24  # pixels
# A sheet made by a script is none that the page's policy is about.
ADD_STYLE = """(css) => {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(css);
    document.adoptedStyleSheets.push(sheet);
}"""


def _gallery(selector: str, columns: int, shown: int) -> str:
    """CSS for the first pictures of a gallery in so many columns."""
    return (
        f"{selector} {{ grid-template-columns: repeat({columns}, minmax(0, 1fr)) !important }}"
        f"{selector} > li:nth-child(n + {shown + 1}) {{ display: none }}"
    )


@dataclass(frozen=True)
class Shot:
    """name: of the file. report: which one. selector: the first element in it that matches is shown. width: of the
    window, in pixels; a README shows about 700 of them. style: more CSS, such as how much of a gallery is shown."""

    name: str
    report: str
    selector: str
    width: int
    style: str = ""


SHOTS = (
    Shot("curve", "scratch", "#learning figure.chart", 760),
    Shot("gallery", "full", "#pictures ul.pictures", 860, _gallery("#pictures ul.pictures", columns=4, shown=8)),
    Shot("confusion", "full", "#confusion .axes", 860),
    Shot("map", "omniglot", "#map figure.chart", 760),
    Shot("wrong-neighbours", "omniglot", "#wrong ul.pictures", 860, _gallery("#wrong ul.pictures", columns=3, shown=9)),
)


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        call("finetune.cli", "demo", "--out", str(folder / "demo"))
        call("fewshot.cli", "report", "omniglot", "--out", str(folder / "omniglot.html"))
        reports = {strategy: folder / "demo" / strategy / "report.html" for strategy in ("scratch", "full")}
        reports["omniglot"] = folder / "omniglot.html"
        shoot(reports, out)


def call(module: str, *words: str) -> None:
    """A command of the project, as its console script runs it."""
    program = f"from {module} import main; main()"
    subprocess.run([sys.executable, "-c", program, *words], check=True)


def shoot(reports: dict[str, Path], out: Path) -> None:
    with chromium() as browser:
        for shot in SHOTS:
            page = browser.new_page(
                viewport={"width": shot.width, "height": 1000}, device_scale_factor=2, color_scheme="light"
            )
            page.goto(reports[shot.report].resolve().as_uri())
            # The bar of sections stays at the top of the window, which a whole page has but once.
            page.evaluate(ADD_STYLE, f".sections {{ display: none }} {shot.style}")
            path = out / f"{shot.name}.png"
            with replacing(path) as temporary:
                temporary.write_bytes(crisp(picture(page, shot)))
            print(f"{path}: {path.stat().st_size / 1000:.0f} KB")
            page.close()


def picture(page: Page, shot: Shot) -> bytes:
    """The element, with room around it, as PNG."""
    found = page.locator(shot.selector).first
    page.evaluate("() => Promise.allSettled([...document.images].map((image) => image.decode()))")
    box = found.bounding_box()
    if box is None:
        sys.exit(f"{shot.selector} is not shown in the {shot.report} report")
    room = 12
    return page.screenshot(
        clip={
            "x": box["x"] - room,
            "y": box["y"] - room,
            "width": box["width"] + 2 * room,
            "height": box["height"] + 2 * room,
        },
        full_page=True,
    )


def crisp(png: bytes) -> bytes:
    """The same in as many colours as fit into LARGEST bytes; the text stays sharp."""
    image = trimmed(Image.open(io.BytesIO(png)).convert("RGB"))
    for colours in (256, 128, 64, 32):
        file = io.BytesIO()
        image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            file, "PNG", optimize=True
        )
        if file.tell() <= LARGEST:
            break
    else:
        sys.exit(f"a picture of {image.width} x {image.height} is over {LARGEST:,} bytes")
    return file.getvalue()


def trimmed(image: Image.Image) -> Image.Image:
    """The same without what is blank to the right of it, but for a margin."""
    blank = Image.new("RGB", image.size, image.getpixel((image.width - 1, 0)))
    box = ImageChops.difference(image, blank).getbbox()
    return image if box is None else image.crop((0, 0, min(image.width, box[2] + MARGIN), image.height))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/pictures"))
