"""The classifier that a run results in: predict, change, save."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import torch
from lightning_fabric import Fabric
from safetensors.torch import load as from_bytes
from safetensors.torch import save

from finetune.classifier.answers.prediction import Prediction, ranked
from finetune.classifier.calibrated_network import CalibratedNetwork
from finetune.classifier.published.fetched import check_local
from finetune.classifier.run_config import CONFIG_FILE, RunConfig
from finetune.classifier.run_folder import BACKGROUND_FILE, PICTURES_FILE
from finetune.classifier.run_metrics import RunMetrics
from finetune.classifier.stored import WEIGHTS_FILE, description, restored, tensors_of
from finetune.config import Config
from finetune.data.collection.stored import StoredPicture
from finetune.data.images import Picture
from finetune.data.table import Source
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError, UnreadablePicture
from finetune.files.reading import parse_json, read_tensors
from finetune.files.tables import read_csv
from finetune.files.tensors import check_tensor
from finetune.files.writing import write_json, write_tensors
from finetune.models.backbone import Network
from finetune.notebook.report import ReportPage
from finetune.notebook.results import classifier_html
from finetune.open_set.unknown_model import UNKNOWN_FILE, UnknownModel
from finetune.progress import Display
from finetune.random_state import restored_random_state

__all__ = ["Classifier", "Prediction"]

# Pictures that `predict_stream` reads at once. A GPU starts processes that decode for every block.
CPU_BLOCK, GPU_BLOCK = 1024, 8192

# Names of classes that repr() lists, and pictures that a sentence names.
_NAMED = 3


class Classifier(CalibratedNetwork):
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
        super().__init__(network, classes, preprocessing, config, fabric, temperature)
        # Figures of its run; None for a classifier without a run.
        self.run_metrics: RunMetrics | None = None
        # The commit on the hub that it was loaded from; it has no run folder then, because nothing there is changed.
        self.address: str | None = None

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
        if self.address is not None or self.folder is not None:
            parts.append(f"folder {self.folder}" if self.address is None else f"from {self.address}")
        return f"<Classifier: {'; '.join(parts)}>"

    def _repr_html_(self) -> str:
        return classifier_html(self)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # Pickled as the bytes of its two files, JSON and safetensors: it can be sent to other processes without a
        # shared folder, as those of one training do. The project itself loads no pickled file.
        device = "cpu" if self.fabric.device.type == "cpu" else "auto"
        precision = "bfloat16" if str(self.fabric._precision.precision).startswith("bf16") else "float32"
        config, weights = json.dumps(description(self)).encode(), save(tensors_of(self.network))
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
            alone: Run the network on one picture at a time, or on a GPU in batches of one size. Its answer is then bit
                for bit the same, whatever the other pictures are; otherwise its last digits depend on the size of the
                batch. Slower for small networks, unless `compile_alone` has compiled the network.
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
        rows = zip(found.index.tolist(), ranked(log_probabilities, self.classes, top), scores, strict=True)
        for position, best, score in rows:
            answers[position] = Prediction(
                *best[0],
                best,
                names[position],
                unsure=best[0][1] < min_probability,
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

    def learn_background(self, pictures: Sequence[Picture | StoredPicture], *, display: Display | None = None) -> int:
        """Learn the threshold of unknown pictures from pictures of none of the classes too.

        Those that the run keeps, and what it has of its own, still count. The run folder is not changed:
        `finetune.extend` keeps background pictures in it. Pictures that the run has as pictures of its classes are left
        out, and so are copies of background pictures that it keeps, which count already.

        Args:
            pictures: Paths, bytes, arrays or PIL images. Such as come in use are best; ten or more outweigh the run's.
            display: Shows progress, and which pictures are left out.

        Returns:
            The number of pictures that count in addition.

        Raises:
            InputError: If none can be used, or the run stores nothing about unknown pictures.
        """
        display = display or Display()
        found = self._outputs(list(pictures), scored=True, display=display)
        if not len(found.index):
            reason = found.contents[0].reason if found.contents else "there is none"
            raise InputError(f"no background picture can be read ({reason})")
        labels = {} if self.folder is None else _labels_by_hash(self.folder)
        counted = set[str]() if self.folder is None else _background_hashes(self.folder)
        rows, left_out, twice = [], [], 0
        for row, position in enumerate(found.index.tolist()):
            sha256 = found.contents[position].sha256
            label = labels.get(sha256)
            if label is None and sha256 in counted:
                twice += 1
            elif label is None:
                counted.add(sha256)
                rows.append(row)
            else:
                left_out.append(f"{_name(pictures[position], position)} ({label})")
        if left_out:
            named = ", ".join(left_out[:_NAMED]) + (", …" if len(left_out) > _NAMED else "")
            display.say(f"{len(left_out)} background pictures are pictures of the run and are left out: {named}.")
        if twice:
            which = "picture counts" if twice == 1 else "pictures count"
            display.say(f"{twice:,} background {which} already, with the same content.")
        if not rows and not twice:
            raise InputError("all background pictures are pictures of the run's classes; give pictures of none of them")
        model = self.require_unknown()
        self._unknown = model.with_background(-found.values[rows, :, -1].mean(1).double().numpy())
        return len(rows)

    def extend(
        self,
        pictures: Source | None = None,
        *,
        background: str | Path | None = None,
        out: str | Path | None = None,
        display: Display | None = None,
    ) -> Classifier:
        """The classifier with more pictures or classes, added to its run as by `finetune.extend`."""
        import finetune

        run, device = self._run(), self.fabric.device.type
        return finetune.extend(run, pictures, background=background, out=out, device=device, display=display)

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

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        licence: str | None = None,
        include: Collection[str] = (),
        display: Display | None = None,
    ) -> str:
        """Push its run to the Hugging Face hub, as by `finetune.push_to_hub`; the address of the commit."""
        import finetune

        return finetune.push_to_hub(
            self._run(), repository, private=private, licence=licence, include=include, display=display
        )

    def report(self) -> ReportPage:
        """The report of its run, which a notebook shows in a frame."""
        return ReportPage(self._run() / "report.html")

    def _run(self) -> Path:
        if self.address is not None:
            check_local(self.address)
        if self.folder is None:
            raise InputError("this classifier has no run folder: give fit an out folder, or load one")
        return self.folder

    def save(self, folder: str | Path, record: dict[str, Any] | None = None) -> None:
        """Write model.safetensors, what tells unknown pictures, and config.json into `folder`; `record` is added to
        config.json."""
        folder = Path(folder)
        (folder / UNKNOWN_FILE).unlink(missing_ok=True)  # never beside the weights of another classifier
        write_tensors(folder / WEIGHTS_FILE, tensors_of(self.network))
        if self._unknown is not None:
            self._unknown.write(folder)
        write_json(folder / CONFIG_FILE, description(self) | (record or {}))


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
    classifier = Classifier(*restored(saved, from_bytes(weights), names, device, precision))
    classifier.run_metrics = None if metrics is None else RunMetrics.from_dict(metrics)
    classifier.folder = folder
    if unknown is not None:
        classifier.unknown = UnknownModel.from_bytes(unknown, len(classifier.classes), "the pickled classifier")
    return classifier


def _labels_by_hash(folder: Path) -> dict[str, str]:
    """The label of each picture that a run uses, by sha256; empty where the run lists none."""
    path = folder / PICTURES_FILE
    if not path.exists():
        return {}
    return {row["sha256"]: row["label"] for row in read_csv(path, ("label", "sha256")) if row["sha256"]}


def _background_hashes(folder: Path) -> set[str]:
    """The sha256 of each background picture that a run keeps."""
    path = folder / BACKGROUND_FILE
    if not path.exists():
        return set()
    hashes = check_tensor(read_tensors(path), "sha256", (None, 32), str(path), formats=[torch.uint8], finite=False)
    return {bytes(row).hex() for row in hashes.tolist()}


def _name(picture: Picture | StoredPicture, position: int) -> str:
    return str(picture) if isinstance(picture, (str, Path, StoredPicture)) else f"picture {position}"
