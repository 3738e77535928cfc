from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from called import Answer, caller
from conftest import MakeFolder
from hypothesis import given
from hypothesis import strategies as st
from made_run import made_run
from PIL import Image
from torch import Tensor

import finetune
from finetune import Classifier, Config, InputError
from finetune.cli import main as cli
from finetune.files.tables import read_csv
from finetune.files.writing import write_tensors
from finetune.report.confusion import by_confusion
from finetune.report.report import command, write_report
from finetune.report.results import read_results

FEW = ["cats", "dogs"]
SMALL = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(cli.main, "finetune", monkeypatch, capfd)


@pytest.fixture
def trained(make_folder: MakeFolder, tmp_path: Path) -> Path:
    folder = make_folder(classes={"blue": 24, "red": 24}, size=24)
    finetune.fit(folder, tmp_path / "run", strategy="head", **SMALL)
    return tmp_path / "run"


def test_a_report_shows_the_results_and_the_command(tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 30, certainty=1.0)
    page = unescape(write_report(run).read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    rows = read_csv(run / "predictions.csv", ["split", "label", "predicted", "probability"])
    wrong = [row for row in rows if row["split"] == "test" and row["label"] != row["predicted"]]
    worst = max(wrong, key=lambda row: float(row["probability"]))
    for text in (
        f"{metrics['accuracy']:.1%}",
        metrics["reason"],
        worst["path"],
        f"{float(worst['probability']):.1%}",
        "identical to test/twin.jpg",
        "truncated",
        shlex.join(["finetune", "fit", str(tmp_path / "pictures"), "--out", str(run)]),
        "--strategy full --epochs 8",
        "Expected calibration error",
        "weights before training (50% trained, 50% before)",
        "Sweep of learning rates",
        "used: 0.0011",
        "Squared error of the probes",
    ):
        assert text in page
    for count in [count for row in metrics["confusion"] for count in row]:
        assert f">{count}</a>" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"share_of_the_way": 1.0}, "No mixture with the weights before training was better"),
        ({"best_epoch": 0}, "No epoch was kept"),
        ({"best_epoch": 0}, "8 trained, none kept"),
        ({"kept": "head"}, "strategy full did no better on the validation pictures than the linear head"),
        ({"kept": "head", "epochs": 0, "interrupted": True}, "No epoch of strategy full was finished, so the linear"),
        ({"strategy": "scratch", "share_of_the_way": 1.0}, "The weights of epoch 6 were kept.</p>"),
        ({"share_of_the_way": None, "lr_sweep": None}, "The weights of epoch 6 were kept.</p>"),
        (
            {"interrupted": True, "share_of_the_way": 1.0},
            "The weights of epoch 6 were kept. Training was interrupted after epoch 8; --resume continues it.",
        ),
        ({"interrupted": True, "share_of_the_way": 0.25}, "They are mixed with the weights before training (25%"),
        (
            {"lr_sweep": {"suggestion": None, "trouble": "it stayed what it was", "points": [
                {"lr": 1e-6, "loss": 0.7, "smoothed": 0.7}, {"lr": 1e-3, "loss": 0.7, "smoothed": 0.7}
            ]}},
            "The loss suggests no rate (it stayed what it was), so the strategy's own rate was used.",
        ),
    ],
)  # fmt: skip
def test_a_report_says_which_weights_were_kept_and_how_the_rate_was_found(
    metrics: dict[str, Any], told: str, tmp_path: Path
) -> None:
    run = made_run(tmp_path, FEW, 4)
    saved = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(saved | metrics))
    page = unescape(write_report(run).read_text())
    assert told in page
    assert ("Sweep of learning rates" in page) == (metrics.get("lr_sweep", {}) is not None)


def page_with(tmp_path: Path, **metrics: Any) -> str:
    """The report, without its markup's line breaks, of a made-up run whose metrics.json says `metrics` beside."""
    return " ".join(unescape(write_report(made_run(tmp_path, FEW, 8, **metrics)).read_text()).split())


