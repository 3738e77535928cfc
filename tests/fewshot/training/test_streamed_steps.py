"""Training steps as a GPU takes them, with numbers drawn ahead and sums of fixed shapes, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from drawings import character, small
from torch import nn

from fewshot.embedding.augmentation import changed, distort, draw_changes
from fewshot.embedding.distortions import DISTORTIONS
from fewshot.embedding.framing import frame_drawings, frame_whole
from fewshot.training.captured import CapturedSteps
from fewshot.training.losses import Contrastive, siamese
from fewshot.training.step_clock import StepClock
from fewshot.training.step_numbers import AHEAD, StepNumbers, drawn_ahead
from fewshot.training.steps import SiameseSteps, SiameseTask
from fewshot.training.training_data import SiameseData
from finetune.models.device import open_engine

SIDE = 16


def task(device: str = "cpu", **options: object) -> SiameseTask:
    drawn = np.stack([character(number, drawer) for number in range(10) for drawer in range(4)])
    of = SiameseData(
        pictures=frame_drawings(torch.from_numpy(drawn), SIDE),
        classes=torch.arange(10).repeat_interleave(4),
        groups=torch.arange(10) % 2,
        symmetries=8,
        distortion="drawing",
    )
    torch.manual_seed(0)
    # Without the bias, whose gradient before a BatchNorm is the rounding alone, which differs between processors.
    encoder = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
    )
    config = small(**options)
    return SiameseTask(open_engine(device, "float32"), siamese(encoder, 128, 80, config), of, config, SIDE, 8)


@pytest.mark.parametrize(
    "options",
    [{}, {"hardest": 0}, {"early_side": 8}, {"distortion": "photo"}, {"loss": "triplet"}, {"alphabets": 3, "ways": 4}],
)
def test_streamed_steps_have_the_losses_of_the_loop_of_a_cpu(options: dict[str, object]) -> None:
    usual, streamed = SiameseSteps(task(**options)), SiameseSteps(task(**options), streamed=True)
    with closing(streamed):
        for _ in range(6):
            assert float(streamed.train_step()) == pytest.approx(float(usual.train_step()), abs=1e-6)
            assert streamed.batch_size == usual.batch_size
    for ours, theirs in zip(streamed.averaged.parameters(), usual.averaged.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_streamed_steps_continue_at_the_step_of_the_loop() -> None:
    usual, streamed = SiameseSteps(task()), SiameseSteps(task(), streamed=True)
    usual.step = streamed.step = 5
    with closing(streamed):
        assert float(streamed.train_step()) == pytest.approx(float(usual.train_step()), abs=1e-6)


def test_packed_numbers_come_back_bit_for_bit() -> None:
    numbers = SiameseSteps(task(distortion="photo"))._numbers(3)
    layout, memory = numbers.packed()
    found: StepNumbers = layout.unpacked(memory)
    assert memory.dtype == torch.uint8
    assert torch.equal(found.rows, numbers.rows)
    assert torch.equal(found.labels, numbers.labels)
    assert found.side == numbers.side
    for name, tensor in vars(numbers.changes).items():
        assert torch.equal(vars(found.changes)[name], tensor)
    assert SiameseSteps(task(distortion="photo"))._numbers(4).packed()[0] == layout
    assert SiameseSteps(task(distortion="drawing"))._numbers(3).packed()[0] != layout


@pytest.mark.parametrize("name", ["none", "koch", "drawing", "photo"])
def test_a_part_of_the_pictures_gets_the_changes_of_the_whole_batch(name: str) -> None:
    framed = frame_whole(torch.randint(256, (6, 3, 20, 20), dtype=torch.uint8))
    symmetry, distortion = torch.arange(6), DISTORTIONS[name]
    whole = distort(framed, symmetry, distortion, 12, torch.Generator().manual_seed(1))
    changes = draw_changes(symmetry, distortion, 3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(changed(framed[slice(2, 5)], changes[2:5], 12), whole[2:5])


@pytest.mark.parametrize("hardest", [0, 3, 100])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6]])
def test_the_loss_of_fixed_shapes_has_the_value_and_the_gradient(hardest: int, labels: list[int]) -> None:
    vectors = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    loss, fixed = Contrastive(1.2, hardest), Contrastive(1.2, hardest)
    fixed.fixed_shapes = True
    one, other = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    expected, found = loss(one, torch.tensor(labels)), fixed(other, torch.tensor(labels))
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other.grad, one.grad)


def test_steps_are_drawn_ahead_in_order() -> None:
    asked = []

    def draw(step: int) -> int:
        asked.append(step)
        return step

    with ThreadPoolExecutor(2) as threads:
        steps: Iterator[int] = drawn_ahead(draw, 4, threads)
        assert list(islice(steps, 3)) == [4, 5, 6]
    assert sorted(asked) == list(range(4, 4 + AHEAD + 3))


def test_steps_that_are_not_captured_run_as_they_are() -> None:
    weight = torch.ones(2, requires_grad=True)

    def learn(tensor: torch.Tensor, layout: str) -> torch.Tensor:
        loss = (weight * tensor).sum()
        loss.backward()
        return loss.detach()

    steps = CapturedSteps[str](learn, [weight], capture=False, say=lambda line: pytest.fail(line))
    assert float(steps(torch.tensor([2.0, 3.0]), "two")) == 5.0
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0, 3.0]
    assert steps.captured == 0


def test_a_clock_of_steps_counts_parts_alone() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.begin()
    clock.end("batch")
    clock.stop()
    clock.begin()
    clock.end("network")
    assert 0 < clock.share("batch") < 1
    assert clock.share("batch") + clock.share("network") == pytest.approx(1)


def test_a_captured_run_on_a_gpu_has_the_losses_of_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    usual, found = SiameseSteps(task()), SiameseSteps(task("cuda"))
    with closing(found):
        for _ in range(8):
            assert float(found.train_step()) == pytest.approx(float(usual.train_step()), abs=1e-3)
    assert found.steps.captured > 0
