"""Specification of an encoder: its network, and how pictures become the network's input."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import timm
import torch
from msgspec import Meta
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import fewshot.embedding.networks  # noqa: F401  registers the encoders with timm
import finetune.models.conv4  # noqa: F401  registers Conv-4 with timm
from fewshot.embedding.augmentation import render_view
from fewshot.embedding.framing import frame_drawings, frame_whole
from fewshot.omniglot.dataset import SIDE
from finetune.config import MOST_SIDE
from finetune.data.images import Picture, read_image
from finetune.data.transforms import Preprocessing, View, evaluation_view
from finetune.errors import InputError

Ink = NDArray[np.bool_]

# Grey levels, of 255: a page whose lightest and darkest pixel differ by less is blank; the rest is noise.
BLANK_RANGE = 32
# A pixel is ink from this share of the way between paper and the strongest ink, soft edges included.
INK_FROM = 0.4
# Stroke widths on a page of 105 x 105, in pixels. Omniglot's strokes are about USUAL wide; wider ones than WIDEST are
# thinned to USUAL.
WIDEST, USUAL = 6, 3


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder without its weights.

    Attributes:
        network: Name of a timm model.
        side: Side of the network's square input, in pixels.
        framing: "drawing": one channel, light ink on 0, cut to the window that the ink fills. "whole": the whole
            picture, squeezed into a square, three channels. "crop": the centre crop that `preprocessing` describes.
        preprocessing: For "crop" alone.
    """

    network: str
    side: Annotated[int, Meta(ge=1, le=MOST_SIDE)]
    framing: Literal["drawing", "whole", "crop"]
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        if (self.framing == "crop") != (self.preprocessing is not None):
            raise ValueError("preprocessing: it belongs to the framing 'crop', and to no other")

    @property
    def channels(self) -> int:
        return 1 if self.framing == "drawing" else 3

    @property
    def decoded_side(self) -> int:
        """Pixels on the shorter side that a picture is decoded at, at least."""
        if self.framing == "drawing":
            return SIDE
        return 2 * self.side if self.framing == "whole" else self._crop.shortest_side

    def view(self) -> View:
        """The function from one picture to uint8 pixels."""
        if self.framing == "drawing":
            return View(drawing_of)
        return View(partial(_squeezed, 2 * self.side)) if self.framing == "whole" else evaluation_view(self._crop)

    def network_input(self, pixels: Tensor, view: int = 0) -> Tensor:
        """Pixels (n, ...) uint8, as `view()` makes them, to the network's input.

        view: 0 for the pictures as they are, 1 and up for slightly distorted ones.
        """
        if self.framing == "crop":
            return pixels
        framed = frame_drawings(pixels, self.side) if self.framing == "drawing" else frame_whole(pixels)
        return render_view(framed, self.side, view)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def _crop(self) -> Preprocessing:
        assert self.preprocessing is not None, "framing 'crop' needs a preprocessing"
        return self.preprocessing


# --- networks ---------------------------------------------------------------------------------------------------------


def create(spec: EncoderSpec) -> nn.Module:
    """The network of `spec` with random weights. InputError for a name that timm does not know."""
    if not timm.is_model(spec.network):  # timm would take a folder or a repository of the hub
        raise InputError(f"timm knows no network {spec.network!r}")
    try:
        return timm.create_model(spec.network, pretrained=False, num_classes=0, in_chans=spec.channels)
    except RuntimeError as error:
        raise InputError(f"timm knows no network {spec.network!r}") from error
    # Models raise different errors for a number of channels that they do not take.
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(f"{spec.network} takes no pictures of {spec.channels} channels") from error


def embedding_width(network: nn.Module, spec: EncoderSpec) -> int:
    """Length of the network's vectors. InputError if the network does not take pictures of `spec.side`."""
    blank = torch.zeros(1, spec.channels, spec.side, spec.side, device=next(network.parameters()).device)
    try:
        with torch.inference_mode():
            return int(network.eval()(blank).shape[1])
    # timm's networks raise different errors for an unsuitable size.
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"--side {spec.side}: {spec.network} takes no pictures of this size") from error


