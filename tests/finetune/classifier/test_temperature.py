from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from called import Answer, caller
from conftest import MakeFolder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import finetune
from finetune.classifier.answers.rejection import rejection_for, rejections, validation_answers
from finetune.classifier.temperature import (
    TEMPERATURES,
    calibrated,
    calibration_summary,
    cross_calibrated,
    fit_temperature,
)
from finetune.cli.main import main
from finetune.errors import InputError
from finetune.metrics import expected_calibration_error, log_loss, reliability

SEEDS = st.integers(0, 2**32 - 1)


def honest(n: int, seed: int, *, classes: int = 4, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (n, classes), and labels that are drawn from just these probabilities."""
    random = torch.Generator().manual_seed(seed)
    found = (spread * torch.randn(n, classes, generator=random, dtype=torch.float64)).log_softmax(1)
    return found, torch.multinomial(found.exp(), 1, generator=random)[:, 0]


# --- temperature ------------------------------------------------------------------------------------------------------


@given(SEEDS, st.sampled_from([0.4, 0.7, 1.6, 3.0]))
@settings(max_examples=10)
def test_fit_temperature_recovers_a_known_temperature(seed: int, hidden: float) -> None:
    found, labels = honest(2000, seed)
    assert fit_temperature(calibrated(found, 1 / hidden), labels) == pytest.approx(hidden, rel=0.15)


@pytest.mark.slow
@given(SEEDS, st.sampled_from([0.4, 3.0]))
@settings(max_examples=10)
def test_calibration_error_falls_on_pictures_that_did_not_fit_the_temperature(seed: int, hidden: float) -> None:
    found, labels = honest(2000, seed)
    wrong = calibrated(found, 1 / hidden)
    val, test = (wrong[:1000], labels[:1000]), (wrong[1000:], labels[1000:])
    temperature = fit_temperature(*val)
    for told in (calibration_summary(temperature, val, test), calibration_summary(temperature, val, None)):
        assert told.ece_after < told.ece_before / 2
        assert told.n == 1000
    assert calibration_summary(temperature, val, test).split == "test"
    assert told.split == "val"


@given(SEEDS, st.integers(0, 60))
@settings(max_examples=25)
def test_few_pictures_change_a_calibrated_network_little(seed: int, n: int) -> None:
    # Of 2,500 draws the furthest were 0.44 and 2.3; a factor of 2 is left about once in 500.
    assert 1 / 3 <= fit_temperature(*honest(n, seed)) <= 3


@pytest.mark.slow
def test_calibrated_networks_usually_keep_temperature_1_and_lose_little() -> None:
    fitted = [fit_temperature(*honest(40, seed)) for seed in range(100)]
    assert fitted.count(1.0) > 50
    found, labels = honest(20_000, 1000)
    lost = [log_loss(calibrated(found, each), labels) - log_loss(found, labels) for each in fitted]
    assert sum(lost) / len(lost) < 0.01


@given(st.integers(1, 400), st.floats(0.1, 30))
def test_perfect_validation_does_not_make_probabilities_certain(n: int, margin: float) -> None:
    labels = torch.arange(n) % 3
    found = (margin * torch.eye(3, dtype=torch.float64)[labels]).log_softmax(1)
    temperature = fit_temperature(found, labels)
    claimed = 1 - float(calibrated(found, temperature).exp().amax(1).mean())
    assert temperature == 1 or claimed >= 1 / (n + 2)


def most_probable(found: Tensor, labels: Tensor) -> float:
    """By definition: the lowest sum of losses and prior, without temperatures that claim less error than is shown."""
    wrong = int((found.argmax(1) != labels).sum())
    costs = {}
    for temperature in TEMPERATURES:
        scaled = (found / temperature).log_softmax(1)
        claimed = 1 - float(scaled.exp().amax(1).mean())
        if temperature >= 1 or claimed >= (wrong + 1) / (len(labels) + 2):
            prior = (math.log(temperature) / 0.5) ** 2 / 2
            costs[temperature] = prior - float(scaled[torch.arange(len(labels)), labels].sum())
    return min(costs, key=costs.__getitem__)


@given(SEEDS, st.integers(1, 400), st.sampled_from([0.3, 3.0]), st.floats(0.5, 6))
@settings(max_examples=25)
def test_the_temperature_is_the_most_probable_one_or_one(seed: int, n: int, hidden: float, spread: float) -> None:
    found, labels = honest(n, seed, spread=spread)
    found = calibrated(found, 1 / hidden)
    temperature, expected = fit_temperature(found, labels), most_probable(found, labels)
    assert temperature in (1.0, expected)
    if n >= 200 and spread > 1:
        assert temperature == expected


@given(SEEDS, st.integers(1, 5), st.floats(1, 8))
@settings(max_examples=25)
def test_a_temperature_is_used_where_it_lowers_the_loss_of_pictures_left_out(seed: int, n: int, spread: float) -> None:
    """Each of so few pictures is a fold."""
    found, _ = honest(n, seed, spread=spread)
    labels = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))
    gain = 0.0
    for row in range(n):
        others = torch.arange(n) != row
        temperature = most_probable(found[others], labels[others]) if n > 1 else 1.0
        gain += float(calibrated(found[row], temperature)[labels[row]] - found[row, labels[row]])
    assert fit_temperature(found, labels) == (most_probable(found, labels) if gain > 0 else 1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_each_of_few_pictures_is_calibrated_by_all_others(n: int) -> None:
    scores = torch.tensor([[0.0, 8.0, 1.0], [5.0, 1.0, 0.0], [0.0, 2.0, 9.0], [6.0, 0.0, 0.0], [3.0, 0.0, 7.0]])[:n]
    found, labels = scores.double().log_softmax(1), torch.zeros(n, dtype=torch.int64)
    expected, temperatures = [], set()
    for row in range(n):
        others = torch.arange(n) != row
        temperatures.add(fit_temperature(found[others], labels[others]))
        expected.append(calibrated(found[row], fit_temperature(found[others], labels[others])))
    torch.testing.assert_close(cross_calibrated(found, labels), torch.stack(expected))
    assert n < 3 or len(temperatures) > 1


def test_a_summary_measures_on_test_pictures_or_across_folds_of_validation_pictures() -> None:
    val, test = (honest(n, n) for n in (150, 90))
    val = calibrated(val[0], 0.4), val[1]
    on_test = calibration_summary(1.7, val, test)
    assert (on_test.temperature, on_test.n, on_test.split) == (1.7, 90, "test")
    assert on_test.ece_before == expected_calibration_error(*test)
    assert on_test.ece_after == expected_calibration_error(calibrated(test[0], 1.7), test[1])
    on_val = calibration_summary(1.7, val, None)
    assert (on_val.temperature, on_val.n, on_val.split) == (1.7, 150, "val")
    assert on_val.ece_before == expected_calibration_error(*val)
    assert on_val.ece_after == expected_calibration_error(cross_calibrated(*val), val[1])


def test_a_network_that_is_always_wrong_gets_a_temperature_within_bounds() -> None:
    labels = torch.zeros(500, dtype=torch.int64)
    found = torch.tensor([[-20.0, 0.0]]).expand(500, 2).log_softmax(1)
    assert 1 < fit_temperature(found, labels) <= max(TEMPERATURES) < 10


@given(SEEDS, st.floats(0.2, 9))
@settings(max_examples=30)
def test_a_temperature_keeps_the_order_of_classes_and_sums_to_one(seed: int, temperature: float) -> None:
    found, _ = honest(20, seed)
    after = calibrated(found, temperature)
    assert torch.equal(after.argsort(1), found.argsort(1))
    torch.testing.assert_close(after.exp().sum(1), torch.ones(20, dtype=torch.float64))
    surer = after.exp().amax(1) >= found.exp().amax(1) - 1e-12
    assert (
        bool(surer.all()) if temperature <= 1 else not bool((after.exp().amax(1) > found.exp().amax(1) + 1e-12).any())
    )


def test_cross_calibration_uses_the_other_folds_only() -> None:
    found, labels = honest(300, 0)
    found = calibrated(found, 1 / 3)
    before = cross_calibrated(found, labels)
    labels[7] = (labels[7] + 1) % 4
    found[7] = found[7].flip(0)
    same_fold = (cross_calibrated(found, labels) == before).all(1)
    assert same_fold.sum() >= 59  # its own fold but for itself: what it fits is judged elsewhere


def test_calibration_error_of_one_bin_is_the_difference_of_its_means() -> None:
    found = torch.tensor([[0.9, 0.1]] * 10, dtype=torch.float64).log()
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert expected_calibration_error(found, labels) == pytest.approx(0.3)
    (row,) = reliability(found, labels)
    assert row.n == 10
    assert (row.low, row.high, row.probability, row.accuracy) == pytest.approx((13 / 15, 14 / 15, 0.9, 0.6))


@given(SEEDS, st.integers(1, 200))
@settings(max_examples=30)
def test_every_prediction_is_in_one_bin_that_holds_its_probability(seed: int, n: int) -> None:
    found, labels = honest(n, seed)
    rows = reliability(found, labels)
    assert sum(row.n for row in rows) == n
    assert all(row.low <= row.probability <= row.high for row in rows)
    assert 0 <= expected_calibration_error(found, labels) <= 1


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two hues that overlap: some pictures are doubtful."""
    place = tmp_path_factory.mktemp("calibration")
    random = np.random.default_rng(0)
    for label, base in (("dark", 110), ("light", 140)):
        (place / "pictures" / label).mkdir(parents=True)
        for number in range(100):
            shade = int(np.clip(base + random.normal(0, 15), 0, 255))
            Image.new("RGB", (24, 24), (shade, shade, shade)).save(place / "pictures" / label / f"{number:03d}.png")
    finetune.fit(
        place / "pictures", place / "run", backbone="fewtune_conv4", strategy="head", device="cpu", val_fraction=0.4
    )
    return place


@pytest.mark.slow
def test_a_real_run_is_better_calibrated_on_pictures_that_did_not_fit_its_temperature(make_folder: MakeFolder) -> None:
    """Trained for a moment, with smoothed labels, it doubts what it does not get wrong."""
    metrics = finetune.fit(
        make_folder(classes={"blue": 60, "red": 60}, size=24), strategy="scratch", epochs=6, val_fraction=0.3,
        test_fraction=0.3, backbone="fewtune_conv4", image_size=32, device="cpu", workers=0,
    ).metrics  # fmt: skip
    told = metrics["calibration"]
    assert (told["split"], told["n"]) == ("test", metrics["n"])
    assert told["temperature"] < 1
    assert told["ece_after"] < told["ece_before"] / 2


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def at_temperature(fitted: Path, folder: Path, value: object) -> Path:
    shutil.copytree(fitted / "run", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "temperature": value}))
    return folder


