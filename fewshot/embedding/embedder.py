"""The embedding API: pictures in, unit vectors out, in order, as fast as the machine can."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from fewshot.embedding.augmentation import view
from fewshot.embedding.encoder import EncoderSpec, Sight, halved, sight_of, width_of
from fewshot.embedding.encoder_files import CONFIG_FILE, FORMAT, WEIGHTS_FILE, characters_to, fingerprint_of
from fewshot.embedding.framing import Framed, frame_drawings, frame_whole
from fewshot.omniglot.dataset import Character
from finetune.config import MAX_PIXELS
from finetune.data.folder import list_unlabelled, some
from finetune.data.images import Picture
from finetune.data.loader import Pictures
from finetune.data.transforms import Normalized
from finetune.errors import InputError, UnreadablePicture
from finetune.features.acceleration import CPU_BATCH, GPU_BATCH, TOLERANCE, Acceleration, Forward, accelerated
from finetune.features.forward import run_over
from finetune.files import write_json, write_tensors
from finetune.models.device import open_engine
from finetune.progress import Advance, Display

# A bar is shown, on a terminal, for so many pictures and more.
LONG = 256

_AT_ONCE = 512  # drawings, of the protocols


@dataclass(frozen=True)
class Embeddings:
    """vectors: (n, d) float32, of unit length, in the order of the pictures; NaN for one that cannot be read.

    unreadable: why, by position. sha256: of each file, by position; empty for a picture that was no file.
    """

    vectors: NDArray[np.float32]
    unreadable: Mapping[int, str]
    sha256: tuple[str, ...]


class Embedder:
    """An encoder with its preprocessing. trained_on: Omniglot's characters that it learned from; empty for others.

    The network is done learning: nothing here changes its weights, and nobody else may, since the fingerprint and what
    was converted to run fast are of those that it had when first asked. Other weights are another embedder.

    source, weights: what `load` was given, folders and files as absolute paths; None for one that was made otherwise.
    verification: the thresholds that the encoder carries, as calibration leaves them; None without any. recognition:
    the same of pairs from within one alphabet or group, which classes of a gallery are more like.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: EncoderSpec,
        *,
        trained_on: Collection[Character] = (),
        views: int = 1,
        tolerance: float = TOLERANCE,
        device: str = "auto",
    ):
        if not 0 < tolerance <= 1:
            raise InputError(f"tolerance is a cosine, above 0 and at most 1, not {tolerance}")
        if views > 1 and spec.framing == "crop":
            raise InputError(
                f"--views are for encoders that fewshot trained; {spec.network} sees each picture as it is"
            )
        self.fabric = open_engine(device, "float32")
        self.network = network.to(self.fabric.device).to(memory_format=torch.channels_last).eval()
        self.spec = spec
        self.trained_on = frozenset(trained_on)
        self.views = views
        self.tolerance = tolerance
        self.source: str | None = None
        self.weights: str | None = None
        self.verification: dict[str, Any] | None = None
        self.recognition: dict[str, Any] | None = None
        self._sight: Sight = sight_of(spec)
        self._module = network if spec.preprocessing is None else Normalized(network, spec.preprocessing).eval()
        self._chosen: dict[int, Acceleration] = {}  # for each size of batch, once a collection was worth converting for

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        weights: str | Path | None = None,
        views: int = 1,
        tolerance: float = TOLERANCE,
        device: str = "auto",
        display: Display | None = None,
    ) -> Embedder:
        """`source`: "omniglot", the encoder that ships with this package; the folder of a finished run of `fewshot
        train` or of `finetune fit`; or the name of any timm model, with its published weights or those in `weights`.

        views: how many a vector is the mean of, the picture itself and slightly turned and stretched ones. tolerance:
        cosine that vectors keep with those of the network in plain float32, which allows for a faster way to run it;
        1 for exactly these. display: what is told of a download, on stderr when None. InputError when there is no
        such source, or it holds no finished run.
        """
        from fewshot.embedding.encoder_files import open_source  # here: sources makes embedders

        told = display or Display(Console(stderr=True))
        return open_source(cls, source, weights=weights, told=told.say, views=views, tolerance=tolerance, device=device)

    @classmethod
    def of_origin(cls, origin: Any, *, device: str = "auto") -> Embedder:
        """The embedder whose `origin` this was. InputError where it had none, or is there no more."""
        if not isinstance(origin, dict) or set(origin) != {"source", "weights", "views", "tolerance"}:
            raise InputError("nothing says which embedder this was made with; give it")
        return cls.load(**origin, device=device)

    @property
    def origin(self) -> dict[str, Any] | None:
        """What `load` makes this embedder of again, as JSON values; None for one that was made otherwise."""
        if self.source is None:
            return None
        named = {"source": self.source, "weights": self.weights}
        return named | {"views": self.views, "tolerance": self.tolerance}

    def __repr__(self) -> str:
        return f"Embedder({self.source or self.spec.network}: {self.spec.network}, {self.width} numbers)"

    @cached_property
    def network_fingerprint(self) -> str:
        """12 hexadecimal digits of weights, network and preprocessing; read from all of the weights, once."""
        return fingerprint_of(self.network, self.spec)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of what the vectors depend on: weights, network, preprocessing and views."""
        if self.views == 1:
            return self.network_fingerprint
        return hashlib.sha256(f"{self.network_fingerprint} {self.views}".encode()).hexdigest()[:12]

    @cached_property
    def width(self) -> int:
        """Numbers in a vector."""
        return width_of(self.network, self.spec)

    def embed(
        self,
        pictures: Sequence[Picture | Tensor] | NDArray[Any] | Tensor | str | Path,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        display: Display | None = None,
    ) -> NDArray[np.float32]:
        """(n, d) float32 unit vectors of pictures, in order.

        pictures: a list of paths, contents of files, arrays (h, w) or (h, w, 1, 3 or 4), tensors (h, w) or (1, 3 or 4,
        h, w) or PIL images; an array (n, h, w, 3) or a tensor (n, 3, h, w); or a folder, for all pictures below it in
        the order of their paths. batch_size: pictures at once; workers: threads on a CPU, processes that decode beside
        a GPU; None for what suits the machine. display: shows a bar; on a terminal, long work shows one without.

        UnreadablePicture, naming all of them by position, when some cannot be read; `embed_all` goes on without them.
        """
        found = self.embed_all(pictures, batch_size=batch_size, workers=workers, display=display)
        if found.unreadable:
            first, *others = found.unreadable
            more = f"; nor can {some([str(other) for other in others])}" if others else ""
            named = _listed(pictures)[first]
            name = f" ({named})" if isinstance(named, (str, Path)) else ""
            raise UnreadablePicture(f"picture {first}{name}", f"{found.unreadable[first]}{more}")
        return found.vectors

    def embed_all(
        self,
        pictures: Sequence[Picture | Tensor] | NDArray[Any] | Tensor | str | Path,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        display: Display | None = None,
        advance: Advance | None = None,
    ) -> Embeddings:
        """As `embed`, but pictures that cannot be read are told of beside the vectors of the others.

        advance: a bar of the caller's own, shown instead of one of `display`.
        """
        if batch_size is not None and batch_size < 1:
            raise InputError(f"--batch-size must be at least 1, not {batch_size}")
        listed = [_as_picture(picture) for picture in _listed(pictures)]
        batch_size = batch_size or (CPU_BATCH if self.fabric.device.type == "cpu" else GPU_BATCH)
        display = display or _display_for(len(listed))
        seen = Pictures(listed, self._sight.view, self._sight.at_least, MAX_PIXELS)
        run = self._fastest(seen, batch_size, display)
        with nullcontext(advance) if advance else display.bar("embedding", len(listed)) as shown:
            outputs = run_over(
                self.fabric.device,
                partial(self._unit, run),
                seen,
                batch_size=batch_size,
                workers=workers,
                advance=shown,
            )
        vectors = np.full((len(listed), self.width), np.nan, np.float32)
        if len(outputs.index):
            vectors[outputs.index.numpy()] = outputs.values.numpy()
        contents = [outputs.contents[position] for position in range(len(listed))]
        reasons = {position: content.reason for position, content in enumerate(contents) if content.reason is not None}
        return Embeddings(vectors, reasons, tuple(content.sha256 for content in contents))

    def embed_drawings(self, drawings: Tensor) -> Tensor:
        """(n, 105, 105) uint8, ink 255 on 0, to (n, d) unit vectors on the encoder's device, for the protocols."""
        if self.spec.framing == "drawing":
            return self.framed_vectors(frame_drawings(drawings.to(self.fabric.device), self.spec.side))
        if self.spec.framing == "whole":
            paper = (255 - drawings)[:, None].expand(-1, 3, -1, -1)
            return self.framed_vectors(frame_whole(paper.to(self.fabric.device)))
        return torch.from_numpy(self.embed(list(255 - drawings), display=Display())).to(self.fabric.device)

    def save(self, folder: Path, **about: Any) -> None:
        """model.safetensors and config.json in `folder`; `about`: more entries for config.json.

        Matrices and filters are kept in half precision: load gives what was saved, so an encoder that was rounded
        before (`rounded`) comes back bit for bit.
        """
        write_tensors(
            folder / WEIGHTS_FILE, {name: halved(tensor) for name, tensor in self.network.state_dict().items()}
        )
        config = {"format": FORMAT, "spec": self.spec.to_dict(), "fingerprint": fingerprint_of(self.network, self.spec)}
        if self.verification is not None:
            config["verification"] = self.verification
        if self.recognition is not None:
            config["recognition"] = self.recognition
        write_json(folder / CONFIG_FILE, config | about | {"trained_on": characters_to(self.trained_on)})

    def _fastest(self, pictures: Pictures, batch_size: int, display: Display) -> Forward:
        """How the network is run over `pictures`: found once for each size of batch, by the first large collection."""
        if batch_size not in self._chosen:
            chosen = accelerated(
                self._module,
                lambda: self._example(pictures, batch_size),
                device=self.fabric.device,
                batch_size=batch_size,
                pictures=len(pictures),
                tolerance=self.tolerance,
                announce=display.say,
            )
            if not chosen.lasting:
                return chosen.run
            self._chosen[batch_size] = chosen
        return self._chosen[batch_size].run

    def _example(self, pictures: Pictures, batch_size: int) -> Tensor:
        """The readable ones of the first `pictures`, as the network is shown them."""
        readable = pictures.batch(range(min(batch_size, len(pictures)))).pixels.to(self.fabric.device)
        return self._sight.shown(readable, 0) if len(readable) else readable

    @torch.inference_mode()
    def _unit(self, run: Forward, pixels: Tensor) -> Tensor:
        """(n, d) float32 unit vectors on the CPU of pictures as their view left them."""
        pixels = pixels.to(self.fabric.device, non_blocking=True)
        return self._mean([run(self._sight.shown(pixels, number)) for number in range(self.views)]).cpu()

    @torch.inference_mode()
    def framed_vectors(self, framed: Framed) -> Tensor:
        """(n, d) unit vectors of pictures that are framed already, on the encoder's device."""
        parts = []
        for at in range(0, len(framed), _AT_ONCE):
            part = framed[slice(at, at + _AT_ONCE)].to(self.fabric.device)
            parts.append(
                self._mean([self.network(view(part, self.spec.side, number)).float() for number in range(self.views)])
            )
        return torch.cat(parts)

    @staticmethod
    def _mean(of_views: list[Tensor]) -> Tensor:
        return F.normalize(torch.stack([F.normalize(vectors, dim=1) for vectors in of_views]).mean(0), dim=1)