def round_to_half(network: nn.Module) -> None:
    """Round matrices and filters to half precision, in place, so that the saved weights are the measured ones."""
    network.load_state_dict({name: to_half(tensor).to(tensor.dtype) for name, tensor in network.state_dict().items()})


def to_half(tensor: Tensor) -> Tensor:
    """A matrix or filter in half precision. Vectors stay: they are few, and variances can be too small for it."""
    return tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor


# --- pictures ---------------------------------------------------------------------------------------------------------


def read_square(picture: Picture, side: int) -> Tensor:
    """The whole picture squeezed into a square, (3, 2 side, 2 side) uint8.

    It is twice as large as the network's input, so that a part can be enlarged. UnreadablePicture if it cannot be read.
    """
    return _squeezed(2 * side, read_image(picture, at_least=2 * side))


def drawing_of(image: Image.Image) -> Tensor:
    """A picture of a drawing as (105, 105) uint8, ink 255 on 0, with strokes of the usual width.

    The median of the rim is the paper, light or dark. Ink is what differs from it clearly.
    """
    grey = image.convert("L")
    scale = SIDE / max(grey.size)
    width, height = (max(1, round(length * scale)) for length in grey.size)
    small = np.asarray(grey.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))
    page = np.zeros((SIDE, SIDE), np.uint8)
    lightest, darkest = int(small.max()), int(small.min())
    if lightest - darkest >= BLANK_RANGE:
        rim = np.median(np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]))
        light_paper = rim > (lightest + darkest) / 2
        departure = lightest - small.astype(int) if light_paper else small.astype(int) - darkest
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        ink = departure > INK_FROM * (lightest - darkest)
        page[top : top + height, left : left + width] = normalize_strokes(ink) * np.uint8(255)
    return torch.from_numpy(page)


def _squeezed(side: int, image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BILINEAR))).permute(2, 0, 1)


# --- strokes ----------------------------------------------------------------------------------------------------------


def normalize_strokes(ink: Ink) -> Ink:
    """Ink (h, w); strokes wider than WIDEST become USUAL wide around their middle lines."""
    if stroke_width(ink) <= WIDEST:
        return ink
    return _dilated(skeleton(ink), USUAL // 2)


def stroke_width(ink: Ink) -> float:
    """Mean width of the strokes in pixels; 0 without ink. A piece of stroke has two rims, however wide it is."""
    inner = _neighbours(ink)
    rim = ink & ~(inner[0] & inner[2] & inner[4] & inner[6])
    return 2 * float(ink.sum()) / max(1, int(rim.sum()))


def skeleton(ink: Ink) -> Ink:
    """The middle lines of strokes, one pixel wide and connected as the strokes are.

    Source: Zhang & Suen (1984), "A fast parallel algorithm for thinning digital patterns".
    """
    now = ink.copy()
    while True:
        before = int(now.sum())
        for first, second in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            around = _neighbours(now)
            inked = sum(side.astype(np.int8) for side in around)
            # Number of changes from paper to ink around the pixel: one at an end or on a rim.
            changes = sum((~around[i] & around[(i + 1) % 8]).astype(np.int8) for i in range(8))
            open_sides = ~np.logical_and.reduce([around[i] for i in first]) & ~np.logical_and.reduce(
                [around[i] for i in second]
            )
            now = now & ~((inked >= 2) & (inked <= 6) & (changes == 1) & open_sides)
        if int(now.sum()) == before:
            return now


def _neighbours(ink: Ink) -> list[Ink]:
    """The eight neighbours of every pixel, clockwise from the one above; paper beyond the page."""
    padded, (height, width) = np.pad(ink, 1), ink.shape
    steps = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    return [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in steps]


def _dilated(ink: Ink, radius: int) -> Ink:
    """Ink within `radius` pixels of ink, diagonals included."""
    for _ in range(radius):
        ink = np.logical_or.reduce([ink, *_neighbours(ink)])
    return ink
