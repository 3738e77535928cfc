from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from drawings import folder_of, small
from hypothesis import given, settings
from hypothesis import strategies as st
from small_omniglot import SMALL, small_omniglot, small_splits

from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.embedded import EmbeddedDrawings, embed_once
from fewshot.evaluation.verification import roc_summary
from fewshot.omniglot.dataset import Character, read_omniglot
from fewshot.omniglot.splits import LAKE, SPLITS, characters_of, select
from fewshot.report.curves import verification_curves
from fewshot.report.hardest import hardest_alphabets, hardest_classes, way_curves, wrong_neighbours
from fewshot.report.held_out import cached_embedding
from fewshot.report.report import WrittenReport, write_report
from fewshot.report.run import read_run
from fewshot.training.train import train_folder, train_omniglot
from finetune.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def splits() -> Iterator[None]:
    with small_splits():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_omniglot(tmp_path_factory.mktemp("omniglot"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_omniglot(folder, config=small(alphabets=1, epochs=4), data=data)
    return folder


@pytest.fixture(scope="module")
def written(run: Path, data: Path) -> WrittenReport:
    return write_report(str(run), data=data, device="cpu")


@pytest.fixture(scope="module")
def page(written: WrittenReport) -> str:
    return written.path.read_text(encoding="utf-8")


def own_folder(folder: Path, classes: int = 20) -> Path:
    return folder_of(folder, classes, 6)


# --- Omniglot ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_is_one_file_in_the_run_folder(written: WrittenReport, run: Path, page: str) -> None:
    assert written.path == run / "report.html"
    assert len(page.encode()) < 5_000_000
    shown = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(shown) > 50
    assert all(source.startswith(("data:", "#")) for source in shown)
    assert "http" not in re.sub(r"data:[^\"]*|http-equiv", "", page)


def test_unsuitable_protocols_are_listed_with_reasons(written: WrittenReport, page: str) -> None:
    assert {result.protocol for result in written.report.results} == {"lake", "within", "koch", "all-way-659"}
    assert "17 of 17 characters to test on were trained on" in written.report.skipped["vinyals"]
    assert "17 of 17 characters to test on were trained on" in page
    assert written.tested == "45 characters by 6 drawers, the split evaluation"


def test_published_accuracies_are_shown_beside_measured_ones(page: str) -> None:
    assert "lake 20-way 1-shot" in page
    assert "Bayesian program learning" in page
    assert "Lake et al. 2015" in page
    assert "matching networks" not in page


def test_metrics_have_their_usual_names(page: str) -> None:
    text = " ".join(page.split())
    for words in (
        "N-way K-shot: each question has N characters to choose from, with K examples of each.",
        "false accept rate (different pairs accepted), %",
        "true accept rate (same pairs accepted), %",
        "number of classes to choose among (way)",
        "95% confidence interval:",
    ):
        assert words in text


def test_the_training_options_are_shown(page: str, run: Path) -> None:
    trained = read_run(str(run))
    assert trained.history
    assert trained.command.startswith("fewshot train omniglot --split lake")
    assert "--network fewtune_conv4" in trained.command
    assert trained.command in page.replace("&#39;", "'")
    assert str(trained.config["fingerprint"]) in page


def test_curves_and_table_use_the_same_pairs(written: WrittenReport) -> None:
    koch = next(result for result in written.report.results if result.protocol == "koch")
    assert written.pairs is not None
    assert written.pairs.eer == pytest.approx(koch.eer)  # type: ignore[union-attr]
    assert written.pairs.auc == pytest.approx(koch.auc)  # type: ignore[union-attr]


def test_an_encoder_trained_on_everything_is_shown_without_accuracy(run: Path, data: Path, tmp_path: Path) -> None:
    embedder = Embedder.load(run, device="cpu")
    every = characters_of([*LAKE, *SMALL["evaluation"], "Tagalog"])
    config = json.loads((run / "config.json").read_text())
    about = {name: config[name] for name in ("source", "split", "recipe")}
    Embedder(embedder.network, embedder.spec, trained_on=every, device="cpu").save(tmp_path / "leaking", **about)
    found = write_report(str(tmp_path / "leaking"), data=data, device="cpu")
    assert found.tested is None
    assert found.report.results == ()
    assert "were trained on" in found.path.read_text()


def test_without_omniglot_only_the_training_is_shown(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEWTUNE_DATA", raising=False)
    found = write_report(str(run), tmp_path / "bare.html", device="cpu")
    text = found.path.read_text()
    assert found.tested is None
    assert "Nothing was measured. the folder of Omniglot is unknown" in text
    assert "How it was trained" in text


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_the_page_and_prints_the_results(call, run: Path, data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    answer = call("report", own_run(tmp_path), "--json", "--out", tmp_path / "deep" / "page.html")
    assert answer.code == 0, answer.err
    figures = json.loads(answer.out)
    assert Path(figures["path"]).is_file()
    assert figures["wrong_neighbours"]["of"] == 4 * 6
    assert 0 <= figures["same_or_different"]["eer"] <= 1


def own_run(place: Path, classes: int = 20, **options: object) -> Path:
    train_folder(own_folder(place / "pictures", classes), place / "own", config=small(**options), everything=False)
    return place / "own"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nowhere"], "nowhere is no run"),
        (["{run}", "--data", "{empty}"], "holds no Omniglot"),
        (["{run}", "--out", "{empty}"], "cannot be written"),
        (["{run}", "--seed", "-1"], "--seed"),
        (["{damaged}"], "not valid JSON"),
        (["{unfinished}"], "has not finished"),
        (["{other}"], "not of a run of fewshot train"),
    ],
)
def test_errors_of_the_report_are_one_line_with_exit_code_2(  # type: ignore[no-untyped-def]
    words: list[str], named: str, call, run: Path, tmp_path: Path
) -> None:
    for name, content in (
        ("damaged", "{"),
        ("unfinished", '{"format": 1, "recipe": {}}'),
        ("other", '{"format": 1, "config": {"backbone": "resnet18"}}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "empty").mkdir()
    places = {name: tmp_path / name for name in ("damaged", "unfinished", "other", "empty")}
    answer = call("report", *(word.format(run=run, **places) for word in words))
    assert answer.code == 2
    assert named in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert answer.out == ""


# --- a folder of one's own --------------------------------------------------------------------------------------------


def test_a_run_on_a_folder_is_measured_on_its_held_out_classes(tmp_path: Path) -> None:
    found = write_report(str(own_run(tmp_path)), device="cpu")
    text = found.path.read_text()
    assert found.tested == "4 held-out classes of pictures, 24 pictures"
    assert found.report.results == ()
    assert "class00" in text
    assert "class05" in text
    assert ">class01" not in text


def test_names_of_classes_are_escaped(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "pictures")
    (folder / "class00").rename(folder / "a<script>alert(1)<")
    train_folder(folder, tmp_path / "own", config=small())
    text = write_report(str(tmp_path / "own"), device="cpu").path.read_text()
    assert "a&lt;script&gt;alert(1)&lt;" in text
    assert "<script>alert" not in text


def test_changed_pictures_are_not_measured_on(tmp_path: Path) -> None:
    run = own_run(tmp_path)
    (tmp_path / "pictures" / "class00").rename(tmp_path / "pictures" / "class99")
    found = write_report(str(run), device="cpu")
    assert found.tested is None
    assert "have changed since this run" in found.path.read_text()


def test_a_run_without_held_out_classes_is_shown_without_accuracy(tmp_path: Path) -> None:
    found = write_report(str(own_run(tmp_path, classes=4)), device="cpu")
    assert found.tested is None
    assert "held out no classes" in found.path.read_text()


# --- measurements -----------------------------------------------------------------------------------------------------


def embedded_of(label: list[int], alphabet: list[int], vectors: torch.Tensor) -> EmbeddedDrawings:
    """alphabet: of each class."""
    return EmbeddedDrawings(
        vectors=vectors,
        character=torch.tensor(label),
        drawer=torch.arange(len(label)),
        turn=torch.zeros(len(label), dtype=torch.int64),
        characters=tuple(Character(f"alphabet{alphabet[number]}", number) for number in range(len(alphabet))),
    )


@settings(max_examples=40)
@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=25), seed=st.integers(0, 99))
def test_wrong_neighbours_match_a_plain_search(labels: list[int], seed: int) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed)))
    count, asked, worst = wrong_neighbours(embedded_of(labels, [0] * 5, vectors), most=99)
    similar = (vectors @ vectors.T).tolist()
    expected = []
    for row, label in enumerate(labels):
        own = [similar[row][other] for other in range(len(labels)) if other != row and labels[other] == label]
        wrong = [similar[row][other] for other in range(len(labels)) if labels[other] != label]
        if own and wrong:
            expected.append(max(wrong) - max(own))
    assert asked == len(expected)
    assert count == sum(gap > 0 for gap in expected)
    gaps = [found.other_similarity - found.own_similarity for found in worst]
    assert gaps == sorted(gaps, reverse=True)
    assert (max(expected, default=-1) > 0) == bool(worst)
    for found in worst:
        assert labels[found.row] == labels[found.own] != labels[found.other]
        assert found.row != found.own


