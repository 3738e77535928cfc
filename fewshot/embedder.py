"""The embedding API: pictures in, unit vectors out, by an encoder that ships, or that a run has left."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import fewshot.networks  # noqa: F401  registers the encoders with timm
import finetune.conv4  # noqa: F401  so does this
from fewshot.augment import view
from fewshot.framing import Framed, frame_drawings, frame_whole
from fewshot.omniglot import SIDE, Character
from fewshot.strokes import usual_width
from finetune.engine import open_engine
from finetune.errors import InputError
from finetune.files import read_json, read_tensors, write_json, write_tensors
from finetune.images import Picture, read_image

FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SHIPPED = {"omniglot": Path(__file__).parent / "weights" / "omniglot"}

_AT_ONCE = 512  # pictures
# Of 255 levels: a page whose darkest and lightest are nearer is blank, but for noise.
FAINTEST = 32
# Share of the way from paper to the strongest ink from where on it is ink, its soft edges too.
INK_FROM = 0.4


@dataclass(frozen=True)
class Spec:
    """What an encoder is, but for its weights: a timm name, and how it must be shown pictures.

    framing: "drawing", one channel, ink light on 0, in the window that the ink fills; or "whole", the picture squeezed
    into a square, three channels. side: of the square that the network sees, in pixels.
    """

    network: str
    side: int
    framing: Literal["drawing", "whole"]

    @property
    def channels(self) -> int:
        return 1 if self.framing == "drawing" else 3


class Embedder:
    """An encoder with its preprocessing. trained_on: Omniglot's characters that it learned from; empty for others."""

    def __init__(
        self,
        network: nn.Module,
        spec: Spec,
        *,
        trained_on: Collection[Character] = (),
        views: int = 1,
        device: str = "auto",
    ):
        self.fabric = open_engine(device, "float32")
        self.network = network.to(self.fabric.device).to(memory_format=torch.channels_last).eval()
        self.spec = spec
        self.trained_on = frozenset(trained_on)
        self.views = views

    @classmethod
    def load(cls, source: str | Path, *, views: int = 1, device: str = "auto") -> Embedder:
        """`source`: "omniglot", the encoder that ships with this package, or the folder of a finished run.

        views: how many a vector is the mean of, the picture itself and slightly turned and stretched ones.
        InputError when there is no such folder, or it holds no finished run.
        """
        folder = SHIPPED.get(str(source), Path(source))
        path = folder / CONFIG_FILE
        if not path.is_file():
            raise InputError(
                f"{source} is no encoder: give {', '.join(SHIPPED)} or the folder of a run of fewshot train"
            )
        config = read_json(path)
        if not isinstance(config, dict) or config.get("format") != FORMAT or "recipe" not in config:
            raise InputError(f"{path} is not of a run of fewshot train that this version can read")
        if "spec" not in config or not (folder / WEIGHTS_FILE).is_file():
            raise InputError(f"the run in {folder} has not finished; go on with --resume")
        try:
            spec, trained_on = Spec(**config["spec"]), characters_from(config["trained_on"])
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is not of a run of fewshot train that this version can read") from error
        network = create(spec)
        tensors = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in read_tensors(folder / WEIGHTS_FILE).items()
        }
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise InputError(f"{folder / WEIGHTS_FILE} does not fit {spec.network}; it may be damaged") from error
        embedder = cls(network, spec, trained_on=trained_on, views=views, device=device)
        if embedder.fingerprint != config.get("fingerprint"):
            raise InputError(f"{folder / WEIGHTS_FILE} is not what {path} was written with; one of them may be damaged")
        return embedder

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of what the vectors depend on: weights, network and preprocessing."""
        found = hashlib.sha256(repr(sorted(asdict(self.spec).items())).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:12]

    def embed(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """(n, d) float32 unit vectors of pictures: paths, contents of files, arrays or PIL images, in order.

        UnreadablePicture for the first that cannot be read.
        """
        if isinstance(pictures, (str, Path, bytes, Image.Image)):
            raise InputError(f"embed takes a list of pictures, not one {type(pictures).__name__}")
        vectors = [self.vectors(self.framed(pictures[at : at + _AT_ONCE])) for at in range(0, len(pictures), _AT_ONCE)]
        return torch.cat(vectors).cpu().numpy() if vectors else np.empty((0, self.width), np.float32)

    def embed_drawings(self, drawings: Tensor) -> Tensor:
        """(n, 105, 105) uint8, ink 255 on 0, to (n, d) unit vectors on the encoder's device, for the protocols."""
        if self.spec.framing == "drawing":
            return self.vectors(frame_drawings(drawings.to(self.fabric.device), self.spec.side))
        return self.vectors(frame_whole((255 - drawings)[:, None].expand(-1, 3, -1, -1).to(self.fabric.device)))

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return width_of(self.network, self.spec)

    def framed(self, pictures: Sequence[Picture]) -> Framed:
        """Pictures read and framed as the encoder was taught to see them."""
        if self.spec.framing == "drawing":
            drawings = [_drawing(read_image(picture, at_least=SIDE)) for picture in pictures]
            return frame_drawings(torch.stack(drawings), self.spec.side)
        return frame_whole(torch.stack([read_square(picture, self.spec.side) for picture in pictures]))

    @torch.inference_mode()
    def vectors(self, framed: Framed) -> Tensor:
        """(n, d) float32 unit vectors of pictures that are framed already."""
        parts = []
        for at in range(0, len(framed), _AT_ONCE):
            part = framed[slice(at, at + _AT_ONCE)].to(self.fabric.device)
            seen = [self.network(view(part, self.spec.side, number)).float() for number in range(self.views)]
            parts.append(F.normalize(torch.stack([F.normalize(vectors, dim=1) for vectors in seen]).mean(0), dim=1))
        return torch.cat(parts)

    def save(self, folder: Path, **about: Any) -> None:
        """model.safetensors and config.json in `folder`; `about`: more entries for config.json.

        Matrices and filters are kept in half precision: load gives what was saved, so an encoder that was rounded
        before (`rounded`) comes back bit for bit.
        """
        write_tensors(
            folder / WEIGHTS_FILE, {name: _half(tensor) for name, tensor in self.network.state_dict().items()}
        )
        config = {"format": FORMAT, "spec": asdict(self.spec), "fingerprint": self.fingerprint}
        write_json(folder / CONFIG_FILE, config | about | {"trained_on": characters_to(self.trained_on)})


