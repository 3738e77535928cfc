"""What a run's folder tells of how its encoder came about: recipe, time, machine, the course of the training."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fewshot.embedding.encoder_files import CONFIG_FILE, FORMAT, SHIPPED
from fewshot.training.config import SiameseConfig
from fewshot.training.train import HISTORY_FILE, METRICS_FILE
from finetune.errors import InputError
from finetune.files import read_csv, read_json
from finetune.options.fields import flag
from finetune.report.charts import Line, Mark, line_chart

_NOT_REPEATED = ("device",)  # of a recipe: where it runs is no part of what it is


@dataclass(frozen=True)
class Trained:
    """folder: of the run. config, metrics: as the run left them; metrics None where there are none, as for the encoder
    that ships. history: rows of numbers by column, a column without a number left out."""

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
        """What would train it again."""
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


def read_run(run: str) -> Trained:
    """`run`: the folder of a finished run of `fewshot train`, or the name of an encoder that ships.

    InputError for anything else, and for files that are damaged.
    """
    folder = SHIPPED.get(run, Path(run))
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{run} is no run: give {', '.join(SHIPPED)} or the folder of a run of fewshot train")
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict) or config.get("format") != FORMAT or not isinstance(config.get("recipe"), dict):
        raise InputError(f"{folder / CONFIG_FILE} is not of a run of fewshot train that this version can read")
    if "spec" not in config:
        raise InputError(f"the run in {folder} has not finished; continue it with --resume")
    metrics = read_json(folder / METRICS_FILE) if (folder / METRICS_FILE).is_file() else None
    # What was made by the API alone says nothing of where it came from.
    return Trained(run, folder, {"source": "made by the API"} | config, metrics, _history(folder / HISTORY_FILE))


def facts(trained: Trained) -> list[tuple[str, str]]:
    """What a reader wants to know first, as (name, value)."""
    config, recipe, metrics = trained.config, trained.config["recipe"], trained.metrics or {}
    found = [("trained on", _learned_from(trained))]
    if config.get("trained_on"):
        alphabets = config["trained_on"]
        found.append(
            (
                "has seen",
                f"{sum(map(len, alphabets.values())):,} characters of {len(alphabets)} alphabets, in training or "
                "validation",
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
        found.append(("time asked for", f"{recipe['minutes']:g} minutes"))
    if "engine" in config:
        engine = config["engine"]
        found.append(("machine", f"{engine['device']}, {engine['precision']}, torch {engine['torch']}"))
    validation = metrics.get("validation")
    if validation:
        found.append(("on validation", f"{100 * validation['accuracy']:.1f} % by {validation['of']}"))
    if metrics.get("interrupted"):
        found.append(("interrupted", "before its last step"))
    return [*found, ("seed", str(recipe.get("seed"))), ("fingerprint", str(config.get("fingerprint")))]


def course(trained: Trained) -> list[Markup]:
    """Charts of the loss, and of the accuracy on validation where it was measured, with the step that was kept."""
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
        return [{name: float(value) for name, value in row.items() if value} for row in read_csv(path, ("step",))]
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no history of a training ({error}); it may be damaged") from error


def _learned_from(trained: Trained) -> str:
    config = trained.config
    if not trained.on_omniglot:
        return str(config["source"]) + (", without labels" if config.get("self_supervised") else "")
    parts = [f"Omniglot, split {config.get('split')}"]
    if config.get("everything"):
        parts.append("the validation alphabets included, the last weights kept")
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
