"""The classifier that a run results in: predict, save, load."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from lightning_fabric import Fabric
from safetensors.torch import load as from_bytes
from safetensors.torch import save
from torch import Tensor

from finetune.classifier.run_config import CONFIG_FILE, FORMAT, RunConfig, read_run_config
from finetune.classifier.run_metrics import METRICS_FILE, RunMetrics, read_run_metrics
from finetune.classifier.temperature import calibrated
from finetune.config import Config
from finetune.data.collection.stored import StoredPicture
from finetune.data.images import Content, Picture
from finetune.data.loader import Pictures
from finetune.data.table import Source
from finetune.data.transforms import Preprocessing, evaluation_view
from finetune.errors import InputError, UnreadablePicture
from finetune.features.forward import Outputs, run_frozen
from finetune.files.exchange import settled
from finetune.files.reading import parse_json, read_tensors
from finetune.files.tensors import check_fits
from finetune.files.writing import write_json, write_tensors
from finetune.models.backbone import Backbone, Network
from finetune.models.device import open_engine
from finetune.models.pooled import network_of
from finetune.open_set.scored_network import ScoredNetwork
from finetune.open_set.unknown_model import UNKNOWN_FILE, UnknownModel, read_unknown
from finetune.progress import Display
from finetune.random_state import restored_random_state

WEIGHTS_FILE = "model.safetensors"
# Folder inside the run folder that keeps a run which is being replaced, until the new one is saved.
REPLACED = ".replaced"

# Pictures that `predict_stream` reads at once. A GPU starts processes that decode for every block.
CPU_BLOCK, GPU_BLOCK = 1024, 8192

# How often a run is read again that another process changes meanwhile.
_MOST_CHANGES = 5

# Names of classes that repr() lists.
_NAMED = 3


@dataclass(frozen=True)
class Prediction:
    """The prediction for one picture.

    Attributes:
        label: The most probable class.
        probability: Of the label, in [0, 1].
        top: The most probable classes with their probabilities, in falling order.
        path: The path of the picture as given; None for bytes, an array or a PIL image.
        unsure: Whether the probability is below `min_probability`; the label is then a guess between the classes.
        unknown: Whether the picture is like none of the classes, by `false_accept_rate`; the label then says nothing.
        unknown_score: How unlike the classes the picture is, in standard deviations of pictures of the classes where
            there are enough of them; larger is less like any. None without `false_accept_rate`.

    Example:
        >>> from finetune import load
        >>> prediction = load("runs/photos", device="cpu").predict("new.png")
        >>> prediction.label, prediction.unsure
        ('cat', False)
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    path: str | None = None
    unsure: bool = False
    unknown: bool = False
    unknown_score: float | None = None


