"""The tables of docs/numbers/speed.md on services, of benchmarks/results/service.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]
# A part of the results, with the command that serves and the method of the bare model.
PARTS = {"speed": ("finetune serve", "predict_all"), "gallery": ("fewshot serve", "recognize_all")}
WAYS = {
    "service": "`{}`",
    "batches of one": "the same, one picture at a time",
    "not compiled": "the same, the network not compiled",
}
BARE = {
    "64 pictures": "`{}` of 64 pictures",
    "64 pictures alone": "the same, `alone=True`",
    "64 pictures alone, compiled": "the same after `compile_alone`",
    "1 picture": "`{}` of one picture after the other",
}
SPEED = ("", "clients", "pictures a second", "p50, ms", "p99, ms")
TORTURE = ("", "")


def speed_rows(result: Result) -> list[tuple[str, ...]]:
    """Medians over the rounds: of each service by number of clients, and of the bare model."""
    rows = []
    for part, (command, method) in PARTS.items():
        if part not in result:
            continue
        found = result[part]["median"]
        for way, name in WAYS.items():
            for key in found:
                if key.startswith(f"{way}, "):
                    clients = key.removeprefix(f"{way}, ").removesuffix(" clients")
                    figures = (f"{found[key][each]:.0f}" for each in ("requests_per_second", "p50_ms", "p99_ms"))
                    rows.append((name.format(command), clients, *figures))
        for what, name in BARE.items():
            figure = f"{found[f'{method}, {what}']['pictures_per_second']:.0f}"
            rows.append((name.format(method), "", figure, "", ""))
    return rows


def torture_rows(result: Result) -> list[tuple[str, ...]]:
    """Sums over the pieces; memory and files from the first sample of a service to its end, where they grew most."""
    pieces = result["torture"]
    kinds: Counter[str] = Counter()
    for piece in pieces:
        kinds.update(piece["kinds"])
    broken = sum(count for kind, count in kinds.items() if kind not in ("one picture", "several pictures", "hang up"))
    grown = max(pieces, key=lambda piece: piece["end"]["mb"] - piece["samples"][0]["mb"])
    files = max(piece["end"]["files"] - min(each["files"] for each in piece["samples"]) for piece in pieces)
    return [
        ("requests, of 16 clients", f"{sum(piece['requests'] for piece in pieces):,}"),
        ("of these broken", f"{broken:,}"),
        ("clients that hang up", f"{kinds['hang up']:,}"),
        ("wrong answers or statuses", f"{sum(piece['wrong'] for piece in pieces)}"),
        ("tracebacks", f"{sum(piece['tracebacks'] for piece in pieces)}"),
        ("services, each for a part of the requests", f"{len(pieces)}"),
        (
            "memory of a service, at its first sample and at its end (the one that grew most)",
            f"{grown['samples'][0]['mb']:.0f} MB, {grown['end']['mb']:.0f} MB",
        ),
        ("more open files at the end than at the least", f"{files}"),
    ]