def test_hardest_classes_come_first_with_their_confusion() -> None:
    """Alphabet 1 has two identical classes; all others are distinct."""
    label = [number for number in range(8) for _ in range(4)]
    places = torch.eye(8)
    places[7] = places[6]
    noise = 0.01 * torch.randn(len(label), 8, generator=torch.Generator().manual_seed(0))
    embedded = embedded_of(label, [0] * 4 + [1] * 4, places[label] + noise)
    alphabets = hardest_alphabets(embedded)
    assert [(hard.group, hard.way, hard.classes) for hard in alphabets] == [(1, 4, 4), (0, 4, 4)]
    assert alphabets[1].accuracy == 1
    assert all(hard.interval[0] <= hard.accuracy <= hard.interval[1] for hard in alphabets)
    classes = hardest_classes(embedded)
    assert {(hard.label, hard.taken_for) for hard in classes} == {(6, 7), (7, 6)}
    # Ties count as one in as many as tie.
    assert all(hard.accuracy == pytest.approx(1 - hard.taken, abs=0.05) for hard in classes)


def test_curves_reach_from_two_ways_to_the_whole_set(data: Path) -> None:
    drawn = select(read_omniglot(data, ("evaluation",)), SPLITS["evaluation"])
    embedded = embed_once(drawn, lambda drawings: drawings[:, ::5, ::5].flatten(1).float())
    one, five, inside = way_curves(embedded)
    assert [point.way for point in one.points] == [2, 3, 5, 10, 20, 45]
    assert (one.shot, five.shot, inside.shot) == (1, 5, 1)
    assert [point.way for point in inside.points] == [2, 3, 5, 10, 20]
    assert one.points[0].accuracy > one.points[-1].accuracy
    assert five.points[-1].accuracy > one.points[-1].accuracy
    for point in (*one.points, *five.points, *inside.points):
        assert point.interval[0] <= point.accuracy <= point.interval[1]


