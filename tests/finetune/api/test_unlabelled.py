from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from called import Answer, caller
from conftest import MakeFolder
from killing import assert_same_weights, fit_until_stopped
from PIL import Image
from rich.console import Console

import finetune
from finetune import Config, InputError
from finetune.classifier.run_metrics import RunMetrics
from finetune.cli.main import main
from finetune.data.digits import write_digits
from finetune.files.tables import read_csv
from finetune.progress import Display

SMALL = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
FAST = ("--backbone", "fewtune_conv4", "--device", "cpu", "--workers", "0")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """photos/ with 4 labelled pictures of three digits and 10 to test; pile/ with 20 more of each, without labels."""
    source, root = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("digits")
    write_digits(source)
    pile = root / "pile"
    pile.mkdir()
    for digit in ("1", "4", "7"):
        files = sorted(source.rglob(f"{digit}/*.png"))
        for split, members in (("train", files[:4]), ("test", files[4:14])):
            target = root / "photos" / split / digit
            target.mkdir(parents=True)
            for file in members:
                shutil.copy(file, target / f"{file.parent.parent.name}{file.name}")
        for number, file in enumerate(files[14:34]):
            shutil.copy(file, pile / f"{digit}-{number}.png")
    return root / "photos", pile


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


@pytest.mark.slow
def test_a_run_says_how_many_it_used_what_they_gained_and_what_it_left_out(
    digits: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, pile = digits[0], tmp_path / "pile"
    shutil.copytree(digits[1], pile)
    labelled, measuring = (next((photos / split / "4").iterdir()) for split in ("train", "test"))
    shutil.copy(labelled, pile / "known.png")
    shutil.copy(measuring, pile / "leak.png")
    (pile / "broken.jpg").write_bytes(b"no picture")
    said = io.StringIO()
    display = Display(Console(file=said, width=1000))
    classifier = finetune.fit(photos, tmp_path / "run", strategy="head", unlabelled=pile, display=display, **SMALL)
    found = classifier.metrics["unlabelled"]
    assert found["pictures"] == 60
    assert (found["labelled"], found["measuring"]) == (1, 1)
    assert found["unreadable"] == [{"path": "broken.jpg", "reason": "not a picture"}]
    assert found["judged"] == 12
    assert found["strength"] in (0, 0.25, 0.5, 0.75)
    assert 0 <= found["without"] <= 1
    assert len(found["label_next"]) == 12
    metrics = RunMetrics.from_dict(json.loads((tmp_path / "run" / "metrics.json").read_text()))
    assert metrics.unlabelled is not None
    assert metrics.unlabelled.sentence in said.getvalue()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Pictures without labels" in page
    assert found["label_next"][0]["path"] in page


@pytest.mark.slow
def test_predictions_need_no_unlabelled_picture(digits: tuple[Path, Path], tmp_path: Path) -> None:
    photos, pile = digits[0], tmp_path / "pile"
    shutil.copytree(digits[1], pile)
    kept = finetune.fit(photos, tmp_path / "run", strategy="head", unlabelled=pile, **SMALL)
    asked = sorted((photos / "test").rglob("*.png"))
    before = [kept.predict(path).probability for path in asked]
    shutil.rmtree(pile)
    loaded = finetune.load(tmp_path / "run", device="cpu")
    assert [loaded.predict(path).probability for path in asked] == before


@pytest.mark.slow
def test_a_resumed_run_uses_the_unlabelled_pictures_that_it_began_with(
    digits: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, pile = digits[0], tmp_path / "pile"
    shutil.copytree(digits[1], pile)
    options = {"strategy": "partial", "epochs": 3, "views": 2, "cache": False, "unlabelled": str(pile), **SMALL}
    finetune.fit(photos, tmp_path / "whole", **options)
    fit_until_stopped(photos, tmp_path / "run", options)
    new = next(pile.iterdir())
    moved = new.rename(tmp_path / new.name)
    with pytest.raises(InputError, match=f"{pile.name} has changed since the run"):
        finetune.fit(photos, tmp_path / "run", resume=True, **options)
    moved.rename(new)
    again = finetune.fit(photos, tmp_path / "run", resume=True, **options)
    assert again.metrics["unlabelled"]["pictures"] == 60
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_without_the_option_nothing_is_said_of_unlabelled_pictures(digits: tuple[Path, Path], tmp_path: Path) -> None:
    classifier = finetune.fit(digits[0], tmp_path / "run", strategy="head", **SMALL)
    assert classifier.metrics["unlabelled"] is None
    old = json.loads((tmp_path / "run" / "metrics.json").read_text())
    del old["unlabelled"]
    assert RunMetrics.from_dict(old).unlabelled is None
    assert "Pictures without labels" not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_folder_without_pictures_is_refused_before_any_picture_is_read(
    run: Callable[..., Answer], make_folder: MakeFolder, tmp_path: Path
) -> None:
    photos, empty = make_folder(classes={"blue": 6, "red": 6}), tmp_path / "empty"
    empty.mkdir()
    for folder, what in ((empty, "holds no pictures"), (tmp_path / "gone", "does not exist")):
        for command in (("fit", photos, "--out", tmp_path / "run"), ("inspect", photos)):
            answer = run(*command, *FAST, "--unlabelled", folder)
            assert answer.code == 2
            assert answer.err == f"finetune: {folder} (--unlabelled) {what}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_copies_alone_leave_the_head_as_it_is(make_folder: MakeFolder, tmp_path: Path) -> None:
    photos, pile = make_folder(classes={"blue": 6, "red": 6}), tmp_path / "pile"
    pile.mkdir()
    shutil.copy(photos / "blue" / "000.png", pile)
    plain = finetune.fit(photos, strategy="head", **SMALL)
    other = finetune.fit(photos, strategy="head", unlabelled=pile, **SMALL)
    assert torch.equal(plain.network.head.weight, other.network.head.weight)
    found = RunMetrics.from_dict(other.metrics).unlabelled
    assert found is not None
    assert found.sentence == f"No picture in {pile} is used: all are left out."


@pytest.mark.slow
def test_inspect_lists_the_pictures_to_label_next_in_a_table_and_on_a_sheet(
    run: Callable[..., Answer], digits: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, pile = digits
    table, sheet = tmp_path / "next.csv", tmp_path / "next.png"
    answer = run("inspect", photos, *FAST, "--unlabelled", pile, "--label-next", 5, "--csv", table, "--sheet", sheet)
    assert answer.code == 0, answer.err
    rows = read_csv(table, ("path", "predicted", "probability", "score", "reason"))
    assert len({row["path"] for row in rows}) == 5
    assert all(Path(row["path"]).is_file() and row["predicted"] in ("1", "4", "7") for row in rows)
    assert all(row["path"] in answer.out for row in rows)
    with Image.open(sheet) as drawn:
        assert np.asarray(drawn).std() > 10
    found = json.loads(run("inspect", photos, *FAST, "--unlabelled", pile, "--label-next", 5, "--json").out)
    assert [str(pile / each["path"]) for each in found["unlabelled"]["label_next"]] == [row["path"] for row in rows]


def test_options_of_unlabelled_pictures_name_what_they_need(
    run: Callable[..., Answer], make_folder: MakeFolder, tmp_path: Path
) -> None:
    photos = make_folder(classes={"blue": 6, "red": 6})
    for option, value in (("--label-next", 3), ("--csv", tmp_path / "a.csv")):
        answer = run("inspect", photos, *FAST, option, value)
        assert (answer.code, answer.err) == (
            2,
            f"finetune: {option} lists unlabelled pictures; give their folder with --unlabelled DIR\n",
        )
    with pytest.raises(InputError, match="--label-next must be at least 1"):
        finetune.inspect_folder(photos, config=Config(unlabelled=str(photos), **SMALL), label_next=0)
    assert Config(unlabelled=str(photos), strategy="scratch").without_effect(strategy="scratch") == ["unlabelled"]
