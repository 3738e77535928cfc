from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.classifier.answers.prediction import Prediction
from finetune.classifier.answers.sorting import check_target, safe_name, sort_pictures
from finetune.errors import InputError


def answer(path: Path, label: str, *, unsure: bool = False) -> Prediction:
    return Prediction(label, 0.9, ((label, 0.9),), str(path), unsure)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "in" / name for name in ("a.jpg", "b.jpg", "deep/a.jpg")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path.relative_to(tmp_path)))
    return paths


@pytest.mark.parametrize("link", [False, True])
def test_pictures_are_put_into_the_folder_of_their_class(tmp_path: Path, sources: list[Path], link: bool) -> None:
    out, before = tmp_path / "out", files(tmp_path / "in")
    answers = [answer(sources[0], "cat"), answer(sources[1], "dog", unsure=True), answer(sources[2], "cat")]
    for _ in range(2):
        assert sort_pictures(out, answers, ["cat", "dog"], link=link) == 3
        assert files(out) == {"cat/a.jpg": "in/a.jpg", "cat/a-2.jpg": "in/deep/a.jpg", "unsure/b.jpg": "in/b.jpg"}
    assert (out / "cat" / "a.jpg").is_symlink() == link
    assert files(tmp_path / "in") == before


@pytest.mark.parametrize("link", [False, True])
def test_no_file_is_replaced(tmp_path: Path, sources: list[Path], link: bool) -> None:
    out = tmp_path / "out"
    (out / "cat").mkdir(parents=True)
    (out / "cat" / "a.jpg").write_text("mine")
    (out / "cat" / "a-2.jpg").symlink_to("nowhere")
    sort_pictures(out, [answer(sources[0], "cat")], ["cat", "dog"], link=link)
    assert files(out) == {"cat/a.jpg": "mine", "cat/a-3.jpg": "in/a.jpg"}
    (out / "dog").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="--sort-into"):
        sort_pictures(out, [answer(sources[1], "dog")], ["cat", "dog"], link=link)


def test_identical_pictures_of_one_call_are_all_put(tmp_path: Path, sources: list[Path]) -> None:
    sources[2].write_bytes(sources[0].read_bytes())
    sort_pictures(tmp_path / "out", [answer(sources[0], "x"), answer(sources[2], "x")], ["x", "y"], link=False)
    assert sorted(files(tmp_path / "out")) == ["x/a-2.jpg", "x/a.jpg"]


def test_a_class_cannot_lead_out_of_the_folder(tmp_path: Path, sources: list[Path]) -> None:
    classes = ["..", "/etc", "a/../../b", "unsure", "größe 大"]
    answers = [answer(sources[0], label) for label in classes] + [answer(sources[1], "..", unsure=True)]
    sort_pictures(tmp_path / "out", answers, classes, link=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"%2E%2E", "%2Fetc", "a%2F..%2F..%2Fb", "unsure", "_unsure", "größe 大"}
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


@given(st.lists(st.text(min_size=1, max_size=6, alphabet="ab%2EF./ \\:\n"), unique=True))
def test_safe_names_are_safe_and_differ(labels: list[str]) -> None:
    names = [safe_name(label) for label in labels]
    assert len(set(names)) == len(labels)
    for name in names:
        assert not set(name) & set("/\\:\n")
        assert name == name.strip(" ")
        assert not name.startswith(".")


def test_the_pictures_own_folder_is_left_alone(tmp_path: Path, sources: list[Path]) -> None:
    check_target(tmp_path / "out", [tmp_path / "in", sources[0]])
    with pytest.raises(InputError, match="nothing is changed"):
        check_target(tmp_path / "in" / "sorted", [tmp_path / "in"])
    with pytest.raises(InputError, match="is not a folder"):
        check_target(sources[0], [])
