"""Faults from outside: kills, full disks, hostile files, strange environments, load. What the project does with each.

    python benchmarks/faults.py --minutes 60 [--campaigns kills disk ...] [--as NAME] [--tree FOLDER]
    python benchmarks/faults.py --campaigns kills --only 17     replay one attempt, and print what it found

A campaign is a row of attempts. The number of an attempt is its seed, so a failure can be replayed. Attempts that are
done are not repeated: a later call goes on where the last one stopped. Results go to benchmarks/results/faults.json,
under the name of --as, with machine and revision; --tree names another checkout to be tested, such as one from before a
mend. The campaigns are described in benchmarks/campaigns/.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "faults.json"
_SCRATCH = re.compile(r"/\S*/fewtune-faults-[^/\s]*/")  # the temporary folder of the campaigns
CAMPAIGNS = {
    "kills": "kills:Kills",
    "disk": "disk:Disk",
    "environment": "environment:Environment",
    "formats": "formats:Formats",
    "fuzz": "fuzz:Fuzz",
    "concurrency": "concurrency:Concurrency",
    "scale": "scale:Scale",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="time for all campaigns together")
    parser.add_argument("--campaigns", nargs="+", choices=list(CAMPAIGNS), default=list(CAMPAIGNS))
    parser.add_argument("--as", dest="name", default="after", help="name of these results in the file")
    parser.add_argument("--tree", type=Path, default=HERE.parent, help="checkout to test")
    parser.add_argument("--only", type=int, help="number of the one attempt to replay; nothing is recorded")
    parser.add_argument("--attempts", type=int, help="attempts of each campaign in this call")
    parser.add_argument("--largest", type=int, default=16_000, help="largest number of pictures of scale")
    parser.add_argument("--results", type=Path, default=RESULT, help="file of results")
    args = parser.parse_args()
    # In front of the installed package, here and in every process that is started.
    sys.path.insert(0, str(args.tree.resolve()))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "disk" in args.campaigns:
        from campaigns.shim import preload_shim

        preload_shim()  # starts this program again, with the shim in it
    deadline = time.monotonic() + 60 * args.minutes
    for position, name in enumerate(args.campaigns):
        share = (deadline - time.monotonic()) / (len(args.campaigns) - position)
        run(name, args, time.monotonic() + share)


def run(name: str, args: argparse.Namespace, deadline: float) -> None:
    """Attempts of one campaign until the deadline; each is recorded when it is done."""
    from campaigns.attempts import Workshop

    module, _, kind = CAMPAIGNS[name].partition(":")
    shop = Workshop(args.tree.resolve(), args.largest)
    try:
        shop.warm()
        campaign = getattr(importlib.import_module(f"campaigns.{module}"), kind)(shop)
        if args.only is not None:
            for outcome in campaign.attempt(args.only):
                print(f"{outcome.group}: {outcome.skipped or outcome.failure or 'survived'}", dict(outcome.figures))
            return
        numbers = todo(args.results, args.name, name, campaign.total)
        for done, number in enumerate(numbers):
            if time.monotonic() > deadline or done == args.attempts:
                break
            began = time.monotonic()
            outcomes = campaign.attempt(number)
            record(args.results, args.name, name, number, outcomes, campaign.total, time.monotonic() - began)
            for outcome in outcomes:
                if outcome.failure:
                    print(f"{name} {number} {outcome.group}: {outcome.failure}", flush=True)
    finally:
        shop.close()
    found = _results(args.results).get(args.name, {}).get("campaigns", {}).get(name, {})
    print(name, json.dumps({key: found.get(key) for key in ("tried", "survived", "failed", "skipped")}), flush=True)


def todo(results: Path, name: str, campaign: str, total: int) -> Iterator[int]:
    """Numbers of the attempts that are not done."""
    known = _results(results).get(name, {}).get("campaigns", {}).get(campaign, {})
    return iter(range(known.get("next", 0), total))


def record(
    results: Path, name: str, campaign: str, number: int, outcomes: list[Any], total: int, seconds: float
) -> None:
    """Add the outcomes of one attempt to the result file."""
    from machine import provenance

    from finetune.files.locks import locked
    from finetune.files.writing import write_json

    with locked(results.parent):
        known = _results(results)
        part = known.setdefault(name, {"campaigns": {}})
        part.update(provenance())
        _add(part, campaign, number, outcomes, total, seconds)
        write_json(results, known)


def _add(part: dict[str, Any], campaign: str, number: int, outcomes: list[Any], total: int, seconds: float) -> None:
    found = part["campaigns"].setdefault(
        campaign,
        {"next": 0, "of": total, "tried": 0, "survived": 0, "failed": 0, "skipped": 0, "seconds": 0, "groups": {}}
        | {"failures": []},
    )
    for outcome in outcomes:
        group = found["groups"].setdefault(outcome.group, {"tried": 0, "failed": 0})
        if outcome.skipped:
            found["skipped"] += 1
            group["skipped"] = outcome.skipped
            continue
        for counts in (found, group):
            counts["tried"] += 1
            counts["failed"] += bool(outcome.failure)
        found["survived"] += not outcome.failure
        for key, value in outcome.figures.items():
            group[key] = max(group.get(key, value), value)
        if outcome.failure:
            failure = {"number": number, "group": outcome.group, "what": _SCRATCH.sub("", outcome.failure)[:300]}
            if len(found["failures"]) < 200:
                found["failures"].append(failure)
    found["next"], found["of"] = number + 1, total
    found["seconds"] = round(found["seconds"] + seconds, 1)


def _results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    main()
