from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawings import character, small
from torch import Tensor, nn

import fewshot.training.loop
import fewshot.training.steps
from fewshot.embedding.framing import FramedPictures, frame_drawings, render
from fewshot.training.config import SiameseConfig
from fewshot.training.loop import (
    SiameseState,
    seconds_per_step,
    seconds_per_validation,
    train,
    validation_steps,
)
from fewshot.training.losses import siamese
from fewshot.training.steps import SiameseSteps, SiameseTask
from fewshot.training.training_data import SiameseData
from fewshot.training.validation import Validation
from finetune.errors import InputError, TrainingDiverged
from finetune.files.reading import read_tensors_and_metadata
from finetune.models.device import open_engine
from finetune.progress import Display

FABRIC = open_engine("cpu", "float32")
SIDE = 16


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validate every ten steps, so that a few dozen are a whole training."""
    monkeypatch.setattr(fewshot.training.loop, "LEAST_BETWEEN", 10)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32)
    )


def data(classes: int = 10, each: int = 4, validation: Validation | None = None) -> SiameseData:
    drawn = np.stack([character(number, drawer) for number in range(classes) for drawer in range(each)])
    return SiameseData(
        pictures=frame_drawings(torch.from_numpy(drawn), SIDE),
        classes=torch.arange(classes).repeat_interleave(each),
        groups=torch.arange(classes) % 2,
        symmetries=8,
        distortion="drawing",
        validation=validation,
    )


@dataclass
class Giving:
    """A validation that gives one result after the other, or is interrupted; it keeps the embeddings."""

    results: list[float | BaseException]
    vectors: list[Tensor] = field(default_factory=list)
    name: str = "nothing"
    pictures: FramedPictures = field(
        default_factory=lambda: frame_drawings(
            torch.from_numpy(np.stack([character(number) for number in range(50, 54)])), SIDE
        )
    )

    def accuracy(self, vectors: Tensor) -> float:
        self.vectors.append(vectors)
        result = self.results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return result


def giving(*results: float | BaseException) -> SiameseData:
    return data(validation=Giving(list(results)))


def task(steps: int = 20, of: SiameseData | None = None, **options: object) -> SiameseTask:
    of, config = of or data(), small(**options)
    return SiameseTask(FABRIC, siamese(encoder(), 32, 8 * len(of.groups), config), of, config, SIDE, steps)


def trained(of: SiameseTask, checkpoint: Path | None = None) -> tuple[nn.Module, SiameseState]:
    return train(of, checkpoint=checkpoint, display=Display())


def assert_same(one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]) -> None:
    ours, theirs = (given if isinstance(given, dict) else given.state_dict() for given in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def differ(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return any(not torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


# --- a step -----------------------------------------------------------------------------------------------------------


def test_norms_and_biases_alone_are_not_decayed_and_the_loss_is_trained_too() -> None:
    loop = SiameseSteps(task(loss="arcface", weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in loop.optimizer.param_groups for p in group["params"]}
    parameters = list(loop.siamese.parameters())
    assert len(decay) == len(parameters) > len(list(loop.siamese.encoder.parameters()))
    assert all(decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0) for parameter in parameters)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    loop, again, other = (SiameseSteps(task(seed=seed)) for seed in (3, 3, 4))
    loop.train_step()
    torch.rand(5)
    for ours, theirs in zip(loop.batch(7), again.batch(7), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(loop.batch(7)[0], loop.batch(8)[0])
    assert not torch.equal(loop.batch(7)[0], other.batch(7)[0])


def test_a_batch_shows_every_class_several_times_in_one_symmetry_a_group() -> None:
    loop = SiameseSteps(task(alphabets=3, ways=4, shots=2))
    pictures, labels = loop.batch(0)
    assert pictures.shape == (24, 1, 16, 16)
    assert labels.shape == (24,)
    assert len((labels.view(3, 8) % 8).unique(dim=1).flatten()) == 3
    one_way = SiameseSteps(task(symmetries=1))
    assert all(int(label) % 8 == 0 for step in range(5) for label in one_way.batch(step)[1])


def test_smaller_pictures_come_first_with_an_early_side() -> None:
    loop = SiameseSteps(task(steps=10, early_side=8))
    assert [loop.batch(step)[0].shape[-1] for step in range(10)] == [8] * 7 + [16] * 3


def test_averaged_weights_follow_at_the_pace_of_ema() -> None:
    at_once, slowly = SiameseSteps(task(ema=0.0)), SiameseSteps(task(ema=0.99))
    for _ in range(3):
        at_once.train_step()
        slowly.train_step()
    assert_same(at_once.averaged, at_once.siamese.encoder)
    assert differ(slowly.averaged, slowly.siamese.encoder)
    # Statistics of batch norm are averages already.
    for buffer, current in zip(slowly.averaged.buffers(), slowly.siamese.encoder.buffers(), strict=True):
        assert torch.equal(buffer, current)


def test_averaged_weights_are_the_mean_of_all_with_growing_weights() -> None:
    loop = SiameseSteps(task(ema=0.5))
    name = "4.weight"
    expected = dict(loop.averaged.named_parameters())[name].detach().clone()
    for step in range(4):
        loop.train_step()
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * dict(loop.siamese.encoder.named_parameters())[name].detach()
    torch.testing.assert_close(dict(loop.averaged.named_parameters())[name].detach(), expected)


def test_timing_steps_changes_nothing() -> None:
    found = task(steps=1)
    before = {name: tensor.clone() for name, tensor in found.siamese.state_dict().items()}
    assert seconds_per_step(found, steps=4) > 0
    assert_same(found.siamese.state_dict(), before)


# --- a whole training -------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_reports_its_history() -> None:
    _, state = trained(task(steps=30))
    assert state.step == 30
    assert [row["step"] for row in state.history] == [10, 20, 30]
    losses = [row["loss"] or 0.0 for row in state.history]
    assert losses[0] > losses[1] > losses[2] > 0
    assert state.best is None
    assert not state.interrupted
    assert 0 < state.waiting < 1
    assert state.seconds > 0


def test_weights_of_the_best_validation_result_are_kept() -> None:
    validation = Giving([0.3, 0.7, 0.7, 0.1])
    encoder, state = trained(task(steps=40, of=data(validation=validation)))
    assert (state.best, state.best_step) == (0.7, 20)  # the first of equals
    assert [row["accuracy"] for row in state.history] == [0.3, 0.7, 0.7, 0.1]
    with torch.no_grad():
        vectors = nn.functional.normalize(encoder(render(validation.pictures, SIDE)), dim=1)
    torch.testing.assert_close(vectors, validation.vectors[1])
    assert not torch.allclose(vectors, validation.vectors[3], atol=1e-3)
    assert all(torch.allclose(part.norm(dim=1), torch.ones(4)) for part in validation.vectors)


def test_without_validation_the_last_averaged_weights_are_kept() -> None:
    steps = 12
    encoder, state = trained(task(steps))
    loop = SiameseSteps(task(steps))
    for _ in range(steps):
        loop.train_step()
    assert_same(encoder, loop.averaged)
    assert state.best_step == 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"loss": "arcface"}, {"loss": "triplet", "miner": "batch-hard"}])
def test_a_continued_run_ends_with_the_same_weights(options: dict[str, object], tmp_path: Path) -> None:
    whole, straight = trained(task(30, giving(0.1, 0.2, 0.9), **options))
    checkpoint = tmp_path / "checkpoint.safetensors"
    _, state = trained(task(30, giving(0.1, KeyboardInterrupt()), **options), checkpoint)
    assert state.interrupted
    assert (state.step, len(state.history)) == (20, 1)
    resumed, state = trained(task(30, giving(0.2, 0.9), **options), checkpoint)
    assert_same(resumed, whole)
    for name in ("step", "loss", "accuracy"):
        assert [row[name] for row in state.history] == [row[name] for row in straight.history]
    assert (state.step, state.best, state.best_step, state.interrupted) == (30, 0.9, 30, False)
    _, metadata = read_tensors_and_metadata(checkpoint)
    assert json.loads(metadata["course"]) == json.loads(json.dumps(asdict(state)))


def test_a_checkpoint_keeps_the_best_weights_for_a_continuation(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    kept, state = trained(task(20, giving(0.9, 0.1)), checkpoint)
    assert state.best_step == 10
    # Nothing is left to do: what the checkpoint holds comes back.
    resumed, again = trained(task(20, giving()), checkpoint)
    assert_same(resumed, kept)
    assert again == state


def test_ctrl_c_before_the_first_validation_is_not_caught(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(task(10, giving(KeyboardInterrupt())), tmp_path / "checkpoint.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_pictures_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    trained(task(2), checkpoint)
    with pytest.raises(InputError, match="belongs to a run on other pictures"):
        trained(task(2, data(classes=9)), checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(InputError, match="remove it to train again from the start") as caught:
        trained(task(2), checkpoint)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_training_and_names_the_remedy() -> None:
    with pytest.raises(
        TrainingDiverged, match=r"became nan at step \d+ of 20: .*lower the learning rate.*now 1e\+30\)"
    ):
        trained(task(20, lr=1e30))


def test_embeddings_that_are_not_finite_stop_training() -> None:
    broken = task(10, giving(0.5))
    loop = SiameseSteps(broken)
    next(loop.averaged.parameters()).data.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"embeddings of the validation pictures are not finite after step 0"):
        loop.accuracy()


def test_training_data_has_a_fingerprint() -> None:
    assert data().fingerprint == data().fingerprint
    assert len({data().fingerprint, data(classes=9).fingerprint, data(each=3).fingerprint}) == 3
    other = data()
    assert replace(other, classes=other.classes.flip(0)).fingerprint != other.fingerprint


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 1.0, "epochs": 1}, "--minutes and --epochs"),
        ({"symmetries": 3}, "--symmetries must be 1, 4 or 8, not 3"),
        ({"symmetries": 9}, "--symmetries"),
        ({"distance": "cosine"}, "--distance cosine cannot be used with --loss contrastive"),
        ({"distance": "signal-to-noise"}, "--distance signal-to-noise"),
        ({"loss": "hinge"}, "--loss must be one of"),
        ({"miner": "hardest"}, "--miner must be one of"),
        ({"distortion": "much"}, "--distortion must be one of"),
        ({"shots": 1}, "--shots must be at least 2"),
        ({"ways": 1}, "--ways must be at least 2"),
        ({"ema": 1.0}, "--ema must be below 1"),
        ({"lr": float("nan")}, "--lr must be a finite number"),
        ({"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_invalid_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SiameseConfig.from_dict(options)


def test_a_config_survives_its_json() -> None:
    config = small(loss="triplet", distance="cosine", minutes=None)
    assert SiameseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_timing_of_steps_ends_early_on_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    batch = SiameseSteps.batch

    def counted(self: SiameseSteps, step: int) -> tuple[Tensor, Tensor]:
        steps.append(step)
        return batch(self, step)

    monkeypatch.setattr(SiameseSteps, "batch", counted)
    assert seconds_per_step(task()) > 0
    assert len(steps) == 16
    steps.clear()
    monkeypatch.setattr(fewshot.training.steps, "TIMING", 0.0)
    assert seconds_per_step(task()) > 0
    assert len(steps) == 2


def test_a_validation_is_estimated_without_a_change_to_the_network() -> None:
    validation = Giving([0.5])
    validated = task(of=data(validation=validation))
    before = {name: tensor.clone() for name, tensor in validated.siamese.state_dict().items()}
    assert seconds_per_validation(validated) > 0
    assert [len(vectors) for vectors in validation.vectors] == [len(validation.pictures)]
    assert_same(validated.siamese.state_dict(), before)
    assert seconds_per_validation(task()) == 0


def test_a_training_validates_at_the_steps_that_are_announced() -> None:
    _, state = trained(task(35, giving(0.1, 0.2, 0.3)))
    assert [row["step"] for row in state.history] == validation_steps(35) == [12, 23, 35]
    assert 0 <= state.validating <= state.seconds
