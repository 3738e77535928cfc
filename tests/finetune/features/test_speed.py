from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import MakeFolder
from told import NothingSaid

from finetune.config import Config
from finetune.data.folder import list_folder
from finetune.features import acceleration
from finetune.features.extraction import StageReader
from finetune.features.speed import measure_speed
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages

pytestmark = pytest.mark.slow


def reader(folder: Path, name: str, image_size: int | None = None) -> StageReader:
    config = Config(backbone=name, device="cpu", workers=0)
    stages = PooledStages(Backbone(name, image_size=image_size))
    fabric = open_engine(config.device, config.precision)
    return StageReader.of(fabric, stages, list_folder(folder), config, NothingSaid())


def test_larger_pictures_take_longer_and_threads_stay_as_they_were(make_folder: MakeFolder) -> None:
    folder, threads = make_folder(classes={"blue": 3, "red": 3}), torch.get_num_threads()
    small = measure_speed(reader(folder, "fewtune_conv4"), NothingSaid())
    large = measure_speed(reader(folder, "fewtune_conv4", image_size=160), NothingSaid())
    assert 0 < 2 * small.ms < large.ms
    assert 0 < small.ms_single < large.ms_single  # of which a fixed part does not grow
    assert small.runtime == "plain PyTorch"
    assert torch.get_num_threads() == threads


def test_all_networks_are_converted_where_pictures_are_many(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(classes={"blue": 3, "red": 3})
    monkeypatch.setattr(acceleration, "WORTH_CONVERTING", 6)
    found = reader(folder, "fewtune_conv4")
    assert not found.model.checked  # too small to be converted for reading so few pictures
    assert measure_speed(found, NothingSaid()).runtime.startswith("OpenVINO")


def test_unreadable_pictures_can_be_the_first(make_folder: MakeFolder) -> None:
    folder = make_folder(classes={"blue": 2, "red": 2})
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"no picture")
    assert measure_speed(reader(folder, "fewtune_conv4"), NothingSaid()).ms > 0
