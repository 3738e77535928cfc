"""What a run is worth and how it is written down: metrics.json, predictions.csv, pictures.csv, history.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.audit import Folder, audit
from finetune.classifier import METRICS_FILE, Classifier
from finetune.config import Config
from finetune.engine import describe
from finetune.errors import InputError
from finetune.files import write_csv, write_json
from finetune.folder import Listing
from finetune.frozen import Outputs
from finetune.head import LinearHead, nearest_mean
from finetune.metrics import accuracy_of, summary
from finetune.progress import Display
from finetune.run import RunFolder
from finetune.strategy import Choice
from finetune.training import Course

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Rows:
    """A row for every sample of the listing: labels (samples,) int64, sha256, and pooled activations of every depth of
    the frozen backbone, (samples, sum of widths), of which the last `width` are its features."""

    listing: Listing
    folder: Folder
    labels: Tensor
    pooled: Tensor
    width: int
    hashes: Sequence[str]

    @classmethod
    def audited(cls, listing: Listing, outputs: Outputs, width: int, config: Config) -> Rows:
        """What reading gave of `listing`, each picture on its side. InputError as for `audit`."""
        folder = audit(
            listing,
            [outputs.contents[position] for position in range(len(listing.samples))],
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            max_bad=config.max_bad,
        )
        position = {name: label for label, name in enumerate(folder.classes)}
        labels = torch.tensor([position.get(sample.label, -1) for sample in listing.samples])
        pooled = torch.zeros(len(listing.samples), outputs.values.shape[2])
        pooled[outputs.index] = outputs.values[:, 0]
        hashes = [outputs.contents[i].sha256 for i in range(len(listing.samples))]
        return cls(listing, folder, labels, pooled, width, hashes)

    @property
    def measured(self) -> str:
        """The split whose figures are the run's result: test, or val where there is no test."""
        return "test" if self.folder.test else "val"

    def indices(self, split: str) -> list[int]:
        return list({"train": self.folder.train, "val": self.folder.val, "test": self.folder.test}[split])

    def of_split(self, split: str) -> tuple[Tensor, Tensor]:
        """Pooled activations (n, sum of widths) and labels (n,)."""
        indices = self.indices(split)
        return self.pooled[indices], self.labels[indices]

    def paths(self) -> list[Path]:
        return [self.listing.root / sample.path for sample in self.listing.samples]

    def told(self) -> list[str]:
        """What a person should know of the folder before anything is trained on it, a sentence a line."""
        counts = ", ".join(
            f"{len(self.indices(split))} {name}"
            for split, name in zip(SPLITS, ("training", "validation", "test"), strict=True)
        )
        lines = [f"{len(self.folder.classes)} classes; pictures: {counts}.", *self.folder.notes]
        bad = self.folder.unreadable
        if bad:
            shown = "; ".join(f"{entry.path} ({entry.reason})" for entry in bad[:5])
            more = f"; and {len(bad) - 5} more, all in metrics.json" if len(bad) > 5 else ""
            lines.append(f"{len(bad)} unreadable, left out: {shown}{more}.")
        return lines


def judge(classifier: Classifier, rows: Rows, head: LinearHead | None, display: Display) -> dict[str, Tensor]:
    """Log-probabilities (n, classes) of the pictures of val and of test.

    head: the linear head, when the network is just that on the frozen backbone: what is known is not computed again.
    """
    plain = classifier.config.test_time == "plain"
    splits = [split for split in ("val", "test") if rows.indices(split)]
    if head is not None and plain:
        return {split: head(rows.of_split(split)[0]).log_softmax(1) for split in splits}
    paths = rows.paths()
    indices = {split: rows.indices(split) for split in splits}
    wanted = [paths[index] for split in splits for index in indices[split]]
    found, index, contents = classifier.log_probabilities(wanted, display=display)
    if len(index) < len(wanted):
        lost = next(path for position, path in enumerate(wanted) if contents[position].reason)
        raise InputError(f"{lost} could be read at the start of the run and cannot now; was the folder changed?")
    return dict(zip(splits, found.split([len(indices[split]) for split in splits]), strict=True))