class Classifier:
    """A trained network with its class names and its preprocessing.

    Args:
        network: Backbone and head.
        classes: Names of the classes, in the order of the head's outputs.
        preprocessing: What the backbone expects of its pictures.
        config: Options of the run.
        fabric: Device and precision.
        temperature: Divides the log-probabilities (see `finetune.classifier.temperature`); 1 changes nothing.

    Example:
        >>> from finetune import load
        >>> classifier = load("runs/photos", device="cpu")
        >>> classifier.predict("new.png").label
        'cat'
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
        # Figures of its run; None for a classifier without a run.
        self.run_metrics: RunMetrics | None = None
        # The run folder that it was saved in or loaded from; None for a run in memory.
        self.folder: Path | None = None
        # What tells unknown pictures; read from the run folder when it is first asked for.
        self._unknown: UnknownModel | None = None
        self._scored: ScoredNetwork | None = None

    @property
    def unknown(self) -> UnknownModel | None:
        """What tells pictures of none of the classes from others; None where it is not in memory.
        `require_unknown` reads it from the run folder."""
        return self._unknown

    @unknown.setter
    def unknown(self, model: UnknownModel | None) -> None:
        self._unknown, self._scored = model, None

    def require_unknown(self) -> UnknownModel:
        """What tells pictures of none of the classes from others, read from the run folder once.

        Raises:
            InputError: If the run stores nothing about unknown pictures, or the file is damaged.
        """
        if self._unknown is None:
            if self.folder is None:
                raise InputError("this classifier stores nothing about unknown pictures; fit it with strategy head")
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

    def learn_background(self, pictures: Sequence[Picture | StoredPicture], *, display: Display | None = None) -> int:
        """Learn the threshold of unknown pictures from pictures of none of the classes too.

        What the run has of its own still counts. The run folder is not changed.

        Args:
            pictures: Paths, bytes, arrays or PIL images. Such as come in use are best; ten or more outweigh the run's.
            display: Shows progress.

        Returns:
            The number of readable pictures among them.

        Raises:
            InputError: If none can be read, or the run stores nothing about unknown pictures.
        """
        found = self._outputs(list(pictures), scored=True, display=display)
        if not len(found.index):
            reason = found.contents[0].reason if found.contents else "there is none"
            raise InputError(f"no background picture can be read ({reason})")
        model = self.require_unknown()
        self._unknown = model.with_background(-found.values[..., -1].mean(1).double().numpy())
        return len(found.index)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json of its run; empty for a classifier without a run."""
        return {} if self.run_metrics is None else self.run_metrics.to_dict()

    def __repr__(self) -> str:
        names = ", ".join(self.classes[:_NAMED]) + (", …" if len(self.classes) > _NAMED else "")
        highest = self.network.backbone.highest
        parts = [
            f"{len(self.classes)} classes ({names})",
            f"backbone {self.config.backbone}" + ("" if highest is None else f" up to {highest}"),
        ]
        if self.run_metrics is not None:
            found = self.run_metrics
            parts.append(f"strategy {found.kept or found.strategy}")
            parts.append(f"accuracy {found.accuracy:.1%} on {found.n} {found.split} pictures")
        if self.folder is not None:
            parts.append(f"folder {self.folder}")
        return f"<Classifier: {'; '.join(parts)}>"

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # Pickled as the bytes of its two files, JSON and safetensors: it can be sent to other processes without a
        # shared folder, as those of one training do. The project itself loads no pickled file.
        device = "cpu" if self.fabric.device.type == "cpu" else "auto"
        precision = "bfloat16" if str(self.fabric._precision.precision).startswith("bf16") else "float32"
        config, weights = json.dumps(self._saved()).encode(), save(self._tensors())
        metrics = None if self.run_metrics is None else self.run_metrics.to_dict()
        unknown = None if self._unknown is None else save(*self._unknown.tensors())
        return _unpickled, (config, weights, metrics, self.folder, device, precision, unknown)

    @overload
    def predict(
        self,
        picture: Picture,
        *,
        top: int = 5,
        min_probability: float = 0.0,
        false_accept_rate: float | None = None,
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        picture: list[Any] | tuple[Any, ...],
        *,
        top: int = 5,
        min_probability: float = 0.0,
        false_accept_rate: float | None = None,
    ) -> list[Prediction | UnreadablePicture]: ...
    def predict(
        self,
        picture: Picture | list[Any] | tuple[Any, ...],
        *,
        top: int = 5,
        min_probability: float = 0.0,
        false_accept_rate: float | None = None,
    ) -> Prediction | list[Prediction | UnreadablePicture]:
        """Predict the class of one picture, or of each picture of a list.

        Args:
            picture: A path, bytes, an array (h, w) or (h, w, 3 or 4), or a PIL image; or a list or tuple of these.
            top: Number of classes in `Prediction.top`.
            min_probability, false_accept_rate: As for `predict_all`.

        Returns:
            The prediction; for a list, what `predict_all` returns.

        Raises:
            UnreadablePicture: If the picture cannot be read. In a list, the error takes the place of the prediction.
        """
        options: dict[str, Any] = {
            "top": top,
            "min_probability": min_probability,
            "false_accept_rate": false_accept_rate,
        }
        if isinstance(picture, (list, tuple)):
            return self.predict_all(picture, **options)
        found = self.predict_all([picture], **options)[0]
        if isinstance(found, UnreadablePicture):
            raise found
        return found

    def predict_all(
        self,
        pictures: Sequence[Picture | StoredPicture],
        *,
        top: int = 5,
        min_probability: float = 0.0,
        false_accept_rate: float | None = None,
        alone: bool = False,
        display: Display | None = None,
    ) -> list[Prediction | UnreadablePicture]:
        """Predict the class of each picture.

        Args:
            pictures: Paths, bytes, arrays or PIL images.
            top: Number of classes in `Prediction.top`.
            min_probability: In [0, 1]; predictions below it are marked as unsure. `finetune predict --target-error`
                chooses it for an error rate.
            false_accept_rate: In (0, 1]: share of pictures of none of the classes that may be accepted; the others are
                marked as unknown, and so are some pictures of the classes, the more the smaller the rate. The threshold
                comes from classes that were held out in turn; unknown pictures that are more like a class than those
                were are accepted more often. At 1, and for None, no picture is unknown.
            alone: Run the network on one picture at a time. Its answer is then bit for bit the same, whatever the other
                pictures are; in batches, its last digits depend on the size of the batch. Slower for small networks.
            display: Shows progress.

        Returns:
            For each picture, in order, its prediction, or the error that says why it cannot be read.

        Raises:
            InputError: For a rate, where the run stores nothing about unknown pictures; and for options out of range.
        """
        if isinstance(pictures, (str, Path)):
            raise InputError(f"predict_all takes a list of pictures; for the one at {pictures} there is predict")
        if top < 1:
            raise InputError(f"top must be at least 1, not {top}")
        if not 0 <= min_probability <= 1:
            raise InputError(f"min_probability must be between 0 and 1, not {min_probability}")
        threshold = None if false_accept_rate is None else self.require_unknown().threshold(false_accept_rate)
        pictures = list(pictures)  # a data frame column is indexed by labels, not positions
        found = self._outputs(pictures, scored=threshold is not None, alone=alone, display=display)
        log_probabilities, contents = self._calibrated(found.values[..., : len(self.classes)]), found.contents
        scores: list[float | None] = [None] * len(found.index)
        if threshold is not None and len(found.index):
            scores = found.values[..., -1].mean(1).tolist()
        names = [str(picture) if isinstance(picture, (str, Path, StoredPicture)) else None for picture in pictures]
        answers: list[Prediction | UnreadablePicture] = [
            UnreadablePicture(name or f"picture {position}", contents[position].reason or "")
            for position, name in enumerate(names)
        ]
        best = log_probabilities.exp().topk(min(top, len(self.classes)), dim=1)
        rows = zip(found.index.tolist(), best.values.tolist(), best.indices.tolist(), scores, strict=True)
        for position, shares, labels, score in rows:
            ranked = tuple((self.classes[label], share) for label, share in zip(labels, shares, strict=True))
            answers[position] = Prediction(
                *ranked[0],
                ranked,
                names[position],
                unsure=ranked[0][1] < min_probability,
                unknown=score is not None and threshold is not None and -score < threshold,
                unknown_score=score,
            )
        return answers

    def predict_stream(
        self,
        pictures: Iterable[Picture | StoredPicture],
        *,
        top: int = 5,
        min_probability: float = 0.0,
        false_accept_rate: float | None = None,
    ) -> Iterator[Prediction | UnreadablePicture]:
        """Predict the class of each picture of a stream, such as a collection that does not fit in memory.

        Pictures are read in blocks, of which one is in memory.

        Args:
            pictures: As for `predict_all`, or pictures of `finetune.data.collection`.
            top, min_probability, false_accept_rate: As for `predict_all`.

        Returns:
            For each picture, in order, its prediction, or the error that says why it cannot be read.
        """
        stream = iter(pictures)
        size = CPU_BLOCK if self.fabric.device.type == "cpu" else GPU_BLOCK
        while block := list(islice(stream, size)):
            yield from self.predict_all(
                block, top=top, min_probability=min_probability, false_accept_rate=false_accept_rate
            )

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
        with (display or Display()).bar("predicting", len(pictures)) as advance:
            return run_frozen(
                self.fabric,
                network,
                self.preprocessing,
                self.pictures(pictures),
                workers=self.config.workers,
                batch_size=1 if alone else None,
                test_time=self.config.test_time,
                advance=advance,
            )

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

    def extend(self, pictures: Source, *, out: str | Path | None = None, display: Display | None = None) -> Classifier:
        """The classifier with more pictures or classes, added to its run as by `finetune.extend`."""
        import finetune

        return finetune.extend(self._run(), pictures, out=out, device=self.fabric.device.type, display=display)

    def forget(
        self,
        *,
        classes: Iterable[str] = (),
        pictures: Iterable[str | Path] = (),
        out: str | Path | None = None,
        for_good: bool = False,
        display: Display | None = None,
    ) -> Classifier:
        """The classifier without pictures or classes, taken out of its run as by `finetune.forget`."""
        import finetune

        run, device = self._run(), self.fabric.device.type
        return finetune.forget(
            run, classes=classes, pictures=pictures, out=out, for_good=for_good, device=device, display=display
        )

    def _run(self) -> Path:
        if self.folder is None:
            raise InputError("this classifier has no run folder: give fit an out folder, or load one")
        return self.folder

    def save(self, folder: str | Path, record: dict[str, Any] | None = None) -> None:
        """Write model.safetensors, what tells unknown pictures, and config.json into `folder`; `record` is added to
        config.json."""
        folder = Path(folder)
        (folder / UNKNOWN_FILE).unlink(missing_ok=True)  # never beside the weights of another classifier
        write_tensors(folder / WEIGHTS_FILE, self._tensors())
        if self._unknown is not None:
            self._unknown.write(folder)
        write_json(folder / CONFIG_FILE, self._saved() | (record or {}))

    def _tensors(self) -> dict[str, Tensor]:
        """The content of model.safetensors."""
        return {
            name.replace("backbone.model.", "backbone.", 1): value.detach().cpu().contiguous()
            for name, value in self.network.state_dict().items()
        }

    def _saved(self) -> dict[str, Any]:
        """The part of config.json that describes the classifier."""
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "classes": list(self.classes),
            "preprocessing": asdict(self.preprocessing),
            "temperature": self.temperature,
            "highest_stage": self.network.backbone.highest,
        }


