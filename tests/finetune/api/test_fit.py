from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeFolder
from hostile import hostile, state
from killing import assert_same_weights, fit_until_killed, fit_until_stopped
from PIL import Image

import finetune
from finetune import Config, InputError
from finetune.classifier.run_folder import RUN_FILES
from finetune.files.tables import read_csv
from finetune.training.loop import TrainingResult
from finetune.training.plan import TrainingTask
from finetune.training.step import weights_on_cpu

pytestmark = pytest.mark.slow

SMALL = {
    "backbone": "fewtune_conv4", "image_size": 20, "device": "cpu", "workers": 0, "trivial_augment": False,
    "batch_size": 8,
}  # fmt: skip
THREE = {"blue": 30, "green": 30, "red": 30}


def content_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("strategy", ["head", "partial", "full", "train", "scratch"])
def test_every_strategy_learns_easy_classes_and_leaves_a_run_that_predicts(
    strategy: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=THREE)
    before = content_of(folder)
    epochs = 10 if strategy == "scratch" else 1  # the others begin with what they need to know
    classifier = finetune.fit(folder, tmp_path / "run", strategy=strategy, epochs=epochs, **SMALL)
    assert classifier.metrics["accuracy"] > 0.8
    assert classifier.metrics["split"] == "test"
    assert classifier.metrics["strategy"] == strategy
    loaded = finetune.load(tmp_path / "run", device="cpu")
    picture = folder / "green" / "000.png"
    prediction = loaded.predict(picture)
    assert prediction.label == "green"
    assert prediction.path == str(picture)
    assert prediction.probability == prediction.top[0][1]
    assert sum(share for _, share in prediction.top) == pytest.approx(1, abs=1e-5)
    assert classifier.predict(picture).probability == prediction.probability
    assert content_of(folder) == before
    assert not (tmp_path / "run" / "state").exists()


def test_a_run_folder_records_the_run(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=THREE)
    run = tmp_path / "run"
    metrics = finetune.fit(folder, run, strategy="full", epochs=2, **SMALL).metrics
    assert json.loads((run / "metrics.json").read_text()) == metrics
    assert {path.name for path in run.iterdir()} <= set(RUN_FILES)
    saved = json.loads((run / "config.json").read_text())
    assert saved["classes"] == ["blue", "green", "red"]
    assert Config.from_dict(saved["config"]) == Config(strategy="full", epochs=2, **SMALL)
    assert saved["preprocessing"]["size"] == 20
    assert [row["epoch"] for row in read_csv(run / "history.csv", ["epoch"])] == ["1", "2"]
    tested = [row for row in read_csv(run / "predictions.csv", ["split", "label"]) if row["split"] == "test"]
    assert len(tested) == metrics["n"]
    assert sum(row["label"] == row["predicted"] for row in tested) == round(metrics["accuracy"] * metrics["n"])
    assert len(read_csv(run / "pictures.csv", ["path"])) == 90
    assert metrics["baselines"].keys() == {"majority_class", "nearest_class_mean", "head"}
    assert metrics["interval"][0] <= metrics["accuracy"] <= metrics["interval"][1]


def test_same_seed_same_numbers_and_another_seed_others(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=dict.fromkeys(THREE, 12))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune.fit(folder, tmp_path / name, strategy="scratch", epochs=2, mixup=0.2, seed=seed, **SMALL)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_workers_change_no_weight(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=dict.fromkeys(THREE, 12))
    for workers in (0, 2):
        options = SMALL | {"workers": workers, "trivial_augment": True}
        finetune.fit(folder, tmp_path / str(workers), strategy="scratch", epochs=1, **options)
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == (tmp_path / "2" / "model.safetensors").read_bytes()


