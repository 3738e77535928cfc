"""What an encoder is but for its weights: its network, and how pictures become what the network sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import fewshot.embedding.networks  # noqa: F401  registers the encoders with timm
import finetune.models.conv4  # noqa: F401  so does this
from fewshot.embedding.augmentation import view
from fewshot.embedding.framing import frame_drawings, frame_whole
from fewshot.omniglot.dataset import SIDE
from finetune.data.images import Picture, read_image
from finetune.data.transforms import Preprocessing, View, evaluation_view
from finetune.errors import InputError

# Of 255 levels: a page whose darkest and lightest are nearer is blank, but for noise.
FAINTEST = 32
# Share of the way from paper to the strongest ink from where on it is ink, its soft edges too.
INK_FROM = 0.4


Ink = NDArray[np.bool_]

# Pixels on a page of 105 x 105: Omniglot's strokes are some 3 wide, and those up to this are left as they are.
WIDEST, USUAL = 6, 3


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is, but for its weights: a timm name, and how it must be shown pictures.

    framing: "drawing", one channel, ink light on 0, in the window that the ink fills; "whole", the picture squeezed
    into a square, three channels; or "crop", the middle of the picture, as `preprocessing`, for this one alone, says.
    side: of the square that the network sees, in pixels.
    """

    network: str
    side: int
    framing: Literal["drawing", "whole", "crop"]
    preprocessing: Preprocessing | None = None

    @property
    def channels(self) -> int:
        return 1 if self.framing == "drawing" else 3

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Sight:
    """How pictures become what a network sees.

    view: one picture, read at `at_least` pixels or more, to uint8. shown: such of n pictures (n, ...), and the number
    of a view of them, 0 being the pictures as they are, to what the network is given.
    """

    view: View
    at_least: int
    shown: Callable[[Tensor, int], Tensor]


def sight_of(spec: EncoderSpec) -> Sight:
    """How `spec` says that pictures are shown."""
    if spec.framing == "drawing":
        return Sight(View(drawing_of), SIDE, partial(_drawings_shown, spec.side))
    if spec.framing == "whole":
        return Sight(View(partial(_squeezed, 2 * spec.side)), 2 * spec.side, partial(_whole_shown, spec.side))
    assert spec.preprocessing is not None, "a crop is made as a preprocessing says"
    return Sight(evaluation_view(spec.preprocessing), spec.preprocessing.shortest_side, _as_it_is)


def create(spec: EncoderSpec) -> nn.Module:
    """The network of `spec` with random weights. InputError for a name that timm does not know."""
    try:
        return timm.create_model(spec.network, pretrained=False, num_classes=0, in_chans=spec.channels)
    except RuntimeError as error:
        raise InputError(f"timm knows no network {spec.network!r}") from error


def width_of(network: nn.Module, spec: EncoderSpec) -> int:
    """Numbers that the network gives for a picture. InputError where it takes no pictures of the side."""
    blank = torch.zeros(1, spec.channels, spec.side, spec.side, device=next(network.parameters()).device)
    try:
        with torch.inference_mode():
            return int(network.eval()(blank).shape[1])
    # Each network refuses a size that does not suit it in its own way.
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"--side {spec.side}: {spec.network} takes no pictures of this size") from error


def rounded(network: nn.Module) -> None:
    """Matrices and filters to numbers that half precision holds, in place: what is measured is then what is kept."""
    network.load_state_dict({name: halved(tensor).to(tensor.dtype) for name, tensor in network.state_dict().items()})


def halved(tensor: Tensor) -> Tensor:
    """Norms, biases and statistics stay as they are: they are few, and variances can be too small for it."""
    return tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor


def read_square(picture: Picture, side: int) -> Tensor:
    """(3, 2 side, 2 side) uint8: the whole picture, squeezed; at twice the side so that a part can be shown enlarged.

    UnreadablePicture where it cannot be read.
    """
    return _squeezed(2 * side, read_image(picture, at_least=2 * side))


def drawing_of(image: Image.Image) -> Tensor:
    """(105, 105) uint8, ink 255 on 0, with strokes of the usual width: all that was trained on is fine ink or paper.

    What most of the rim shows is paper, be it light or dark; ink is what is clearly otherwise.
    """
    grey = image.convert("L")
    scale = SIDE / max(grey.size)
    width, height = (max(1, round(length * scale)) for length in grey.size)
    small = np.asarray(grey.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))
    page = np.zeros((SIDE, SIDE), np.uint8)
    lightest, darkest = int(small.max()), int(small.min())
    if lightest - darkest >= FAINTEST:
        rim = np.median(np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]))
        light_paper = rim > (lightest + darkest) / 2
        departure = lightest - small.astype(int) if light_paper else small.astype(int) - darkest
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        ink = departure > INK_FROM * (lightest - darkest)
        page[top : top + height, left : left + width] = usual_width(ink) * np.uint8(255)
    return torch.from_numpy(page)


def _squeezed(side: int, image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BILINEAR))).permute(2, 0, 1)


def _drawings_shown(side: int, drawings: Tensor, number: int) -> Tensor:
    return view(frame_drawings(drawings, side), side, number)


def _whole_shown(side: int, pictures: Tensor, number: int) -> Tensor:
    return view(frame_whole(pictures), side, number)


def _as_it_is(pictures: Tensor, number: int) -> Tensor:
    return pictures


def usual_width(ink: Ink) -> Ink:
    """(h, w), True for ink, with strokes that are wider than WIDEST made USUAL wide around their middle lines."""
    if stroke_width(ink) <= WIDEST:
        return ink
    return _spread(thinned(ink), USUAL // 2)


def stroke_width(ink: Ink) -> float:
    """Mean width of the strokes, in pixels: a piece of stroke has two rims, however wide it is; 0 without ink."""
    inner = _shifted(ink)
    rim = ink & ~(inner[0] & inner[2] & inner[4] & inner[6])
    return 2 * float(ink.sum()) / max(1, int(rim.sum()))


def thinned(ink: Ink) -> Ink:
    """The middle lines of strokes, one pixel wide, connected as the strokes are (Zhang & Suen 1984)."""
    now = ink.copy()
    while True:
        before = int(now.sum())
        for first, second in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            around = _shifted(now)
            inked = sum(side.astype(np.int8) for side in around)
            # From paper to ink on the way around: once where the pixel is at an end or on a rim.
            changes = sum((~around[i] & around[(i + 1) % 8]).astype(np.int8) for i in range(8))
            open_sides = ~np.logical_and.reduce([around[i] for i in first]) & ~np.logical_and.reduce(
                [around[i] for i in second]
            )
            now = now & ~((inked >= 2) & (inked <= 6) & (changes == 1) & open_sides)
        if int(now.sum()) == before:
            return now


def _shifted(ink: Ink) -> list[Ink]:
    """What is above each pixel, above to the right, and so on clockwise; paper beyond the page."""
    padded, (height, width) = np.pad(ink, 1), ink.shape
    steps = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    return [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in steps]


def _spread(ink: Ink, radius: int) -> Ink:
    """Ink where any is at most `radius` pixels away, diagonals included."""
    for _ in range(radius):
        ink = np.logical_or.reduce([ink, *_shifted(ink)])
    return ink
