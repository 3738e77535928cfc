"""Pictures of none of the classes that a run keeps: what counts, what is left out, and their way through changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from called import Answer, caller
from PIL import Image
from safetensors.torch import load_file, save_file

import finetune
from finetune.classifier.export import _about
from finetune.classifier.published.contents import published_files
from finetune.classifier.run_config import read_run_config
from finetune.cli.main import main
from finetune.errors import InputError
from finetune.files.reading import read_json, read_tensors_and_metadata
from finetune.kept.background import BACKGROUND_FILE, MOST, list_background, read_background
from finetune.models.pooled import PooledStages
from finetune.open_set.unknown_model import UNKNOWN_FILE

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
CLASSES = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40)}
RATES = (0.01, 0.05, 0.2, 0.5)
# Of thresholds, which differ by tens here: features of other batches differ in their last digits.
CLOSE = 0.05


def blobs(path: Path, base: tuple[int, ...], seed: int) -> Path:
    """A picture of coarse noise around a colour: near-duplicates of it are found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).normal(base, 60, (9, 9, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).resize((72, 72), Image.Resampling.BILINEAR).save(path)
    return path


def stripes(folder: Path, numbers: range) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.zeros((36, 36, 3), np.uint8)
        pixels[:, :: 2 + number % 3] = 255
        pixels[number % 36] = (number * 9 % 256, 0, 0)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos`, `other` pictures of none of their classes, and `run`, a fit on both; `plain`, a fit on photos alone."""
    place = tmp_path_factory.mktemp("background")
    for seed, (label, base) in enumerate(CLASSES.items()):
        for number in range(12):
            blobs(place / "photos" / label / f"{number:02d}.png", base, 100 * seed + number)
    stripes(place / "other", range(12))
    finetune.fit(place / "photos", place / "plain", strategy="head", **OPTIONS)
    finetune.fit(place / "photos", place / "run", strategy="head", background=place / "other", **OPTIONS)
    return place


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(place / name, tmp_path / name))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def thresholds(classifier: finetune.Classifier) -> list[float]:
    return [classifier.require_unknown().threshold(rate) for rate in RATES]


def loaded(run: Path) -> finetune.Classifier:
    return finetune.load(run, device="cpu")


def test_a_fit_with_background_has_the_thresholds_that_background_at_prediction_gives(
    place: Path, tmp_path: Path
) -> None:
    plain, run = loaded(place / "plain"), loaded(place / "run")
    before = thresholds(plain)
    assert plain.learn_background(sorted((place / "other").iterdir())) == 12
    assert thresholds(run) == pytest.approx(thresholds(plain), abs=CLOSE)
    assert thresholds(run) != pytest.approx(before, abs=CLOSE)
    figures = run.metrics["unknown"]
    assert figures["background"]["pictures"] == 12
    assert figures["rates"] != loaded(place / "plain").metrics["unknown"]["rates"]
    # More at prediction is added to what the run keeps, and copies count once.
    assert run.learn_background(sorted((place / "other").iterdir())[:3]) == 0
    assert thresholds(run) == pytest.approx(thresholds(loaded(place / "run")), abs=CLOSE)
    others = sorted(stripes(tmp_path / "others", range(12, 15)).iterdir())
    assert run.learn_background([*others, others[0]]) == 3
    assert len(run.require_unknown().background) == 15


def test_extend_adds_background_and_undo_takes_it_back(place: Path, copied: Callable[[str], Path]) -> None:
    run, wanted = copied("plain"), thresholds(loaded(place / "run"))
    before = thresholds(loaded(run))
    classifier = finetune.extend(run, background=place / "other", device="cpu")
    assert thresholds(classifier) == pytest.approx(wanted, abs=CLOSE)
    assert thresholds(loaded(run)) == thresholds(classifier)
    (change,) = finetune.history(run)
    assert change.sentence == "12 background pictures added"
    with pytest.raises(InputError, match="has all of these background pictures already"):
        finetune.extend(run, background=place / "other", device="cpu")
    finetune.undo(run, device="cpu")
    assert thresholds(loaded(run)) == before
    assert not (run / BACKGROUND_FILE).exists()


def test_changes_keep_the_background(place: Path, copied: Callable[[str], Path], tmp_path: Path) -> None:
    """Equal to a fit on the pictures that the run then has, with the same background."""
    run = copied("run")
    for number in range(8):
        blobs(tmp_path / "more" / "grey" / f"{number}.png", (128, 128, 128), 900 + number)
    stripes(tmp_path / "others", range(12, 16))
    classifier = finetune.extend(run, tmp_path / "more", background=tmp_path / "others", device="cpu")
    assert finetune.history(run)[-1].sentence == "8 pictures, 1 class and 4 background pictures added"
    assert len(classifier.require_unknown().background) == 16
    finetune.forget(run, classes=["grey"], pictures=[tmp_path / "others"], device="cpu")
    assert finetune.history(run)[-1].sentence == "8 pictures, 1 class and 4 background pictures forgotten"
    assert thresholds(loaded(run)) == pytest.approx(thresholds(loaded(place / "run")), abs=CLOSE)
    finetune.undo(run, device="cpu")
    assert thresholds(loaded(run)) == thresholds(classifier)


def test_pictures_of_the_classes_are_left_out_and_named(
    place: Path, tmp_path: Path, copied: Callable[[str], Path], run: Callable[..., Answer]
) -> None:
    other = shutil.copytree(place / "other", tmp_path / "other")
    shutil.copy(place / "photos" / "red" / "03.png", other / "copy.png")
    with Image.open(place / "photos" / "blue" / "04.png") as picture:
        picture.resize((60, 60)).save(other / "near.jpg", quality=90)
    (other / "broken.png").write_text("no picture")
    (other / "twice.png").write_bytes((other / "00.png").read_bytes())
    words = ("--out", tmp_path / "out", "--background", other, "--backbone", "fewtune_conv4", "--strategy", "head")
    answer = run("fit", place / "photos", *words, "--device", "cpu")
    assert answer.code == 0
    assert "12 background pictures count too. 2 that show pictures of the classes are left out: " in answer.err
    assert "copy.png (identical to red/03.png of red)" in answer.err
    assert "near.jpg (near-duplicate of blue/04.png of blue)" in answer.err
    assert "broken.png (not a picture)" in answer.err
    assert thresholds(loaded(tmp_path / "out")) == pytest.approx(thresholds(loaded(place / "run")), abs=CLOSE)
    left_out = read_json(tmp_path / "out" / "metrics.json")["unknown"]["background"]["left_out"]
    assert sorted(Path(row["path"]).name for row in left_out) == ["copy.png", "near.jpg"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "identical to red/03.png of red" in page
    assert "Background pictures most like a class" in page
    # A class that comes later takes its pictures out of the background, and gives them back when it is forgotten.
    for path in sorted(other.glob("0?.png")):
        (tmp_path / "more" / "stripes").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "more" / "stripes" / path.name)
    classifier = finetune.extend(tmp_path / "out", tmp_path / "more", device="cpu")
    assert classifier.metrics["unknown"]["background"]["pictures"] == 2
    # At prediction, the hashes of the run say the same.
    stored = loaded(tmp_path / "out")
    with pytest.raises(InputError, match="all background pictures are pictures of the run's classes"):
        stored.learn_background([other / "copy.png", other / "05.png"])
    finetune.undo(tmp_path / "out", device="cpu")
    finetune.forget(tmp_path / "out", pictures=[place / "photos" / "red" / "03.png"], for_good=True, device="cpu")
    kept = (tmp_path / "out" / BACKGROUND_FILE).read_bytes()
    assert b"copy.png" not in kept, "it is a copy of what was forgotten"
    assert b"near.jpg" in kept


def test_a_background_picture_that_looks_like_a_class_is_named(
    place: Path, tmp_path: Path, copied: Callable[[str], Path], run: Callable[..., Answer]
) -> None:
    path, stored = blobs(tmp_path / "odd" / "odd.png", CLASSES["red"], 203), copied("run")
    with Image.open(path) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    answer = run("extend", stored, "--background", tmp_path / "odd", "--device", "cpu")
    assert answer.code == 0
    assert "1 of the background pictures looks as much like a class as its own pictures do" in answer.err
    assert "odd.png (red)" in answer.err


def test_predict_and_report_say_what_a_rate_costs(place: Path, tmp_path: Path, run: Callable[..., Answer]) -> None:
    alone = stripes(tmp_path / "alone", range(1))
    model = loaded(place / "plain").require_unknown()
    share = model.expected(0.01).refused
    bearable = model.rate_that_refuses(0.2)
    assert share is not None
    assert bearable is not None
    assert share > 0.2
    refused = model.expected(bearable).refused
    assert refused is not None
    assert refused <= 0.2
    words = ("predict", place / "plain", place / "other" / "00.png", "--false-accept-rate")
    answer = run(*words, "0.01")
    assert f"{share:.1%} of the pictures of the classes are refused" in answer.err
    higher = f"or a higher rate: 20% at --false-accept-rate {bearable:.2g}"
    assert f"(--background DIR) such as really come in between, {higher}" in answer.err
    assert "higher rate" not in run(*words, "0.9").err
    with_background = run("predict", place / "run", place / "other" / "00.png", "--false-accept-rate", "0.2")
    assert "12 background pictures count too" in with_background.err
    assert "are expected to pass where they are like the background pictures" in with_background.err
    found = loaded(place / "run").require_unknown().expected(0.2)
    assert found.of_other_classes is not None
    assert found.of_other_classes > found.accepted[2], "stripes are far from the classes"
    assert f"pass more often: {found.of_other_classes:.0%}" in with_background.err
    assert "like the background" not in answer.err
    one = run(
        "predict", place / "plain", place / "other" / "00.png", "--false-accept-rate", "0.2", "--background", alone
    )
    assert "1 background picture counts too" in one.err
    assert "pass more often" not in answer.err
    assert "other classes<br>accepted" in (place / "run" / "report.html").read_text(encoding="utf-8")
    page = (place / "plain" / "report.html").read_text(encoding="utf-8")
    rates = loaded(place / "plain").metrics["unknown"]["rates"]
    assert ('id="price"' in page) == any(row["rate"] == 0.05 and row["refused"] > 0.2 for row in rates)


def test_a_trained_backbone_reads_the_background_again(place: Path, tmp_path: Path) -> None:
    options = {"strategy": "full", "epochs": 1, "keep": "trained", **OPTIONS}
    classifier = finetune.fit(place / "photos", tmp_path / "run", background=place / "other", **options)
    assert classifier.metrics["kept"] == "full"
    assert classifier.metrics["unknown"]["background"]["pictures"] == 12
    stored = loaded(tmp_path / "run")
    scored = stored.scored(sorted((place / "other").iterdir()))[1]
    assert stored.require_unknown().background == pytest.approx(-scored.numpy(), abs=1e-3)
    before = thresholds(stored)
    blobs(tmp_path / "more" / "red" / "new.png", CLASSES["red"], 777)
    extended = finetune.extend(tmp_path / "run", tmp_path / "more", device="cpu")
    assert extended.metrics["unknown"]["background"]["pictures"] == 12
    finetune.undo(tmp_path / "run", device="cpu")
    assert thresholds(loaded(tmp_path / "run")) == before


def test_what_cannot_be_used_is_refused_in_one_line(
    place: Path, tmp_path: Path, copied: Callable[[str], Path], run: Callable[..., Answer]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_text("no picture")
    stored = copied("run")
    words = ("fit", place / "photos", "--out", tmp_path / "out", "--backbone", "fewtune_conv4")
    for refused, named in (
        ((*words, "--background", tmp_path / "none"), "does not exist"),
        ((*words, "--background", tmp_path / "empty"), "(--background) holds no pictures"),
        ((*words, "--background", tmp_path / "bad", "--device", "cpu"), "no picture can be read (not a picture)"),
        ((*words, "--background", place / "other", "--minutes", "1"), "--minutes does not bound the reading"),
        (("extend", stored), "give FOLDER_OR_TABLE with labelled pictures, or --background DIR"),
        (("extend", stored, "--background", tmp_path / "bad", "--device", "cpu"), "no picture can be read"),
        (("forget", stored, "--pictures", tmp_path / "empty"), "is no picture of"),
    ):
        answer = run(*refused)
        assert answer.code == 2
        assert named in answer.err
    assert not (tmp_path / "out").exists()
    assert thresholds(loaded(stored)) == thresholds(loaded(place / "run"))


def test_a_folder_of_any_size_is_read_in_part(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.png").touch()
    listing, skipped = list_background(tmp_path, 3)
    assert ([sample.path for sample in listing.samples], skipped) == (["0.png", "2.png", "4.png"], 4)
    with pytest.raises(InputError, match=f"keeps {MOST:,} background pictures already"):
        list_background(tmp_path, 0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pooled", lambda value: value[:-1]),
        ("pooled", lambda value: value * float("nan")),
        ("sha256", lambda value: value * 0),
        ("fingerprints", lambda value: value[:, :-1]),
        ("paths", lambda value: value[:-1]),
        ("paths", lambda value: torch.zeros(5)),
        ("format", lambda value: "9"),
        ("widths", lambda value: "[3, 3]"),
        ("widths", lambda value: "x"),
    ],
)
def test_damaged_files_are_refused_in_one_line(place: Path, tmp_path: Path, name: str, change: Any) -> None:
    tensors, about = read_tensors_and_metadata(place / "run" / BACKGROUND_FILE)
    if name in tensors:
        tensors[name] = change(tensors[name]).contiguous()
    else:
        about[name] = change(about[name])
    save_file(tensors, tmp_path / BACKGROUND_FILE, about)
    widths = PooledStages(loaded(place / "run").network.backbone).widths
    assert read_background(place / "run", widths) is not None
    with pytest.raises(InputError, match=BACKGROUND_FILE) as caught:
        read_background(tmp_path, widths)
    assert "\n" not in str(caught.value)


def test_the_description_of_an_export_and_the_file_hold_the_thresholds_of_the_background(place: Path) -> None:
    classifier = loaded(place / "run")
    model = classifier.require_unknown()
    for row in _about(classifier, "onnx")["unknown"]["thresholds"]:
        assert row["threshold"] == pytest.approx(-model.threshold(row["false_accept_rate"]))
    assert len(load_file(place / "run" / UNKNOWN_FILE)["background"]) == 12


def test_what_is_published_of_a_run_names_no_background_picture(place: Path, tmp_path: Path) -> None:
    run = loaded(place / "run")
    files = published_files(place / "run", read_run_config(place / "run"), run.run_metrics, (), tmp_path)
    assert BACKGROUND_FILE not in files
    assert read_json(files["metrics.json"])["unknown"]["background"]["pictures"] == 12
    for name in ("metrics.json", "config.json"):
        assert str(place) not in files[name].read_text(), name