@pytest.mark.slow
def test_predictions_use_the_saved_temperature(fitted: Path, tmp_path: Path) -> None:
    pictures = sorted((fitted / "pictures").rglob("*.png"))[::20]
    plain = finetune.load(fitted / "run", device="cpu")
    plain.temperature = 1.0
    hot = finetune.load(at_temperature(fitted, tmp_path / "hot", 3), device="cpu")
    assert hot.temperature == 3
    expected = calibrated(plain.log_probabilities(pictures)[0], 3)
    torch.testing.assert_close(hot.log_probabilities(pictures)[0], expected)
    found = hot.predict(pictures[0])
    assert found.probability == pytest.approx(float(expected[0].exp().max()), abs=1e-6)
    assert found.label == plain.predict(pictures[0]).label
    hot.save(tmp_path / "again")
    assert finetune.load(tmp_path / "again", device="cpu").temperature == 3


def test_a_run_from_before_there_were_temperatures_is_read(fitted: Path, tmp_path: Path) -> None:
    folder = at_temperature(fitted, tmp_path / "old", 1)
    config = json.loads((folder / "config.json").read_text())
    del config["temperature"]
    (folder / "config.json").write_text(json.dumps(config))
    assert finetune.load(folder, device="cpu").temperature == 1


@pytest.mark.parametrize("value", [0, -1, "warm", None])
def test_an_invalid_temperature_is_named(value: object, fitted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        finetune.load(at_temperature(fitted, tmp_path / "run", value), device="cpu")


def test_doubtful_pictures_are_unsure_and_keep_their_label(run, fitted: Path) -> None:  # type: ignore[no-untyped-def]
    classifier = finetune.load(fitted / "run", device="cpu")
    paths = sorted((fitted / "pictures").rglob("*.png"))
    everything = [found for found in classifier.predict_all(paths) if isinstance(found, finetune.Prediction)]
    threshold = sorted(found.probability for found in everything)[50]
    answer = run("predict", fitted / "run", fitted / "pictures", "--min-probability", threshold, "--json")
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["unsure"] for row in rows] == [found.probability < threshold for found in everything]
    assert [row["label"] for row in rows] == [found.label for found in everything]
    assert 0 < sum(row["unsure"] for row in rows) <= 50
    doubtful = next(row for row in rows if row["unsure"])
    line = run("predict", fitted / "run", doubtful["path"], "--min-probability", threshold).out
    assert f": unsure  ({doubtful['label']} " in line
    assert not classifier.predict(paths[0]).unsure
    assert classifier.predict(doubtful["path"], min_probability=1).unsure


