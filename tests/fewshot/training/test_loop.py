from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawings import character, small
from torch import Tensor, nn

import fewshot.training.loop
from fewshot.embedding.framing import FramedPictures, frame_drawings, render
from fewshot.training.config import SiameseConfig
from fewshot.training.loop import (
    SiameseState,
    Study,
    _Loop,
    optimizer_for,
    seconds_per_step,
    seconds_per_validation,
    train,
    validations,
)
from fewshot.training.losses import siamese
from fewshot.training.training_data import Judge, SiameseData
from finetune.errors import InputError, TrainingDiverged
from finetune.files import read_tensors_and_metadata
from finetune.models.device import open_engine
from finetune.progress import Display

FABRIC = open_engine("cpu", "float32")
SIDE = 16


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks every ten steps, so that a few dozen are a whole training."""
    monkeypatch.setattr(fewshot.training.loop, "LEAST_BETWEEN", 10)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 32)
    )


def material(classes: int = 10, each: int = 4, judge: Judge | None = None) -> SiameseData:
    drawn = np.stack([character(number, drawer) for number in range(classes) for drawer in range(each)])
    return SiameseData(
        pictures=frame_drawings(torch.from_numpy(drawn), SIDE),
        classes=torch.arange(classes).repeat_interleave(each),
        groups=torch.arange(classes) % 2,
        symmetries=8,
        distortion="drawing",
        judge=judge,
        judged_by="nothing",
    )


def giving(*results: float | BaseException) -> Judge:
    """A judge that gives one result after the other, or is interrupted."""
    left = iter(results)

    def judge(vectors: Callable[[FramedPictures], Tensor]) -> float:
        result = next(left)
        if isinstance(result, BaseException):
            raise result
        return result

    return judge


def study(steps: int = 20, of: SiameseData | None = None, **options: object) -> Study:
    of, recipe = of or material(), small(**options)
    learned = siamese(
        encoder(),
        32,
        8 * len(of.groups),
        loss=recipe.loss,
        margin=recipe.margin,
        hardest=recipe.hardest,
        miner=recipe.miner,
        distance=recipe.distance,
    )
    return Study(learned, of, recipe, SIDE, steps)


def trained(of: Study, checkpoint: Path | None = None, resume: bool = False) -> tuple[nn.Module, SiameseState]:
    return train(FABRIC, of, checkpoint=checkpoint, resume=resume, display=Display())


def assert_same(one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]) -> None:
    ours, theirs = (given if isinstance(given, dict) else given.state_dict() for given in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def differ(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return any(not torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


# --- a step -----------------------------------------------------------------------------------------------------------


def test_norms_biases_and_nothing_else_are_spared_the_decay_and_the_loss_learns_too() -> None:
    found = study(loss="arcface", weight_decay=0.1)
    optimizer = optimizer_for(found.siamese, found.recipe)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    parameters = list(found.siamese.parameters())
    assert len(decay) == len(parameters) > len(list(found.siamese.encoder.parameters()))
    assert all(decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0) for parameter in parameters)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    loop, again, other = (_Loop(FABRIC, study(seed=seed)) for seed in (3, 3, 4))
    loop.step(0)
    torch.rand(5)
    for ours, theirs in zip(loop.batch(7), again.batch(7), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(loop.batch(7)[0], loop.batch(8)[0])
    assert not torch.equal(loop.batch(7)[0], other.batch(7)[0])


def test_a_batch_shows_every_class_several_times_in_one_symmetry_a_group() -> None:
    loop = _Loop(FABRIC, study(alphabets=3, ways=4, shots=2))
    pictures, labels = loop.batch(0)
    assert pictures.shape == (24, 1, 16, 16)
    assert labels.shape == (24,)
    assert len((labels.view(3, 8) % 8).unique(dim=1).flatten()) == 3
    one_way = _Loop(FABRIC, study(symmetries=1))
    assert all(int(label) % 8 == 0 for step in range(5) for label in one_way.batch(step)[1])


def test_smaller_pictures_come_first_where_they_are_asked_for() -> None:
    loop = _Loop(FABRIC, study(steps=10, early_side=8))
    assert [loop.batch(step)[0].shape[-1] for step in range(10)] == [8] * 7 + [16] * 3


def test_averaged_weights_follow_at_the_pace_of_ema() -> None:
    at_once, slowly = _Loop(FABRIC, study(ema=0.0)), _Loop(FABRIC, study(ema=0.99))
    for step in range(3):
        at_once.step(step)
        slowly.step(step)
    assert_same(at_once.averaged, at_once.siamese.encoder)
    assert differ(slowly.averaged, slowly.siamese.encoder)
    # Statistics of batch norm are averages already.
    for buffer, current in zip(slowly.averaged.buffers(), slowly.siamese.encoder.buffers(), strict=True):
        assert torch.equal(buffer, current)


def test_averaged_weights_are_the_mean_of_all_with_growing_weights() -> None:
    loop = _Loop(FABRIC, study(ema=0.5))
    name = "4.weight"
    expected = dict(loop.averaged.named_parameters())[name].detach().clone()
    for step in range(4):
        loop.step(step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * dict(loop.siamese.encoder.named_parameters())[name].detach()
    torch.testing.assert_close(dict(loop.averaged.named_parameters())[name].detach(), expected)


def test_timing_steps_changes_nothing() -> None:
    found = study(steps=1)
    before = {name: tensor.clone() for name, tensor in found.siamese.state_dict().items()}
    assert seconds_per_step(FABRIC, found, steps=4) > 0
    assert_same(found.siamese.state_dict(), before)


# --- a whole training -------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_tells_how_it_went() -> None:
    _, course = trained(study(steps=30))
    assert course.step == 30
    assert [row["step"] for row in course.history] == [10, 20, 30]
    losses = [row["loss"] for row in course.history]
    assert losses[0] > losses[1] > losses[2] > 0  # type: ignore[operator]
    assert course.best is None
    assert not course.interrupted
    assert 0 < course.waiting < 1
    assert course.seconds > 0


def test_weights_of_the_best_validation_result_are_kept() -> None:
    seen: list[Tensor] = []
    drawn = torch.from_numpy(np.stack([character(number) for number in range(50, 54)]))
    results = iter([0.3, 0.7, 0.7, 0.1])

    def judge(vectors: Callable[[FramedPictures], Tensor]) -> float:
        seen.append(vectors(frame_drawings(drawn, SIDE)))
        return next(results)

    encoder, course = trained(study(steps=40, of=material(judge=judge)))
    assert (course.best, course.best_step) == (0.7, 20)  # the first of equals
    assert [row["accuracy"] for row in course.history] == [0.3, 0.7, 0.7, 0.1]
    pictures = frame_drawings(drawn, SIDE)
    with torch.no_grad():
        vectors = nn.functional.normalize(encoder(render(pictures, SIDE)), dim=1)
    torch.testing.assert_close(vectors, seen[1])
    assert not torch.allclose(vectors, seen[3], atol=1e-3)
    assert all(torch.allclose(part.norm(dim=1), torch.ones(4)) for part in seen)


def test_without_a_judge_the_last_averaged_weights_are_kept() -> None:
    steps = 12
    encoder, course = trained(study(steps))
    loop = _Loop(FABRIC, study(steps))
    for step in range(steps):
        loop.step(step)
    assert_same(encoder, loop.averaged)
    assert course.best_step == 0


@pytest.mark.parametrize("options", [{}, {"loss": "arcface"}, {"loss": "triplet", "miner": "batch-hard"}])
def test_a_run_that_goes_on_ends_with_the_same_weights(options: dict[str, object], tmp_path: Path) -> None:
    whole, straight = trained(study(30, material(judge=giving(0.1, 0.2, 0.9)), **options))
    checkpoint = tmp_path / "checkpoint.safetensors"
    _, course = trained(study(30, material(judge=giving(0.1, KeyboardInterrupt())), **options), checkpoint)
    assert course.interrupted
    assert (course.step, len(course.history)) == (20, 1)
    resumed, course = trained(study(30, material(judge=giving(0.2, 0.9)), **options), checkpoint, resume=True)
    assert_same(resumed, whole)
    for name in ("step", "loss", "accuracy"):
        assert [row[name] for row in course.history] == [row[name] for row in straight.history]
    assert (course.step, course.best, course.best_step, course.interrupted) == (30, 0.9, 30, False)
    _, metadata = read_tensors_and_metadata(checkpoint)
    assert json.loads(metadata["course"]) == asdict(course)


def test_a_checkpoint_keeps_the_best_weights_for_whoever_goes_on(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    kept, course = trained(study(20, material(judge=giving(0.9, 0.1))), checkpoint)
    assert course.best_step == 10
    # Nothing is left to do: what the checkpoint holds comes back.
    resumed, again = trained(study(20, material(judge=giving(0.9, 0.1))), checkpoint, resume=True)
    assert_same(resumed, kept)
    assert again == course


def test_ctrl_c_before_anything_was_kept_is_not_caught(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(study(10, material(judge=giving(KeyboardInterrupt()))), tmp_path / "checkpoint.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_pictures_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    trained(study(2), checkpoint)
    with pytest.raises(InputError, match="is of a run on other pictures"):
        trained(study(2, material(classes=9)), checkpoint, resume=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(InputError, match="remove it to train again from the start") as caught:
        trained(study(2), checkpoint, resume=True)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_training_and_says_what_to_do() -> None:
    with pytest.raises(TrainingDiverged, match=r"became nan at step \d+: lower the learning rate \(--lr, now 1e\+30\)"):
        trained(study(20, lr=1e30))


def test_what_is_learned_from_has_a_fingerprint() -> None:
    assert material().fingerprint == material().fingerprint
    assert len({material().fingerprint, material(classes=9).fingerprint, material(each=3).fingerprint}) == 3
    other = material()
    assert replace(other, classes=other.classes.flip(0)).fingerprint != other.fingerprint


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 1.0, "epochs": 1}, "--minutes and --epochs"),
        ({"symmetries": 3}, "--symmetries must be 1, 4 or 8, not 3"),
        ({"symmetries": 9}, "--symmetries"),
        ({"distance": "cosine"}, "--distance cosine: the contrastive loss"),
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
def test_options_that_cannot_be_meant_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SiameseConfig(**options)  # type: ignore[arg-type]


def test_a_recipe_survives_its_json() -> None:
    recipe = small(loss="triplet", distance="cosine", minutes=None)
    assert SiameseConfig.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_timing_of_steps_ends_early_on_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = _Loop.step

    def counted(self: _Loop, number: int, clock: object = None) -> Tensor:
        steps.append(number)
        return step(self, number, clock)  # type: ignore[arg-type]

    monkeypatch.setattr(_Loop, "step", counted)
    assert seconds_per_step(FABRIC, study()) > 0
    assert len(steps) == 16
    steps.clear()
    monkeypatch.setattr(fewshot.training.loop, "TIMING", 0.0)
    assert seconds_per_step(FABRIC, study()) > 0
    assert len(steps) == 2


def test_a_validation_is_estimated_without_a_change_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def judge(vectors: Callable[[FramedPictures], Tensor]) -> float:
        seen.append(len(vectors(material().pictures)))
        return 0.5

    judged = study(of=material(judge=judge))
    before = {name: tensor.clone() for name, tensor in judged.siamese.state_dict().items()}
    assert seconds_per_validation(FABRIC, judged) > 0
    assert seen == [40]
    assert all(torch.equal(tensor, before[name]) for name, tensor in judged.siamese.state_dict().items())
    assert seconds_per_validation(FABRIC, study()) == 0


def test_validations_are_as_many_as_the_training_makes() -> None:
    course = trained(study(steps=35, of=material(judge=giving(0.1, 0.2, 0.3))))[1]
    assert len(course.history) == validations(35) == 3
    assert 0 <= course.validating <= course.seconds
