"""A network with its classes: calibrated log-probabilities and unknown scores of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.classifier.temperature import calibrated
from finetune.config import Config
from finetune.data.collection.stored import StoredPicture
from finetune.data.images import Content, Picture
from finetune.data.loader import Pictures
from finetune.data.transforms import Preprocessing, evaluation_view
from finetune.errors import InputError
from finetune.features.acceleration import Forward, one_at_a_time
from finetune.features.forward import Outputs, run_frozen
from finetune.models.backbone import Network
from finetune.open_set.scored_network import ScoredNetwork
from finetune.open_set.unknown_model import UNKNOWN_FILE, UnknownModel, read_unknown
from finetune.progress import Display

# Most that an output of a compiled network may differ from that of the network.
_MOST_APART = 0.01


class CalibratedNetwork:
    """A network with the names of its classes, its preprocessing, its temperature and what tells unknown pictures.

    Args:
        network: Backbone and head.
        classes: Names of the classes, in the order of the head's outputs.
        preprocessing: What the backbone expects of its pictures.
        config: Options of the run.
        fabric: Device and precision.
        temperature: Divides the log-probabilities (see `finetune.classifier.temperature`); 1 changes nothing.
    """

    def __init__(
        self,
        network: Network,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        config: Config,
        fabric: Fabric,
        temperature: float = 1.0,
    ):
        self.network = network.to(fabric.device).eval()
        self.classes = tuple(classes)
        self.preprocessing = preprocessing
        self.config = config
        self.fabric = fabric
        self.temperature = temperature
        # The run folder that it was saved in or loaded from; None for a run in memory.
        self.folder: Path | None = None
        # What tells unknown pictures; read from the run folder when it is first asked for.
        self._unknown: UnknownModel | None = None
        self._scored: ScoredNetwork | None = None
        # The network compiled for one picture at a time, and whether it gives unknown scores; see `compile_alone`.
        self._compiled: tuple[Forward, bool] | None = None

    @property
    def unknown(self) -> UnknownModel | None:
        """What tells pictures of none of the classes from others; None where it is not in memory.
        `require_unknown` reads it from the run folder."""
        return self._unknown

    @unknown.setter
    def unknown(self, model: UnknownModel | None) -> None:
        self._unknown, self._scored, self._compiled = model, None, None

    def require_unknown(self) -> UnknownModel:
        """What tells pictures of none of the classes from others, read from the run folder once.

        Raises:
            InputError: If the run stores nothing about unknown pictures, or the file is damaged.
        """
        if self._unknown is None:
            if self.folder is None:
                raise InputError(
                    "this classifier stores nothing about unknown pictures: it has no run folder, or its backbone was "
                    "trained with --minutes or interrupted; fit it again, without --minutes"
                )
            self.unknown = read_unknown(self.folder, len(self.classes))
        assert self._unknown is not None
        return self._unknown

    def scored_network(self) -> ScoredNetwork:
        """The network with unknown scores beside its logits. InputError as for `require_unknown`."""
        model = self.require_unknown()
        if self._scored is None:
            source = UNKNOWN_FILE if self.folder is None else str(self.folder / UNKNOWN_FILE)
            self._scored = ScoredNetwork(self.network, model.likeness, source).eval()
        return self._scored

    def compile_alone(self, *, display: Display | None = None) -> bool:
        """Compile the network for answers of one picture at a time (`alone`), which are then several times as fast.

        This takes seconds, and memory for the weights once more. They are then computed in float32 by OpenVINO: logits
        differ from those of PyTorch in float32 by less than 0.01, mostly in the fifth digit, and from those in bfloat16
        as float32 does. On a GPU, and where the network cannot be converted, nothing changes.

        Args:
            display: Shows why the network stays as it is.

        Returns:
            Whether it was compiled.
        """
        if self._compiled is not None:
            return True
        if self.fabric.device.type != "cpu":
            return False
        network: nn.Module = self.network
        with suppress(InputError):  # a run that tells no unknown pictures
            network = self.scored_network()
        side = self.preprocessing.size
        picture = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
        compiled = one_at_a_time(network, picture, agree=_agree, display=display or Display())
        if compiled is None:
            return False
        self._compiled = compiled, network is not self.network
        return True

    def log_probabilities(
        self, pictures: Sequence[Picture | StoredPicture], *, alone: bool = False, display: Display | None = None
    ) -> tuple[Tensor, Tensor, dict[int, Content]]:
        """Calibrated log-probabilities, averaged over the views of a picture where there are several.

        Args:
            pictures: Paths, bytes, arrays or PIL images.
            alone: As for `predict_all`.
            display: Shows progress.

        Returns:
            Log-probabilities (n, classes) of the n readable pictures, their positions (n,), and for every position its
            content hash, or the reason why it cannot be read.
        """
        outputs = self._outputs(pictures, scored=False, alone=alone, display=display)
        return self._calibrated(outputs.values), outputs.index, outputs.contents

    def scored(
        self, pictures: Sequence[Picture | StoredPicture], *, display: Display | None = None
    ) -> tuple[Tensor, Tensor, Tensor, dict[int, Content]]:
        """Calibrated log-probabilities and unknown scores.

        Args:
            pictures, display: As for `log_probabilities`.

        Returns:
            What `log_probabilities` returns, with the unknown scores (n,) as second part.

        Raises:
            InputError: If the run stores nothing about unknown pictures.
        """
        found = self._outputs(pictures, scored=True, display=display)
        if not len(found.index):  # the values then have no columns
            return torch.empty(0, len(self.classes)), torch.empty(0), found.index, found.contents
        known = self._calibrated(found.values[..., : len(self.classes)])
        return known, found.values[..., -1].mean(1), found.index, found.contents

    def _outputs(
        self,
        pictures: Sequence[Picture | StoredPicture],
        *,
        scored: bool,
        alone: bool = False,
        display: Display | None,
    ) -> Outputs:
        """Logits (n, views, classes) of the readable pictures, with the unknown score as last column for `scored`."""
        network = self.scored_network() if scored else self.network
        compiled, has_scores = self._compiled if alone and self._compiled is not None else (None, scored)
        if scored and not has_scores:
            compiled = None
        with (display or Display()).bar("predicting", len(pictures)) as advance:
            found = run_frozen(
                self.fabric,
                network,
                self.preprocessing,
                self.pictures(pictures),
                workers=self.config.workers,
                alone=alone,
                test_time=self.config.test_time,
                advance=advance,
                compiled=compiled,
            )
        if compiled is not None and has_scores and not scored:
            found = replace(found, values=found.values[..., : len(self.classes)])
        return found

    def _calibrated(self, logits: Tensor) -> Tensor:
        found = averaged(logits).reshape(-1, len(self.classes))
        if found.isnan().any():
            source = self.folder or "the classifier"
            raise InputError(f"{source} gives probabilities that are no numbers; its weights may be damaged")
        return calibrated(found, self.temperature)

    def pictures(self, sources: Sequence[Picture | StoredPicture]) -> Pictures:
        """`sources` in the view of predictions."""
        view = evaluation_view(self.preprocessing, self.config.test_time)
        return Pictures(sources, view, self.preprocessing.shortest_side, self.config.max_pixels)


def _agree(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < _MOST_APART)  # not for NaN


def averaged(logits: Tensor) -> Tensor:
    """Log of the probabilities averaged over views: (n, views, classes) to (n, classes)."""
    return logits.log_softmax(-1).logsumexp(1) - math.log(max(1, logits.shape[1]))
