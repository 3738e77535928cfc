"""Run folders as `fit` leaves them, of made-up pictures and probabilities: for tests of what reads them."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune import Config
from finetune.classifier.run_folder import PICTURES_HEADER, PREDICTIONS_HEADER
from finetune.files.tables import write_csv
from finetune.files.writing import write_json, write_tensors
from finetune.metrics import accuracy_of, measure_predictions


def made_run(
    place: Path,
    classes: list[str],
    per_class: int,
    *,
    certainty: float = 3.0,
    side: int = 160,
    kinds: int = 12,
    epochs: int = 8,
    seed: int = 0,
    **metrics: Any,
) -> Path:
    """A run in place/run on place/pictures, with `per_class` test pictures of each class, half as many of validation.

    certainty: how much higher the true class's logit is on average. kinds: different pictures; the rest are links.
    metrics: what metrics.json says beside.
    """
    random = np.random.default_rng(seed)
    pictures, run = place / "pictures", place / "run"
    sources = [_picture(place, number, side, random) for number in range(kinds)]
    generator = torch.Generator().manual_seed(seed)
    rows: list[tuple[Any, ...]] = []
    table: list[tuple[str, ...]] = []
    tensors = {}
    for split, count in (("val", max(1, per_class // 2)), ("test", per_class)):
        labels = torch.arange(len(classes)).repeat_interleave(count)
        logits = torch.randn(len(labels), len(classes), generator=generator)
        logits[torch.arange(len(labels)), labels] += certainty
        tensors[split] = logits.log_softmax(1)
        for position, (label, row) in enumerate(zip(labels.tolist(), tensors[split].exp(), strict=True)):
            path = f"{split}/{classes[label]}/{position:05d}.jpg"
            (pictures / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(sources[position % kinds], pictures / path)
            best = int(row.argmax())
            shares = f"{float(row[best]):.6f}", f"{float(row[label]):.6f}"
            rows.append((path, split, classes[label], classes[best], *shares))
            table.append((path, split, classes[label], ""))
    test = torch.arange(len(classes)).repeat_interleave(per_class)
    val = torch.arange(len(classes)).repeat_interleave(max(1, per_class // 2))
    guess = vars(accuracy_of(torch.zeros_like(test), test))
    measured = {
        **asdict(measure_predictions(tensors["test"], test, classes)),
        "split": "test",
        "used_for_selection": False,
        "strategy": "full",
        "reason": "full: 300 training pictures per class are 200 or more: enough to adapt every stage.",
        "probe_curve": _probe_curve(),
        "kept": "full",
        "interrupted": False,
        "epochs": epochs,
        "best_epoch": epochs - 2,
        "share_of_the_way": 0.5,
        "lr_sweep": _sweep(),
        "baselines": {"majority_class": guess, "nearest_class_mean": guess, "head": guess},
        "val": {
            **vars(accuracy_of(tensors["val"].argmax(1), val)),
            "loss": 0.3,
            "n": len(val),
            "used_for_selection": True,
        },
        "unreadable": [{"path": "train/<b>broken</b>.jpg", "reason": "truncated"}],
        "left_out": [{"path": "train/twin.jpg", "reason": "identical to test/twin.jpg"}],
        "notes": ["Pictures of train/ and val/ that are identical to one in val/ or test/ are left out: 1."],
        "seconds": 12.5,
    }
    run.mkdir()
    write_json(run / "metrics.json", measured | metrics)
    made_with = {"device": "cpu", "precision": "32-true", "torch": torch.__version__}
    config = Config(strategy="full", epochs=epochs).to_dict()
    write_json(
        run / "config.json",
        {"format": 1, "folder": str(pictures), "made_with": made_with, "config": config, "classes": classes},
    )
    write_csv(run / "predictions.csv", PREDICTIONS_HEADER, rows)
    write_csv(run / "pictures.csv", PICTURES_HEADER, table)
    history = [(epoch, 1 / epoch, 0.3 + 0.5 / epoch, 1 - 0.5 / epoch) for epoch in range(1, epochs + 1)]
    write_csv(run / "history.csv", ("epoch", "train_loss", "val_loss", "val_accuracy"), history)
    write_tensors(run / "probabilities.safetensors", tensors)
    return run


def _picture(place: Path, number: int, side: int, random: np.random.Generator) -> Path:
    """Blobs of colour with some noise: about as many bytes as a photograph takes."""
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"source-{number}.jpg"
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(coarse).resize((side, side)), dtype=np.float64)
    pixels = np.clip(large + random.normal(0, 12, large.shape), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


def _sweep() -> dict[str, Any]:
    """Of 100 steps: the loss falls, then grows until it is no number."""
    rates = [1e-6 * 1e6 ** (step / 99) for step in range(100)]
    losses = [1.5 - 0.012 * step if step < 80 else 0.6 * 1.4 ** (step - 80) for step in range(99)]
    points = [{"lr": rate, "loss": loss, "smoothed": loss} for rate, loss in zip(rates, [*losses, None], strict=True)]
    return {"suggestion": rates[50], "trouble": None, "diverged": True, "stage_rates": None, "points": points}


def _probe_curve() -> dict[str, Any]:
    depths = ("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "features", "together")
    probes = [
        {
            "depth": depth,
            "accuracy": 0.5 + 0.06 * place,
            "interval": [0.45 + 0.06 * place, 0.55 + 0.06 * place],
            "error": 0.6 - 0.06 * place,
            "less_error": 0.2 * (place - 5),
            "less_error_interval": [0.2 * (place - 5) - 0.05, 0.2 * (place - 5) + 0.05],
        }
        for place, depth in enumerate(depths)
    ]
    return {
        "probes": probes[:-1],
        "together": probes[-1],
        "best": "features",
        "different": False,
    }
