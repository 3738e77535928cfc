from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from drawings import character, folder_of, omniglot_of, small
from killing import assert_same_weights, started, wait_for
from PIL import Image

import fewshot.training.loop
import fewshot.training.train
from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec, create
from fewshot.evaluation.verification import roc_summary
from fewshot.omniglot.splits import SPLITS, Split, characters_of
from fewshot.recognition.recognizer import Recognizer
from fewshot.training.train import metrics_of, train_folder, train_omniglot
from fewshot.training.training_data import TRAINED
from finetune.errors import InputError, TrainingDiverged
from finetune.files.folders import alone_in
from finetune.files.reading import read_json, read_tensors
from finetune.files.writing import write_json

TRAIN, VAL = {"Tagalog": 3}, {"Hebrew": 2}  # alphabets and drawers; Hebrew has the 20 characters that are judged by
TINY = {"alphabets": 1, "ways": 2}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot.training.loop, "LEAST_BETWEEN", 10)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("pictures") / "folder")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return omniglot_of(tmp_path_factory.mktemp("omniglot"), TRAIN | VAL)


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published splits in small."""
    for train, val in TRAINED.values():
        monkeypatch.setitem(cast(dict[str, Split], SPLITS), train, Split(characters_of(TRAIN)))
        if val is not None:
            monkeypatch.setitem(cast(dict[str, Split], SPLITS), val, Split(characters_of(VAL)))


def auc_of(embedder: Embedder, classes: range, each: int = 8) -> float:
    """AUC of same against different pairs; all pictures are turned and moved at random."""
    random, drawn = np.random.default_rng(0), []
    for number in classes:
        for hand in range(each):
            page = Image.fromarray(character(number, 50 + hand, width=8))
            moved = page.rotate(random.uniform(-20, 20), translate=tuple(random.integers(-8, 9, 2).tolist()))
            drawn.append(255 - np.asarray(moved))
    vectors = torch.from_numpy(embedder.embed(drawn))
    one, other = torch.triu_indices(len(drawn), len(drawn), 1)
    same = one // each == other // each
    return roc_summary((vectors[one] * vectors[other]).sum(1), same).auc


def history_of(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- what is learned --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("self_supervised", [False, True])
def test_learning_a_folder_lowers_the_loss_and_beats_random_weights(
    self_supervised: bool, pictures: Path, tmp_path: Path
) -> None:
    recipe = small(epochs=40, side=24)
    embedder = train_folder(pictures, tmp_path / "run", config=recipe, self_supervised=self_supervised)
    losses = [float(row["loss"]) for row in history_of(tmp_path / "run")]
    assert len(losses) > 1
    assert losses[-1] < 0.8 * losses[0]
    torch.manual_seed(0)
    untrained = Embedder(create(embedder.spec), embedder.spec, device="cpu")
    assert embedder.spec == EncoderSpec("fewtune_conv4", 24, "whole")
    assert auc_of(embedder, range(6)) > auc_of(untrained, range(6)) + 0.02
    assert embedder.trained_on == frozenset()


@pytest.mark.slow
@pytest.mark.usefixtures("splits")
def test_learning_omniglot_lowers_the_loss_and_keeps_the_weights_with_the_best_validation(
    archives: Path, tmp_path: Path
) -> None:
    embedder = train_omniglot(tmp_path / "run", "lake", config=small(epochs=25), data=archives)
    losses = [float(row["loss"]) for row in history_of(tmp_path / "run")]
    assert losses[-1] < 0.9 * losses[0]
    accuracies = [float(row["accuracy"]) for row in history_of(tmp_path / "run")]
    metrics = metrics_of(tmp_path / "run")
    assert metrics["validation"] == {"of": "20-way 1-shot", "accuracy": max(accuracies)}
    best = next(row for row in history_of(tmp_path / "run") if float(row["accuracy"]) == max(accuracies))
    assert metrics["kept_step"] == int(best["step"])
    assert embedder.spec.framing == "drawing"
    assert embedder.trained_on >= characters_of(TRAIN)


@pytest.mark.slow
@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize(("split", "judged_by"), [("vinyals", "20-way 1-shot"), ("koch", "same or different")])
def test_every_split_is_validated_by_its_own_protocol(
    split: str, judged_by: str, archives: Path, tmp_path: Path
) -> None:
    train_omniglot(tmp_path / "run", split, config=small(**TINY), data=archives)
    validation = metrics_of(tmp_path / "run")["validation"]
    assert validation["of"] == judged_by
    assert 0 < validation["accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize(
    ("split", "options"),
    [("lake-minimal", {}), ("lake", {"everything": True}), ("lake", {"self_supervised": True})],
)
def test_there_is_no_validation_where_nothing_is_held_out(
    split: str, options: dict[str, Any], archives: Path, tmp_path: Path
) -> None:
    embedder = train_omniglot(tmp_path / "run", split, config=small(**TINY), data=archives, **options)
    metrics = metrics_of(tmp_path / "run")
    assert metrics["validation"] is None
    assert metrics["kept_step"] == metrics["steps"]
    assert {row["accuracy"] for row in history_of(tmp_path / "run")} == {""}
    assert embedder.trained_on == characters_of(TRAIN | VAL if "everything" in options else TRAIN)


@pytest.mark.slow
@pytest.mark.usefixtures("splits")
def test_learning_from_one_example_of_each_character(archives: Path, tmp_path: Path) -> None:
    recipe = small(epochs=8, **TINY)
    train_omniglot(tmp_path / "run", "lake", config=recipe, data=archives, examples=1)
    assert read_json(tmp_path / "run" / "config.json")["steps"] == round(8 * 17 / 4)


@pytest.mark.usefixtures("splits")
@pytest.mark.parametrize("examples", [0, -1])
def test_no_examples_at_all_are_refused(examples: int, archives: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--examples"):
        train_omniglot(tmp_path / "run", "lake", config=small(**TINY), data=archives, examples=examples)


@pytest.mark.usefixtures("splits")
def test_the_alphabets_of_koch_s_threshold_are_not_trained_on(archives: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--all cannot be used with --split koch"):
        train_omniglot(tmp_path / "run", "koch", config=small(), data=archives, everything=True)
    with pytest.raises(InputError, match=r"--split must be one of lake, .*, not 'santoro'"):
        train_omniglot(tmp_path / "run", "santoro", config=small(), data=archives)
    assert not (tmp_path / "run").exists()


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_run_records_its_options_and_figures(pictures: Path, tmp_path: Path) -> None:
    embedder = train_folder(pictures, tmp_path / "run", config=small(epochs=10))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "history.csv", "metrics.json", "model.safetensors",
    }  # fmt: skip
    config, metrics = read_json(tmp_path / "run" / "config.json"), metrics_of(tmp_path / "run")
    assert config["recipe"] == small(epochs=10).to_dict()
    assert config["source"] == str(pictures.resolve())
    assert config["self_supervised"] is False
    assert config["steps"] == metrics["steps"] == 15  # ten times 24 pictures, 16 at a time
    assert config["spec"] == {"network": "fewtune_conv4", "side": 16, "framing": "whole"}
    assert config["fingerprint"] == embedder.fingerprint
    assert config["trained_on"] == {}
    assert config["engine"]["device"] == "cpu"
    assert metrics["interrupted"] is False
    assert metrics["seconds"] >= 0
    assert 0 <= metrics["waiting"] <= 1
    (row,) = history_of(tmp_path / "run")
    assert row.keys() == {"step", "loss", "accuracy", "seconds"}
    assert (row["step"], row["accuracy"]) == ("15", "")
    assert float(row["loss"]) > 0


def test_a_run_with_held_out_classes_has_a_threshold_for_recognition(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "twelve classes", 12)
    train_folder(pictures, tmp_path / "run", config=small(epochs=2))
    carried = Embedder.load(tmp_path / "run", device="cpu").recognition
    assert carried is not None
    recognizer = Recognizer(Embedder.load(tmp_path / "run", device="cpu"))
    recognizer.gallery.enrol("one", np.eye(recognizer.embedder.width, dtype=np.float32)[:1])
    threshold = recognizer.expect(0.05)
    assert threshold is not None
    assert not threshold.refusals_measured
    train_folder(pictures, tmp_path / "all", config=small(epochs=2), everything=True)
    assert Embedder.load(tmp_path / "all", device="cpu").recognition is None


def test_epochs_count_the_pictures_of_the_real_batches(tmp_path: Path) -> None:
    """Two classes cannot fill a batch of four ways; an epoch still shows as many pictures as there are."""
    folder = folder_of(tmp_path / "two", classes=2, each=8)
    train_folder(folder, tmp_path / "run", config=small(epochs=2, alphabets=1, ways=4, shots=2))
    assert metrics_of(tmp_path / "run")["steps"] == 2 * 16 / (2 * 2)


def test_a_short_training_on_a_folder_takes_more_and_smaller_steps(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "nine", classes=9, each=8)
    usual: dict[str, object] = {"alphabets": None, "ways": None, "shots": 2, "epochs": 20}
    train_folder(folder, tmp_path / "short", config=small(**usual))
    found = read_json(tmp_path / "short" / "config.json")
    assert (found["groups"], found["steps"], found["recipe"]["alphabets"]) == (1, 20 * 72 / (9 * 2), None)
    train_folder(folder, tmp_path / "asked", config=small(**usual | {"alphabets": 4}))
    found = read_json(tmp_path / "asked" / "config.json")
    assert (found["groups"], found["steps"]) == (4, 20 * 72 / (4 * 9 * 2))


def test_a_run_that_goes_on_keeps_the_size_of_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, run = folder_of(tmp_path / "nine", classes=9, each=8), tmp_path / "run"
    config = small(alphabets=None, shots=2, epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr(fewshot.training.train, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_folder(folder, run, config=config)
    chosen = read_json(run / "config.json")
    assert chosen["groups"] == 1
    write_json(run / "config.json", chosen | {"groups": 2, "steps": 5})  # as on a machine of another speed
    train_folder(folder, run, config=config, resume=True)
    kept = read_json(run / "config.json")
    assert (kept["groups"], kept["steps"], metrics_of(run)["steps"]) == (2, 5, 5)


def interrupted(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_the_seed_determines_every_bit_of_the_weights(pictures: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        train_folder(pictures, tmp_path / name, config=small(seed=seed, **TINY))
    assert_same_weights(tmp_path / "one", tmp_path / "same")
    one, other = (read_tensors(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    assert not torch.equal(one["blocks.0.0.weight"], other["blocks.0.0.weight"])


def test_a_finished_run_that_is_continued_is_left_as_it_is(pictures: Path, tmp_path: Path) -> None:
    embedder = train_folder(pictures, tmp_path / "run", config=small(**TINY))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    again = train_folder(pictures, tmp_path / "run", config=small(**TINY), resume=True)
    assert again.fingerprint == embedder.fingerprint
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_pictures_that_cannot_be_read_are_left_out(pictures: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pictures, tmp_path / "folder")
    (folder / "class00" / "text.png").write_text("hello")
    train_folder(folder, tmp_path / "run", config=small(**TINY))
    train_folder(pictures, tmp_path / "clean", config=small(**TINY))
    assert_same_weights(tmp_path / "run", tmp_path / "clean")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_folder_with_other_files_is_not_written_to(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"\(--out\) is not empty and holds no run"):
        train_folder(pictures, tmp_path / "full", config=small())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="--out"):
        train_folder(pictures, tmp_path / "file", config=small())
    train_folder(pictures, tmp_path / "run", config=small(**TINY))
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        train_folder(pictures, tmp_path / "run", config=small(**TINY))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_a_run_continues_with_the_same_options_only(pictures: Path, tmp_path: Path) -> None:
    train_folder(pictures, tmp_path / "run", config=small(**TINY))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match=r"started with --lr 0\.002, not 0\.01"):
        train_folder(pictures, tmp_path / "run", config=small(lr=0.01, **TINY), resume=True)
    with pytest.raises(InputError, match="started with --weight-decay"):
        train_folder(pictures, tmp_path / "run", config=small(weight_decay=0.1, **TINY), resume=True)
    other = shutil.copytree(pictures, tmp_path / "other")
    with pytest.raises(InputError, match=r"holds a run on .*folder, not on .*other"):
        train_folder(other, tmp_path / "run", config=small(**TINY), resume=True)
    with pytest.raises(InputError, match="started with --self-supervised"):
        train_folder(pictures, tmp_path / "run", config=small(**TINY), self_supervised=True, resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.usefixtures("splits")
def test_a_flag_that_changed_is_named_as_it_is_spelt(archives: Path, tmp_path: Path) -> None:
    train_omniglot(tmp_path / "run", "lake-minimal", config=small(**TINY), data=archives)
    for flag, options in (("--all", {"everything": True}), ("--examples", {"examples": 2})):
        with pytest.raises(InputError, match=f"started with {flag} "):
            train_omniglot(
                tmp_path / "run", "lake-minimal", config=small(**TINY), data=archives, resume=True, **options
            )
    with pytest.raises(InputError, match="started with --split lake-minimal, not lake"):
        train_omniglot(tmp_path / "run", "lake", config=small(**TINY), data=archives, resume=True)


@pytest.mark.parametrize(
    "options",
    [
        {"network": "resnot"},
        {"network": "resnot", "side": None},
        {"network": "resnet18.nowhere", "side": None},
        {"network": "fewtune_koch2015", "side": 16},
        {"network": "fewtune_fully_connected", "side": 16},
        {"side": 8},
    ],
)
def test_unknown_networks_and_sides_that_do_not_fit_are_refused(
    options: dict[str, object], pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        train_folder(pictures, tmp_path / "run", config=small(**{**TINY, **options}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_folders_without_two_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one = folder_of(tmp_path / "one", classes=1, each=3)
    broken = folder_of(tmp_path / "broken", classes=2, each=1)
    (broken / "class00" / "00.png").write_text("hello")
    for folder in (tmp_path / "empty", one, broken, tmp_path / "missing"):
        with pytest.raises(InputError, match=folder.name):
            train_folder(folder, tmp_path / "run", config=small())
    assert not (tmp_path / "run").exists()


def test_an_absurd_learning_rate_is_named(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"--lr, now 1e\+30"):
        train_folder(pictures, tmp_path / "run", config=small(lr=1e30, epochs=10))
    with pytest.raises(InputError, match="has not finished"):
        Embedder.load(tmp_path / "run")


# --- killed -----------------------------------------------------------------------------------------------------------


def test_a_run_is_for_one_process(pictures: Path, tmp_path: Path) -> None:
    with (
        alone_in(tmp_path / "run"),
        pytest.raises(InputError, match=r"another process is at a run in .*run \(--out\)"),
    ):
        train_folder(pictures, tmp_path / "run", config=small(epochs=1, **TINY))
    assert not (tmp_path / "run").exists()
    train_folder(pictures, tmp_path / "run", config=small(epochs=1, **TINY))


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_weights(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the other process validates at the usual steps, which do not change the averaged weights
    options = {"epochs": 17, **TINY}  # 102 steps, kept at 51 and at the end
    script = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path; from drawings import small; "
        "from fewshot.training.train import train_folder; "
        f"train_folder(Path(sys.argv[1]), Path(sys.argv[2]), config=small(**{options!r}))"
    )
    run, tests = tmp_path / "killed", Path(__file__).parents[2]
    with started(script, pictures, run, tests) as process:
        wait_for(run / "state" / "checkpoint.safetensors", process)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    with pytest.raises(InputError, match="has not finished; continue it with --resume"):
        Embedder.load(run)
    train_folder(pictures, run, config=small(**options), resume=True)
    train_folder(pictures, tmp_path / "whole", config=small(**options))
    assert_same_weights(run, tmp_path / "whole")
    assert not (run / "state").exists()
    steps = [[row["step"] for row in history_of(folder)] for folder in (run, tmp_path / "whole")]
    assert steps[0] == steps[1]
    assert json.loads((run / "config.json").read_text()) == json.loads((tmp_path / "whole/config.json").read_text())