def test_an_option_in_a_sentence_is_set_as_code_and_the_rest_is_escaped(tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 8, reason="head: few <pictures>; --strategy partial trains.")
    page = write_report(run).read_text()
    assert 'head: few &lt;pictures&gt;; <code class="flag">--strategy</code> partial trains.' in page


def test_the_input_of_the_head_is_named_and_that_of_the_baseline_where_it_is_another(tmp_path: Path) -> None:
    depths = ["blocks.4", "blocks.5", "features"]
    trained = page_with(tmp_path / "trained", head_reads=["features"], frozen_head_reads=depths)
    assert "<dt>input of the head</dt><dd>features (last output of the backbone)</dd>" in trained
    assert (
        "<dt>input of the baseline head</dt><dd>blocks.4, blocks.5 and features, side by side, frozen</dd>" in trained
    )
    head = page_with(tmp_path / "head", kept="head", head_reads=depths, frozen_head_reads=depths)
    assert "<dt>input of the head</dt><dd>blocks.4, blocks.5 and features, side by side</dd>" in head
    assert "input of the baseline head" not in head


@pytest.mark.slow
def test_what_the_solved_head_reads_is_kept_for_the_report(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["frozen_head_reads"] == metrics["head_reads"]


@pytest.mark.parametrize(("temperature", "after"), [(1.0, 0.119), (1.6, 0.05)])
def test_a_calibration_that_changed_nothing_says_so_instead_of_two_equal_figures(
    temperature: float, after: float, tmp_path: Path
) -> None:
    calibration = {"temperature": temperature, "ece_before": 0.119, "ece_after": after, "n": 16, "split": "test"}
    page = page_with(tmp_path, calibration=calibration)
    assert ("Calibration changed nothing" in page) == (temperature == 1)
    assert ("<dt>error before</dt><dd>11.9%</dd>" in page) == (temperature != 1)


def test_the_axes_of_the_confusion_matrix_have_names(tmp_path: Path) -> None:
    page = page_with(tmp_path)
    assert '<p class="axis-x">predicted class</p>' in page
    assert '<p class="axis-y">true class</p>' in page


def test_the_most_frequent_mistakes_are_listed_with_their_share_of_the_class(tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 30, certainty=0.5)
    page = " ".join(write_report(run).read_text().split())
    (_, wrong), (other, _) = json.loads((run / "metrics.json").read_text())["confusion"]
    assert f"cats predicted as dogs</a>: {wrong} of 30 pictures ({wrong / 30:.1%})" in page
    assert f"dogs predicted as cats</a>: {other} of 30 pictures ({other / 30:.1%})" in page


def test_a_matrix_without_mistakes_says_how_low_the_accuracy_may_still_be(tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 12, certainty=40)
    low = json.loads((run / "metrics.json").read_text())["interval"][0]
    page = " ".join(write_report(run).read_text().split())
    assert "All 24 test pictures were predicted correctly." in page
    assert f"the accuracy may be as low as {low:.1%}" in page


def test_the_command_in_a_report_repeats_the_options_of_the_run(tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 4)
    options: dict[str, Any] = {
        "cache": False,
        "flip": False,
        "lr": "auto",
        "weights": "my weights.safetensors",
        "mixup": 0.2,
        "seed": 7,
    }
    config = Config(strategy="partial", unfreeze="blocks.5", **options)
    made = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(made | {"config": config.to_dict()}))
    program, name, *words = shlex.split(command(read_results(run)))
    asked = cli.cli.commands[name].make_context(name, words).params
    assert program == "finetune"
    assert (asked.pop("folder"), asked.pop("out")) == (tmp_path / "pictures", run)
    assert Config(**{key: asked[key] for key in config.to_dict()}) == config


def test_the_same_run_makes_the_same_page(tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 8)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_names_of_files_and_classes_are_escaped(tmp_path: Path) -> None:
    page = write_report(made_run(tmp_path, ["<b>bold<b>", "a&b", "cat\u202egod"], 4)).read_text()
    assert "<b>" not in page
    assert "\u202e" not in page
    assert r"cat\u202egod" in page
    assert "&lt;b&gt;broken" in page