def test_a_target_error_takes_its_threshold_from_the_validation_pictures(run, fitted: Path) -> None:  # type: ignore[no-untyped-def]
    rows = rejections(*validation_answers(fitted / "run"))
    chosen = min(rows, key=lambda row: row.bound)
    answer = run("predict", fitted / "run", fitted / "pictures", "--target-error", chosen.bound + 1e-6, "--json")
    assert answer.code == 0, answer.err
    found = [json.loads(line) for line in answer.out.splitlines()]
    expected = rejection_for(rows, chosen.bound + 1e-6).min_probability
    assert [row["unsure"] for row in found] == [row["probability"] < expected for row in found]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--min-probability", "1.5"], "--min-probability"),
        (["--target-error", "0"], "--target-error"),
        (["--target-error", "0.0001"], "cannot be promised"),
        (["--target-error", "0.1", "--min-probability", "0.5"], "--target-error"),
    ],
)
def test_thresholds_that_make_no_sense_are_one_line(words: list[str], named: str, run, fitted: Path) -> None:  # type: ignore[no-untyped-def]
    answer = run("predict", fitted / "run", fitted / "pictures", *words)
    assert (answer.code, answer.out) == (2, "")
    assert named in answer.err
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        None,
        "nothing\n",
        "split,probability,label,predicted\nval,high,a,b\n",
        "split,probability,label,predicted\nval,nan,a,b\n",
        "split,probability,label,predicted\nval,1,a," + "b" * 200_000,
    ],
)
def test_a_run_without_its_predictions_says_so(content: str | None, run, fitted: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = at_temperature(fitted, tmp_path / "run", 1)
    (folder / "predictions.csv").unlink()
    if content is not None:
        (folder / "predictions.csv").write_text(content)
    answer = run("predict", folder, fitted / "pictures", "--target-error", "0.1")
    assert (answer.code, answer.out) == (2, "")
    assert "predictions.csv" in answer.err or "cannot be promised" in answer.err
    assert len(answer.err.splitlines()) == 1
