"""Faster ways to run a network, compared with plain float32."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
import timm
import torch
import torch.nn.functional as F
from told import NothingSaid, Told
from torch import Tensor, nn

from finetune.data.loader import Pictures
from finetune.data.transforms import Normalized, evaluation_view
from finetune.errors import InputError
from finetune.features.acceleration import (
    TOLERANCE,
    WORTH_CONVERTING,
    AcceleratedModel,
    Acceleration,
    Examples,
    accelerated,
    in_full_batches,
)
from finetune.models.backbone import Backbone
from finetune.models.device import _cpu_has_bfloat16, open_engine
from finetune.progress import Display

pytestmark = pytest.mark.slow

BATCH = 4
MANY = 10_000
BFLOAT16 = _cpu_has_bfloat16()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Converters have been known to report home."""
    attempts = []

    def refuse(*where: object) -> NoReturn:
        attempts.append(where)
        raise OSError("nothing here may reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not attempts


def of_timm(name: str, **options: int) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options).eval()  # type: ignore[no-any-return]


def pictures(count: int, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def plainly(network: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return network(batch)  # type: ignore[no-any-return]


def chosen_for(
    network: nn.Module,
    example: Tensor,
    *,
    batch_size: int = BATCH,
    pictures: int = MANY,
    tolerance: float = TOLERANCE,
    display: Display | None = None,
) -> Acceleration:
    return accelerated(
        network,
        example,
        device=example.device,
        batch_size=batch_size,
        pictures=pictures,
        tolerance=tolerance,
        display=display or NothingSaid(),
    )


# --- exactly ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"pictures": WORTH_CONVERTING - 1}, {"tolerance": 1.0}], ids=["few pictures", "tolerance 1"]
)
def test_a_network_that_is_not_converted_keeps_its_outputs_bit_for_bit(options: dict[str, float]) -> None:
    network, batch = of_timm("fewtune_conv4"), pictures(BATCH)
    chosen = chosen_for(network, batch, **options)  # type: ignore[arg-type]
    assert chosen.name == "plain float32"
    assert torch.equal(chosen.run(batch), plainly(network, batch))
    assert torch.equal(chosen.run(batch[:1]), plainly(network, batch[:1]))


@pytest.mark.parametrize(
    ("count", "precision"), [(WORTH_CONVERTING - 1, "auto"), (MANY, "float32"), (MANY, "bfloat16")]
)
def test_examples_are_read_only_where_faster_ways_are_checked(count: int, precision: str, backbone: Backbone) -> None:
    absent = Pictures([Path("absent.png")], evaluation_view(backbone.preprocessing), 32, 1000)
    network, examples = Normalized(backbone, backbone.preprocessing).eval(), Examples(absent, [0], ["0" * 64])
    fabric = open_engine("cpu", "float32")
    AcceleratedModel(fabric, network, examples, pictures=count, precision=precision, display=NothingSaid()).prepare()
    checked = AcceleratedModel(fabric, network, examples, pictures=MANY, precision="auto", display=NothingSaid())
    with pytest.raises(InputError, match="absent"):
        checked.prepare()


def test_a_small_network_is_worth_converting_for_more_pictures_only(backbone: Backbone) -> None:
    network, fabric = Normalized(backbone, backbone.preprocessing).eval(), open_engine("cpu", "float32")
    examples = Examples(Pictures([], evaluation_view(backbone.preprocessing), 32, 1000), [], [])
    few, many = (
        AcceleratedModel(fabric, network, examples, pictures=count, precision="auto", display=NothingSaid())
        for count in (WORTH_CONVERTING, MANY)
    )
    assert not few.checked
    assert many.checked


def test_a_choice_made_for_few_pictures_is_not_reusable() -> None:
    network, batch = of_timm("fewtune_conv4"), pictures(BATCH)
    assert not chosen_for(network, batch, pictures=WORTH_CONVERTING - 1).reusable
    assert not chosen_for(network, batch[:0]).reusable
    assert chosen_for(network, batch, tolerance=1).reusable


# --- converted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("fewtune_conv4", {}, 32),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}, 32),
        ("test_efficientnet", {}, 64),
    ],
)
def test_a_converted_network_keeps_the_tolerance_for_every_batch_size_and_in_threads(
    name: str, options: dict[str, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.features.acceleration._AT_ONCE", 3 * 3 * 64 * 64)  # less than a batch of 64 pixels
    network = of_timm(name, **options)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    # One picture to check it by, as when others of the first batch cannot be read; larger batches come.
    chosen = chosen_for(network, pictures(1, side))
    assert chosen.name.startswith("OpenVINO")
    batches = [pictures(size, side, seed=size) for size in range(1, BATCH + 1)] * 3
    with ThreadPoolExecutor(3) as pool:
        threaded = list(pool.map(chosen.run, batches))
    for batch, found in zip(batches, threaded, strict=True):
        wanted = plainly(network, batch)
        assert found.dtype == torch.float32
        assert found.shape == wanted.shape
        assert F.cosine_similarity(found, wanted).min() >= TOLERANCE
        torch.testing.assert_close(chosen.run(batch), found, rtol=1e-5, atol=1e-6)
    # Outputs are the caller's own: later batches did not write over them.
    assert not torch.equal(threaded[0], threaded[1][:1])
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_in_batches_of_one_size_an_output_does_not_depend_on_the_others() -> None:
    network, given = of_timm("fewtune_conv4"), pictures(11)
    run = in_full_batches(lambda batch: plainly(network, batch), 4)
    together = run(given)
    assert torch.equal(together[6:7], run(given[6:7]))
    assert torch.equal(together[5:10], run(given[5:10]))
    torch.testing.assert_close(together, plainly(network, given))


def test_a_batch_of_few_pictures_runs_in_plain_pytorch() -> None:
    network = of_timm("fewtune_conv4")
    chosen = chosen_for(network, pictures(1), batch_size=8)
    assert chosen.name.startswith("OpenVINO"), "one picture to check it by was seen in the way that was checked"
    assert chosen.closeness < 1
    for few in (1, 2):
        assert torch.equal(chosen.run(pictures(few)), plainly(network, pictures(few)))
    assert not torch.equal(chosen.run(pictures(3)), plainly(network, pictures(3)))


# --- where it cannot be -----------------------------------------------------------------------------------------------


class Cancelling(nn.Module):
    """The difference of two ways to one sum, magnified: all that is left of it is how finely they were computed."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.one = nn.Conv2d(3, 16, 3, padding=1, bias=False).requires_grad_(False)
        self.one.weight.copy_(torch.rand(self.one.weight.shape, generator=generator))
        self.other = nn.Conv2d(3, 16, 3, padding=1, bias=False).requires_grad_(False)
        # bfloat16 keeps 8 bits of a weight, and most of what distinguishes the two lies below them.
        self.other.weight.copy_(self.one.weight * (1 + 2e-3 * torch.rand(self.one.weight.shape, generator=generator)))

    def forward(self, batch: Tensor) -> Tensor:
        return (self.one(batch) - self.other(batch)).mean((2, 3))  # type: ignore[no-any-return]


class Chaotic(nn.Module):
    """Thousands of times the least error: nothing but the very same arithmetic gives the same."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3 * 32 * 32, 32).requires_grad_(False)

    def forward(self, batch: Tensor) -> Tensor:
        return torch.sin(self.mix(batch.flatten(1)) * 1e9)


class Counting(nn.Module):
    """As many steps as the pictures' values say: nothing that could be written down beforehand."""

    def forward(self, batch: Tensor) -> Tensor:
        found = batch.mean((2, 3))
        for _ in range(int(batch.sum().item()) % 5 + 1):
            found = found + found.sin()
        return found


class Infinite(nn.Module):
    def forward(self, batch: Tensor) -> Tensor:
        return batch.mean((2, 3)) / 0


@pytest.mark.skipif(not BFLOAT16, reason="the processor does not compute in bfloat16")
def test_float32_is_taken_where_bfloat16_alone_is_too_coarse() -> None:
    network, batch = Cancelling().eval(), pictures(BATCH)
    chosen = chosen_for(network, batch)
    assert chosen.name == "OpenVINO f32"
    assert F.cosine_similarity(chosen.run(batch), plainly(network, batch)).min() >= TOLERANCE
    assert chosen_for(network, batch, tolerance=0.01).name == "OpenVINO bf16"


def test_a_network_that_no_faster_way_reproduces_runs_in_plain_pytorch() -> None:
    torch.manual_seed(0)
    network, batch = Chaotic().eval(), pictures(BATCH)
    chosen = chosen_for(network, batch)
    assert chosen.name == "plain float32"
    assert chosen.reusable
    assert torch.equal(chosen.run(batch), plainly(network, batch))


def test_a_network_with_infinite_outputs_runs_in_plain_pytorch() -> None:
    network, batch = Infinite().eval(), pictures(BATCH)
    chosen = chosen_for(network, batch)
    assert chosen.name == "plain float32"
    assert torch.equal(chosen.run(batch), plainly(network, batch))


def test_a_network_that_cannot_be_converted_runs_in_plain_pytorch_and_one_line_says_so() -> None:
    network, batch, said = Counting().eval(), pictures(BATCH), Told()
    chosen = chosen_for(network, batch, display=said)
    assert chosen.name == "plain float32"
    assert torch.equal(chosen.run(batch), plainly(network, batch))
    assert len(said.lines) == 1
    assert said.lines[0].startswith("The network runs in plain PyTorch, more slowly: it cannot be converted (")
    assert "\n" not in said.lines[0]


class WindowedAttention(nn.Module):
    """Attention in 5 dimensions, as in timm's hiera."""

    def forward(self, tokens: Tensor) -> Tensor:
        windows = tokens.unflatten(1, (1, 2, -1))
        return F.scaled_dot_product_attention(windows, windows, windows).flatten(1)


@pytest.mark.parametrize("traced", [False, True])
def test_attention_in_five_dimensions_is_converted(traced: bool) -> None:
    network, tokens, said = WindowedAttention().eval(), torch.randn(BATCH, 8, 4), Told()
    module = torch.fx.symbolic_trace(network) if traced else network
    chosen = chosen_for(module, tokens, display=said)
    assert chosen.name.startswith("OpenVINO"), said.lines
    assert torch.cosine_similarity(chosen.run(tokens), plainly(network, tokens)).min() > TOLERANCE
