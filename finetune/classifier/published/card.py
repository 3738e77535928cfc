"""The model card of a run: what it is, its figures with their intervals, how to use it and what it does not know."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterator
from typing import Any

import timm

from finetune.classifier.run_config import RunConfig
from finetune.classifier.run_metrics import RunMetrics
from finetune.errors import InputError
from finetune.hub.address import Address
from finetune.metrics import Accuracy
from finetune.models.candidates import licence_of
from finetune.open_set.unknown_model import UNKNOWN_FILE
from finetune.terminal import printable

# Name by which the hub knows the models of this package.
LIBRARY = "fewtune"
# Most classes that are listed.
_MOST_CLASSES = 200
# The rate of false accepts that the card shows.
_SHOWN_RATE = 0.05
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$:])")
_SPLITS = {"test": "test pictures", "val": "validation pictures"}


def model_card(
    address: Address, config: RunConfig, metrics: RunMetrics | None, files: Collection[str], licence: str | None
) -> str:
    """README.md of a repository: metadata in YAML, then Markdown.

    files: Names of what is pushed. licence: The hub's name of it, or None.
    """
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise InputError(
            f"--licence takes the hub's name of a licence, such as mit, apache-2.0 or other, not {licence!r}"
        )
    classes = config.classes or ()
    sections = [
        f"---\n{_metadata(address, config, metrics, licence)}\n---",
        f"# {_words(address.name)}",
        f"An image classifier with {len(classes):,} classes: {_training(config, metrics)}. Made by fewtune.",
        _usage(address, UNKNOWN_FILE in files),
        "## Figures",
        *_figures(metrics),
        "## Classes",
        _classes(classes),
        "## What it does not know",
        "\n".join(f"- {line}" for line in _limits(classes, metrics, UNKNOWN_FILE in files)),
        "## How it was made",
        "\n".join(f"- {line}" for line in _facts(config, metrics)),
        "All files are safetensors, JSON and CSV; none can run code.",
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(address: Address, config: RunConfig, metrics: RunMetrics | None, licence: str | None) -> str:
    """The YAML that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    published = timm.models.get_pretrained_cfg(str(config.config["backbone"]))
    own = config.config.get("weights") is not None or config.config.get("strategy") == "scratch"
    base = None if own or published is None or not published.hf_hub_id else str(published.hf_hub_id)
    values: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": "image-classification"}
    values["tags"] = ["image-classification", "transfer-learning", "fewtune"]
    values |= {} if licence is None else {"license": licence}
    values |= {} if base is None else {"base_model": base}
    if metrics is not None and metrics.accuracy is not None and metrics.interval is not None:
        low, high = metrics.interval
        split = str(metrics.split)
        about = f"{metrics.n} pictures; 95 % interval {low:.4f} to {high:.4f}"
        values["metrics"] = ["accuracy"]
        values["model_name"] = address.name
        values["eval_results"] = [
            EvalResult(
                task_type="image-classification",
                dataset_type="own-pictures",
                dataset_name="own pictures",
                dataset_split=split,
                metric_type="accuracy",
                metric_name=f"accuracy ({about})",
                metric_value=round(metrics.accuracy, 4),
                metric_args={"n": metrics.n, "interval": [round(low, 4), round(high, 4)]},
            )
        ]
    return ModelCardData(**values).to_yaml()


def _training(config: RunConfig, metrics: RunMetrics | None) -> str:
    strategy = config.strategy if metrics is None else metrics.kept or metrics.strategy
    layers = {"head": "a linear head on the frozen backbone", "scratch": "all layers from random weights"}
    what = layers.get(str(strategy), f"strategy {strategy} on the backbone")
    return f"{what} `{config.config['backbone']}`"


def _usage(address: Address, unknown: bool) -> str:
    place = str(Address(address.repository))
    words = [
        "## Use",
        f'```python\nfrom finetune import load  # pip install fewtune\nclassifier = load("{place}")\n'
        'print(classifier.predict("picture.jpg"))\n```',
        f"Or `finetune predict {place} PICTURES`.",
    ]
    if unknown:
        words[-1] += f" `--false-accept-rate {_SHOWN_RATE}` answers “unknown” for pictures of none of the classes."
    return "\n\n".join(words)