def verdict(rows: Rows, judged: dict[str, Tensor], choice: Choice, head: LinearHead, course: Course) -> dict[str, Any]:
    """The contents of metrics.json."""
    measured = rows.measured
    pooled, labels = rows.of_split(measured)
    train_pooled, train_labels = rows.of_split("train")
    majority = torch.full_like(labels, int(train_labels.bincount().argmax()))
    means = nearest_mean(train_pooled[:, -rows.width :], train_labels, pooled[:, -rows.width :])
    strategy = choice.strategy
    fell_back = strategy.head_first and strategy.trains != "head" and course.best_epoch == 0
    return {
        **summary(judged[measured], labels, rows.folder.classes),
        "split": measured,
        "used_for_selection": measured == "val",
        "strategy": strategy.name,
        "reason": choice.reason,
        "probe_curve": None if choice.curve is None else choice.curve.to_dict(),
        "kept": "head" if fell_back or strategy.trains == "head" else strategy.name,
        "interrupted": course.interrupted,
        "epochs": course.epoch,
        "best_epoch": course.best_epoch,
        "baselines": {
            "majority_class": accuracy_of(majority, labels),
            "nearest_class_mean": accuracy_of(means, labels),
            "head": accuracy_of(head(pooled).argmax(1), labels),
        },
        "val": {**_brief(judged["val"], rows.of_split("val")[1]), "used_for_selection": True},
        "pictures": {split: len(rows.indices(split)) for split in SPLITS},
        "unreadable": [asdict(entry) for entry in rows.folder.unreadable],
        "left_out": [asdict(entry) for entry in rows.folder.left_out],
        "notes": list(rows.folder.notes),
    }


def write_run(run: RunFolder, classifier: Classifier, rows: Rows, judged: dict[str, Tensor], course: Course) -> None:
    """Fill the run folder; config.json goes last, because a run with class names in it counts as finished."""
    if course.history:
        write_csv(run.path / "history.csv", list(course.history[0]), [list(row.values()) for row in course.history])
    write_csv(run.path / "predictions.csv", PREDICTIONS_HEADER, _prediction_rows(classifier.classes, rows, judged))
    write_csv(run.path / PICTURES_FILE, PICTURES_HEADER, _picture_rows(rows))
    write_json(run.path / METRICS_FILE, classifier.metrics)
    classifier.save(
        run.path,
        {
            "folder": str(rows.listing.root.resolve()),
            "strategy": classifier.metrics["strategy"],
            "kept": classifier.metrics["kept"],
            "made_with": describe(classifier.fabric),
        },
    )
    if not course.interrupted:
        run.finish()


PREDICTIONS_HEADER = ("path", "split", "label", "predicted", "probability", "probability_of_label")
PICTURES_FILE = "pictures.csv"
PICTURES_HEADER = ("path", "split", "label", "sha256")


def _prediction_rows(classes: Sequence[str], rows: Rows, judged: dict[str, Tensor]) -> list[tuple[Any, ...]]:
    table: list[tuple[Any, ...]] = []
    for split, log_probabilities in judged.items():
        probabilities = log_probabilities.exp()
        for index, row in zip(rows.indices(split), probabilities, strict=True):
            sample, best = rows.listing.samples[index], int(row.argmax())
            truth = float(row[int(rows.labels[index])])
            table.append((sample.path, split, sample.label, classes[best], f"{float(row[best]):.6f}", f"{truth:.6f}"))
    return table


def _picture_rows(rows: Rows) -> list[tuple[str, ...]]:
    samples = rows.listing.samples
    return [
        (samples[index].path, split, samples[index].label, rows.hashes[index])
        for split in SPLITS
        for index in rows.indices(split)
    ]


def _brief(log_probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    loss = torch.nn.functional.nll_loss(log_probabilities.double(), labels)
    return {**accuracy_of(log_probabilities.argmax(1), labels), "loss": float(loss), "n": len(labels)}
