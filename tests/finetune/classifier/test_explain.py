from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import MakeFolder
from hostile import state
from PIL import Image
from torch import nn

import finetune
from finetune import Classifier, Config, InputError, UnreadablePicture
from finetune.classifier.explain import HeatMap, heat_maps, last_feature_map
from finetune.cli.main import cli
from finetune.data.transforms import evaluation_view
from finetune.models.backbone import Backbone, Network
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages

SIDE, PATCH = 64, 20


def untrained(name: str, *, every_depth: bool = False, size: int | None = None) -> Classifier:
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=size)
    stages = PooledStages(backbone) if every_depth else None
    width = sum(stages.widths) if stages else backbone.width
    network = Network(backbone, nn.Linear(width, 3), stages.hooks if stages else None)
    config = Config(backbone=name, image_size=size, device="cpu")
    return Classifier(network, ("a", "b", "c"), backbone.preprocessing, config, open_engine("cpu", "float32"))


def picture(colour: int, left: int, top: int, random: np.random.Generator) -> Image.Image:
    """Noise with a patch of one pure colour."""
    pixels = random.integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[top : top + PATCH, left : left + PATCH] = 20
    pixels[top : top + PATCH, left : left + PATCH, colour] = 250
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """Trained to tell a red patch from a blue one, wherever it lies."""
    folder, random = tmp_path_factory.mktemp("patches"), np.random.default_rng(0)
    for name, colour in (("red", 0), ("blue", 2)):
        (folder / name).mkdir()
        for number in range(20):
            left, top = random.integers(0, SIDE - PATCH, 2)
            picture(colour, left, top, random).save(folder / name / f"{number}.png")
    return finetune.fit(
        folder, strategy="scratch", epochs=8, lr=3e-3, backbone="fewtune_conv4", image_size=SIDE, device="cpu",
        trivial_augment=False, crop_scale=1.0, label_smoothing=0.0, workers=0, test_fraction=0,
    )  # fmt: skip


@pytest.mark.slow
def test_the_heat_follows_what_decides_the_class(patches: Classifier) -> None:
    random = np.random.default_rng(1)
    places = [(left, top) for left in (2, SIDE - PATCH - 2) for top in (2, SIDE - PATCH - 2)] * 2
    pictures = [picture(2 * (number % 2), *place, random) for number, place in enumerate(places)]
    found = heat_maps(patches, pictures)
    for number, ((left, top), answer) in enumerate(zip(places, found, strict=True)):
        assert isinstance(answer, HeatMap)
        assert answer.label == ("red", "blue")[number % 2]
        inside = np.zeros((SIDE, SIDE), dtype=bool)
        inside[top : top + PATCH, left : left + PATCH] = True
        assert answer.heat[inside].mean() > 2 * answer.heat[~inside].mean()
        row, column = np.unravel_index(answer.heat.argmax(), answer.heat.shape)
        assert (column < SIDE / 2, row < SIDE / 2) == (left < SIDE / 2, top < SIDE / 2)


def test_heat_is_between_0_and_1_on_the_picture_as_the_network_saw_it(patches: Classifier) -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8))
    (found,) = heat_maps(patches, [wide])
    assert isinstance(found, HeatMap)
    assert found.heat.shape == (SIDE, SIDE)
    assert found.heat.min() >= 0
    assert found.heat.max() == pytest.approx(1)
    seen = evaluation_view(patches.preprocessing)(wide).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(found.picture), seen)
    assert found.overlay().size == found.picture.size
    prediction = patches.predict(wide)
    # Predictions are made in the precision that is fastest.
    assert (found.label, found.probability) == (prediction.label, pytest.approx(prediction.probability, abs=5e-3))


def test_with_average_pooling_it_is_the_class_activation_map() -> None:
    """Selvaraju et al. 2017, section 3.1: Grad-CAM generalises the map of Zhou et al. 2016."""
    classifier = untrained("test_efficientnet")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    (found,) = heat_maps(classifier, [pixels], ["b"])
    backbone, preprocessing = classifier.network.backbone, classifier.preprocessing
    seen = evaluation_view(preprocessing)(Image.fromarray(pixels))[None]
    with torch.no_grad():
        maps = backbone.model.forward_features(preprocessing.normalize(seen))
        by_hand = torch.einsum("c,nchw->nhw", classifier.network.head.weight[1], maps).clamp(min=0)[:, None]
        by_hand = nn.functional.interpolate(by_hand, size=preprocessing.size, mode="bilinear")[0, 0]
    assert isinstance(found, HeatMap)
    assert np.allclose(found.heat, by_hand / by_hand.max(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext", "test_byobnet", "fewtune_conv4"])
@pytest.mark.parametrize("every_depth", [False, True])
def test_convolutional_backbones_have_maps_whatever_depths_the_head_reads(name: str, every_depth: bool) -> None:
    classifier = untrained(name, every_depth=every_depth)
    before = {key: tensor.clone() for key, tensor in classifier.network.state_dict().items()}
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    maps = [heat_maps(classifier, [pixels], [label])[0] for label in classifier.classes]
    assert max(answer.heat.max() for answer in maps if isinstance(answer, HeatMap)) == pytest.approx(1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in classifier.network.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.network.parameters())


def test_a_transformer_has_no_heat_map() -> None:
    with pytest.raises(InputError, match="test_vit ends in no feature map"):
        last_feature_map(Backbone("test_vit"))


def test_labels_must_be_known_and_one_for_each_picture(patches: Classifier) -> None:
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="'green' is no class"):
        heat_maps(patches, [pixels], ["green"])
    with pytest.raises(InputError, match="one for each"):
        heat_maps(patches, [pixels, pixels], ["red"])
    assert heat_maps(patches, []) == []


def test_the_command_leaves_a_picture_for_each_and_names_what_it_cannot_read(
    patches: Classifier, make_folder: MakeFolder, tmp_path: Path
) -> None:
    run, folder = tmp_path / "run", make_folder(classes={"red": 2, "blue": 1})
    (run).mkdir()
    patches.save(run)
    (folder / "blue" / "broken.png").write_text("no picture")
    result = CliRunner().invoke(
        cli, ["explain", str(run), str(folder), "--out", str(tmp_path / "maps"), "--device", "cpu", "--json"]
    )
    assert result.exit_code == 2
    assert "broken.png" in result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {Path(row["heat_map"]).name for row in rows} == {"000.png", "000-2.png", "001.png"}
    assert {row["label"] for row in rows} <= {"red", "blue"}
    with Image.open(rows[0]["heat_map"]) as image:
        assert image.size == (SIDE, SIDE)


def test_a_picture_that_cannot_be_read_stands_in_its_place(patches: Classifier, tmp_path: Path) -> None:
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    first, second = heat_maps(patches, [tmp_path / "none.png", pixels])
    assert isinstance(first, UnreadablePicture)
    assert isinstance(second, HeatMap)


@pytest.mark.parametrize("given", ["folder", "picture"])
@pytest.mark.parametrize("out", ["folder/red", "link/red", "file"])
def test_no_picture_is_replaced_by_its_heat_map(
    given: str, out: str, patches: Classifier, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes={"red": 2})
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").touch()
    patches.save(tmp_path / "run")
    before = state(folder)
    pictures = folder if given == "folder" else folder / "red" / "000.png"
    place = tmp_path / out.replace("folder", folder.name)
    result = CliRunner().invoke(
        cli, ["explain", str(tmp_path / "run"), str(pictures), "--out", str(place), "--device", "cpu"]
    )
    assert isinstance(result.exception, InputError)
    assert f"{place} (--out)" in str(result.exception)
    assert state(folder) == before
