"""Pictures as an encoder meets them: a window on each, which may be turned, stretched and bent, seen at one size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Around a drawing, as a share of half its longer side, so that what is turned or moved a little stays inside.
MARGIN = 0.15
# Pixels: a drawing that is smaller than this, a dot say, is not blown up to fill the window.
SMALLEST = 30
# Of 255: what is fainter does not widen the window, be it noise or the soft edge of a stroke.
INKED = 64


@dataclass(frozen=True, eq=False)
class Framed:
    """Pictures and the square window on each that is looked at.

    pictures: (n, channels, h, w) uint8. window: (n, 3) float32, the window's centre, x then y, and half its side, in
    units in which the picture reaches from -1 to 1 both ways.
    """

    pictures: Tensor
    window: Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: Tensor | slice) -> Framed:
        return Framed(self.pictures[rows], self.window[rows])

    def to(self, device: torch.device) -> Framed:
        return Framed(self.pictures.to(device), self.window.to(device))


def frame_drawings(drawings: Tensor, side: int) -> Framed:
    """Drawings (n, h, w) uint8, ink on 0, each with a window that its ink fills, to be seen at `side` pixels.

    Where on the page a character is drawn, and how large, is its drawer's whim: taking it out before the network sees
    the drawing spares the network from learning to. Where few pixels will be seen, the drawings are kept at half their
    size, smoothed: of a fine line that is looked up at far places only, parts would be missed.
    """
    height, width = drawings.shape[1:]
    if height != width:
        # A square page, so that one unit is as long both ways; moved by an even number of pixels, as pixels are halved.
        across, down = max(height - width, 0), max(width - height, 0)
        left, top = across // 4 * 2, down // 4 * 2
        drawings = F.pad(drawings, (left, across - left, top, down - top))
        height = width = max(height, width)
    window = _ink_window(drawings)
    if 3 * side > 2 * max(height, width):
        return Framed(drawings[:, None], window)
    # Made even by a row or column of paper, which the window must then allow for.
    even = F.pad(drawings[:, None].float(), (0, width % 2, 0, height % 2))
    before, after = (torch.tensor([size[1], size[0]]) for size in ((height, width), even.shape[2:]))
    ratio = (before / after).to(drawings.device)
    centre = (window[:, :2] + 1) * ratio - 1
    half = window[:, 2:] * (max(height, width) / max(even.shape[2:]))
    return Framed(F.avg_pool2d(even, 2).round().to(torch.uint8), torch.cat([centre, half], 1))


def frame_whole(pictures: Tensor) -> Framed:
    """Pictures (n, channels, h, w) uint8, each to be seen whole."""
    return Framed(pictures, torch.tensor([0.0, 0.0, 1.0], device=pictures.device).expand(len(pictures), 3))


def render(framed: Framed, side: int, warp: Tensor | None = None, bend: Tensor | None = None) -> Tensor:
    """What the windows show, (n, channels, side, side) float32 from 0 to 1, beyond the picture 0.

    warp: (n, 2, 3), where a place of the result, -1 to 1, is looked up in its window. bend: (n, side, side, 2), what is
    added to that, in the same units.
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
    """(n, 3): the square around the ink of each, as in Framed; around the middle of the page where there is none."""
    height, width = drawings.shape[1:]
    ink = drawings >= INKED
    (left, right), (top, bottom) = _extent(ink.any(1)), _extent(ink.any(2))
    half = torch.maximum(right - left, bottom - top).clamp_min(SMALLEST) / 2 * (1 + MARGIN)
    return torch.stack([(left + right) / width - 1, (top + bottom) / height - 1, half * 2 / max(height, width)], 1)


def _extent(inked: Tensor) -> tuple[Tensor, Tensor]:
    """First inked place of (n, length) and the one after the last, both (n,) float32; 0 and length without ink."""
    length = inked.shape[1]
    first = inked.float().argmax(1)
    last = length - inked.flip(1).float().argmax(1)
    return first.float(), last.float()