def _listed(pictures: Sequence[Picture | Tensor] | NDArray[Any] | Tensor | str | Path) -> Sequence[Picture | Tensor]:
    if isinstance(pictures, (str, Path)) and Path(pictures).is_dir():
        return list_unlabelled([Path(pictures)])
    if isinstance(pictures, (str, Path, bytes, Image.Image)):
        raise InputError(f"embed takes a folder or a list of pictures, not one {type(pictures).__name__}; put it in []")
    if isinstance(pictures, (np.ndarray, Tensor)):
        if pictures.ndim != 4:
            raise InputError(
                f"one {type(pictures).__name__} of shape {tuple(pictures.shape)} may mean one picture or several: "
                "give a list of pictures, an array (n, h, w, 3) or a tensor (n, 3, h, w)"
            )
        return list(pictures)
    return pictures


def _as_picture(picture: Picture | Tensor) -> Picture:
    """A tensor as an array with its channels last; whatever else as it is."""
    if not isinstance(picture, Tensor):
        return picture
    array = picture.detach().cpu()
    if array.dtype in (torch.bfloat16, torch.float16):
        array = array.float()
    return (array.movedim(0, -1) if array.ndim == 3 else array).numpy()


def _display_for(pictures: int) -> Display:
    return Display(Console(stderr=True)) if pictures >= LONG and sys.stderr.isatty() else Display()
