"""Training on what frozen stages gave once: the same weights whatever the cache holds, no stage run again."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeFolder
from killing import assert_same_weights, fit_until_stopped
from told import Told
from torch import Tensor, nn

import finetune
import finetune.data.loader
import finetune.features.acceleration
import finetune.training.cached_inputs
from finetune import Config, InputError
from finetune.data.folder import list_unlabelled
from finetune.data.loader import Pictures
from finetune.data.transforms import evaluation_view, pixels_needed, training_view
from finetune.features.cache import ActivationCache
from finetune.features.forward import in_memory
from finetune.files.folders import default_folder
from finetune.models.backbone import Backbone, Network
from finetune.models.device import open_engine
from finetune.strategies import PARTIAL
from finetune.training.cached_inputs import FrozenInputs, inputs_for, view_shown
from finetune.training.inputs import PictureInputs, TrainingData
from finetune.training.loop import train
from finetune.training.plan import TrainingTask, plan_for

pytestmark = pytest.mark.slow

SMALL = {"backbone": "fewtune_conv4", "image_size": 20, "device": "cpu", "workers": 0, "batch_size": 8}
THREE = {"blue": 12, "green": 12, "red": 12}


@dataclass
class Job:
    """One training job on the pictures of a folder: every third validates, and a picture's place tells its class."""

    folder: Path
    backbone: str = "fewtune_conv4"
    image_size: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    display: Told = field(default_factory=Told)

    def __post_init__(self) -> None:
        self.config = Config(
            **{"strategy": "partial", "device": "cpu", "workers": 2, "epochs": 2, "batch_size": 8} | self.options
        )
        self.fabric = open_engine("cpu", self.config.precision)
        backbone = copy.deepcopy(_settled(self.backbone, self.image_size))
        torch.manual_seed(0)
        self.network = Network(backbone, nn.Linear(backbone.width, 3))
        wanted = backbone.preprocessing
        paths = list_unlabelled([self.folder])
        pictures = Pictures(
            paths,
            training_view(wanted, self.config),
            pixels_needed(wanted, self.config),
            self.config.max_pixels,
            self.config.seed,
        )
        val = Pictures(paths[::3], evaluation_view(wanted), wanted.shortest_side, self.config.max_pixels)
        labels = torch.arange(len(paths)) * 3 // len(paths)
        hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        self.material = TrainingData(
            pictures=pictures,
            indices=[index for index in range(len(paths)) if index % 3],
            labels=labels,
            val=val,
            val_labels=labels[::3],
            class_weights=None,
            preprocessing=wanted,
            hashes=hashes,
            val_hashes=hashes[::3],
        )

    def inputs(self) -> FrozenInputs | PictureInputs:
        plan = plan_for(PARTIAL, self.config, self.network, len(self.material.indices))
        self.network.backbone.freeze_below(plan.lowest)
        found = inputs_for(
            self.fabric,
            self.network,
            self.config,
            self.material,
            lowest=plan.lowest,
            epochs=plan.epochs,
            display=self.display,
        )
        assert isinstance(found, FrozenInputs | PictureInputs)
        return found

    def train(self) -> dict[str, Tensor]:
        """The weights that training ends with."""
        plan = plan_for(PARTIAL, self.config, self.network, len(self.material.indices))
        task = TrainingTask(self.fabric, self.network, plan, self.config, self.material)
        assert train(task, display=self.display).epochs == plan.epochs
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}


@cache
def _settled(name: str, image_size: int | None) -> Backbone:
    """Statistics such as those of trained weights: those of random ones let numbers fade on their way up."""
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=image_size)
    size = backbone.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    backbone.model.train()
    with torch.no_grad():
        for _ in range(10):
            backbone.model(torch.randn(16, 3, size, size, generator=generator))
    return backbone.eval()