def test_a_report_says_what_an_older_run_lacks(tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 8)
    (run / "probabilities.safetensors").unlink()
    page = write_report(run).read_text()
    assert "has not kept its probabilities" in page
    assert "Confidently wrong" in page or "Confidently right" in page


def test_a_report_says_that_pictures_are_gone(tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 8)
    shutil.rmtree(tmp_path / "pictures")
    page = write_report(run).read_text()
    assert "can no longer be read" in page
    assert "data:image/webp" not in page


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a", FEW, 8)
    other = made_run(tmp_path / "b", FEW, 9)
    shutil.copy(other / "probabilities.safetensors", run)
    with pytest.raises(InputError, match="different pictures"):
        write_report(run)
    (run / "predictions.csv").write_text("path,split\nx,test\n")
    (run / "probabilities.safetensors").unlink()
    with pytest.raises(InputError, match="may be damaged"):
        write_report(run)
    (run / "predictions.csv").unlink()
    with pytest.raises(InputError, match=r"predictions\.csv is missing"):
        write_report(run)
    with pytest.raises(InputError, match="not a run folder"):
        write_report(tmp_path)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("tensor", [torch.tensor(0.0), torch.zeros(4, 2, dtype=torch.complex64), torch.ones(4, 2) > 0])
def test_probabilities_of_another_form_are_refused(tensor: Tensor, tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 2, side=16)
    write_tensors(run / "probabilities.safetensors", {"test": tensor})
    with pytest.raises(InputError, match=r"probabilities\.safetensors (does not belong|holds no log-probabilities)"):
        write_report(run)


@pytest.mark.parametrize("row", ["1,0.5", "1,0.5,high,0.5", "1,nan,0.5,0.5"])
def test_a_damaged_history_is_named(row: str, tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 4)
    (run / "history.csv").write_text(f"epoch,train_loss,val_loss,val_accuracy\n{row}\n")
    with pytest.raises(InputError, match=r"history\.csv (may be damaged|has a row that is cut short)"):
        write_report(run)


@pytest.mark.slow
def test_two_thousand_large_pictures_stay_under_five_megabytes(tmp_path: Path) -> None:
    classes = [f"class {number}" for number in range(20)]
    path = write_report(made_run(tmp_path, classes, 67, certainty=1.5, side=700, kinds=4))
    assert path.stat().st_size < 5_000_000