def test_a_drawing_is_embedded_once() -> None:
    asked = []

    def embed(drawings: torch.Tensor) -> torch.Tensor:
        asked.append(len(drawings))
        return drawings.flatten(1).float()

    drawings = torch.arange(3 * 4, dtype=torch.uint8).view(3, 2, 2)
    once = cached_embedding(embed)
    again = drawings[[2, 0, 2, 1, 0]]
    assert (once(drawings[:2]) == embed(drawings[:2])).all()
    assert (once(again) == embed(again)).all()
    assert asked == [2, 2, 1, 5]
    assert (once(drawings.rot90(1, (1, 2))) == drawings.rot90(1, (1, 2)).flatten(1)).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 999), shift=st.floats(-1, 3))
def test_a_thinned_curve_keeps_its_ends_and_its_rates_are_monotone(seed: int, shift: float) -> None:
    random = torch.Generator().manual_seed(seed)
    same = torch.rand(900, generator=random) < 0.4
    scores = torch.randn(900, generator=random).double() + shift * same
    found = verification_curves(scores, same)
    assert (found.false_accept[0], found.false_reject[0]) == (0, 1)
    assert (found.false_accept[-1], found.false_reject[-1]) == (1, 0)
    assert list(found.false_accept) == sorted(found.false_accept)
    assert list(found.false_reject) == sorted(found.false_reject, reverse=True)
    assert len(found.false_accept) <= 240
    assert found.eer == roc_summary(scores, same).eer


def test_the_threshold_of_the_encoder_is_measured() -> None:
    scores, same = torch.tensor([0.9, 0.8, 0.7, 0.2]).double(), torch.tensor([True, False, True, False])
    assert verification_curves(scores, same, {"threshold": 0.75}).own == (0.5, 0.5)
    assert verification_curves(scores, same).own is None


@pytest.mark.parametrize("history", ["step,loss\n1,what\n", "step,loss\n1,2,3\n"])
def test_a_damaged_history_is_named(history: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    (tmp_path / "history.csv").write_text(history)
    with pytest.raises(InputError, match=r"history\.csv"):
        read_run(str(tmp_path))
