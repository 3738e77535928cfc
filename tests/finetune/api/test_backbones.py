"""--backbone auto: networks compared on the pictures of a folder, and what a run does with the choice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from called import Answer, caller
from told import Told

import finetune
from finetune import Config, InputError, compare_backbones
from finetune.api import backbones
from finetune.cli.main import main
from finetune.data.digits import write_digits
from finetune.files.writing import write_tensors
from finetune.linear.comparison import BackboneComparison
from finetune.models.backbone import Backbone

pytestmark = pytest.mark.slow

RANDOM = "test_efficientnet"


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a network that has learned nothing."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    write_tensors(folder / f"{RANDOM}.safetensors", Backbone(RANDOM).model.state_dict())
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str]]:
    """Paths, labels and splits of a few digits."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder, per_class=6)
    rows = []
    for split in ("train", "val", "test"):
        for label in "01234":
            for path in sorted((folder / split / label).iterdir())[:6]:
                rows.append((str(path), label, split))
    return rows


def options(weights: Path, **more: object) -> Config:
    return Config(backbone="auto", weights_dir=str(weights), device="cpu", workers=0, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def compared(weights: Path, digits: list[tuple[str, str, str]]) -> Iterator[BackboneComparison]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(weights / "hub"))
        yield compare_backbones(digits, config=options(weights))


