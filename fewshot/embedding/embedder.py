"""The embedding API: pictures to unit vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor, nn

from fewshot.embedding.augmentation import render_view
from fewshot.embedding.encoder import EncoderSpec, embedding_width, to_half
from fewshot.embedding.encoder_files import (
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    characters_to_json,
    fingerprint_of,
    read_encoder,
)
from fewshot.embedding.forward_passes import ForwardPasses
from fewshot.embedding.framing import FramedPictures, frame_drawings, frame_whole
from fewshot.embedding.picture_batch import PictureBatch, as_picture, listed
from fewshot.omniglot.dataset import Character
from finetune.config import MAX_PIXELS
from finetune.data.folder import some
from finetune.data.images import Picture
from finetune.data.loader import Pictures
from finetune.errors import InputError, UnreadablePicture
from finetune.features.acceleration import CPU_BATCH, GPU_BATCH, TOLERANCE, Forward, size_alone, unmixed
from finetune.features.forward import Outputs, run_over
from finetune.files.reading import as_type
from finetune.files.writing import write_json, write_tensors
from finetune.models.device import open_engine, reproducible_numerics
from finetune.progress import Advance, Display
from finetune.random_state import restored_random_state

_DRAWINGS_AT_ONCE = 512


@dataclass(frozen=True)
class Embeddings:
    """The vectors of some pictures, and which pictures could not be read.

    Attributes:
        vectors: Shape (n, d), float32, unit length, in the order of the pictures; NaN for an unreadable one.
        unreadable: Position -> why the picture could not be read.
        sha256: Checksum of each file, by position; empty for a picture that was no file.

    Example:
        >>> from fewshot import Embedder
        >>> found = Embedder.load("omniglot", device="cpu").embed_all(["sign.png", "missing.png"])
        >>> found.vectors.shape, sorted(found.unreadable)
        ((2, 256), [1])
    """

    vectors: NDArray[np.float32]
    unreadable: Mapping[int, str]
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Origin:
    """What an embedder was loaded from: the arguments of `Embedder.load`, saved with its vectors."""

    source: str
    weights: str | None
    views: Annotated[int, Meta(ge=1, le=1000)]
    tolerance: Annotated[float, Meta(gt=0, le=1)]


class Embedder:
    """An encoder with its preprocessing. Usually made by `Embedder.load`.

    The weights must not change after construction: the fingerprint and the accelerated network are computed once.

    Attributes:
        source, weights: What `load` was given, with absolute paths; None for an embedder made by the constructor.
        passes: The ways to run the network, chosen for each size of a batch.
        trained_on: Omniglot's characters that the encoder was trained on; empty for other encoders.
        verification: Calibration that the encoder carries for pairs of pictures, as a dictionary; None without.
        recognition: The same for pairs within one alphabet or group, which are closer to the classes of a gallery.

    Example:
        >>> import numpy as np
        >>> from fewshot import Embedder
        >>> page = np.full((60, 60), 255, np.uint8)
        >>> page[20:40, 28:32] = 0
        >>> Embedder.load("omniglot", device="cpu").embed([page, page.T]).shape
        (2, 256)
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
        """Wrap `network`, which gives (n, d) for what `spec` describes. The other arguments are those of `load`."""
        if not 0 < tolerance <= 1:
            raise InputError(f"tolerance is a cosine, above 0 and at most 1, not {tolerance}")
        if views > 1 and spec.framing == "crop":
            raise InputError(f"--views are for encoders that fewshot trained, not for {spec.network}")
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
        self._fingerprint: str | None = None
        self.passes = ForwardPasses(self.network, spec, self.fabric.device, tolerance)

    @classmethod
    @restored_random_state()
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
        """Load an encoder.

        Args:
            source: "omniglot", the encoder that ships with this package; the folder of a finished run of `fewshot
                train` or `finetune fit`; or the name of any timm model.
            weights: A file of weights for a timm model; None for its published weights.
            views: Number of slightly distorted views of a picture that its vector is the mean of.
            tolerance: Smallest cosine between the vectors and those of plain float32; allows faster ways to run the
                network. 1 for exactly float32.
            device: "auto", "cpu" or "cuda".
            display: Shows a download; nothing is shown when None.

        Raises:
            InputError: If there is no such source, or it holds no finished run.
        """
        stored = read_encoder(source, weights, display or Display())
        embedder = cls(
            stored.network,
            stored.spec,
            trained_on=stored.trained_on,
            views=views,
            tolerance=tolerance,
            device=device,
        )
        embedder.source, embedder.weights = stored.source, stored.weights
        embedder.verification, embedder.recognition = stored.verification, stored.recognition
        embedder._fingerprint = stored.fingerprint
        return embedder

    @classmethod
    def of_origin(cls, origin: Any, *, device: str = "auto") -> Embedder:
        """The embedder that had this `origin`. InputError if there is no origin, or its files are gone."""
        if not isinstance(origin, dict) or set(origin) != {argument.name for argument in fields(Origin)}:
            raise InputError("it is not recorded which embedder this was made with; give the embedder")
        found = as_type(origin, Origin, "the record of its embedder")
        return cls.load(**vars(found), device=device)

    @property
    def origin(self) -> dict[str, Any] | None:
        """Arguments with which `load` makes this embedder again, as JSON values; None if it was not loaded."""
        if self.source is None:
            return None
        return vars(Origin(self.source, self.weights, self.views, self.tolerance))

    def __repr__(self) -> str:
        return f"Embedder({self.source or self.spec.network}: {self.spec.network}, {self.width} numbers)"

    @property
    def network_fingerprint(self) -> str:
        """12 hexadecimal digits of weights, network and preprocessing."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.network, self.spec)
        return self._fingerprint

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of all that the vectors depend on: weights, network, preprocessing and views."""
        if self.views == 1:
            return self.network_fingerprint
        return hashlib.sha256(f"{self.network_fingerprint} {self.views}".encode()).hexdigest()[:12]

    @cached_property
    def width(self) -> int:
        """Length d of a vector."""
        return embedding_width(self.network, self.spec)

    def compile_alone(self, *, display: Display | None = None) -> bool:
        """Compile the network for vectors of one picture at a time (`alone`), which are then several times as fast.

        This takes seconds, and memory for the weights once more. OpenVINO then computes them in float32: vectors differ
        from those of PyTorch mostly in the sixth digit. On a GPU, for a tolerance of 1, and where the network cannot be
        converted, nothing changes.

        Args:
            display: Shows why the network stays as it is.

        Returns:
            Whether it was compiled.
        """
        return self.passes.compile_alone(display or Display())

    def embed(
        self,
        pictures: PictureBatch,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        display: Display | None = None,
    ) -> NDArray[np.float32]:
        """Embed pictures.

        Args:
            pictures: A list of paths, contents of files, PIL images, arrays (h, w) or (h, w, 1, 3 or 4), or tensors
                (h, w) or (1, 3 or 4, h, w); an array (n, h, w, 3) or a tensor (n, 3, h, w); or a folder, for all
                pictures below it in the order of their paths.
            batch_size: Pictures at once; None for what suits the machine.
            workers: Threads on a CPU, processes that decode beside a GPU; None for what suits the machine.
            display: Shows a bar; nothing is shown when None.

        Returns:
            Vectors, shape (n, d), float32, unit length, in the order of the pictures.

        Raises:
            UnreadablePicture: If some cannot be read; names all of them by position. `embed_all` continues instead.
        """
        found = self.embed_all(pictures, batch_size=batch_size, workers=workers, display=display)
        if found.unreadable:
            first, *others = found.unreadable
            more = f"; nor can {some([str(other) for other in others])}" if others else ""
            named = listed(pictures)[first]
            name = f" ({named})" if isinstance(named, (str, Path)) else ""
            raise UnreadablePicture(f"picture {first}{name}", f"{found.unreadable[first]}{more}")
        return found.vectors

    def embed_all(
        self,
        pictures: PictureBatch,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
        display: Display | None = None,
        alone: bool = False,
        advance: Advance | None = None,
        keep: Callable[[Sequence[int], NDArray[np.float32], Sequence[str]], None] | None = None,
    ) -> Embeddings:
        """Like `embed`, but unreadable pictures are listed in the result.

        alone: Whether the vector of a picture is bit for bit the same, whatever the other pictures are.
        advance: The caller's progress bar, in place of one of `display`. keep: Called with positions, vectors and
        checksums of the readable pictures of each batch, for a caller that must not lose them to an interruption.
        """

        def keep_outputs(outputs: Outputs) -> None:
            positions = outputs.index.tolist()
            if keep is not None:
                keep(positions, outputs.values.numpy(), [outputs.contents[at].sha256 for at in positions])

        if batch_size is not None and batch_size < 1:
            raise InputError(f"--batch-size must be at least 1, not {batch_size}")
        given = [as_picture(picture) for picture in listed(pictures)]
        device, display = self.fabric.device, display or Display()
        batch_size = size_alone(device) if alone else batch_size or (CPU_BATCH if device.type == "cpu" else GPU_BATCH)
        source = Pictures(given, self.spec.view(), self.spec.decoded_side, MAX_PIXELS)
        run = partial(self._unit_vectors, self.passes.of(source, batch_size, display))
        with nullcontext(advance) if advance else display.bar("embedding", len(given)) as bar:
            outputs = run_over(
                device,
                unmixed(run, device) if alone else run,
                source,
                batch_size=batch_size,
                workers=workers,
                advance=bar,
                keep=keep_outputs,
            )
        vectors = np.full((len(given), self.width), np.nan, np.float32)
        if len(outputs.index):
            vectors[outputs.index.numpy()] = outputs.values.numpy()
        contents = [outputs.contents[position] for position in range(len(given))]
        reasons = {position: content.reason for position, content in enumerate(contents) if content.reason is not None}
        return Embeddings(vectors, reasons, tuple(content.sha256 for content in contents))

    def from_pixels(self, examples: Sequence[Picture], *, pictures: int, batch_size: int) -> Forward:
        """The forward pass of a caller that decodes pictures elsewhere, with the view of `spec`.

        Args:
            examples: Typical pictures, on which faster ways to run the network are compared with plain float32.
            pictures: Number of pictures in all, at least.
            batch_size: Most pictures in one call.

        Returns:
            A function from uint8 pixels (n, ...) to unit vectors (n, d), float32 on the CPU.
        """
        source = Pictures(list(examples), self.spec.view(), self.spec.decoded_side, MAX_PIXELS)
        run, device = self.passes.of(source, batch_size, Display(), pictures), self.fabric.device
        return lambda pixels: self._unit_vectors(run, pixels.to(device)).cpu()

    def embed_drawings(self, drawings: Tensor) -> Tensor:
        """Embed Omniglot's drawings, (n, 105, 105) uint8 with ink 255 on 0.

        Returns:
            Unit vectors, shape (n, d), on the encoder's device.
        """
        if self.spec.framing == "drawing":
            return self.embed_framed(frame_drawings(drawings.to(self.fabric.device), self.spec.side))
        if self.spec.framing == "whole":
            paper = (255 - drawings)[:, None].expand(-1, 3, -1, -1)
            return self.embed_framed(frame_whole(paper.to(self.fabric.device)))
        return torch.from_numpy(self.embed(list(255 - drawings))).to(self.fabric.device)

    def save(self, folder: Path, **about: Any) -> None:
        """Write model.safetensors and config.json to `folder`; `about`: more entries for config.json.

        Matrices and filters are saved in half precision. An encoder that was rounded before (`round_to_half`) is
        loaded again bit for bit.
        """
        weights = {name: to_half(tensor) for name, tensor in self.network.state_dict().items()}
        write_tensors(folder / WEIGHTS_FILE, weights)
        config = {"format": FORMAT, "spec": self.spec.to_dict(), "fingerprint": fingerprint_of(self.network, self.spec)}
        if self.verification is not None:
            config["verification"] = self.verification
        if self.recognition is not None:
            config["recognition"] = self.recognition
        write_json(folder / CONFIG_FILE, config | about | {"trained_on": characters_to_json(self.trained_on)})

    @torch.inference_mode()
    def _unit_vectors(self, run: Forward, pixels: Tensor) -> Tensor:
        """Unit vectors (n, d) float32 of pixels as `EncoderSpec.view` makes them, on the encoder's device."""
        return self._mean([run(self.spec.network_input(pixels, view)) for view in range(self.views)])

    @torch.inference_mode()
    def embed_framed(self, framed: FramedPictures) -> Tensor:
        """Unit vectors (n, d) of framed pictures, on the encoder's device."""
        parts = []
        with reproducible_numerics(self.fabric.device):
            for at in range(0, len(framed), _DRAWINGS_AT_ONCE):
                part = framed[slice(at, at + _DRAWINGS_AT_ONCE)].to(self.fabric.device)
                views = [render_view(part, self.spec.side, view) for view in range(self.views)]
                parts.append(self._mean([self.network(pixels).float() for pixels in views]))
        return torch.cat(parts)

    @staticmethod
    def _mean(of_views: list[Tensor]) -> Tensor:
        """The normalised mean of the normalised vectors of each view."""
        return F.normalize(torch.stack([F.normalize(vectors, dim=1) for vectors in of_views]).mean(0), dim=1)
