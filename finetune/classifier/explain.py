"""Heat maps of which parts of a picture raise the score of a class: Grad-CAM at the last feature map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from finetune.classifier.classifier import Classifier
from finetune.classifier.temperature import calibrated
from finetune.data.images import Picture
from finetune.data.loader import Pictures
from finetune.data.transforms import evaluation_view
from finetune.errors import InputError, UnreadablePicture
from finetune.extras import check_extra
from finetune.models.backbone import Backbone

# matplotlib's "inferno" at 17 equal steps of heat: perceptually uniform, and readable by its lightness alone.
_INFERNO = """
000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d04545 e35933 f1711f f98c0a fcaa0f f9c932 f2e865 fcffa4
"""
_CHANNELS = np.frombuffer(bytes.fromhex(_INFERNO), dtype=np.uint8).reshape(-1, 3).T / 255
# Opacity of the colour where the heat is 1; exponent of the heat by which it fades in.
STRONGEST, FADE = 0.75, 0.7

# Pictures in each pass.
BATCH = 16

HEAT_MAPS = "a heat map"  # what needs the extra `explain`


@dataclass(frozen=True)
class HeatMap:
    """How much each place of a picture raises the score of a class.

    Attributes:
        picture: The view that the network saw, RGB, (size, size).
        heat: Shape (size, size), float32 in [0, 1]; 0 everywhere where no place raises the score.
        label: The class.
        probability: Of the class, in [0, 1].

    Example:
        >>> from finetune import heat_maps, load
        >>> (found,) = heat_maps(load("runs/photos", device="cpu"), ["new.png"], ["dog"])
        >>> found.overlay().size
        (35, 35)
    """

    picture: Image.Image
    heat: NDArray[np.float32]
    label: str
    probability: float

    def overlay(self) -> Image.Image:
        """The picture in dimmed grey, coloured by heat."""
        steps = np.linspace(0, 1, _CHANNELS.shape[1])
        colours = np.stack([np.interp(self.heat, steps, channel) for channel in _CHANNELS], axis=-1)
        share = (STRONGEST * self.heat**FADE)[..., None]
        # Grey, because a colour of the picture would look like heat.
        grey = np.asarray(self.picture.convert("L"), dtype=np.float32)[..., None] / 255
        mixed = 0.8 * grey * (1 - share) + colours * share
        return Image.fromarray((mixed * 255).round().astype(np.uint8))


def heat_maps(
    classifier: Classifier, pictures: Sequence[Picture], labels: Sequence[str] | None = None
) -> list[HeatMap | UnreadablePicture]:
    """Compute Grad-CAM at the last feature map of the backbone, on the centre crop of each picture.

    Args:
        classifier: With a convolutional backbone.
        pictures: Paths, bytes, arrays or PIL images.
        labels: The class to explain, one for each picture; by default the predicted one.

    Returns:
        A heat map for each picture, in order, or the error that says why it cannot be read.

    Raises:
        InputError: If the extra `explain` is not installed, for a backbone without such a map, and for a label that the
            classifier does not know.

    Example:
        >>> from finetune import heat_maps, load
        >>> (found,) = heat_maps(load("runs/photos", device="cpu"), ["new.png"])
        >>> found.label, found.heat.shape
        ('cat', (35, 35))

    Source: Selvaraju et al. (2017), section 3.
    """
    check_extra("explain", HEAT_MAPS)
    known = {name: position for position, name in enumerate(classifier.classes)}
    for label in labels or ():
        if label not in known:
            raise InputError(f"{label!r} is no class of this classifier; it knows {', '.join(classifier.classes)}")
    if labels is not None and len(labels) != len(pictures):
        raise InputError(f"{len(labels)} labels are given for {len(pictures)} pictures; give one for each")
    wanted = None if labels is None else [known[label] for label in labels]
    layer = last_feature_map(classifier.network.backbone)
    view = evaluation_view(classifier.preprocessing)
    seen = Pictures(pictures, view, classifier.preprocessing.shortest_side, classifier.config.max_pixels)
    answers: list[HeatMap | UnreadablePicture] = []
    for start in range(0, len(pictures), BATCH):
        answers += _batch(classifier, layer, seen, range(start, min(start + BATCH, len(pictures))), wanted)
    return answers


def overlays(classifier: Classifier, paths: Sequence[Path]) -> dict[Path, Image.Image]:
    """Overlays by path, without pictures that cannot be read; none at all for a backbone without feature maps."""
    try:
        found = heat_maps(classifier, paths)
    except InputError:
        return {}
    return {path: one.overlay() for path, one in zip(paths, found, strict=True) if isinstance(one, HeatMap)}


def last_feature_map(backbone: Backbone) -> nn.Module:
    """The last module whose output has places. InputError where it is no map (n, width, h, w), as in transformers."""
    found: tuple[nn.Module, bool] | None = None

    def look(module: nn.Module, arguments: object, output: object) -> None:
        nonlocal found
        if isinstance(output, Tensor) and _tells_places(output):
            found = module, output.ndim == 4 and output.shape[2] == output.shape[3] > 1

    hooks = [module.register_forward_hook(look) for module in backbone.model.modules()]
    size = backbone.preprocessing.size
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, 3, size, size, device=next(backbone.parameters()).device))
    finally:
        backbone.train(was_training)
        for hook in hooks:
            hook.remove()
    if found is None or not found[1]:
        raise InputError(f"{backbone.name} ends in no feature map, which a heat map needs; convolutional backbones do")
    return found[0]


def _tells_places(output: Tensor) -> bool:
    """Whether `output` is (n, width, h, w), (n, h, w, width) or (n, tokens, width), with more than one place."""
    if output.ndim == 4:
        return output.shape[2] > 1
    return output.ndim == 3 and output.shape[1] > 1


def _batch(
    classifier: Classifier, layer: nn.Module, pictures: Pictures, positions: range, labels: list[int] | None
) -> list[HeatMap | UnreadablePicture]:
    from captum.attr import LayerGradCam  # here, because it takes a second to import

    batch = pictures.batch(positions)
    found: dict[int, HeatMap] = {}
    if len(batch.index):
        inputs = classifier.preprocessing.normalize(batch.pixels.to(classifier.fabric.device))
        network = classifier.network.eval()
        asked = None if labels is None else torch.tensor([labels[index] for index in batch.index.tolist()])
        targets, shares = torch.empty(0), torch.empty(0)

        def forward(pixels: Tensor) -> Tensor:
            nonlocal targets, shares
            logits = network(pixels)
            targets = logits.argmax(1) if asked is None else asked.to(logits.device)
            shares = calibrated(logits.detach().log_softmax(1), classifier.temperature).exp()
            chosen: Tensor = logits.gather(1, targets[:, None])[:, 0]
            return chosen

        with _begins_at(layer, network):
            heat = LayerGradCam(forward, layer).attribute(inputs, relu_attributions=True).detach()
        heat = nn.functional.interpolate(heat, size=inputs.shape[2:], mode="bilinear")[:, 0].clamp(min=0)
        heat = heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)
        shares = shares.gather(1, targets[:, None])[:, 0]
        for index, pixels, one, target, share in zip(
            batch.index.tolist(), batch.pixels, heat.cpu().numpy(), targets.tolist(), shares.tolist(), strict=True
        ):
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            found[index] = HeatMap(picture, one, classifier.classes[target], share)
    return [found.get(index) or _unreadable(pictures, batch.contents[index].reason, index) for index in positions]


@contextmanager
def _begins_at(layer: nn.Module, network: nn.Module) -> Iterator[None]:
    """Inside, gradients stop at the output of `layer`, so that no memory is spent below it."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    hook = layer.register_forward_hook(lambda module, arguments, output: output.detach().requires_grad_())
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        hook.remove()
        for parameter in learned:
            parameter.requires_grad_(True)


def _unreadable(pictures: Pictures, reason: str | None, index: int) -> UnreadablePicture:
    source = pictures.sources[index]
    return UnreadablePicture(str(source) if isinstance(source, (str, Path)) else f"picture {index}", reason or "")
