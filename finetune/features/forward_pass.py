"""A forward pass of an accelerated network over pictures in files, shared out among the processes of a job."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.data.loader import Item, Pictures
from finetune.data.transforms import Normalized
from finetune.features.acceleration import CPU_BATCH, GPU_BATCH, AcceleratedModel, Examples
from finetune.features.forward import Outputs, run_over
from finetune.models.device import open_engine
from finetune.progress import Advance, Display
from finetune.ranks.exchange import share
from finetune.ranks.group import Ranks, current

_HELD = "forward pass"


@dataclass
class ForwardPass:
    """Runs a model over some of the pictures of a set.

    Attributes:
        fabric: Device and precision.
        model: The accelerated network.
        full_batches: Whether the network runs in batches of one size.
        workers: As for `run_over`.
    """

    fabric: Fabric
    model: AcceleratedModel
    full_batches: bool
    workers: int | None
    _sent: Pictures | None = field(default=None, init=False)

    def run(self, pictures: Pictures, chosen: Sequence[int], advance: Advance | None) -> Outputs:
        """Outputs of the pictures at the positions `chosen`, ascending. Several processes take a share each."""
        ranks = current()
        if ranks is None:
            return self.run_here(pictures, chosen, advance)
        if self._sent is not pictures:
            self._send(ranks, pictures)
        with ranks.asked(_run_share, chosen):
            own = self.run_here(pictures, _share(ranks, chosen, self._batch_size(pictures)), advance)
            parts = ranks.gathered(own)
        if advance is not None:
            advance(len(chosen) - len(own.contents), "")
        return _joined(parts)

    def run_here(self, pictures: Pictures, chosen: Sequence[int], advance: Advance | None) -> Outputs:
        """As `run`, in this process alone."""
        self.model.prepare()
        return run_over(
            self.fabric.device,
            self._of_views,
            _Subset(**vars(pictures), chosen=chosen),
            batch_size=self._batch_size(pictures),
            workers=self.workers,
            advance=advance,
        )

    def _batch_size(self, pictures: Pictures) -> int:
        # On a GPU a batch holds as many views as it otherwise holds pictures. A core splits one batch into several.
        return CPU_BATCH if self.fabric.device.type == "cpu" else max(1, GPU_BATCH // (pictures.views or 1))

    def _of_views(self, pixels: Tensor) -> Tensor:
        """Outputs (n, views, width) for uint8 (n, 3, size, size) or (n, views, 3, size, size)."""
        views = pixels.unsqueeze(1) if pixels.ndim == 4 else pixels
        run = self.model.in_full_batches if self.full_batches else self.model
        rows: Tensor = run(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return rows

    def _send(self, ranks: Ranks, pictures: Pictures) -> None:
        """Let the other processes have the network and the pictures."""
        network, examples, count, precision = self.model.given
        given = deepcopy(network).cpu(), examples, count, precision
        with ranks.asked(_receive, given, self.full_batches, self.workers, pictures):
            self._sent = pictures


def _receive(
    ranks: Ranks,
    given: tuple[Normalized, Examples, int, str],
    full_batches: bool,
    workers: int | None,
    pictures: Pictures,
) -> None:
    network, examples, count, precision = given
    fabric = open_engine(ranks.device.type, precision)
    network = network.to(fabric.device).eval()
    model = AcceleratedModel(fabric, network, examples, pictures=count, precision=precision, display=Display())
    ranks.held[_HELD] = ForwardPass(fabric, model, full_batches, workers), pictures


def _run_share(ranks: Ranks, chosen: Sequence[int]) -> None:
    forward, pictures = ranks.held[_HELD]
    ranks.gathered(forward.run_here(pictures, _share(ranks, chosen, forward._batch_size(pictures)), None))


def _share(ranks: Ranks, chosen: Sequence[int], batch_size: int) -> Sequence[int]:
    """The part of a rank: whole batches, so that every picture is in the same batch as in one process."""
    batches = share(-(-len(chosen) // batch_size), ranks.rank, ranks.size)
    return chosen[batches.start * batch_size : batches.stop * batch_size]


def _joined(parts: Sequence[Outputs]) -> Outputs:
    filled = [part for part in parts if len(part.index)] or list(parts[:1])
    contents = {position: content for part in parts for position, content in part.contents.items()}
    return Outputs(torch.cat([part.values for part in filled]), torch.cat([part.index for part in filled]), contents)


@dataclass(frozen=True)
class _Subset(Pictures):
    """The pictures at the positions `chosen`. Each keeps its position, on which a random view depends."""

    chosen: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, position = key
        return super().__getitem__((epoch, self.chosen[position]))