def create(spec: Spec) -> nn.Module:
    """The network of `spec` with random weights. InputError for a name that timm does not know."""
    try:
        return timm.create_model(spec.network, pretrained=False, num_classes=0, in_chans=spec.channels)
    except RuntimeError as error:
        raise InputError(f"timm knows no network {spec.network!r}") from error


def read_square(picture: Picture, side: int) -> Tensor:
    """(3, 2 side, 2 side) uint8: the whole picture, squeezed; at twice the side so that a part can be shown enlarged.

    UnreadablePicture where it cannot be read.
    """
    image = read_image(picture, at_least=2 * side).resize((2 * side, 2 * side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def width_of(network: nn.Module, spec: Spec) -> int:
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
    network.load_state_dict({name: _half(tensor).to(tensor.dtype) for name, tensor in network.state_dict().items()})


def characters_to(characters: Collection[Character]) -> dict[str, list[int]]:
    """As JSON holds them: alphabet -> numbers."""
    found: dict[str, list[int]] = {}
    for alphabet, number in sorted(characters):
        found.setdefault(alphabet, []).append(number)
    return found


def characters_from(saved: dict[str, list[int]]) -> frozenset[Character]:
    """What characters_to was given."""
    return frozenset(Character(alphabet, number) for alphabet, numbers in saved.items() for number in numbers)


def _half(tensor: Tensor) -> Tensor:
    """Norms, biases and statistics stay as they are: they are few, and variances can be too small for it."""
    return tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor


def _drawing(image: Image.Image) -> Tensor:
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
