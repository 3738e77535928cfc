"""The tables of docs/numbers/speed.md on `finetune serve`, of benchmarks/results/service.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]
WAYS = {
    "service": "`finetune serve`",
    "batches of one": "the same, one picture at a time",
    "not compiled": "the same, the network not compiled",
}
BARE = {
    "predict_all, 64 pictures": "`predict_all` of 64 pictures",
    "predict_all, 64 pictures alone": "the same, `alone=True`",
    "predict_all, 64 pictures alone, compiled": "the same after `compile_alone`",
    "predict_all, 1 picture": "`predict_all` of one picture after the other",
}
SPEED = ("", "clients", "pictures a second", "p50, ms", "p99, ms")
TORTURE = ("", "")


def speed_rows(result: Result) -> list[tuple[str, ...]]:
    """Medians over the rounds: of each service by number of clients, and of the bare model."""
    found, rows = result["speed"]["median"], []
    for way, name in WAYS.items():
        for key in found:
            if key.startswith(f"{way}, "):
                clients = key.removeprefix(f"{way}, ").removesuffix(" clients")
                figures = (f"{found[key][each]:.0f}" for each in ("requests_per_second", "p50_ms", "p99_ms"))
                rows.append((name, clients, *figures))
    rows += [(name, "", f"{found[key]['pictures_per_second']:.0f}", "", "") for key, name in BARE.items()]
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
