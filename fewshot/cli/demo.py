"""The demo: handwritten digits recognised from one example of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.episodes import arrange, episodes_of_classes, score_episodes
from fewshot.evaluation.intervals import bootstrap_interval
from finetune.data.digits import write_digits
from finetune.data.images import read_image
from finetune.progress import Display

DRAWS = 20  # random choices of the examples; all other digits are queries
SHOTS = (1, 5)


@dataclass(frozen=True)
class DemoResult:
    """Mean accuracy over the draws, with a 95 % interval for other examples of the digits."""

    vectors: str
    shots: int
    accuracy: float
    interval: tuple[float, float]


def run_demo(out: Path, *, seed: int = 0, display: Display | None = None) -> list[dict[str, Any]]:
    """Measure how often the nearest example shows the same handwritten digit, by the encoder that ships and by pixels.

    Args:
        out: Folder; the digits are written to `out`/digits.
        seed: Seed of the examples.
        display: Shows progress and a table. None for no output.

    Returns:
        The results, as JSON values.

    Example:
        >>> from fewshot import run_demo
        >>> rows = run_demo(Path("demo"))  # doctest: +SKIP
    """
    display = display or Display()
    folder = out / "digits"
    write_digits(folder, seed=seed)
    paths = sorted((folder / "test").rglob("*.png"))
    labels = torch.tensor([int(path.parent.name) for path in paths])
    display.say(f"{folder}: {len(paths):,} handwritten digits; one example of each, the others are queries")
    embedder = Embedder.load("omniglot", device="cpu")
    pixels = torch.from_numpy(
        np.stack([255 - np.asarray(read_image(path).convert("L"), np.float32).ravel() for path in paths])
    )
    rows = []
    for name, vectors in (
        ("pixels", pixels),
        (
            f"encoder trained on Omniglot ({embedder.fingerprint})",
            torch.from_numpy(embedder.embed(paths, display=display)),
        ),
    ):
        rows += [_measured(name, vectors, labels, shot, seed) for shot in SHOTS]
    if display.console is not None:
        _show(rows)
    return [asdict(row) for row in rows]


def _measured(name: str, vectors: Tensor, labels: Tensor, shot: int, seed: int) -> DemoResult:
    pool = arrange(labels)
    drawn = episodes_of_classes(
        pool,
        torch.arange(len(pool.labels)).expand(DRAWS, -1),
        shot=shot,
        queries=int(pool.sizes.min()) - shot,
        generator=torch.Generator().manual_seed(seed),
    )
    per_draw = score_episodes(vectors, drawn).credit.double().mean((1, 2))
    interval = bootstrap_interval(per_draw.tolist(), drawn.query.numel(), seed)
    return DemoResult(name, shot, float(per_draw.mean()), interval)


def _show(rows: list[DemoResult]) -> None:
    table = Table(title=f"handwritten digits, examples drawn {DRAWS} times", title_justify="left")
    for heading in ("vectors", "examples of each digit", "accuracy", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "vectors" else "right")
    for row in rows:
        low, high = row.interval
        table.add_row(row.vectors, str(row.shots), f"{row.accuracy:.1%}", f"{low:.1%} to {high:.1%}")
    Console().print(table)
