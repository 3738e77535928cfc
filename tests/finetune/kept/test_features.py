"""The features that a run keeps: what comes back, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeFolder
from damage import FEW, header_of, other_bytes, other_json, refusal, replaced, with_header
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import finetune
from finetune.data.folder import Listing, Sample
from finetune.data.images import Content
from finetune.errors import InputError
from finetune.files.reading import read_tensors_and_metadata
from finetune.files.writing import write_tensors
from finetune.kept.features import FEATURES_FILE, KeptFeatures, keeps_features, read_features
from finetune.kept.views import Views

CLASSES = ("cat", "dog")
PICTURES = [
    ["a.png", "cat", None, 9, None, "train"],
    ["b.png", "cat", None, 9, "cut short", None],
    ["c\udc80.png", "dog", "test", 9, None, "test"],
]


def made() -> KeptFeatures:
    samples = tuple(Sample(path, label, split, size) for path, label, split, size, *_ in PICTURES)  # type: ignore[arg-type]
    contents = Content("a" * 64, None, "0f" * 100), Content("", "cut short"), Content("c" * 64)
    views = Views(torch.rand(1, 2, 5), torch.tensor([2]))
    listing = Listing(Path("/pictures"), samples, ("A note.",), None)
    splits = "train", None, "test"
    return KeptFeatures(
        listing, contents, splits, torch.rand(2, 5), torch.tensor([0, 2]), ("low", "features"), (2, 3), views
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kept")
    made().write(place)
    return place / FEATURES_FILE


def copied(kept: Path, place: Path) -> Path:
    replaced(place / kept.name, kept.read_bytes())
    return place / kept.name


def test_features_come_back_as_they_were_written(tmp_path: Path) -> None:
    kept = made()
    assert kept.write(tmp_path) == (tmp_path / FEATURES_FILE).stat().st_size
    found = read_features(tmp_path, CLASSES)
    assert keeps_features(tmp_path)
    assert (found.listing, found.contents, found.splits) == (kept.listing, kept.contents, kept.splits)
    assert (found.depths, found.widths, found.width) == (kept.depths, kept.widths, 5)
    assert found.views is not None
    assert kept.views is not None
    for one, other in ((found, kept), (found.views, kept.views)):
        assert torch.equal(one.index, other.index)
    assert torch.equal(found.pooled, kept.pooled)
    assert torch.equal(found.views.values, kept.views.values)
    assert found.splits_by_content == {"a" * 64: "train", "c" * 64: "test"}
    activations, labels = found.of_split("test", CLASSES)
    assert torch.equal(activations, kept.pooled[1:])
    assert labels.tolist() == [1]


def listed(**change: Any) -> dict[str, Tensor]:
    values = {"root": "/pictures", "table": None, "notes": [], "samples": PICTURES} | change
    return {"pictures": torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("tensors", "about", "why"),
    [
        ({"pooled": torch.rand(2, 6)}, {}, "pooled is 2x6, not 2x5"),
        ({"pooled": torch.full((2, 5), torch.nan)}, {}, "pooled has values that are not finite"),
        ({"pooled": torch.ones(2, 5, dtype=torch.int32)}, {}, "pooled holds int32"),
        ({"index": torch.tensor([0, 1])}, {}, "index is not of the readable pictures"),
        ({"index": torch.tensor([0.0, 2.0])}, {}, "index holds float32"),
        ({"sha256": torch.zeros(2, 32, dtype=torch.uint8)}, {}, "sha256 is 2x32, not 3x32"),
        ({"fingerprints": torch.zeros(3, 99, dtype=torch.uint8)}, {}, "fingerprints is 3x99, not 3x100"),
        ({"views": torch.rand(1, 2, 6)}, {}, "views is 1x2x6"),
        ({"views": torch.rand(1, 0, 5)}, {}, "views_index is not of the readable pictures"),
        ({"views_index": torch.tensor([1])}, {}, "views_index is not of the readable pictures"),
        ({"pictures": torch.zeros(3, dtype=torch.uint8)}, {}, "is not valid JSON"),
        (listed(samples=PICTURES[:2]), {}, "sha256 is 3x32, not 2x32"),
        (listed(samples=[["a.png"]]), {}, "may be damaged"),
        (listed(samples=[[*PICTURES[0][:5], "sideways"], *PICTURES[1:]]), {}, "sideways"),
        (listed(samples=[[*PICTURES[0][:5], None], *PICTURES[1:]]), {}, "its classes are not those of the run"),
        (listed(samples=[PICTURES[0], [*PICTURES[1][:5], "train"], PICTURES[2]]), {}, "an unreadable picture has a"),
        (listed(root=5), {}, "expected str"),
        ({}, {"format": "2"}, "has format 2"),
        ({}, {"widths": "[5]"}, "depths and widths do not belong together"),
        ({}, {"widths": "[-1, 6]"}, "may be damaged"),
        ({}, {"depths": "[" * 100_000}, "nested deeper"),
    ],
)
def test_damaged_features_are_refused(
    tensors: dict[str, Tensor], about: dict[str, str], why: str, kept: Path, tmp_path: Path
) -> None:
    before, known = read_tensors_and_metadata(kept)
    write_tensors(copied(kept, tmp_path), before | tensors, known | about)
    with pytest.raises(InputError, match=why) as caught:
        read_features(tmp_path, CLASSES)
    assert FEATURES_FILE in str(caught.value)


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_any_damage_to_features_is_an_input_error(data: st.DataObject, kept: Path, tmp_path: Path) -> None:
    content = kept.read_bytes()
    header = header_of(content)
    changed = data.draw(st.one_of(other_bytes(content), other_json(header).map(lambda new: with_header(content, new))))
    replaced(tmp_path / kept.name, changed)
    refusal(lambda: read_features(tmp_path, CLASSES))


def test_a_run_keeps_the_features_of_its_readable_pictures(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"a": 6, "b": 6})
    (folder / "a" / "broken.png").write_bytes(b"no picture")
    classifier = finetune.fit(
        folder, tmp_path / "run", strategy="head", backbone="fewtune_conv4", device="cpu", workers=0
    )
    kept = read_features(tmp_path / "run", classifier.classes)
    assert len(kept.pooled) == 12
    assert [sample.path for sample, content in zip(kept.listing.samples, kept.contents, strict=True) if content.reason]
    counts = classifier.metrics["pictures"]
    assert {split: kept.splits.count(split) for split in counts} == counts
    assert all(content.fingerprint for content in kept.contents if content.reason is None)


@pytest.mark.slow
def test_a_trained_backbone_keeps_features_of_its_own(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"a": 8, "b": 8})
    options: dict[str, Any] = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0, "epochs": 1}
    classifier = finetune.fit(folder, tmp_path / "run", strategy="full", keep="trained", lr=0.01, **options)
    kept = read_features(tmp_path / "run", classifier.classes)
    test = [position for position, split in enumerate(kept.splits) if split == "test"]
    rows = [kept.index.tolist().index(position) for position in test]
    features = kept.pooled[rows, -kept.widths[-1] :]
    logits = classifier.network.head(features)
    asked = [kept.listing.root / kept.listing.samples[position].path for position in test]
    expected = classifier.log_probabilities(asked)[0].exp()
    found = (logits.log_softmax(1) / classifier.temperature).softmax(1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_no_keep_features_keeps_none(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"a": 3, "b": 3})
    options: dict[str, Any] = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
    finetune.fit(folder, tmp_path / "run", strategy="head", keep_features=False, **options)
    assert not keeps_features(tmp_path / "run")
