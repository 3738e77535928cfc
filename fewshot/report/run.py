"""A finished training run as a report shows it: options, time, machine and training curves."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fewshot.embedding.encoder_files import CONFIG_FILE, SHIPPED, read_siamese_config
from fewshot.training.config import SiameseConfig
from fewshot.training.train import HISTORY_FILE, METRICS_FILE, metrics_of
from finetune.errors import InputError
from finetune.files.tables import read_csv
from finetune.options.fields import flag
from finetune.report.charts import Line, Mark, line_chart

_NOT_REPEATED = ("device",)  # option that does not affect the result


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        name: As given.
        folder: Of the run.
        config, metrics: As the run wrote them; metrics is None for the encoder that ships.
        history: Rows of numbers by column; empty cells are absent.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    metrics: dict[str, Any] | None
    history: list[dict[str, float]]

    @property
    def on_omniglot(self) -> bool:
        return bool(self.config["source"] == "omniglot")

    @property
    def command(self) -> str:
        """The command that trains it again."""
        words = ["fewshot", "train", str(self.config["source"])]
        for name in ("split", "examples"):
            if self.config.get(name) is not None:
                words += [flag(name), str(self.config[name])]
        words += ["--all"] if self.config.get("everything") else []
        words += ["--self-supervised"] if self.config.get("self_supervised") else []
        for option in fields(SiameseConfig):
            value = self.config["recipe"].get(option.name)
            if value != option.default and option.name not in _NOT_REPEATED:
                words += [flag(option.name), f"{value:g}" if isinstance(value, float) else str(value)]
        return shlex.join([*words, "--out", "RUN"])


def read_run(run: str) -> TrainedRun:
    """Read the folder of a finished run of `fewshot train`, or an encoder that ships.

    InputError for anything else, and for damaged files.
    """
    folder = SHIPPED.get(run, Path(run))
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{run} is no run: give {', '.join(SHIPPED)} or the folder of a run of fewshot train")
    found, config = read_siamese_config(folder)
    if found.spec is None:
        raise InputError(f"the run in {folder} has not finished; continue it with --resume")
    known = {option.name for option in fields(SiameseConfig)}
    try:
        recipe = SiameseConfig.from_dict({name: value for name, value in found.recipe.items() if name in known})
    except InputError as error:
        raise InputError(f"{folder / CONFIG_FILE} may be damaged: {error}") from error
    config = config | {"recipe": recipe.to_dict() | found.recipe}
    metrics = metrics_of(folder) if (folder / METRICS_FILE).is_file() else None
    # A run made by the API has no source.
    return TrainedRun(run, folder, {"source": "made by the API"} | config, metrics, _history(folder / HISTORY_FILE))


def facts(trained: TrainedRun) -> list[tuple[str, str]]:
    """The main facts about a run, as (name, value)."""
    config, recipe, metrics = trained.config, trained.config["recipe"], trained.metrics or {}
    found = [("trained on", _training_data(trained))]
    if config.get("trained_on"):
        alphabets = config["trained_on"]
        found.append(
            (
                "training characters",
                f"{sum(map(len, alphabets.values())):,} of {len(alphabets)} alphabets, for training or validation",
            )
        )
    spec = config["spec"]
    found.append(("network", f"{spec['network']}, input {spec['side']} × {spec['side']} pixels"))
    found.append(("loss", _loss(recipe)))
    steps = metrics.get("steps", config.get("steps"))
    if steps is not None:
        kept = metrics.get("kept_step", steps)
        found.append(("steps", f"{steps:,}" + (f"; the weights of step {kept:,} were kept" if kept != steps else "")))
    if "seconds" in metrics:
        found.append(("time", _time(metrics["seconds"])))
    elif recipe.get("minutes") is not None:
        found.append(("requested time", f"{recipe['minutes']:g} minutes"))
    if "engine" in config:
        engine = config["engine"]
        found.append(("machine", f"{engine['device']}, {engine['precision']}, torch {engine['torch']}"))
    validation = metrics.get("validation")
    if validation:
        found.append(("on validation", f"{100 * validation['accuracy']:.1f} % by {validation['of']}"))
    if metrics.get("interrupted"):
        found.append(("interrupted", "before its last step"))
    return [*found, ("seed", str(recipe.get("seed"))), ("fingerprint", str(config.get("fingerprint")))]


def training_charts(trained: TrainedRun) -> list[Markup]:
    """Charts of the loss and, if measured, of the validation accuracy; the kept step is marked."""
    rows = trained.history
    kept = (trained.metrics or {}).get("kept_step")
    last = rows[-1]["step"] if rows else None
    marks = [Mark(kept, f"kept: {kept:,}")] if kept is not None and kept != last else []
    charts = []
    for column, title, percent in (("loss", "Training loss", False), ("accuracy", "Validation accuracy", True)):
        points = [(row["step"], row[column]) for row in rows if column in row]
        if len(points) > 1:
            line = Line(column, [step for step, _ in points], [value for _, value in points])
            charts.append(line_chart([line], title=title, x_label="step", y_label=column, percent=percent, marks=marks))
    return charts


def _history(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        return []
    try:
        rows = [{name: float(value) for name, value in row.items() if value} for row in read_csv(path, ("step",))]
        if not all("step" in row and all(map(math.isfinite, row.values())) for row in rows):
            raise ValueError("a row has no step, or a number that is not finite")
        return rows
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no training history ({error}); it may be damaged") from error


def _training_data(trained: TrainedRun) -> str:
    config = trained.config
    if not trained.on_omniglot:
        return str(config["source"]) + (", without labels" if config.get("self_supervised") else "")
    parts = [f"Omniglot, split {config.get('split')}"]
    if config.get("everything"):
        parts.append("with the validation alphabets; last weights kept")
    if config.get("examples") is not None:
        parts.append(f"{config['examples']} drawing(s) of each character")
    if config.get("self_supervised"):
        parts.append("without labels")
    return "; ".join(parts)


def _loss(recipe: dict[str, Any]) -> str:
    if recipe.get("loss") != "contrastive":
        return str(recipe.get("loss"))
    hardest = recipe.get("hardest")
    pushed = f", {hardest} nearest negatives for each picture" if hardest else ""
    return f"contrastive, margin {recipe.get('margin'):g}{pushed}"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
