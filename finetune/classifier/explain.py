"""Heat maps of what in a picture speaks for a class: Grad-CAM on the last feature map of a convolutional backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
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
from finetune.models.backbone import Backbone

# Equal steps of heat look equally large in it, and its lightness alone tells them, for eyes that see colours otherwise.
COLOURS = "inferno"
# Share of the colour where the heat is 1; and the power of the heat that fades it in.
STRONGEST, FADE = 0.75, 0.7

# Pictures at once.
BATCH = 16


@dataclass(frozen=True)
class HeatMap:
    """heat: (size, size) float32 in [0, 1], how much each place speaks for `label`; 0 all over where none does.

    picture: as the network saw it, RGB, the same size. probability: of `label`, in [0, 1].
    """

    picture: Image.Image
    heat: NDArray[np.float32]
    label: str
    probability: float

    def overlay(self) -> Image.Image:
        """The picture, coloured where it is hot."""
        colours = matplotlib.colormaps[COLOURS](self.heat)[..., :3]
        share = (STRONGEST * self.heat**FADE)[..., None]
        # What is cold is shown in grey tones, dimmed, so that no colour of the picture passes for heat.
        grey = np.asarray(self.picture.convert("L"), dtype=np.float32)[..., None] / 255
        mixed = 0.8 * grey * (1 - share) + colours * share
        return Image.fromarray((mixed * 255).round().astype(np.uint8))


def heat_maps(
    classifier: Classifier, pictures: Sequence[Picture], labels: Sequence[str] | None = None
) -> list[HeatMap | UnreadablePicture]:
    """A heat map for each picture, in order, or the error that says why it cannot be read.

    Grad-CAM (Selvaraju et al. 2017, section 3) at the last feature map of the backbone, of the class in `labels`, one
    for each picture, or of the predicted one. It sees the centre crop that a plain prediction is made on. InputError
    for a backbone without such a map, and for a label that the classifier does not know.
    """
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


def explanation(classifier: Classifier) -> Callable[[Sequence[Path]], dict[Path, Image.Image]]:
    """What gives the overlays of pictures by path, for the report; of those that cannot be read, and of all for a
    backbone without feature maps, none."""

    def explain(paths: Sequence[Path]) -> dict[Path, Image.Image]:
        try:
            found = heat_maps(classifier, paths)
        except InputError:
            return {}
        return {path: one.overlay() for path, one in zip(paths, found, strict=True) if isinstance(one, HeatMap)}

    return explain


def last_feature_map(backbone: Backbone) -> nn.Module:
    """The module whose output is the last that the backbone makes for each place of a picture, (n, width, h, w).

    InputError when that is something else than such maps: a transformer makes rows of tokens, or has the width last.
    """
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
    """Whether it is (n, width, h, w), (n, h, w, width) or (n, tokens, width), of more than one place."""
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
    """Gradients reach down to what `layer` gives and no further: nothing that lies below is kept in memory for them."""
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
