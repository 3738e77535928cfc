from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from called import Answer, caller
from conftest import MakeFolder
from PIL import Image
from tar_archives import tar_of

import finetune
from finetune.classifier.classifier import Classifier
from finetune.cli.main import main
from finetune.errors import UnreadablePicture

pytestmark = pytest.mark.slow


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def test_predictions_are_written_sorted_and_given_as_a_list(
    run: Callable[..., Answer], make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder, out = make_folder(classes={"blue": 12, "red": 12}), tmp_path / "run"
    classifier = finetune.fit(folder, out, backbone="fewtune_conv4", strategy="head", device="cpu")
    new = make_folder("new", classes={"blue": 2, "red": 1}, seed=5)
    (new / "bad.png").write_text("no picture")

    paths = [new / "red" / "000.png", str(new / "bad.png"), new / "blue" / "001.png"]
    red, bad, blue = classifier.predict(paths, top=1)
    assert (red.label, blue.label) == ("red", "blue")
    assert isinstance(bad, UnreadablePicture)
    assert classifier.predict(tuple(paths[:1]))[0].path == str(paths[0])
    assert classifier.predict([]) == []
    assert classifier.predict(paths[0]).label == "red"

    table, sorted_into = tmp_path / "predictions.csv", tmp_path / "sorted"
    words = ("predict", out, new, "--csv", table, "--sort-into", sorted_into)
    answer = run(*words)
    assert answer.code == 2, "one picture cannot be read"
    assert "000.png: blue" in answer.out
    with table.open(newline="") as file:
        rows = {Path(row["path"]).relative_to(new).as_posix(): row for row in csv.DictReader(file)}
    assert rows["bad.png"]["error"] == "not a picture"
    assert (rows["red/000.png"]["label"], rows["red/000.png"]["label_2"]) == ("red", "blue")
    assert sorted(path.relative_to(sorted_into).as_posix() for path in sorted_into.rglob("*.png")) == [
        "blue/000.png",
        "blue/001.png",
        "red/000.png",
    ]
    run(*words[:-1], tmp_path / "doubt", "--min-probability", "1", "--link")
    assert len(list((tmp_path / "doubt" / "unsure").iterdir())) == 3
    (tmp_path / "new.csv").write_text("path\nnew/red/000.png\n")
    assert run("predict", out, tmp_path / "new.csv").out.startswith(f"{new / 'red' / '000.png'}: red")
    for refused, named in (
        (("--link",), "--link goes with --sort-into"),
        (("--sort-into", new / "sorted"), "--sort-into"),
        (("--csv", new / "bad.png"), "--csv"),
    ):
        answer = run("predict", out, new, *refused)
        assert (answer.code, answer.out) == (2, "")
        assert named in answer.err


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a classifier of red and blue pictures."""
    place = tmp_path_factory.mktemp("colours")
    for label, colour in (("blue", (20, 20, 200)), ("red", (200, 20, 20))):
        for number in range(6):
            path = place / "photos" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), tuple(part + 5 * number for part in colour)).save(path)
    finetune.fit(place / "photos", place / "run", backbone="fewtune_conv4", strategy="head", device="cpu")
    return place


def test_archives_are_predicted_as_their_pictures_are(
    run: Callable[..., Answer], colours: Path, tmp_path: Path
) -> None:
    pictures = sorted((colours / "photos").rglob("*.png"))
    archive = tar_of(
        tmp_path / "all.tar",
        {path.relative_to(colours / "photos").as_posix(): path.read_bytes() for path in pictures}
        | {"/etc/evil.png": b"x", "notes.txt": b"x"},
    )
    expected = [json.loads(line) for line in run("predict", colours / "run", *pictures, "--json").out.splitlines()]
    answer = run("predict", colours / "run", archive, "--json")
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert answer.code == 2
    assert rows.pop()["error"] == "its name leads outside of the archive"
    assert [row["path"] for row in rows] == [str(archive / path.relative_to(colours / "photos")) for path in pictures]
    assert [(row["label"], row["top"]) for row in rows] == [(row["label"], row["top"]) for row in expected]
    refused = run("predict", colours / "run", archive, "--sort-into", tmp_path / "sorted")
    assert (refused.code, refused.out) == (2, "")
    assert "all.tar is an archive" in refused.err


def test_many_pictures_are_answered_and_written_as_they_are_found(
    run: Callable[..., Answer], colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table, streamed = colours / "photos", tmp_path / "all.csv", tmp_path / "streamed.csv"
    whole = run("predict", colours / "run", folder, "--csv", table)
    blocks: list[int] = []
    predict_all = Classifier.predict_all

    def counted(self: Classifier, pictures: list[Any], **options: Any) -> Any:
        blocks.append(len(pictures))
        return predict_all(self, pictures, **options)

    monkeypatch.setattr(Classifier, "predict_all", counted)
    monkeypatch.setattr("finetune.cli.predict.AT_ONCE", 4)
    monkeypatch.setattr("finetune.classifier.classifier.CPU_BLOCK", 5)
    many = run("predict", colours / "run", folder, "--csv", streamed, "--sort-into", tmp_path / "sorted")
    assert blocks == [5, 5, 2], "no more than a block is in memory"
    assert many.out == whole.out
    assert streamed.read_text() == table.read_text()
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 12


def test_a_table_is_complete_where_nobody_reads_the_answers(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("finetune.cli.predict._print", closed)
    words = ["predict", str(colours / "run"), str(colours / "photos"), "--csv", str(tmp_path / "all.csv")]
    monkeypatch.setattr(sys, "argv", ["finetune", *words])
    with suppress(SystemExit):
        main()
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 13
