"""Several writers that change one table at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from made_index import WIDTH, named, unit

from finetune.errors import InputError

pytest.importorskip("lance", reason="pylance is not installed: pip install 'fewtune[lance]'")

import lance

from fewshot.search.table import vector_index
from fewshot.search.table.columns import KEY
from fewshot.search.table.lance_index import LanceIndex
from fewshot.search.table.writing import commit, insertion, removal, replacement

Change = Callable[[Any], Any]
THERE, NEW = named(1)[0], "new"


@pytest.fixture(params=["without an index of the keys", "with one"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    table = LanceIndex.create(tmp_path / "signs.lance", WIDTH, fingerprint="f")
    table.add(named(20), unit(20))
    if request.param == "with one":  # as large tables have
        lance.dataset(str(table.place)).create_scalar_index(KEY, "BTREE")
    return tmp_path / "signs.lance"


def _insert(dataset: Any) -> Any:
    return insertion(dataset, [NEW], lambda part: unit(1, seed=1), {}, "is there")


def _remove(dataset: Any) -> Any:
    return removal(dataset, [THERE])


def _replace(dataset: Any) -> Any:
    return replacement(dataset, [THERE], unit(1, seed=1), None)


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (_insert, _insert, "is there"),
        (_remove, _remove, "is not in the index"),
        (_remove, _replace, "is not in the index"),
        (_replace, _remove, None),
        (_replace, _replace, None),
        (_insert, _remove, None),
        (_remove, _insert, None),
    ],
)
def test_a_change_that_began_on_an_older_version_is_made_on_the_newest(
    place: Path, first: Change, second: Change, refused: str | None
) -> None:
    of_first, of_second = lance.dataset(str(place)), lance.dataset(str(place))
    commit(of_first, first, "the table")
    if refused is None:
        commit(of_second, second, "the table")
    else:
        with pytest.raises(InputError, match=refused):
            commit(of_second, second, "the table")
    keys = set(named(20))
    for change in (first, second):
        keys = keys | {NEW} if change is _insert else keys - {THERE} if change is _remove else keys
    assert sorted(LanceIndex.open(place).keys) == sorted(keys)


def test_what_a_table_is_about_is_saved_beside_another_change_of_it(place: Path) -> None:
    one, other = LanceIndex.open(place), LanceIndex.open(place)
    one.about = {"of": "one"}
    one.save()

    def meanwhile(about: object) -> None:
        if about == {"of": "one"}:
            one.about = {"of": "one again"}
            one.save()

    other.about = {"of": "the other"}
    other.save(check=meanwhile)
    assert LanceIndex.open(place).about == {"of": "the other"}


def test_a_compaction_beside_another_change_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LanceIndex.open(place)
    table.add(["second file"], unit(1, seed=2))
    plain = vector_index.optimise

    def meanwhile(dataset: Any) -> None:
        plain(dataset)
        commit(lance.dataset(str(place)), _replace, "the table")

    monkeypatch.setattr(vector_index, "optimise", meanwhile)
    with pytest.raises(InputError, match="changed by another process meanwhile; compact it again"):
        table.compact()


def _add(place: Path, name: str, refused: Any, both: Any) -> None:
    table = LanceIndex.open(place)
    both.wait(120)
    for number in range(5):
        table.add([f"{name} {number}"], unit(1, seed=number))
    both.wait(120)
    with suppress(InputError):
        table.add(["of both"], unit(1))
        return
    refused.put(name)


@pytest.mark.slow
def test_two_processes_that_change_a_table_lose_nothing(tmp_path: Path) -> None:
    table = LanceIndex.create(tmp_path / "signs.lance", WIDTH)
    context = multiprocessing.get_context("spawn")
    refused = context.SimpleQueue()
    both = context.Barrier(2)
    writer = context.Process(target=_add, args=(table.place, "one", refused, both))
    writer.start()
    _add(table.place, "other", refused, both)
    writer.join(120)
    assert writer.exitcode == 0
    added = {f"{name} {number}" for name in ("one", "other") for number in range(5)}
    assert sorted(LanceIndex.open(tmp_path / "signs.lance").keys) == sorted([*added, "of both"])
    assert refused.get() in ("one", "other")
    assert refused.empty()