NETWORKS = {"conv4": ("fewtune_conv4", 20), "efficientnet": ("test_efficientnet", 64)}
CONV4, EFFICIENTNET = (
    pytest.mark.parametrize("job", [NETWORKS[name]], ids=[name], indirect=True) for name in ("conv4", "efficientnet")
)


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def job(request: pytest.FixtureRequest, make_folder: MakeFolder, empty_cache: Path) -> Callable[..., Job]:
    folder = make_folder(classes={"a": 12, "b": 12, "c": 12}, noise=80)
    name, size = request.param
    return lambda **options: Job(folder, name, size, options)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWTUNE_CACHE", str(tmp_path / "cache"))
    return default_folder()


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a folder of many pictures."""
    monkeypatch.setattr("finetune.features.acceleration.WORTH_CONVERTING", 1)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def all_of(inputs: FrozenInputs) -> tuple[Tensor, Tensor]:
    """Kept activations of training and validation pictures."""
    return inputs.train[:], inputs._val[:]


# ------------------------------------------------------------------------------------------------ never another result


def test_no_cache_a_cold_cache_and_a_warm_cache_give_the_same_weights(
    job: Callable[..., Job], empty_cache: Path
) -> None:
    without = job(cache=False)
    expected = without.train()
    assert not empty_cache.exists()
    assert_equal(job().train(), expected)
    assert empty_cache.exists()
    assert_equal(job().train(), expected)
    assert without.display.lines == []


@pytest.mark.usefixtures("converted")
@EFFICIENTNET
def test_any_cache_gives_the_same_weights_with_converted_stages(job: Callable[..., Job]) -> None:
    without = job(cache=False)
    expected = without.train()
    assert without.display.lines == []  # which would tell that they could not be
    _frozen(_of_some(job()))
    assert_equal(job().train(), expected)
    assert_equal(job().train(), expected)


@CONV4
def test_a_partly_warm_cache_gives_the_same_bits(job: Callable[..., Job], empty_cache: Path) -> None:
    expected = all_of(_frozen(job()))
    shutil.rmtree(empty_cache)
    _frozen(_of_some(job()))
    for found, wanted in zip(all_of(_frozen(job())), expected, strict=True):
        assert torch.equal(found, wanted)


def _of_some(job: Job) -> Job:
    """The job with fewer training pictures, which are checked by the same first ones."""
    indices = job.material.indices
    job.material = replace(job.material, indices=[*indices[:16], *indices[17::3]])
    return job


@EFFICIENTNET
def test_a_second_run_decodes_no_picture_and_runs_no_frozen_stage(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = job(), job()
    expected = first.train()

    def refuse(*what: object, **how: object) -> None:
        raise AssertionError("decoded or run again")

    lowest = plan_for(PARTIAL, second.config, second.network, 24).lowest
    below = {
        name.removesuffix(".weight") for stage in second.network.backbone.stages[:lowest] for name in stage.parameters
    }
    frozen = [module for name, module in second.network.backbone.model.named_modules() if name in below]
    assert frozen
    monkeypatch.setattr(finetune.data.loader, "read_image", refuse)
    # The cut is checked on two made pictures, which is no run over pictures.
    runs: list[int] = []
    for module in frozen:
        module.register_forward_hook(lambda module, given, found: runs.append(len(given[0])))
    assert_equal(second.train(), expected)
    assert set(runs) == {2}
    assert len(runs) <= 3 * len(frozen)


@EFFICIENTNET
def test_activations_in_files_give_the_same_weights(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = job(cache=False).train()
    monkeypatch.setattr(ActivationCache.__init__, "__kwdefaults__", {"memory": 0, "disk": 1 << 30})
    assert_equal(job().train(), expected)


def test_a_killed_run_resumes_to_the_same_weights(make_folder: MakeFolder, tmp_path: Path, empty_cache: Path) -> None:
    folder = make_folder(classes=THREE)
    options = {"strategy": "partial", "epochs": 3, "patience": 3, **SMALL}
    finetune.fit(folder, tmp_path / "whole", **options)
    shutil.rmtree(empty_cache)
    fit_until_stopped(folder, tmp_path / "killed", options)
    finetune.fit(folder, tmp_path / "killed", resume=True, **options)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    assert (tmp_path / "whole" / "history.csv").read_text() == (tmp_path / "killed" / "history.csv").read_text()


def test_a_run_resumes_with_the_same_inputs_or_not_at_all(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(classes=THREE)
    options = {"strategy": "partial", "epochs": 3, "patience": 3, **SMALL}
    fit_until_stopped(folder, tmp_path / "run", options)
    monkeypatch.setattr(ActivationCache, "has_room", lambda self, size: False)
    with pytest.raises(InputError, match=r"3 views of each picture.*make room"):
        finetune.fit(folder, tmp_path / "run", resume=True, **options)


# ------------------------------------------------------------------------------------------------ what is shown


def _frozen(job: Job) -> FrozenInputs:
    found = job.inputs()
    assert isinstance(found, FrozenInputs), job.display.lines
    return found


@CONV4
def test_a_cached_view_is_the_loaders_view_of_that_epoch(job: Callable[..., Job]) -> None:
    made = job(views=3, epochs=9, precision="float32")
    inputs = _frozen(made)
    lower = inputs._cut.lower
    for batch in inputs.batches(4, 5):
        for index, given in zip(batch.index.tolist(), batch.inputs, strict=True):
            view = view_shown(made.config.seed, 4, index, 3)
            pixels = made.material.pictures[view, index][2]
            assert pixels is not None
            with torch.no_grad():
                expected = lower(made.material.preprocessing.normalize(pixels[None]))[0]
            torch.testing.assert_close(given, expected, rtol=2**-10, atol=1e-4)


@CONV4
def test_batches_are_those_of_pictures_in_their_order(job: Callable[..., Job]) -> None:
    made = job()
    network = copy.deepcopy(made.network)
    fresh = PictureInputs(made.fabric, network, made.config, made.material)
    for kept, seen in zip(_frozen(made).batches(1, 3), fresh.batches(1, 3), strict=True):
        assert torch.equal(kept.index, seen.index)


def test_every_view_is_shown_and_none_that_is_not_there() -> None:
    shown = {view_shown(0, epoch, 5, 4) for epoch in range(40)}
    assert shown == {0, 1, 2, 3}


@CONV4
def test_no_more_views_are_made_than_there_are_epochs(job: Callable[..., Job]) -> None:
    assert all_of(_frozen(job(views=5, epochs=2)))[0].shape[1] == 2
    assert all_of(_frozen(job(views=2, epochs=5)))[0].shape[1] == 2


def test_the_whole_network_in_float32_has_the_validated_logits(job: Callable[..., Job]) -> None:
    assert _off(job()) < 0.005  # by rounding to float16 alone


@pytest.mark.usefixtures("converted")
@EFFICIENTNET
def test_converted_stages_have_nearly_the_validated_logits(job: Callable[..., Job]) -> None:
    assert _off(job()) < 0.1  # by what a cosine of 0.999, which the fast way keeps, leaves as well


def _off(made: Job) -> float:
    """The largest difference of a logit by cached activations from that of the whole network, in deviations."""
    made.fabric = open_engine("cpu", "float32")  # which leaves the frozen stages as fast as they are allowed to be
    made.train()
    judged = _frozen(made).validation_logits()
    network, wanted = made.network.eval(), made.material.preprocessing
    batches = in_memory(made.fabric, made.material.val, 1)
    with torch.no_grad():
        whole = torch.cat([network(wanted.normalize(batch.pixels)) for batch in batches])
    return float((judged - whole).abs().max() / (whole - whole.mean(1, keepdim=True)).std())


def test_only_what_lies_above_the_cut_learns(job: Callable[..., Job]) -> None:
    made = job(lr=1e-2)
    before = {name: tensor.clone() for name, tensor in made.network.state_dict().items()}
    after = made.train()
    learned = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    trainable = {name for name, parameter in made.network.named_parameters() if parameter.requires_grad}
    assert learned == trainable


# ------------------------------------------------------------------------------------------------ where it cannot be


def _told(job: Job) -> str:
    assert isinstance(job.inputs(), PictureInputs)
    (line,) = job.display.lines
    assert line.startswith("The network trains uncut, so its frozen stages run again in every epoch: ")
    return line


def test_pictures_are_used_and_a_line_says_why_where_activations_cannot_be_cached(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(classes={"a": 6, "b": 6, "c": 6})
    assert "mixup" in _told(Job(folder, options={"mixup": 0.2}))
    with monkeypatch.context() as patch:
        patch.setattr(ActivationCache, "has_room", lambda self, size: False)
        assert "2 views of every picture (--views) would take" in _told(Job(folder))
    with monkeypatch.context() as patch:
        patch.setattr("finetune.training.cached_inputs.Normalized", _huge)
        assert "do not fit torch.float16" in _told(Job(folder))


def _huge(network: nn.Module, preprocessing: Any) -> nn.Module:
    class Huge(finetune.data.transforms.Normalized):
        def forward(self, pictures: Tensor) -> Tensor:
            return super().forward(pictures) * 1e9

    return Huge(network, preprocessing)


def test_a_line_says_why_a_cut_cannot_be_cached(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(classes={"a": 4, "b": 4, "c": 4})
    cut = Backbone.cut

    def two(self: Backbone, stage: int) -> tuple[nn.Module, nn.Module]:
        lower, upper = cut(self, stage)

        class Two(nn.Module):
            def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
                return lower(pictures), pictures

        return Two(), upper

    def untraceable(self: Backbone, stage: int) -> tuple[nn.Module, nn.Module]:
        raise InputError("its code cannot be traced")

    monkeypatch.setattr(Backbone, "cut", two)
    assert "2 tensors pass into blocks.3" in _told(Job(folder))
    monkeypatch.setattr(Backbone, "cut", untraceable)
    assert "cannot be traced" in _told(Job(folder))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_picture_that_has_changed_is_named(split: str, make_folder: MakeFolder) -> None:
    made = Job(make_folder(classes={"a": 6, "b": 6, "c": 6}))
    made.inputs()
    changed = made.material.pictures.sources[made.material.indices[2] if split == "train" else 3]
    other = made.material.pictures.sources[-1]
    Path(str(changed)).write_bytes(Path(str(other)).read_bytes())
    with pytest.raises(InputError, match=f"{Path(str(changed)).name} was changed"):
        made.inputs()
