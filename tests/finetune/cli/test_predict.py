from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from called import Answer, caller
from conftest import MakeFolder

import finetune
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