def test_the_network_that_knows_characters_is_taken_for_digits_and_the_run_keeps_it(
    weights: Path, digits: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    told = Told()
    config = options(weights, strategy="head")
    classifier = finetune.fit(digits, tmp_path / "run", config=config, display=told)
    assert classifier.config.backbone == "fewtune_conv4"
    found = classifier.metrics["backbones"]
    assert found["chosen"] == "fewtune_conv4"
    assert found["pictures"] == found["of"] == 60
    assert {each["name"] for each in found["candidates"]} == {"fewtune_conv4", RANDOM}
    for each in found["candidates"]:
        assert each["ms"] > 0
        assert each["ms_single"] > 0
        assert each["interval"][0] <= each["accuracy"] <= each["interval"][1]
        assert each["parameters"] > 0
    assert any(line == f"backbone {found['reason']}" for line in told.lines)

    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["config"]["backbone"] == "fewtune_conv4"
    assert saved["config"]["weights_dir"] is None
    assert saved["asked"] == {"backbone": "auto", "weights_dir": str(weights)}
    loaded = finetune.load(tmp_path / "run", device="cpu")
    assert loaded.predict(digits[0][0]).label == classifier.predict(digits[0][0]).label
    assert loaded.metrics["backbones"] == found
    report = (tmp_path / "run" / "report.html").read_text()
    assert found["reason"] in report
    assert "Accuracy against cost" in report

    named = finetune.fit(digits, backbone="fewtune_conv4", strategy="head", device="cpu", workers=0)
    assert torch.equal(named.network.head.weight, classifier.network.head.weight)
    assert named.metrics["backbones"] is None


def test_a_finished_run_is_found_by_the_options_that_were_asked_for(
    weights: Path, digits: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    config = options(weights, strategy="head")
    finetune.fit(digits, tmp_path / "run", config=config)
    told = Told()
    finetune.fit(digits, tmp_path / "run", config=config, resume=True, display=told)
    assert told.lines == [f"{tmp_path / 'run'} holds this run, finished"]
    named = dataclasses.replace(config, backbone="fewtune_conv4")
    with pytest.raises(InputError, match="was started with --backbone auto, not fewtune_conv4"):
        finetune.fit(digits, tmp_path / "run", config=named, resume=True)


def test_a_run_that_is_resumed_chooses_no_network_again(
    weights: Path, digits: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(result: finetune.EpochResult) -> None:
        raise Stopped

    config = options(weights, strategy="partial", epochs=2)
    with pytest.raises(Stopped):
        finetune.fit(digits, tmp_path / "run", config=config, on_epoch=stop)
    told = Told()
    classifier = finetune.fit(digits, tmp_path / "run", config=config, resume=True, display=told)
    assert not any("accuracy of a probe" in line for line in told.lines)
    assert classifier.metrics["backbones"]["chosen"] == "fewtune_conv4"
    assert classifier.metrics["epochs"] == 2
    whole = finetune.fit(digits, config=config)
    assert torch.equal(whole.network.head.weight, classifier.network.head.weight)


def test_test_pictures_have_no_say(
    compared: BackboneComparison, weights: Path, digits: list[tuple[str, str, str]]
) -> None:
    swapped = [(path, "1" if split == "test" else label, split) for path, label, split in digits]
    figures = [
        [(each.name, each.accuracy, each.error) for each in sorted(found.candidates, key=lambda each: each.name)]
        for found in (compared, compare_backbones(swapped, config=options(weights)))
    ]
    assert figures[0] == figures[1]


def test_many_pictures_are_compared_on_a_sample_of_every_class(
    weights: Path, digits: list[tuple[str, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "SAMPLE", 20)
    found = compare_backbones(digits, config=options(weights))
    assert (found.pictures, found.of, found.classes) == (20, 60, 5)


def test_networks_above_the_bound_are_left_out_before_they_read_the_folder(
    compared: BackboneComparison, weights: Path, digits: list[tuple[str, str, str]]
) -> None:
    ms = {each.name: each.ms or 0 for each in compared.candidates}
    bound = (ms["fewtune_conv4"] * ms[RANDOM]) ** 0.5
    found = compare_backbones(digits, config=options(weights, max_ms=bound))
    slow = found.candidates[-1]
    assert slow.name == RANDOM
    assert "above --max-ms" in (slow.left_out or "")
    assert slow.accuracy is None
    assert found.reason == "fewtune_conv4: the only network that could be compared."
    with pytest.raises(InputError, match=r"no network is as fast as --max-ms 1e-06; the fastest, fewtune_conv4"):
        compare_backbones(digits, config=options(weights, max_ms=1e-6))


def test_weights_of_another_network_are_left_out_with_a_line_or_refused_where_they_were_named(
    weights: Path, digits: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    wrong = tmp_path / "resnet18.safetensors"
    wrong.write_bytes((weights / f"{RANDOM}.safetensors").read_bytes())
    told = Told()
    found = compare_backbones(digits, config=options(tmp_path), display=told)
    assert [each.name for each in found.candidates] == ["fewtune_conv4", "resnet18"]
    (line,) = [line for line in told.lines if line.startswith("resnet18 is left out")]
    assert f"{wrong} (--weights-dir) does not fit resnet18" in line
    with pytest.raises(InputError, match=r"\(--weights-dir\) does not fit resnet18"):
        compare_backbones(digits, config=options(tmp_path, backbones="resnet18,fewtune_conv4"))


def test_without_two_classes_of_two_pictures_nothing_is_compared_and_the_reason_says_so(
    weights: Path, digits: list[tuple[str, str, str]]
) -> None:
    rows = [(path, label, split) for path, label, split in digits if split == "train"]
    rows = [rows[1], *rows[::6]]  # two of the first class, one of each other
    rows += [(path, label, split) for path, label, split in digits if split == "test"]
    found = compare_backbones(rows, config=options(weights, val_fraction=0.0))
    assert found.pictures == 0
    assert "cannot be compared" in found.reason


def test_the_learning_rate_is_searched_for_with_the_chosen_network(
    weights: Path, digits: list[tuple[str, str, str]]
) -> None:
    told = Told()
    finetune.find_rate(digits, config=options(weights, strategy="partial"), display=told)
    assert any(line.startswith("backbone fewtune_conv4") for line in told.lines)


def test_commands_that_use_one_network_refuse_auto(digits: list[tuple[str, str, str]]) -> None:
    with pytest.raises(InputError, match="compare_backbones compares several"):
        finetune.probe_folder(digits, config=Config(backbone="auto"))
    with pytest.raises(InputError, match="--backbone auto goes with fit"):
        finetune.inspect_folder(digits, config=Config(backbone="auto"))
    with pytest.raises(InputError, match="needs --backbone auto"):
        compare_backbones(digits, config=Config(backbone="fewtune_conv4"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def test_probe_prints_the_table_and_draws_accuracy_against_cost(  # type: ignore[no-untyped-def]
    run, weights: Path, digits: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    table = tmp_path / "digits.csv"
    table.write_text("path,label,split\n" + "".join(f"{','.join(row)}\n" for row in digits))
    words = ("probe", table, "--backbones", f"fewtune_conv4,{RANDOM}", "--weights-dir", weights, "--device", "cpu")
    page = tmp_path / "page.html"
    answer = run(*words, "--out", page)
    assert answer.code == 0, answer.err
    for part in ("fewtune_conv4", RANDOM, "ms a picture", "taken: fewtune_conv4", "licences: mit: fewtune_conv4"):
        assert part in " ".join(answer.out.split())
    assert "<svg" in page.read_text()
    assert RANDOM in page.read_text()
    answer = run(*words, "--json")
    assert json.loads(answer.out)["chosen"] == "fewtune_conv4"
    assert answer.err == ""
    answer = run("probe", table, "--backbone", "fewtune_conv4", "--out", page)
    assert (answer.code, answer.out) == (2, "")
    assert "--out goes with --backbone auto" in answer.err


def test_a_library_call_leaves_the_number_of_threads_and_the_random_state_as_they_were(
    weights: Path, digits: list[tuple[str, str, str]]
) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    compare_backbones(digits, config=options(weights))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_the_figures_become_json_and_the_choice_is_one_of_them(compared: BackboneComparison) -> None:
    values = json.loads(json.dumps(compared.to_dict()))
    assert values["candidates"][0]["name"] == compared.taken.name == "fewtune_conv4"
    assert values["candidates"][0].keys() == dataclasses.asdict(compared.taken).keys()
