"""The square window of each picture that an encoder gets, and its rendering, warped and bent, at one size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.computing.device_stream import sent

# Margin around a drawing, as a share of half its longer side: a slightly turned or moved drawing stays inside.
MARGIN = 0.15
# Pixels. A smaller drawing, such as a dot, is not enlarged to fill the window.
SMALLEST = 30
# Grey level, of 255. Fainter pixels, such as noise or soft edges of strokes, do not widen the window.
INKED = 64


@dataclass(frozen=True, eq=False)
class FramedPictures:
    """Pictures, each with a square window.

    Attributes:
        pictures: Shape (n, channels, h, w), uint8.
        window: Shape (n, 3), float32: the window's centre x and y, and half its side. A picture reaches from -1 to 1.
    """

    pictures: Tensor
    window: Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: Tensor | slice) -> FramedPictures:
        return FramedPictures(self.pictures[rows], self.window[rows])

    def to(self, device: torch.device) -> FramedPictures:
        return FramedPictures(self.pictures.to(device), self.window.to(device))


def frame_drawings(drawings: Tensor, side: int) -> FramedPictures:
    """Drawings (n, h, w) uint8, ink on 0, each with the window that its ink fills.

    The window removes position and size, which do not identify a character. If `side`, the side of the rendered
    window in pixels, is small, the drawings are halved and smoothed first: sampling a fine line at distant points
    would miss parts of it.
    """
    height, width = drawings.shape[1:]
    if height != width:
        # Pad to a square page, so that units are equal in x and y; by an even number, since pixels may be halved.
        across, down = max(height - width, 0), max(width - height, 0)
        left, top = across // 4 * 2, down // 4 * 2
        drawings = F.pad(drawings, (left, across - left, top, down - top))
        height = width = max(height, width)
    window = _ink_window(drawings)
    if 3 * side > 2 * max(height, width):
        return FramedPictures(drawings[:, None], window)
    # A row and a column of paper make the size even; the window is scaled accordingly.
    even = F.pad(drawings[:, None].float(), (0, width % 2, 0, height % 2))
    before, after = (torch.tensor([size[1], size[0]]) for size in ((height, width), even.shape[2:]))
    ratio = sent(before / after, drawings.device)
    centre = (window[:, :2] + 1) * ratio - 1
    half = window[:, 2:] * (max(height, width) / max(even.shape[2:]))
    return FramedPictures(F.avg_pool2d(even, 2).round().to(torch.uint8), torch.cat([centre, half], 1))


def frame_whole(pictures: Tensor) -> FramedPictures:
    """Pictures (n, channels, h, w) uint8, each with a window on the whole."""
    return FramedPictures(pictures, sent(torch.tensor([0.0, 0.0, 1.0]), pictures.device).expand(len(pictures), 3))


def render(framed: FramedPictures, side: int, warp: Tensor | None = None, bend: Tensor | None = None) -> Tensor:
    """Render the windows.

    Args:
        framed: n pictures.
        side: Side of the result in pixels.
        warp: Shape (n, 2, 3): affine map from a point of the result, -1 to 1, to a point of the window.
        bend: Shape (n, side, side, 2): displacements added to those points, same unit.

    Returns:
        Shape (n, channels, side, side), float32, from 0 to 1; 0 beyond the picture.
    """
    centre, half = framed.window[:, :2], framed.window[:, 2, None, None]
    if warp is None:
        warp = torch.eye(2, 3, device=centre.device).expand(len(framed), 2, 3)
    placed = warp * half
    placed = torch.cat([placed[:, :, :2], placed[:, :, 2:] + centre[:, :, None]], 2)
    shape = (len(framed), 1, side, side)
    places = F.affine_grid(placed, list(shape), align_corners=False)
    if bend is not None:
        places = places + bend * half[..., None]
    return F.grid_sample(framed.pictures.float().div_(255), places, align_corners=False)


def _ink_window(drawings: Tensor) -> Tensor:
    """(n, 3): the square around the ink, as in FramedPictures; around the centre of the page without ink."""
    height, width = drawings.shape[1:]
    ink = drawings >= INKED
    (left, right), (top, bottom) = _extent(ink.any(1)), _extent(ink.any(2))
    half = torch.maximum(right - left, bottom - top).clamp_min(SMALLEST) / 2 * (1 + MARGIN)
    return torch.stack([(left + right) / width - 1, (top + bottom) / height - 1, half * 2 / max(height, width)], 1)


def _extent(inked: Tensor) -> tuple[Tensor, Tensor]:
    """The first position with ink of (n, length), and the one after the last, (n,) float32; 0 and length without."""
    length = inked.shape[1]
    first = inked.float().argmax(1)
    last = length - inked.flip(1).float().argmax(1)
    return first.float(), last.float()
