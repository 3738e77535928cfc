"""`extend`, `forget` and `undo`: equal to a fit on the pictures that the run then has; or an error, and no change."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageFilter
from told import Told

import finetune
from finetune import Classifier, Config, InputError, write_report
from finetune.cli.main import cli
from finetune.data.split_record import record_splits
from finetune.data.table import list_pictures
from finetune.files.reading import read_tensors
from finetune.files.writing import write_tensors
from finetune.kept.features import FEATURES_FILE, read_features
from finetune.kept.history import MOST_STATES, undoable
from finetune.open_set.unknown_model import UNKNOWN_FILE
from finetune.progress import Display

SMALL: dict[str, Any] = {"backbone": "fewtune_conv4", "image_size": 20, "device": "cpu", "workers": 0}
HUES = {"a": (40, 128, 216), "b": (128, 216, 40), "c": (216, 40, 128), "d": (40, 40, 216)}


def write(folder: Path, label: str, numbers: range, *, below: str = "") -> Path:
    """Pictures of a class, always the same for a number: noise of one hue with a bright square."""
    place = folder / below / label
    place.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        random = np.random.default_rng([ord(label), number])
        pixels = np.array(HUES[label]) + random.normal(0, 90, (12, 12, 3))
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((40, 40), Image.Resampling.NEAREST)
        picture.save(place / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extend") / "pictures"
    return write(write(folder, "a", range(14)), "b", range(14))


@pytest.fixture(scope="module")
def fitted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("fitted") / "run"
    finetune.fit(pictures, run, strategy="head", **SMALL)
    return run


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "run"))


def again(classifier: Classifier, splits: dict[str, str], place: Path, **options: Any) -> Classifier:
    """A fit from scratch on the pictures that a run has, in its order, with splits recorded by an earlier run."""
    assert classifier.folder is not None
    kept = read_features(classifier.folder, classifier.classes)
    given = any(sample.split for sample in kept.listing.samples)
    rows = [",".join(("path", "label", "split")[: 2 + given])]
    for sample in kept.listing.samples:
        rows.append(",".join((sample.path, sample.label, sample.split or "")[: 2 + given]))
    table = kept.listing.root / f".{place.name}.csv"  # a hidden file is no part of the folder
    table.write_text("\n".join(rows))
    listing, config = list_pictures(table), Config(**SMALL | options)
    record_splits(listing, splits, config, Display())
    return finetune.fit(table, place / "again", **SMALL | options)


def splits_of(run: Path) -> dict[str, str]:
    return read_features(run, finetune.load(run, device="cpu").classes).splits_by_content


def assert_same(one: Classifier, other: Classifier, asked: list[Path]) -> None:
    assert one.classes == other.classes
    ours, theirs = (each.log_probabilities(asked)[0].exp() for each in (one, other))
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    assert float((ours - theirs).abs().max()) < 1e-6
    assert one.temperature == pytest.approx(other.temperature, abs=1e-6)
    before, after = one.metrics, other.metrics
    for name in ("accuracy", "n", "split", "confusion", "pictures", "notes", "learned_from", "head_reads"):
        assert before[name] == after[name], name
    assert before["loss"] == pytest.approx(after["loss"], abs=1e-5)
    if before["kept"] == "head":
        assert_same_thresholds(one, other)


def assert_same_thresholds(one: Classifier, other: Classifier) -> None:
    """Both refuse the same pictures as unknown, learned from as many, and say the same of it."""
    rates = (0.01, 0.05, 0.2, 0.5, 0.9)
    ours, theirs = one.require_unknown(), other.require_unknown()
    for rate in rates:
        assert ours.threshold(rate) == pytest.approx(theirs.threshold(rate), abs=1e-5), rate
    assert (len(ours.known), len(ours.held_out)) == (len(theirs.known), len(theirs.held_out))
    assert one.metrics["unknown"]["trained"] == other.metrics["unknown"]["trained"]
    assert one.metrics["unknown"]["oscr"] == pytest.approx(other.metrics["unknown"]["oscr"], abs=1e-3)


def files(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file()
    }


def of_old_classes(folder: Path, pictures: Path) -> Path:
    return write(write(folder, "a", range(14, 20)), "b", range(14, 17))


def of_a_new_class(folder: Path, pictures: Path) -> Path:
    return write(write(folder, "a", range(14, 16)), "c", range(9))


def of_one_picture(folder: Path, pictures: Path) -> Path:
    return write(folder, "d", range(1))


def with_copies(folder: Path, pictures: Path) -> Path:
    write(folder, "b", range(14, 16))
    for number in range(14):
        shutil.copy(pictures / "b" / f"{number:03d}.png", folder / "b" / f"copy-{number:03d}.png")
        with Image.open(pictures / "b" / f"{number:03d}.png") as picture:
            picture.filter(ImageFilter.GaussianBlur(0.5)).save(folder / "b" / f"near-{number:03d}.png")
    return folder


def with_other_labels(folder: Path, pictures: Path) -> Path:
    write(folder, "b", range(14, 16))
    shutil.copy(pictures / "a" / "000.png", folder / "b" / "wrong.png")
    (folder / "b" / "broken.png").write_bytes(b"no picture")
    return folder


ADDED = [of_old_classes, of_a_new_class, of_one_picture, with_copies, with_other_labels]


@pytest.mark.slow
@pytest.mark.parametrize("added", ADDED)
def test_extend_is_a_fit_on_all_pictures(
    added: Callable[[Path, Path], Path], run: Path, pictures: Path, tmp_path: Path
) -> None:
    splits = splits_of(run)
    found = finetune.extend(run, added(tmp_path / "new", pictures), device="cpu")
    now = splits_of(run)
    assert all(now.get(sha256, split) == split for sha256, split in splits.items())
    assert_same(found, again(found, splits, tmp_path), sorted(tmp_path.glob("new/*/[0-9]*.png")))
    loaded = finetune.load(run, device="cpu")
    asked = sorted(pictures.rglob("*.png"))[::5]
    assert torch.equal(loaded.log_probabilities(asked)[0], found.log_probabilities(asked)[0])
    if added is with_copies:
        table = {
            row.split(",")[0].rsplit("/", 1)[-1]: row.split(",")
            for row in (run / "pictures.csv").read_text().splitlines()
        }
        for number in range(14):
            old = now[hashlib.sha256((pictures / "b" / f"{number:03d}.png").read_bytes()).hexdigest()]
            assert table[f"near-{number:03d}.png"][1] == old
            assert f"copy-{number:03d}.png" not in table
    if added is with_other_labels:
        left_out = {entry["path"]: entry["reason"] for entry in found.metrics["left_out"]}
        assert "which has the label 'b'" in left_out["a/000.png"]
        assert len(found.metrics["unreadable"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"class_weights": "balanced"}, {"test_time": "ten-crop"}, {"drop_above": "blocks.1"}]
)
def test_options_of_the_run_hold_for_the_extended_one(options: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    options = {"strategy": "head"} | options
    run = tmp_path / "run"
    finetune.fit(pictures, run, **SMALL | options)
    splits = splits_of(run)
    found = finetune.extend(run, of_a_new_class(tmp_path / "new", pictures), device="cpu")
    assert_same(found, again(found, splits, tmp_path, **options), sorted(tmp_path.glob("new/*/*.png")))


@pytest.mark.slow
def test_given_splits_stay_and_new_pictures_take_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for below, numbers in (("train", range(8)), ("val", range(8, 11)), ("test", range(11, 14))):
        write(write(folder, "a", numbers, below=below), "b", numbers, below=below)
    run = tmp_path / "run"
    finetune.fit(folder, run, strategy="head", **SMALL)
    new = tmp_path / "new"
    for below, numbers in (("train", range(14, 18)), ("test", range(18, 20))):
        write(write(new, "b", numbers, below=below), "c", numbers, below=below)
    found = finetune.extend(run, new, device="cpu")
    assert found.metrics["pictures"] == {"train": 24, "val": 6, "test": 10}
    assert_same(found, again(found, {}, tmp_path, strategy="head"), sorted(new.rglob("*.png")))


@pytest.mark.slow
def test_a_trained_backbone_stays_and_its_head_is_solved(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune.fit(pictures, run, strategy="full", epochs=1, keep="trained", lr=0.01, **SMALL)
    trained, splits = read_tensors(run / "model.safetensors"), splits_of(run)
    found = finetune.extend(run, of_a_new_class(tmp_path / "new", pictures), device="cpu")
    backbone = {name.removeprefix("backbone."): each for name, each in trained.items() if name.startswith("backbone.")}
    now = read_tensors(run / "model.safetensors")
    assert all(torch.equal(now[f"backbone.{name}"], each) for name, each in backbone.items())
    write_tensors(tmp_path / "weights.safetensors", backbone)
    assert_same(
        found,
        again(found, splits, tmp_path, strategy="head", weights=str(tmp_path / "weights.safetensors")),
        sorted(tmp_path.glob("new/*/*.png")),
    )
    assert (found.metrics["strategy"], found.metrics["kept"], found.metrics["epochs"]) == ("full", "full", 1)
    retraining = finetune.history(run)[0].retraining
    assert retraining is not None
    assert "new held-out pictures" in retraining
    assert retraining in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_trained_backbone_learns_of_unknown_pictures_whether_features_are_kept_or_not(
    pictures: Path, tmp_path: Path
) -> None:
    options = {"strategy": "full", "epochs": 1, "keep": "trained", "lr": 0.01, **SMALL}
    kept = finetune.fit(pictures, tmp_path / "kept", **options)
    assert kept.metrics["unknown"]["trained"]
    for name in ("without", None):
        run = None if name is None else tmp_path / name
        found = finetune.fit(pictures, run, keep_features=False, **options)
        assert_same_thresholds(found, kept)
        if run is not None:
            assert not (run / FEATURES_FILE).exists()
            assert_same_thresholds(finetune.load(run, device="cpu"), kept)
            assert 'id="unknown"' in (run / "report.html").read_text()
    # What a fit reads of all its pictures is what a change has of them.
    new = of_a_new_class(tmp_path / "new", pictures)
    extended = [finetune.extend(tmp_path / name, new, device="cpu") for name in ("kept", "without")]
    assert_same_thresholds(*extended)
    assert extended[0].require_unknown().threshold(0.2) != kept.require_unknown().threshold(0.2)
    before = (tmp_path / "kept" / UNKNOWN_FILE).read_bytes()
    forgotten = finetune.forget(tmp_path / "kept", pictures=[new], device="cpu")
    assert_same_thresholds(forgotten, kept)
    finetune.undo(tmp_path / "kept", device="cpu")
    assert (tmp_path / "kept" / UNKNOWN_FILE).read_bytes() == before


@pytest.mark.slow
def test_a_trained_backbone_without_validation_pictures_is_still_said_to_be_trained(
    pictures: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finetune.fit(pictures, run, strategy="full", epochs=1, keep="trained", lr=0.01, val_fraction=0.1, **SMALL)
    kept = read_features(run, ("a", "b"))
    judging = [each.path for each, split in zip(kept.listing.samples, kept.splits, strict=True) if split == "val"]
    found = finetune.forget(run, pictures=judging, device="cpu")
    assert found.metrics["unknown"]["trained"]
    assert found.require_unknown().threshold(0.2) < 1e6


@pytest.mark.slow
def test_a_run_without_features_reads_its_pictures_again(run: Path, pictures: Path, tmp_path: Path) -> None:
    splits = splits_of(run)
    (run / FEATURES_FILE).unlink()
    found = finetune.extend(run, of_old_classes(tmp_path / "new", pictures), device="cpu")
    assert_same(found, again(found, splits, tmp_path, strategy="head"), sorted(tmp_path.glob("new/*/*.png")))


def test_a_run_without_features_and_pictures_says_so(run: Path, tmp_path: Path) -> None:
    (run / FEATURES_FILE).unlink()
    config = json.loads((run / "config.json").read_text()) | {"folder": str(tmp_path / "gone")}
    (run / "config.json").write_text(json.dumps(config))
    before = files(run)
    with pytest.raises(InputError, match=r"keeps no features of its pictures, and the pictures in .* are no longer"):
        finetune.extend(run, write(tmp_path / "new", "a", range(20, 22)), device="cpu")
    assert files(run) == before


@pytest.mark.slow
def test_forget_is_a_fit_without_what_is_forgotten(run: Path, pictures: Path, tmp_path: Path) -> None:
    finetune.extend(run, of_a_new_class(tmp_path / "new", pictures), device="cpu")
    splits, old = splits_of(run), files(run)
    by_content = hashlib.sha256((pictures / "a" / "003.png").read_bytes()).hexdigest()
    found = finetune.load(run, device="cpu").forget(
        classes=["b"], pictures=["a/001.png", pictures / "a" / "002.png", by_content]
    )
    assert found.classes == ("a", "c")
    assert_same(found, again(found, splits, tmp_path, strategy="head"), sorted(tmp_path.glob("new/*/*.png")))
    finetune.undo(run, device="cpu")
    assert files(run) == old


@pytest.mark.slow
def test_nothing_of_what_is_forgotten_for_good_is_left(run: Path, pictures: Path, tmp_path: Path) -> None:
    write(tmp_path / "new", "c", range(9))
    finetune.extend(run, (tmp_path / "new").rename(tmp_path / "private-name"), device="cpu")
    hashes = [hashlib.sha256(path.read_bytes()) for path in (tmp_path / "private-name").rglob("*.png")]
    finetune.forget(run, classes=["c"], device="cpu")
    assert (run / "earlier" / "2").is_dir()
    finetune.undo(run, device="cpu")
    finetune.forget(run, classes=["c"], for_good=True, device="cpu")
    assert not (run / "earlier").exists()
    for path in run.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"private-name" not in content, path
        assert not any(each.digest() in content or each.hexdigest().encode() in content for each in hashes), path
    with pytest.raises(InputError, match="keeps no state from before its last change"):
        finetune.undo(run, device="cpu")


@pytest.mark.slow
def test_changes_are_undone_in_their_order(run: Path, tmp_path: Path) -> None:
    states = [files(run)]
    for number in range(2):
        new = write(tmp_path / str(number), "a", range(20 + number, 21 + number))
        assert finetune.load(run, device="cpu").extend(new).folder == run
        states.append(files(run))
    assert [change.sentence for change in finetune.history(run)] == ["1 picture added"] * 2
    for state in reversed(states[:-1]):
        finetune.undo(run, device="cpu")
        assert files(run) == state
    with pytest.raises(InputError, match="has no change to undo"):
        finetune.undo(run, device="cpu")


@pytest.mark.slow
def test_out_leaves_the_run_as_it_is(run: Path, tmp_path: Path) -> None:
    before = files(run)
    finetune.extend(run, write(tmp_path / "new", "c", range(3)), out=tmp_path / "out", device="cpu")
    assert files(run) == before
    assert finetune.load(tmp_path / "out", device="cpu").classes == ("a", "b", "c")
    assert not (tmp_path / "out" / "earlier").exists()
    with pytest.raises(InputError, match="already holds a run"):
        finetune.forget(run, pictures=["a/001.png"], out=tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda run, new: finetune.forget(run, classes=["b"], device="cpu"), "fewer than two classes left"),
        (lambda run, new: finetune.forget(run, classes=["bb"], device="cpu"), "has no class 'bb'"),
        (lambda run, new: finetune.forget(run, pictures=["bb.png"], device="cpu"), "bb.png is no picture of"),
        (lambda run, new: finetune.forget(run, pictures=["a/000.png", ""], device="cpu"), "name of a picture .* empty"),
        (lambda run, new: finetune.history(new), "is not a run folder"),
        (lambda run, new: finetune.forget(run), "needs something to forget"),
        (lambda run, new: finetune.forget(run, classes=["b"], out=new, for_good=True), "--for-good"),
        (lambda run, new: finetune.extend(run, new, device="cpu"), "none of its new pictures can be read"),
        (lambda run, new: finetune.extend(run, new, out=run, device="cpu"), "is the run itself"),
        (lambda run, new: finetune.extend(new, new), "is not a run folder"),
        (lambda run, new: finetune.undo(run), "has no change to undo"),
    ],
)
def test_a_change_that_cannot_be_made_changes_nothing(
    call: Callable[[Path, Path], Any], why: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "new" / "a").mkdir(parents=True)
    (tmp_path / "new" / "a" / "broken.png").write_bytes(b"no picture")
    before = files(run)
    with pytest.raises(InputError, match=why):
        call(run, tmp_path / "new")
    assert files(run) == before


def test_pictures_that_the_run_has_are_not_added_again(run: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has all its pictures"):
        finetune.extend(run, pictures, device="cpu")
    with pytest.raises(InputError, match=r"000\.png has the label 'b', and 'a' in .*; forget it there first"):
        finetune.extend(run, [(pictures / "a" / "000.png", "b")], device="cpu")


def test_copies_of_pictures_that_the_run_has_are_not_added(run: Path, pictures: Path, tmp_path: Path) -> None:
    """As where the folder of the run was moved: the accuracy would be measured on every picture twice."""
    before, moved = files(run), shutil.copytree(pictures, tmp_path / "moved")
    with pytest.raises(InputError, match="has all its pictures, under other paths"):
        finetune.extend(run, moved, device="cpu")
    assert files(run) == before
    figures, display = finetune.load(run, device="cpu").metrics["pictures"], Told()
    found = finetune.extend(run, write(moved, "b", range(14, 16)), device="cpu", display=display)
    assert sum(found.metrics["pictures"].values()) == sum(figures.values()) + 2
    assert finetune.history(run)[-1].added == 2
    assert any(line.startswith("28 of the new pictures are copies of pictures that") for line in display.lines)


def test_a_change_counts_the_pictures_that_are_used(run: Path, tmp_path: Path) -> None:
    """A picture under two labels is left out."""
    new = write(write(tmp_path / "new", "c", range(3)), "d", range(2))
    shutil.copy(new / "c" / "000.png", new / "d" / "twice.png")
    before = sum(finetune.load(run, device="cpu").metrics["pictures"].values())
    finetune.extend(run, new, device="cpu")
    (change,) = finetune.history(run)
    assert (change.added, change.classes_added, change.pictures) == (4, 2, before + 4)


def test_the_time_of_a_change_holds_that_of_its_report(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any, **options: Any) -> None:
        time.sleep(1)
        write_report(*arguments, **options)

    monkeypatch.setattr("finetune.api.changes.solved.write_report", slow)
    finetune.forget(run, pictures=["a/000.png"], device="cpu")
    assert finetune.history(run)[-1].seconds >= 1


@pytest.mark.slow
def test_the_commands(run: Path, pictures: Path, tmp_path: Path) -> None:
    def said(*words: object) -> str:
        result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    new = write(tmp_path / "new", "c", range(4))
    assert "4 pictures and 1 class added in" in said("extend", run, new, "--device", "cpu")
    assert "accuracy" in said("forget", run, "--class", "c", "--pictures", "a/000.png", "--device", "cpu")
    listed = json.loads(said("history", run, "--json"))
    assert [(row["kind"], row["undo"]) for row in listed["changes"]] == [("extend", True), ("forget", True)]
    undone = said("undo", run)
    assert "undone in" in undone
    assert f"head, in {run}" in undone, "no time, which would be that of an earlier change"
    assert "earlier states: 1" in said("history", run)
    assert "earlier states deleted" in said("history", run, "--drop")
    assert "Changes" in (run / "report.html").read_text()


@pytest.mark.slow
def test_earlier_states_are_bounded(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_STATES > 2
    monkeypatch.setattr("finetune.kept.history.MOST_STATES", 2)
    for number in range(3):
        finetune.extend(run, write(tmp_path / str(number), "a", range(20 + number, 21 + number)), device="cpu")
    assert undoable(run) == [2, 3]
    assert not (run / "earlier" / "3" / "model.safetensors").exists()