@restored_random_state()
def load(folder: str | Path, *, device: str = "auto", precision: str | None = None) -> Classifier:
    """Load the classifier of a run.

    Args:
        folder: A run folder.
        device: One of auto, cpu, cuda.
        precision: One of auto, float32, bfloat16; by default that of the run.

    Returns:
        The classifier.

    Raises:
        InputError: If `folder` holds no finished run, or its files are damaged or do not belong together.

    Example:
        >>> from finetune import load
        >>> load("runs/photos", device="cpu").classes
        ('cat', 'dog')
    """
    folder = Path(folder)
    for _ in range(_MOST_CHANGES):
        before = _state_of(folder)
        try:
            classifier = _read(folder, device, precision)
        except InputError:
            if _state_of(folder) == before:
                raise
            continue
        if _state_of(folder) == before:
            return classifier
    return _read(folder, device, precision)


def _state_of(folder: Path) -> tuple[int, ...]:
    """Another value for each state of a run, which another process may exchange while its files are read."""
    try:
        status = (settled(folder) / CONFIG_FILE).stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(folder: Path, device: str, precision: str | None) -> Classifier:
    saved = read_run_config(folder)
    if saved.classes is None:
        replaced = folder / REPLACED
        older = f", or use the run that it is to replace: {replaced}" if (replaced / WEIGHTS_FILE).exists() else ""
        raise InputError(
            f"{folder} holds a run that has not finished; continue it with: finetune fit … --resume{older}"
        )
    names = str(folder / CONFIG_FILE), str(folder / WEIGHTS_FILE)
    classifier = _restored(saved, read_tensors(folder / WEIGHTS_FILE), names, device, precision)
    if (folder / METRICS_FILE).exists():
        classifier.run_metrics = read_run_metrics(folder)
    classifier.folder = folder
    return classifier