# For scratch see test_run_folder, and for partial test_cached_training.
def test_a_killed_run_is_the_head_and_resumes_to_the_same_weights(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, killed = make_folder(classes=THREE), tmp_path / "killed"
    options = {"strategy": "full", "epochs": 3, "keep": "trained", "mixup": 0.2, **SMALL}
    finetune.fit(folder, tmp_path / "whole", **options)
    fit_until_killed(folder, killed, options)
    head = finetune.load(killed, device="cpu")
    assert (head.metrics["kept"], head.metrics["interrupted"]) == ("head", True)
    assert head.predict(folder / "green" / "000.png").label == "green"

    finetune.fit(folder, killed, resume=True, **options)
    assert_same_weights(tmp_path / "whole", killed)
    assert (tmp_path / "whole" / "history.csv").read_text() == (killed / "history.csv").read_text()


def test_a_run_from_random_weights_that_has_not_finished_is_not_loaded(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=THREE)
    fit_until_stopped(folder, tmp_path / "run", {"strategy": "scratch", "epochs": 2, **SMALL})
    with pytest.raises(InputError, match="has not finished"):
        finetune.load(tmp_path / "run")


def test_resuming_with_other_options_or_pictures_is_refused(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=THREE)
    run = tmp_path / "run"
    finetune.fit(folder, run, strategy="head", **SMALL)
    with pytest.raises(InputError, match="already holds a run"):
        finetune.fit(folder, run, strategy="head", **SMALL)
    with pytest.raises(InputError, match="--seed 0, not 5"):
        finetune.fit(folder, run, resume=True, strategy="head", seed=5, **SMALL)
    other = make_folder("others", classes=THREE)
    with pytest.raises(InputError, match="others"):
        finetune.fit(other, run, resume=True, strategy="head", **SMALL)


def test_a_finished_run_is_not_done_again(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=THREE)
    first = finetune.fit(folder, tmp_path / "run", strategy="head", **SMALL).metrics
    written = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert finetune.fit(folder, tmp_path / "run", resume=True, strategy="head", **SMALL).metrics == first
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == written


def test_an_out_folder_with_other_things_in_it_is_left_alone(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=THREE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        finetune.fit(folder, tmp_path / "full", **SMALL)
    assert os.listdir(tmp_path / "full") == ["thesis.txt"]


@pytest.mark.parametrize("strategy", ["partial", "full", "train"])
def test_a_strategy_that_starts_from_pretrained_weights_never_ends_below_the_head(
    strategy: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=THREE)  # so easy that nothing beats the head by luck
    # A learning rate that ruins everything in the first steps and leaves it finite.
    ruined = finetune.fit(folder, strategy=strategy, epochs=2, lr=0.3, **SMALL).metrics
    head = finetune.fit(folder, strategy="head", **SMALL).metrics
    assert ruined["kept"] == "head"
    assert ruined["accuracy"] == head["accuracy"]
    assert ruined["val"]["accuracy"] == head["val"]["accuracy"]


def test_a_network_that_is_less_accurate_as_saved_is_not_kept(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(task: TrainingTask, **_: object) -> TrainingResult:
        torch.nn.init.zeros_(task.network.head.weight)
        return TrainingResult(weights_on_cpu(task.network), best_epoch=1, lr=1e-3)

    monkeypatch.setattr("finetune.api.fit.train", worse)
    folder = make_folder(classes=THREE)
    metrics = finetune.fit(folder, strategy="partial", **SMALL).metrics
    assert (metrics["kept"], metrics["best_epoch"]) == ("head", 0)
    assert metrics["val"]["accuracy"] == finetune.fit(folder, strategy="head", **SMALL).metrics["val"]["accuracy"]


def test_a_non_finite_loss_stops_the_run_and_names_the_step(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=THREE)
    with pytest.raises(
        finetune.TrainingDiverged, match=r"at step \d+ of .*lower the learning rate \(--lr, now 1e\+30\)"
    ):
        finetune.fit(folder, tmp_path / "run", strategy="full", epochs=2, lr=1e30, optimizer="sgd", **SMALL)


@pytest.mark.parametrize("strategy", ["train", "full"])
def test_a_training_that_diverges_leaves_the_head_and_no_state(
    strategy: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder, run = make_folder(classes=THREE), tmp_path / "run"
    with pytest.raises(finetune.TrainingDiverged, match=r"--lr.*run holds the head"):
        finetune.fit(folder, run, strategy=strategy, epochs=1, lr=1e36, **SMALL | {"batch_size": 64})
    left = finetune.load(run, device="cpu")
    assert (left.metrics["kept"], left.metrics["interrupted"]) == ("head", False)
    assert left.predict(folder / "green" / "000.png").label == "green"
    assert not (run / "state").exists()


def test_a_very_rare_class_does_not_swallow_the_common_one(make_folder: MakeFolder) -> None:
    folder = make_folder(classes={"common": 120, "rare": 4})
    metrics = finetune.fit(folder, strategy="scratch", epochs=6, label_smoothing=0.1, **SMALL).metrics
    assert metrics["val"]["accuracy"] > 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_reported_figures_are_those_of_the_saved_classifier(
    precision: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=THREE, noise=150)
    finetune.fit(folder, tmp_path / "run", strategy="head", precision=precision, **SMALL)
    # Of validation pictures, a head speaks that has not learned from them.
    rows = [row for row in read_csv(tmp_path / "run" / "predictions.csv", ["path"]) if row["split"] == "test"]
    answers = finetune.load(tmp_path / "run", device="cpu").predict_all([folder / row["path"] for row in rows])
    assert [answer.label for answer in answers] == [row["predicted"] for row in rows]
    for answer, row in zip(answers, rows, strict=True):
        assert answer.probability == pytest.approx(float(row["probability"]), abs=2e-3)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_changed_during_the_run_stops_it_by_name(split: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, run = make_folder(classes=THREE), tmp_path / "run"
    options = {"strategy": "full", "epochs": 30, "patience": 30, **SMALL}
    fit_until_stopped(folder, run, options)
    finetune.fit(folder, tmp_path / "other", strategy="head", **SMALL)  # splits the same pictures in the same way
    pictures = read_csv(tmp_path / "other" / "pictures.csv", ["path", "split"])
    name = next(row["path"] for row in pictures if row["split"] == split)
    (folder / name).write_bytes(bytes((folder / name).stat().st_size))
    with pytest.raises(InputError, match=f"{name} was changed"):
        finetune.fit(folder, run, resume=True, **options)


def test_a_damaged_checkpoint_says_how_to_go_on(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, run = make_folder(classes=THREE), tmp_path / "run"
    options = {"strategy": "full", "epochs": 30, "patience": 30, **SMALL}
    fit_until_stopped(folder, run, options)
    checkpoint = run / "state" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(InputError, match="remove it to train again"):
        finetune.fit(folder, run, resume=True, **options)


def test_the_middle_of_a_very_long_picture_is_used(make_folder: MakeFolder) -> None:
    classifier = finetune.fit(make_folder(classes=THREE), strategy="head", **SMALL | {"image_size": 64})
    strip = np.full((1, 20_000, 3), 216, dtype=np.uint8)
    assert classifier.predict(strip).probability > 0


@pytest.mark.parametrize("damage", ['{"format": 1, "classes": ["a"]}', '{"format": 1, "classes": 3, "config": []}'])
def test_a_run_that_was_edited_badly_is_one_line(damage: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    finetune.fit(make_folder(classes=THREE), tmp_path / "run", strategy="head", **SMALL)
    (tmp_path / "run" / "config.json").write_text(damage)
    with pytest.raises(InputError, match=r"config\.json") as error:
        finetune.load(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_run_without_its_list_of_pictures_is_not_evaluated(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=THREE)
    finetune.fit(folder, tmp_path / "run", strategy="head", **SMALL)
    (tmp_path / "run" / "pictures.csv").unlink()
    with pytest.raises(InputError, match=r"pictures\.csv is missing"):
        finetune.evaluate(tmp_path / "run", folder, device="cpu")


def test_threads_stay_as_they_were(make_folder: MakeFolder) -> None:
    before = torch.get_num_threads()
    finetune.fit(make_folder(classes=THREE), strategy="head", **SMALL)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before == torch.get_num_threads()


def test_options_that_do_not_suit_the_network_are_named(make_folder: MakeFolder) -> None:
    folder = make_folder(classes=THREE)
    with pytest.raises(InputError, match="--image-size 8"):
        finetune.fit(folder, strategy="head", **SMALL | {"image_size": 8})
    with pytest.raises(InputError, match="--batch-size must be at least 2"):
        finetune.fit(folder, strategy="scratch", **SMALL | {"batch_size": 1})


def test_given_splits_are_honoured_and_test_is_made_from_train(make_folder: MakeFolder) -> None:
    folder = make_folder(classes=THREE)
    for label in THREE:
        (folder / "valid" / label).mkdir(parents=True)
        (folder / "train" / label).mkdir(parents=True)
        for number, picture in enumerate(sorted((folder / label).iterdir())):
            picture.rename(folder / ("valid" if number < 10 else "train") / label / picture.name)
        (folder / label).rmdir()
    metrics = finetune.fit(folder, strategy="head", **SMALL).metrics
    assert metrics["pictures"]["val"] == 30
    assert metrics["pictures"]["train"] + metrics["pictures"]["test"] == 60
    assert metrics["split"] == "test"
    assert metrics["pictures"]["test"] > 0
    without = finetune.fit(folder, strategy="head", test_fraction=0.0, **SMALL).metrics
    assert without["split"] == "val"
    assert without["used_for_selection"] is True
    assert without["n"] == 30


def test_unbalanced_classes_are_weighed_so_that_the_rare_one_is_found(make_folder: MakeFolder) -> None:
    folder = make_folder(classes={"common": 300, "rare": 30}, noise=150, size=3)
    results = {
        weights: finetune.fit(folder, strategy="head", class_weights=weights, test_fraction=0.4, **SMALL).metrics
        for weights in ("none", "auto")
    }
    assert results["auto"]["balanced_accuracy"] > results["none"]["balanced_accuracy"]


def test_unreadable_pictures_are_in_the_ledger_and_too_many_stop_the_run(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=THREE)
    (folder / "red" / "text.jpg").write_text("not a picture")
    (folder / "red" / "cut.png").write_bytes((folder / "red" / "001.png").read_bytes()[:900])
    metrics = finetune.fit(folder, tmp_path / "run", strategy="full", epochs=1, **SMALL).metrics
    assert [entry["path"] for entry in metrics["unreadable"]] == ["red/cut.png", "red/text.jpg"]
    assert sum(metrics["pictures"].values()) == 90
    with pytest.raises(InputError, match=r"text\.jpg"):
        finetune.fit(folder, strategy="head", max_bad=0.01, **SMALL)


def test_a_hostile_folder_trains_on_what_is_good_and_names_what_is_not(tmp_path: Path) -> None:
    root = tmp_path / "hostile"
    hostile(root)
    before = state(root)
    for strategy in ("head", "full"):
        run = tmp_path / strategy
        metrics = finetune.fit(root, run, strategy=strategy, epochs=1, max_bad=0.3, **SMALL).metrics
        bad = {"dog/bomb.png", "dog/cut.jpg", "dog/empty.jpg", "dog/link.jpg", "dog/text.jpg"}
        assert {entry["path"] for entry in metrics["unreadable"]} == bad
        assert sum(metrics["pictures"].values()) == 12
        assert json.loads((run / "config.json").read_text())["classes"] == ["cat", "dog", "größe 大"]
        assert json.loads((run / "metrics.json").read_text())["unreadable"] == metrics["unreadable"]
    assert state(root) == before


def test_other_picture_kinds_reach_predict(make_folder: MakeFolder) -> None:
    folder = make_folder(classes=THREE)
    classifier = finetune.fit(folder, strategy="head", **SMALL)
    path = folder / "red" / "003.png"
    image = Image.open(path).convert("RGB")
    expected = classifier.predict(path)
    for picture in (str(path), path.read_bytes(), image, np.asarray(image)):
        found = classifier.predict(picture)
        assert (found.label, found.probability) == (expected.label, expected.probability)
    bad, good = classifier.predict_all([b"not a picture", path])
    assert isinstance(bad, finetune.UnreadablePicture)
    assert isinstance(good, finetune.Prediction)
    assert good.label == expected.label


@pytest.mark.parametrize("test_time", ["flip", "ten-crop"])
def test_test_time_views_are_averaged(test_time: str, make_folder: MakeFolder) -> None:
    folder = make_folder(classes=THREE)
    classifier = finetune.fit(folder, strategy="head", test_time=test_time, **SMALL)
    assert classifier.metrics["accuracy"] > 0.9
    image = Image.open(folder / "red" / "003.png").convert("RGB")
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, other = (classifier.predict(picture).probability for picture in (image, mirrored))
    assert one == pytest.approx(other, abs=0.01)


def test_a_few_validation_pictures_do_not_choose_the_epoch(make_folder: MakeFolder) -> None:
    few = finetune.fit(make_folder("few", classes={"red": 60, "green": 60}), strategy="partial", epochs=3, **SMALL)
    assert (few.metrics["kept"], few.metrics["best_epoch"]) == ("partial", 3)


def test_auto_is_the_very_run_of_the_strategy_that_it_takes(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"red": 60, "green": 60})
    options = {"epochs": 2, "unfreeze": "blocks.3", **SMALL}
    taken = finetune.fit(folder, tmp_path / "auto", **options).metrics
    assert (taken["strategy"], taken["kept"]) == ("partial", "partial")
    finetune.fit(folder, tmp_path / "named", strategy="partial", **options)
    assert_same_weights(tmp_path / "auto", tmp_path / "named")


def test_evaluate_matches_classes_by_name_and_leaves_training_pictures_out(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=THREE)
    finetune.fit(folder, tmp_path / "run", strategy="head", **SMALL)
    fresh = make_folder("fresh", classes=THREE, seed=5)
    shutil.rmtree(fresh / "blue")  # by position, every label would now be shifted
    result = finetune.evaluate(tmp_path / "run", fresh, device="cpu")
    assert result["accuracy"] > 0.9
    assert result["n"] == 60
    assert result["split"] == "test"
    assert result["left_out_trained_on"] == 0

    own = finetune.evaluate(tmp_path / "run", folder, device="cpu")
    counts = json.loads((tmp_path / "run" / "metrics.json").read_text())["pictures"]
    # The head that is kept has learned from the validation pictures, which were set aside here, in the end.
    assert own["left_out_trained_on"] == counts["train"] + counts["val"]
    assert own["n"] == counts["test"]
    assert own["split"] == "test"

    # What is trained has not learned from the validation pictures, but they judged it.
    trained = finetune.fit(folder, tmp_path / "trained", strategy="scratch", epochs=1, **SMALL).metrics
    own = finetune.evaluate(tmp_path / "trained", folder, device="cpu")
    assert (own["n"], own["split"], own["used_for_selection"]) == (trained["pictures"]["test"], "test", False)
    assert own["left_out_trained_on"] == trained["pictures"]["train"]
    assert own["left_out_chosen_on"] == trained["pictures"]["val"]
    assert own["accuracy"] == trained["accuracy"]

    divided = tmp_path / "divided"
    for split, seed in (("train", 0), ("val", 7)):
        shutil.copytree(make_folder(split, classes=THREE, seed=seed), divided / split)
    finetune.fit(divided, tmp_path / "given", strategy="head", **SMALL)
    given = finetune.evaluate(tmp_path / "given", divided, split="val", device="cpu")
    assert (given["left_out_trained_on"], given["split"]) == (0, "val")

    (fresh / "red").rename(fresh / "scarlet")
    with pytest.raises(InputError, match="'scarlet'"):
        finetune.evaluate(tmp_path / "run", fresh, device="cpu")


def test_options_are_given_once() -> None:
    with pytest.raises(InputError, match="twice"):
        finetune.fit("anywhere", config=Config(), seed=3)


def test_every_exported_name_is_documented() -> None:
    for name in finetune.__all__:
        assert getattr(finetune, name).__doc__, name
    assert list(finetune.__all__) == sorted(finetune.__all__)