@pytest.mark.slow
def test_heat_maps_stand_beside_the_pictures_that_are_confidently_wrong(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def overlays(classifier: Classifier, paths: Sequence[Path]) -> Mapping[Path, Image.Image]:
        asked.extend(paths)
        return {path: Image.new("RGB", (32, 32), "red") for path in paths[1:]}

    monkeypatch.setattr("finetune.report.confusion.overlays", overlays)
    classifier = finetune.load(trained, device="cpu")
    page = write_report(made_run(tmp_path / "made", FEW, 30, certainty=0.5), classifier=classifier).read_text()
    assert len(asked) == 12
    assert all(path.is_file() for path in asked)
    assert page.count("heat map of") == 11


@given(st.permutations(range(12)))
def test_classes_that_are_confused_with_each_other_stand_together(order: list[int]) -> None:
    counts = np.diag(np.full(12, 5.0))
    for one, other in zip(order[::2], order[1::2], strict=True):
        counts[one, other] = counts[other, one] = 4
    place = {label: position for position, label in enumerate(by_confusion(counts))}
    assert sorted(place) == list(range(12))
    assert all(abs(place[one] - place[other]) == 1 for one, other in zip(order[::2], order[1::2], strict=True))


@pytest.mark.slow
def test_an_evaluation_leaves_its_figures_and_a_report(trained: Path, make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder("others", classes={"blue": 6, "red": 6}, size=24, seed=5)
    result = finetune.evaluate(trained, folder, out=tmp_path / "left", device="cpu")
    saved = json.loads((tmp_path / "left" / "metrics.json").read_text())
    assert saved["accuracy"] == result["accuracy"]
    rows = read_csv(tmp_path / "left" / "predictions.csv", ["label", "predicted"])
    assert sum(row["label"] == row["predicted"] for row in rows) / len(rows) == result["accuracy"]
    page = Path(result["report"]).read_text()
    assert "Evaluation on others" in page
    assert "data:image/webp" in page
    shutil.rmtree(trained)  # what an evaluation tells does not hang on where the run went
    assert write_report(tmp_path / "left").read_text() == page


@pytest.mark.slow
def test_an_evaluation_replaces_no_files_but_an_evaluation(
    trained: Path, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder("others", classes={"blue": 2, "red": 2}, size=24, seed=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for out in (tmp_path / "mine", trained):
        with pytest.raises(InputError, match="holds no evaluation"):
            finetune.evaluate(trained, folder, out=out, device="cpu")
    for out in (folder, folder / "blue", folder / "new"):
        with pytest.raises(InputError, match="nothing is changed"):
            finetune.evaluate(trained, folder, out=out, device="cpu")
    assert not (folder / "new").exists()
    finetune.evaluate(trained, folder, out=tmp_path / "left", device="cpu")
    finetune.evaluate(trained, folder, out=tmp_path / "left", device="cpu")


@pytest.mark.slow
def test_the_commands_make_reports(
    trained: Path, make_folder: MakeFolder, tmp_path: Path, call: Callable[..., Answer]
) -> None:
    folder = make_folder("others", classes={"blue": 2, "red": 2}, size=24, seed=5)
    namesake = make_folder("elsewhere/others", classes={"blue": 2, "red": 2}, size=24, seed=6)
    for pictures, name in ((folder, "others"), (namesake, "others-2"), (folder, "others")):
        answer = call("evaluate", trained, pictures, "--device", "cpu", "--json")
        assert Path(json.loads(answer.out)["report"]) == trained / "evaluations" / name / "report.html"
    (trained / "report.html").unlink(missing_ok=True)
    answer = call("report", trained)
    assert (answer.code, Path(answer.out.strip())) == (0, trained / "report.html")
    assert call("report", tmp_path).code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("metrics.json", lambda text: "[]"),
        ("metrics.json", lambda text: text[:200]),
        ("metrics.json", lambda text: text.replace('"split"', '"slit"')),
        ("metrics.json", lambda text: text.replace('"interval"', '"inter"')),
        ("metrics.json", lambda text: text.replace('"per_class"', '"per"')),
        ("metrics.json", lambda text: '{"split": "test", "evaluated": 3}'),
        ("config.json", lambda text: text.replace('"cats"', '"cows"')),
        ("config.json", lambda text: text.replace('"backbone"', '"spine"')),
        ("config.json", lambda text: text.replace('"folder": "', '"folder": 3, "_": "')),
        ("predictions.csv", lambda text: text.replace("split", "slit")),
        ("predictions.csv", lambda text: text.replace("test,cats", "test,cows")),
        ("predictions.csv", lambda text: text + "test/cats/new.jpg,test,cats,cats,nan,0.5\n"),
        ("predictions.csv", lambda text: text + '"' + "a" * 200_000),
        ("pictures.csv", lambda text: text.replace("label", "name")),
        ("pictures.csv", lambda text: text + "\udcff"),
    ],
)
def test_damaged_files_are_named_and_the_old_report_stays(
    name: str, change: Callable[[str], str], tmp_path: Path
) -> None:
    run = made_run(tmp_path, FEW, 2, side=16)
    (run / "report.html").write_text("old")
    (run / name).write_text(change((run / name).read_text()), errors="surrogateescape")
    with pytest.raises(InputError) as told:
        write_report(run)
    assert name in str(told.value) or "predictions.csv" in str(told.value)
    assert "\n" not in str(told.value)
    assert (run / "report.html").read_text() == "old"


@pytest.mark.parametrize("shape", [(4, 3), (4,), (4, 2, 2)])
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_probabilities_of_other_classes_are_refused(shape: tuple[int, ...], value: float, tmp_path: Path) -> None:
    run = made_run(tmp_path, FEW, 2, side=16)
    write_tensors(run / "probabilities.safetensors", {"test": torch.full(shape, value)})
    with pytest.raises(InputError, match=r"probabilities\.safetensors holds no log-probabilities of 2 classes"):
        write_report(run)