def _restored(
    saved: RunConfig, tensors: Mapping[str, Tensor], names: tuple[str, str], device: str, precision: str | None
) -> Classifier:
    """The classifier that its two files describe. names: of the files, for errors."""
    config_file, weights_file = names
    if saved.classes is None or saved.preprocessing is None:
        raise InputError(f"{config_file} may be damaged: classes or preprocessing is missing")
    try:
        config = Config.from_dict(saved.config)
        backbone = Backbone(config.backbone, image_size=config.image_size)
        if saved.highest_stage is not None:
            backbone.drop_above(saved.highest_stage)
    except InputError as error:
        raise InputError(f"{config_file} may be damaged: {error}") from error
    tensors = {name.replace("backbone.", "backbone.model.", 1): value for name, value in tensors.items()}
    misfit = f"{weights_file} does not fit {config_file}"
    try:
        network = network_of(backbone, tensors, len(saved.classes))
    except InputError as error:
        raise InputError(f"{misfit}: {error}") from error
    check_fits(tensors, network.state_dict(), misfit)
    network.load_state_dict(tensors)
    if saved.preprocessing.size != backbone.preprocessing.size:
        _check_size(network.eval(), saved.preprocessing.size, config_file)
    fabric = open_engine(device, precision or config.precision)
    return Classifier(network, saved.classes, saved.preprocessing, config, fabric, saved.temperature)


def _check_size(network: Network, size: int, config_file: str) -> None:
    """InputError where the network does not take pictures of this size."""
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, size, size))
    # Models raise different errors for a size that they do not take.
    except (RuntimeError, ValueError, AssertionError) as error:
        what = f"preprocessing.size: {network.backbone.name} takes no pictures of {size} pixels"
        raise InputError(f"{config_file} may be damaged: {what}") from error


@restored_random_state()
def _unpickled(
    config: bytes,
    weights: bytes,
    metrics: dict[str, Any] | None,
    folder: Path | None,
    device: str,
    precision: str,
    unknown: bytes | None = None,
) -> Classifier:
    """The classifier that `Classifier.__reduce__` pickled."""
    names = ("the configuration of the pickled classifier", "its weights")
    saved = RunConfig.from_dict(parse_json(config, names[0]), names[0])
    classifier = _restored(saved, from_bytes(weights), names, device, precision)
    classifier.run_metrics = None if metrics is None else RunMetrics.from_dict(metrics)
    classifier.folder = folder
    if unknown is not None:
        classifier.unknown = UnknownModel.from_bytes(unknown, len(classifier.classes), "the pickled classifier")
    return classifier


def averaged(logits: Tensor) -> Tensor:
    """Log of the probabilities averaged over views: (n, views, classes) to (n, classes)."""
    return logits.log_softmax(-1).logsumexp(1) - math.log(max(1, logits.shape[1]))