def _figures(metrics: RunMetrics | None) -> Iterator[str]:
    """Tables and the sentence on what they were measured on."""
    if metrics is None or metrics.accuracy is None or metrics.interval is None or metrics.split is None:
        yield "None: the run has no pictures to measure it on."
        return
    rows = [("**this model**", metrics.accuracy, metrics.interval)]
    rows += [(name, accuracy.accuracy, accuracy.interval) for name, accuracy in _baselines(metrics)]
    table = [f"| accuracy on {metrics.n:,} {_SPLITS[metrics.split]} | | 95 % interval |", "|---|---|---|"]
    table += [f"| {name} | {share:.1%} | {low:.1%} to {high:.1%} |" for name, share, (low, high) in rows]
    yield "\n".join(table)
    more = (
        [] if metrics.balanced_accuracy is None else [f"Mean recall of the classes: {metrics.balanced_accuracy:.1%}."]
    )
    if metrics.calibration is not None:
        more.append(f"Expected calibration error: {metrics.calibration.ece_after:.3f}.")
    if metrics.used_for_selection:
        more.append("These pictures also served to choose between settings, so the figures are somewhat too high.")
    if more:
        yield " ".join(more)


def _baselines(metrics: RunMetrics) -> Iterator[tuple[str, Accuracy]]:
    return metrics.baselines.named()


def _classes(classes: Collection[str]) -> str:
    shown = ", ".join(_words(name) for name in list(classes)[:_MOST_CLASSES])
    return shown + (f" and {len(classes) - _MOST_CLASSES:,} more" if len(classes) > _MOST_CLASSES else "")


def _limits(classes: Collection[str], metrics: RunMetrics | None, unknown: bool) -> Iterator[str]:
    """What the reader must not take for granted."""
    told = "Unless it is asked to refuse unknown pictures, it" if unknown else "It"
    yield f"{told} names one of its {len(classes):,} classes for every picture, also for a picture of none of them."
    found = None if metrics is None or metrics.unknown is None else metrics.unknown
    rate = None if found is None else next((row for row in found.rates if row.rate == _SHOWN_RATE), None)
    if rate is not None and unknown:
        low, high = rate.accepted[1:]
        refused = "" if rate.refused is None else f", and {rate.refused:.0%} of the pictures of the classes are refused"
        yield (
            f"At `--false-accept-rate {_SHOWN_RATE}`, {low:.0%} to {high:.0%} of unknown pictures still pass{refused}; "
            "more pass where they are more like a class than the classes are like each other."
        )
    yield (
        "The figures hold for pictures such as it was trained on. Other cameras, places or times can be harder; "
        "`finetune evaluate` measures it on yours."
    )
    if metrics is not None and metrics.pictures is not None:
        each = metrics.pictures.train / max(1, len(classes))
        yield f"It has learned from {metrics.pictures.train:,} pictures, about {each:,.0f} of each class."
    yield "A probability says how often such answers are right on those pictures, not how sure it is of yours."


def _facts(config: RunConfig, metrics: RunMetrics | None) -> Iterator[str]:
    backbone = str(config.config["backbone"])
    licence = licence_of(backbone)
    weights = "random weights" if config.config.get("strategy") == "scratch" else "its published weights"
    if config.config.get("weights") is not None:
        weights = "weights from a file"
    stated = f", licence {licence}" if licence and weights == "its published weights" else ""
    yield f"backbone: `{backbone}`, from {weights}{stated}" + (
        f"; stages above `{config.highest_stage}` are removed" if config.highest_stage else ""
    )
    if metrics is not None:
        yield f"strategy: {metrics.strategy}" + (f", kept: {metrics.kept}" if metrics.kept else "")
        if metrics.pictures is not None:
            counts = metrics.pictures
            yield f"pictures: {counts.train:,} training, {counts.val:,} validation, {counts.test:,} test"
        if metrics.epochs:
            yield f"epochs: {metrics.epochs}, weights of epoch {metrics.best_epoch}"
        if metrics.interrupted:
            yield "the training was interrupted"
    if config.preprocessing is not None:
        yield f"input: {config.preprocessing.size} × {config.preprocessing.size} pixels"
    if config.made_with:
        yield "made with: " + ", ".join(f"{_words(name)} {_words(value)}" for name, value in config.made_with.items())


def _words(name: str) -> str:
    """A name in Markdown: no sign of it is markup, and nothing in it hides or reorders what stands beside."""
    return _MARKDOWN.sub(r"\\\1", html.escape(printable(name)))
