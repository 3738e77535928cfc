"""What 10^6, 10^8 and 10^9 pictures cost in time, machines, storage and money, from rates that are measured here.

    FEWTUNE_DATA=DATA python benchmarks/scale_plan.py --measure       measure the rates, about two minutes
    python benchmarks/scale_plan.py [--cards 1] [--deadline 12] ...   a plan for your machines and prices
    python benchmarks/scale_plan.py --docs                            write the tables of docs/scale.md
    FEWTUNE_DATA=DATA python benchmarks/scale_plan.py --check 2000    embed 2,000 pictures: predicted against measured

Rates and the default plans are in benchmarks/results/scale_plan.json. Rates are of one core, in processor seconds, so
that other programs on the machine count little; --check compares processor seconds for the same reason. Rates of cards
come from benchmarks/results/gpu.json, or are published ones, and the plan says which. Prices are yours: the defaults
are no quotes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import msgspec
from machine import provenance
from scale_model import Plan, Rates, Site, duration, size
from tables import markdown, put

from finetune.files.reading import read_json
from finetune.files.writing import write_json, write_text

RESULT = Path(__file__).parent / "results" / "scale_plan.json"
DOCS = Path(__file__).parents[1] / "docs" / "scale.md"
SIZES = (10**6, 10**8, 10**9)
NETWORK = "tf_efficientnet_lite0"
# The measured time of a check is within this factor of the predicted one, either way.
FACTOR = 1.5
HEADINGS = ("pictures", "machines have", "stage", "machines", "time", "price", "engine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--measure", action="store_true", help="measure the rates of this machine first")
    action.add_argument("--docs", action="store_true", help="write the tables of docs/scale.md")
    action.add_argument("--check", type=int, metavar="N", help="embed N pictures here and compare with the prediction")
    parser.add_argument("--pictures", type=int, nargs="+", default=SIZES)
    parser.add_argument("--network", default=NETWORK)
    parser.add_argument("--epochs", type=int, default=5, help="of full fine-tuning")
    parser.add_argument("--out", type=Path, help="write the plan as JSON")
    for field in fields(Site):
        kind: Any = int if field.name in ("cores", "cards") else float
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=HELP[field.name]
        )
    args = parser.parse_args()
    site = Site(**{field.name: getattr(args, field.name) for field in fields(Site)})
    wrong = [name for name, value in asdict(site).items() if value < 0 or (value == 0 and name in POSITIVE)]
    if wrong or min(args.pictures) < 1 or args.epochs < 1:
        parser.error(f"--{(wrong or ['pictures or --epochs'])[0].replace('_', '-')} must be positive")
    if args.measure:
        measure()
    rates = saved_rates()
    if args.docs:
        write_text(DOCS, documented(DOCS.read_text(encoding="utf-8"), rates))
        return
    networks = {network.name: network for network in rates.networks}
    if args.network not in networks:
        parser.error(f"--network must be one of {', '.join(networks)}, not {args.network}")
    if args.check:
        check(rates, args.network, args.check)
        return
    plans = [Plan(count, networks[args.network], rates, site, args.epochs) for count in args.pictures]
    print(markdown(HEADINGS, [row for plan in plans for row in rows(plan)]))
    print("\n" + markdown(LIMITS, [row for plan in plans for row in limit_rows(plan)]))
    if site.cards:
        print(f"\nRates of a card are {networks[args.network].cards}.")
    if args.out:
        write_json(args.out, {"plans": [as_json(plan) for plan in plans], "rates": asdict(rates)})


HELP = {
    "cores": "cores of a machine",
    "cards": "cards of a machine",
    "memory": "memory of a machine in bytes",
    "storage": "bytes per second from and to the storage that all machines share",
    "deadline": "hours in which each stage ends",
    "core_hour": "price of a core for an hour",
    "card_hour": "price of a card for an hour",
}
POSITIVE = ("cores", "memory", "storage", "deadline")


def measure() -> None:
    from scale_rates import measured_rates

    rates = measured_rates(Path(os.environ["FEWTUNE_DATA"]))
    plans = [as_json(plan) for plan in default_plans(rates)]
    write_json(RESULT, {"rates": asdict(rates), "plans": plans, "checks": [], **provenance()})


def saved_rates() -> Rates:
    if not RESULT.exists():
        sys.exit(f"{RESULT.name} is missing: run this with --measure first")
    return msgspec.convert(read_json(RESULT)["rates"], Rates)


def default_plans(rates: Rates) -> list[Plan]:
    """The plans of docs/scale.md: each size on cores alone, and with one card in each machine."""
    (network,) = (network for network in rates.networks if network.name == NETWORK)
    sites = Site(), replace(Site(), cards=1)
    return [Plan(count, network, rates, site) for count in SIZES for site in sites]


def check(rates: Rates, name: str, count: int) -> None:
    """Embed pictures in one process; fails where the measured time is not within FACTOR of the predicted one."""
    from scale_rates import opened_network

    from finetune.data.folder import list_unlabelled
    from finetune.progress import Display

    data = Path(os.environ["FEWTUNE_DATA"])
    embedder = opened_network(name, data)
    listed = list_unlabelled([data / "cats-dogs"])
    paths = (listed * (count // len(listed) + 1))[:count]
    embedder.embed(listed[:400], display=Display())  # converts the network, which is no part of the plan
    start, elapsed = time.process_time(), time.perf_counter()
    embedder.embed(paths, display=Display())
    spent, elapsed = time.process_time() - start, time.perf_counter() - elapsed
    (network,) = (network for network in rates.networks if network.name == name)
    predicted = Plan(count, network, rates, Site()).embed().core_seconds
    row = {
        "network": name,
        "pictures": count,
        "predicted_core_seconds": round(predicted, 2),
        "measured_core_seconds": round(spent, 2),
        "measured_over_predicted": round(spent / predicted, 3),
        "elapsed_seconds": round(elapsed, 2),
        "within": FACTOR,
    }
    print(json.dumps(row))
    result = read_json(RESULT)
    write_json(RESULT, result | {"checks": [*result["checks"], row]})
    if not 1 / FACTOR <= spent / predicted <= FACTOR:
        sys.exit(f"the measured time is {spent / predicted:.2f} times the predicted one; at most {FACTOR} is allowed")


# --- tables -----------------------------------------------------------------------------------------------------------

LIMITS = ("pictures", "what ends first", "it needs", "times its bound", "what to do")


def rows(plan: Plan) -> list[tuple[str, ...]]:
    """A row for each stage, and one for the search."""
    site = plan.site
    found: list[tuple[str, ...]] = []
    has = f"{site.cores} cores" + (f", {site.cards} card" + "s" * (site.cards > 1) if site.cards else "")
    embed, search = plan.engines()
    engines = {"decode and embed": embed, "index": search, "full fine-tuning": "torchrun"}
    for stage in plan.stages():
        machines = stage.machines(site)
        head = exponent(plan.pictures), has, stage.name
        if machines is None:
            hours = duration(3600 * stage.hours(site, 10**9))
            found.append(
                (*head, "none is enough", f"{hours}, by the storage", "", engines.get(stage.name, "one process"))
            )
            continue
        time_of, price = duration(3600 * stage.hours(site, machines)), stage.price(site, machines)
        engine = engines.get(stage.name, "one process" if machines == 1 else "shards")
        found.append((*head, f"{machines:,}", time_of, money(price), engine))
    per_machine = plan.queries(plan.structure) * site.cores
    most = "at most " if search.startswith("Lance") else ""  # the measured rate is that of vectors in memory
    found.append(
        (exponent(plan.pictures), has, "search", "1", f"{most}{significant(per_machine)} queries/s", "", search)
    )
    return found


def limit_rows(plan: Plan) -> list[tuple[str, ...]]:
    limits = plan.limits()
    if not limits:
        return [(exponent(plan.pictures), "nothing", "", "", "")]
    return [
        (exponent(plan.pictures), limit.name, limit.needs, significant(limit.over), limit.remedy) for limit in limits
    ]


def rate_rows(rates: Rates) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [
        ("read, decode and resize a picture", f"{significant(rates.decode)} pictures/s"),
        ("mean size of a picture", size(rates.picture_bytes)),
        ("list the files of a folder", f"{significant(rates.list_files)} files/s"),
        ("memory of a listed picture", size(rates.key_bytes)),
        ("products of matrices, torch", f"{significant(rates.products / 1e9)} billion multiplications/s"),
        ("exact search, 200 queries at once", f"{significant(rates.exact / 1e9)} billion multiplications/s"),
        ("compare vectors with lists, FAISS", f"{significant(rates.assign / 1e9)} billion multiplications/s"),
        ("visit compressed vectors", f"{size(rates.codes)}/s"),
        ("compress vectors", f"{significant(rates.encode / 1e6)} million numbers/s"),
        ("read from the disk, write to it", f"{size(rates.read)}/s, {size(rates.write)}/s"),
    ]
    for network in rates.networks:
        found += [
            (f"`{network.name}`: forward pass, one core", f"{significant(network.embed_core)} pictures/s"),
            (f"`{network.name}`: step of training, one core", f"{significant(network.train_core)} pictures/s"),
            (
                f"`{network.name}`: both on one card",
                f"{significant(network.embed_card)} and {significant(network.train_card)} pictures/s, {network.cards}",
            ),
        ]
    return found


def documented(text: str, rates: Rates) -> str:
    """docs/scale.md with its tables."""
    plans = default_plans(rates)
    text = put(text, "rates", markdown(("one core of this machine", ""), rate_rows(rates)))
    text = put(text, "plans", markdown(HEADINGS, [row for plan in plans for row in rows(plan)]))
    on_cores = [plan for plan in plans if not plan.site.cards]
    return put(text, "limits", markdown(LIMITS, [row for plan in on_cores for row in limit_rows(plan)]))


def as_json(plan: Plan) -> dict[str, Any]:
    stages = {}
    for stage in plan.stages():
        machines = stage.machines(plan.site)
        stages[stage.name] = asdict(stage) | {
            "machines": machines,
            "hours": stage.hours(plan.site, machines or 1),
            "price": stage.price(plan.site, machines or 1),
        }
    embed, search = plan.engines()
    return {
        "pictures": plan.pictures,
        "network": plan.network.name,
        "site": asdict(plan.site),
        "engines": {"embed": embed, "search": search},
        "bytes": {"pictures": plan.picture_bytes, "vectors": plan.vector_bytes, "codes": plan.code_bytes},
        "queries_per_core_second": plan.queries(plan.structure),
        "stages": stages,
        "limits": [asdict(limit) for limit in plan.limits()],
    }


def exponent(count: int) -> str:
    """10^n for a power of ten."""
    power = len(str(count)) - 1
    return f"10^{power}" if count == 10**power else f"{count:,}"


def significant(value: float) -> str:
    """Two significant digits, and whole numbers from 10 on."""
    if value >= 10:
        digits = len(str(round(value))) - 2
        return f"{round(value, -digits):,.0f}"
    return f"{value:.2g}"


def money(price: float) -> str:
    return f"{price:,.0f}" if price >= 10 else f"{price:.2f}"


if __name__ == "__main__":
    main()
