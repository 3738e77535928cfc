"""Laws of the plans for large collections, and the tables of docs/scale.md."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_are_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def made_plan(pictures: int = 10**8, **site: Any) -> Any:
    """A plan with round rates."""
    from scale_model import Network, Plan, Rates, Site

    network = Network("made", 1000, embed_core=100, train_core=10, embed_card=10_000, train_card=1000, cards="made")
    rates = Rates(
        (network,),
        decode=400,
        picture_bytes=20_000,
        list_files=100_000,
        key_bytes=250,
        products=5e10,
        exact=5e9,
        assign=5e9,
        codes=3e10,
        encode=5e7,
        read=1e9,
        write=1e9,
    )
    return Plan(pictures, network, rates, Site(**site))


def test_the_hours_of_a_stage_are_pictures_over_rates() -> None:
    stage = made_plan(1_000_000, cores=10).embed()
    # 1/400 and 1/100 of a second for each picture, on ten cores.
    assert stage.hours(made_plan(cores=10).site, 1) == pytest.approx(1_000_000 * (1 / 400 + 1 / 100) / 10 / 3600)
    assert stage.shared_bytes == 1_000_000 * (20_000 + 4000)


def test_twice_the_machines_take_half_the_time_until_the_storage_is_the_bound() -> None:
    plan = made_plan(storage=1e9)
    stage, bound = plan.embed(), plan.embed().shared_bytes / 1e9 / 3600
    hours = [stage.hours(plan.site, 2**power) for power in range(14)]
    for before, after in pairwise(hours):
        assert after == pytest.approx(max(before / 2, bound))
    assert hours[0] > bound == hours[-1]


def test_cards_take_the_network_and_cores_still_decode() -> None:
    stage = made_plan(cores=8, cards=1).embed()
    site = made_plan(cores=8, cards=1).site
    assert (stage.core_seconds, stage.card_seconds) == (10**8 / 400, 10**8 / 10_000)
    assert stage.hours(site, 1) == pytest.approx(10**8 / 400 / 8 / 3600)  # the cores are the slower part
    assert stage.hours(replace(site, cores=64), 1) == pytest.approx(10**8 / 10_000 / 3600)


def test_every_stage_takes_no_less_for_more_pictures() -> None:
    for cards in (0, 1):
        plans = [made_plan(10**power, cards=cards) for power in range(3, 11)]
        for smaller, larger in pairwise(plans):
            for one, other in zip(smaller.stages(), larger.stages(), strict=True):
                assert other.hours(larger.site, 3) > one.hours(smaller.site, 3) or one.core_seconds == 0
            assert larger.queries("exact") < smaller.queries("exact")
            assert larger.queries("compressed") < smaller.queries("compressed")
            assert len(larger.limits()) >= len(smaller.limits())


def test_the_least_number_of_machines_meets_the_deadline_and_one_fewer_does_not() -> None:
    for hours in (1.0, 24.0, 100.0):
        plan = made_plan(deadline=hours, storage=1e12)
        machines = plan.full().machines(plan.site)
        assert plan.full().hours(plan.site, machines) <= hours
        assert machines == 1 or plan.full().hours(plan.site, machines - 1) > hours
    slow = made_plan(storage=1e6)
    assert slow.embed().machines(slow.site) is None  # no number of machines reads so much in a day


def test_the_price_is_that_of_all_cores_and_cards() -> None:
    plan = made_plan(cores=10, core_hour=0.5, cards=2, card_hour=3.0, storage=1e12)
    stage = plan.embed()
    assert stage.price(plan.site, 4) == pytest.approx(stage.hours(plan.site, 4) * 4 * (10 * 0.5 + 2 * 3.0))


def test_the_engine_changes_where_one_machine_ends() -> None:
    assert made_plan(10**5).engines() == ("one process", "FAISS, exact")
    assert made_plan(7 * 10**6).engines() == ("one process", "FAISS, IVF PQ re-ranked")
    assert made_plan(10**9).engines() == ("shards by any launcher", "Lance, IVF PQ")
    assert made_plan(10**9, deadline=2).engines()[0] == "Ray Data"
    assert made_plan(10**5).limits() == []
    broken = {limit.name: limit for limit in made_plan(10**9).limits()}
    assert broken["vectors in memory"].over == pytest.approx(4e12 / 64e9)
    assert broken["list of pictures, where a program holds one"].needs == "250 GB"


def test_units_are_decimal_and_times_readable() -> None:
    from scale_model import duration, size

    assert [size(count) for count in (12, 1500, 64e9, 5.12e12, 3e15)] == ["12 B", "1.5 kB", "64 GB", "5.12 TB", "3 PB"]
    assert [duration(seconds) for seconds in (3, 130, 7200, 90_000, 10**6)] == [
        "3.0 s",
        "2.2 min",
        "2.0 h",
        "25 h",
        "12 days",
    ]


def test_the_tables_of_the_docs_are_those_of_the_saved_rates() -> None:
    from scale_plan import DOCS, documented, saved_rates

    text = DOCS.read_text(encoding="utf-8")
    assert documented(text, saved_rates()) == text, "run python benchmarks/scale_plan.py --docs"


def test_the_command_prints_a_plan_and_refuses_what_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scale_plan import main

    out = tmp_path / "plan.json"
    monkeypatch.setattr(sys, "argv", ["scale_plan.py", "--pictures", "5000000", "--cards", "2", "--out", str(out)])
    main()
    shown = capsys.readouterr().out
    assert "| 5,000,000 | 16 cores, 2 cards | decode and embed | 1 |" in shown
    assert "Rates of a card are" in shown
    assert out.exists()
    monkeypatch.setattr(sys, "argv", ["scale_plan.py", "--deadline", "0"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--deadline must be positive" in capsys.readouterr().err
