"""Random distortions of batches of pictures, on the device of the pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.embedding.distortions import VIEWS, Distortion
from fewshot.embedding.framing import FramedPictures, render
from finetune.computing.device_stream import sent

_BEND_POINTS = 4  # displacements are drawn at 4 x 4 points and interpolated


@dataclass(frozen=True, eq=False)
class Changes:
    """The drawn changes of n pictures. Those that a distortion does not have are empty.

    Attributes:
        warp: Shape (n, 2, 3): symmetry, turn, shear, scale and shift of each picture, as for `render`.
        bend: Shape (n, 2, 4, 4): displacements at 4 x 4 points, in x and y.
        stroke: Shape (n,), from -1 to 1: thinner or thicker strokes.
        light: Shape (n, 3, channels): contrast and brightness, and contrast of each channel.
    """

    warp: Tensor
    bend: Tensor
    stroke: Tensor
    light: Tensor

    def __getitem__(self, part: slice) -> Changes:
        return Changes(**{name: tensor[part] for name, tensor in vars(self).items()})


def distort(
    framed: FramedPictures, symmetry: Tensor, distortion: Distortion, side: int, generator: torch.Generator
) -> Tensor:
    """Apply a symmetry and a random distortion to every picture.

    Args:
        framed: n pictures.
        symmetry: Shape (n,), int64, 0 to 7: quarter turns counter-clockwise, then those of the mirror image.
        distortion: Bounds of the random distortion.
        side: Side of the result in pixels.
        generator: On the CPU, so that a seed gives the same distortions on every device.

    Returns:
        Shape (n, channels, side, side), float32, from 0 to 1.
    """
    return changed(framed, draw_changes(symmetry, distortion, framed.pictures.shape[1], generator), side)


def draw_changes(symmetry: Tensor, distortion: Distortion, channels: int, generator: torch.Generator) -> Changes:
    """The random numbers of `distort`, on the CPU. channels: of the pictures; the others are those of `distort`."""
    n = len(symmetry)
    warp = _symmetries()[symmetry.cpu()] @ _linear(n, distortion, generator)
    shift = _drawn(n, -distortion.shift, distortion.shift, distortion.present, generator, width=2)
    bend = stroke = light = torch.empty(0)
    if distortion.elastic:
        points = torch.randn(n, 2, _BEND_POINTS, _BEND_POINTS, generator=generator)
        bend = points * distortion.elastic * torch.rand(n, 1, 1, 1, generator=generator)
    if distortion.stroke:
        stroke = distortion.stroke * torch.rand(n, generator=generator).mul(2).sub(1)
    if distortion.light:
        light = distortion.light * torch.rand(3, n, channels, generator=generator).mul(2).sub(1).transpose(0, 1)
    return Changes(torch.cat([warp, shift[:, :, None]], 2), bend, stroke, light)


def changed(framed: FramedPictures, changes: Changes, side: int) -> Tensor:
    """The pictures with their changes, (n, channels, side, side) float32 from 0 to 1, on the device of the pictures."""
    device = framed.pictures.device
    bend = _displacements(sent(changes.bend, device), side) if len(changes.bend) else None
    pictures = render(framed, side, sent(changes.warp, device), bend)
    if len(changes.stroke):
        pictures = _stroked(pictures, changes.stroke)
    if len(changes.light):
        pictures = _lit(pictures, changes.light.transpose(0, 1))
    return pictures


def render_view(framed: FramedPictures, side: int, view: int) -> Tensor:
    """The pictures themselves for view 0; for others, slightly turned, stretched and moved, always in the same way.

    Returns:
        Shape (n, channels, side, side), float32, from 0 to 1.
    """
    if view == 0:
        return render(framed, side)
    generator = torch.Generator().manual_seed(view)
    linear = _linear(1, VIEWS, generator)
    shift = _drawn(1, -VIEWS.shift, VIEWS.shift, VIEWS.present, generator, width=2)
    warp = torch.cat([linear, shift[:, :, None]], 2).expand(len(framed), -1, -1)
    return render(framed, side, sent(warp, framed.pictures.device))


def _symmetries() -> Tensor:
    """(8, 2, 2): the linear map of each symmetry."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turns = [torch.linalg.matrix_power(quarter, times) for times in range(4)]
    mirror = torch.diag(torch.tensor([-1.0, 1.0]))
    return torch.stack([*turns, *(mirror @ turn for turn in turns)])


def _linear(n: int, distortion: Distortion, generator: torch.Generator) -> Tensor:
    """(n, 2, 2): product of a random rotation, shear and scaling."""
    present = distortion.present
    angle = _drawn(n, -distortion.rotation, distortion.rotation, present, generator)[:, 0] * math.pi / 180
    shear = _drawn(n, -distortion.shear, distortion.shear, present, generator, width=2)
    common, apart = (torch.tensor(bounds).log() for bounds in (distortion.scale, distortion.stretch))
    scale = _drawn(n, float(common[0]), float(common[1]), present, generator)
    scales = (scale + _drawn(n, float(apart[0]), float(apart[1]), present, generator, width=2)).exp()
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    sheared = torch.eye(2).repeat(n, 1, 1)
    sheared[:, 0, 1], sheared[:, 1, 0] = shear[:, 0], shear[:, 1]
    return rotation @ sheared * scales[:, None, :]


def _drawn(n: int, low: float, high: float, present: float, generator: torch.Generator, width: int = 1) -> Tensor:
    """(n, width): uniform between low and high with probability `present`, else 0."""
    values = torch.rand(n, width, generator=generator) * (high - low) + low
    return torch.where(torch.rand(n, width, generator=generator) < present, values, 0)


def _displacements(points: Tensor, side: int) -> Tensor:
    """(n, side, side, 2): smooth displacements, as in Simard et al. (2003), from those at points (n, 2, 4, 4)."""
    return F.interpolate(points, (side, side), mode="bilinear", align_corners=True).permute(0, 2, 3, 1)


def _stroked(pictures: Tensor, width: Tensor) -> Tensor:
    """Light strokes on 0, thicker where `width` (n,), from -1 to 1, is positive and thinner where it is negative."""
    width = sent(width, pictures.device)[:, None, None, None]
    # The middle third of widths changes nothing, so that most strokes stay as drawn.
    thicker, thinner = (width * 1.5 - 0.5).clamp_min(0) * 0.8, (-width * 1.5 - 0.5).clamp_min(0) * 0.35
    spread = F.max_pool2d(pictures, 3, 1, 1)
    return ((pictures + (spread - pictures) * thicker - thinner) / (1 - thinner)).clamp_min(0)


def _lit(pictures: Tensor, change: Tensor) -> Tensor:
    """Change contrast and brightness, slightly different for each channel.

    change: Shape (3, n, channels): contrast and brightness of all channels, the first of which counts, and contrast of
    each channel.
    """
    contrast, brightness, own_contrast = sent(change, pictures.device).unbind()
    gain, offset = 1 + contrast[:, :1] + own_contrast / 4, brightness[:, :1] / 2
    middle = pictures.mean((1, 2, 3), keepdim=True)
    return ((pictures - middle) * gain[..., None, None] + middle + offset[..., None, None]).clamp(0, 1)
