from __future__ import annotations

import json
from pathlib import Path

import pytest
from drawings import small
from fake_omniglot import pictures, runs, zipped

from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec, create, round_to_half
from fewshot.evaluation.benchmark import benchmark
from fewshot.omniglot.splits import SPLITS
from finetune.errors import InputError
from finetune.files.writing import write_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lake's runs in small: every test picture is its training picture, moved by a pixel; and two made-up sets."""
    folder = tmp_path_factory.mktemp("omniglot")
    zipped(folder / "all_runs.zip", runs())
    for kind in ("background", "evaluation"):
        zipped(folder / f"images_{kind}.zip", pictures(kind))
    return folder


def encoder(folder: Path, split: str) -> Path:
    """A run folder with an untrained encoder that claims to be trained on `split`."""
    spec = EncoderSpec("fewtune_conv4", 16, "drawing")
    network = create(spec)
    round_to_half(network)
    folder.mkdir()
    Embedder(network, spec, trained_on=SPLITS[split].characters, device="cpu").save(folder, recipe=small().to_dict())
    return folder


def test_a_model_is_measured_with_interval_way_shot_trials_seed_and_fingerprint(
    call, data: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    run = encoder(tmp_path / "run", "background")
    answer = call("benchmark", "--model", run, "--protocol", "lake", "--data", data, "--seed", "3", "--json")
    assert answer.code == 0, answer.err
    report = json.loads(answer.out)
    assert report["fingerprint"] == Embedder.load(run).fingerprint
    (result,) = report["results"]
    assert (result["protocol"], result["way"], result["shot"], result["trials"]) == ("lake", 20, 1, 400)
    assert (result["seed"], result["leaking"]) == (3, 0)
    assert result["interval"][0] <= result["accuracy"] <= result["interval"][1]
    # Framing takes the moved pixel away, so that even weights that never learned know most pictures again.
    assert result["accuracy"] > 0.8


def test_the_published_rows_are_printed_as_published(call, data: Path) -> None:  # type: ignore[no-untyped-def]
    answer = call("benchmark", "--model", "pixels", "--protocol", "lake", "--data", data)
    assert answer.code == 0, answer.err
    assert "no training" in answer.out
    assert "lake 20-way 1-shot" in answer.out
    assert answer.out.count("published") == 12
    assert "humans" in answer.out
    assert "95.5" in answer.out


def test_two_models_are_compared_on_the_same_questions(  # type: ignore[no-untyped-def]
    call, data: Path, tmp_path: Path
) -> None:
    run = encoder(tmp_path / "run", "background")
    words = ("--model", "pixels", "--against", run, "--protocol", "lake", "--data", data)
    report = json.loads(call("benchmark", *words, "--json").out)
    (one,), (other,), (difference,) = report["results"], report["against_results"], report["differences"]
    assert difference["difference"] == pytest.approx(one["accuracy"] - other["accuracy"])
    assert 0 < difference["p"] <= 1
    assert "difference, p = " in call("benchmark", *words).out


def test_all_leaves_out_unsuitable_protocols_with_reasons(data: Path, tmp_path: Path) -> None:
    report = benchmark("hausdorff", data=data)
    assert [result.protocol for result in report.results] == ["lake"]
    assert "not an embedding" in report.skipped["vinyals"]
    with pytest.raises(InputError, match=r"no protocol suits this model: .* were trained on"):
        benchmark(str(_everything(tmp_path)), data=data, device="cpu")


def _everything(place: Path) -> Path:
    """An encoder trained on every character."""
    folder = encoder(place / "everything", "background")
    config = json.loads((folder / "config.json").read_text())
    both = SPLITS["background"].characters | SPLITS["evaluation"].characters
    config["trained_on"] = {
        alphabet: sorted(character.number for character in both if character.alphabet == alphabet)
        for alphabet in sorted({character.alphabet for character in both})
    }
    write_json(folder / "config.json", config)
    return folder


def test_an_allowed_leak_is_labelled(call, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = encoder(tmp_path / "run", "evaluation")
    words = ("--model", run, "--protocol", "lake", "--data", data)
    refused = call("benchmark", *words)
    assert refused.code == 2
    assert "382 of 382 characters to test on were trained on" in refused.err
    assert len(refused.err.strip().splitlines()) == 1
    allowed = call("benchmark", *words, "--allow-leaks")
    assert allowed.code == 0, allowed.err
    assert "382 test characters were trained on; the accuracy is too high" in allowed.out
    assert "published" not in allowed.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model", "nowhere"], "nowhere is no encoder"),
        (["--model", "pixels", "--protocol", "santoro"], "no protocol 'santoro'"),
        (["--model", "affine", "--protocol", "vinyals"], "not an embedding"),
        (["--model", "pixels", "--rerank"], "--views and --rerank"),
        (["--model", "pixels", "--views", "3"], "--views and --rerank"),
        (["--model", "omniglot", "--rerank", "--protocol", "within"], "too many comparisons"),
        (["--model", "pixels", "--protocol", "lake", "--data", "{empty}"], "holds no Omniglot"),
        (
            ["--model", "hausdorff", "--protocol", "all-way"],
            "no protocol suits this model: hausdorff is a distance",
        ),
        (["--model", "omniglot", "--protocol", "lake-minimal"], "lake-minimal is for models trained on Balinese"),
        (["--views", "0"], "--views"),
    ],
)
def test_errors_of_the_benchmark_are_one_line_with_exit_code_2(  # type: ignore[no-untyped-def]
    words: list[str], named: str, call, tmp_path: Path
) -> None:
    answer = call("benchmark", *(word.format(empty=tmp_path) for word in words))
    assert answer.code == 2
    assert named in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert answer.out == ""


def test_the_demo_is_more_accurate_than_pixels(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    answer = call("demo", "--out", tmp_path, "--json")
    assert answer.code == 0, answer.err
    one_shot = {row["vectors"].split()[0]: row for row in json.loads(answer.out) if row["shots"] == 1}
    assert one_shot["encoder"]["interval"][0] > one_shot["pixels"]["accuracy"]
