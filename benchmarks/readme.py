"""Put the tables that benchmarks/results/*.json hold into README.md, between their markers.

python benchmarks/readme.py
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.files import read_json, write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, table in (("demo", demo), ("cats_dogs", cats_dogs), ("head_speed", head_speed)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            text = put(text, name, table(read_json(path)))
    write_text(readme, text)


def put(text: str, name: str, table: str) -> str:
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.escape(opening) + ".*?" + re.escape(closing)
    return re.sub(pattern, lambda _: f"{opening}\n{table}\n{closing}", text, flags=re.DOTALL)


def demo(result: dict[str, Any]) -> str:
    trials = result["trials"]
    rows = []
    for position, row in enumerate(result["rows"]):
        mean = statistics.mean(trial["rows"][position]["accuracy"] for trial in trials)
        rows.append((row["strategy"], with_interval(row), f"{mean:.1%}", f"{row['seconds']:.1f}"))
    tested = f"accuracy on {result['rows'][0]['n']:,} test pictures (95 % interval)"
    return markdown(("strategy", tested, f"mean of {len(trials)} seeds", "seconds"), rows)


def cats_dogs(result: dict[str, Any]) -> str:
    rows = []
    for row in result["rows"]:
        name = row["strategy"] + (f" (kept: {row['kept']})" if row["kept"] != row["strategy"] else "")
        if row.get("interrupted"):
            name += f" (stopped after {row['epochs']} epochs)"
        minutes = "not kept" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"
        rows.append((name, with_interval(row["val"]), with_interval(row), minutes))
    headings = (
        "strategy",
        "val (95 % interval)",
        f"test, {result['rows'][0]['n']} pictures (95 % interval)",
        "minutes",
    )
    return markdown(headings, rows)


def head_speed(result: dict[str, Any]) -> str:
    plain, fitted = result["val_accuracy"]["plain"], result["val_accuracy"]["fit"]
    rows = [
        (
            "time over reading every picture and running the backbone once, this way",
            f"{result['fit_over_one_pass']:.2f}",
        ),
        ("time over the same by PIL, DataLoader, eager float32", f"{result['fit_over_obvious']:.2f}"),
        ("accuracy on val, scikit-learn on the features of that loop", f"{plain:.1%}"),
        ("accuracy on val, `--strategy head`", f"{fitted:.1%}"),
    ]
    return markdown(("`finetune fit cats-dogs --strategy head`", ""), rows)


def with_interval(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['accuracy']:.1%} ({low:.1%} to {high:.1%})"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
