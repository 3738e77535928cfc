"""A page of every result file of the benchmarks: the question, the command, the machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def write_result_page(benchmarks: Path, path: Path) -> None:
    """Write the list of `benchmarks`/results/*.json to `path`."""
    lines = [
        "# Every result",
        "",
        "All files are in `benchmarks/results/`. FOLDER stands for a folder of your own.",
        "",
    ]
    lines += ["| question | last command | file | machine |", "|---|---|---|---|"]
    for file in sorted((benchmarks / "results").glob("*.json")):
        origin = provenance_of(json.loads(file.read_text(encoding="utf-8")))
        if not origin:
            continue
        command = re.sub(r"(?:/tmp|\.\.)/\S+", "FOLDER", origin["command"].split(";")[0])
        script = benchmarks.parent / command.split()[1]
        asks = script.read_text(encoding="utf-8").splitlines()[0].strip('"') if script.exists() else ""
        machine = f"{origin['machine']['cpu']}, {origin['machine']['cores']} cores"
        lines.append(f"| {asks} | `{command}` | `{file.name}` | {machine} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def provenance_of(value: Any) -> dict[str, Any]:
    """The first part of a result that names its command and machine; {} where none does."""
    if isinstance(value, dict):
        if "command" in value and "machine" in value:
            return value
        return next((found for each in value.values() if (found := provenance_of(each))), {})
    return {}
