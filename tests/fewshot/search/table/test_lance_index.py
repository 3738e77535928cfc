"""A Lance table behaves as an index, keeps versions, and is filtered by metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_index import WIDTH, named, unit

from fewshot.search.index import Index
from finetune.errors import InputError

pytest.importorskip("lance", reason="pylance is not installed: pip install 'fewtune[lance]'")

from fewshot.search.table.lance_index import LanceIndex

HOSTILE = [
    "it's",
    'a"b',
    "back\\slash",
    "nul\x00x",
    "\x00dcff",
    "new\nline",
    "'); DROP TABLE t; --",
    "日本",
    "%_",
    "\udcff",
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "signs.lance"


@pytest.fixture
def both(place: Path) -> tuple[Index, LanceIndex]:
    """An index in memory and a table with the same 200 vectors."""
    index, table = Index(WIDTH, kind="exact"), LanceIndex.create(place, WIDTH)
    metadata = [{"n": n, "label": "oak" if n % 4 else "elm"} for n in range(200)]
    for each in (index, table):
        each.add(named(200), unit(200), metadata)
    return index, table


def assert_equal(table: LanceIndex, index: Index) -> None:
    assert table.keys == index.keys
    assert len(table) == len(index)
    assert np.array_equal(table.vectors(table.keys), index.vectors(index.keys))
    assert [table.metadata(key) for key in index.keys[:5]] == [index.metadata(key) for key in index.keys[:5]]
    ours, theirs = table.search(unit(6, seed=9), k=7), index.search(unit(6, seed=9), k=7)
    assert (ours.keys == theirs.keys).all()
    assert np.allclose(ours.similarity, theirs.similarity, atol=2e-6)


def test_changes_have_the_result_that_they_have_on_an_index(both: tuple[Index, LanceIndex], place: Path) -> None:
    for each in both:
        each.remove(named(200)[10:60:3])
        each.replace(named(2), unit(2, seed=5))  # metadata None keeps the old
        each.replace(named(4)[2:], unit(2, seed=6), [{"n": -1}, {}])
        each.add(["last"], unit(1, seed=7))
    index, table = both
    assert_equal(table, index)
    assert_equal(LanceIndex.open(place), index)
    assert table.metadata(named(3)[2]) == {"n": -1}
    assert table.metadata("last") == {}
    assert named(1)[0] in table
    assert "none" not in table


def test_changes_go_on_after_compaction_and_in_a_copy(both: tuple[Index, LanceIndex], tmp_path: Path) -> None:
    index, table = both
    table.compact()
    assert_equal(table, index)
    copy = tmp_path / "copy.lance"
    table.save(copy)
    opened = LanceIndex.open(copy)
    for each in (index, opened):
        each.remove(named(1))
        each.add(["last"], unit(1, seed=7))
    assert_equal(opened, index)
    assert len(table) == 200


def test_keys_of_any_text_are_kept_apart(place: Path) -> None:
    table = LanceIndex.create(place, WIDTH)
    vectors = unit(len(HOSTILE))
    table.add(HOSTILE, vectors)
    assert table.keys == tuple(HOSTILE)
    for number, key in enumerate(HOSTILE):
        assert np.array_equal(table.vectors([key]), vectors[number : number + 1])
        assert table.search(vectors[number : number + 1], k=1)[0][0].key == key
    for key in HOSTILE[::2]:
        table.remove([key])
    assert table.keys == tuple(HOSTILE[1::2])


def test_merge_takes_an_index_or_a_table(both: tuple[Index, LanceIndex], tmp_path: Path) -> None:
    index, table = both
    other = LanceIndex.create(tmp_path / "other.lance", WIDTH)
    other.merge(index)
    assert_equal(other, index)
    assert [len(each.search(unit(1), where="label = 'elm'", k=200)[0]) for each in (other, table)] == [50, 50]
    back = Index(WIDTH)
    back.merge(table)
    assert back.keys == index.keys
    with pytest.raises(InputError, match="is in both indexes"):
        other.merge(table)
    with pytest.raises(InputError, match="different embedders"):
        other.merge(Index(WIDTH, fingerprint="f"))
    with pytest.raises(InputError, match="widths differ"):
        other.merge(Index(WIDTH + 1))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("label = 'elm'", lambda n: n % 4 == 0),
        ("label = 'oak' AND n < 20", lambda n: n % 4 and n < 20),
        ("n >= 195 OR key = '" + named(4)[3] + "'", lambda n: n >= 195 or n == 3),
        ("n IN (5, 7, 999)", lambda n: n in (5, 7)),
        ("label LIKE 'e%' AND NOT n > 8", lambda n: n in (0, 4, 8)),
        ("label = 'none'", lambda n: False),
    ],
)
def test_where_filters(both: tuple[Index, LanceIndex], where: str, expected: object) -> None:
    assert callable(expected)
    index, table = both
    kept = [key for n, key in enumerate(named(200)) if expected(n)]
    found = table.search(unit(2, seed=3), k=200, where=where)
    everything = index.search(unit(2, seed=3), k=200)
    for ours, all_of_them in zip(found, everything, strict=True):
        assert [each.key for each in ours] == [each.key for each in all_of_them if each.key in set(kept)]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("label = ", "sql parser error"),
        ("lable = 'oak'", r"columns: key, n, label\): .*No field named lable"),
        ("n", "does not return a boolean"),
        ("label = 'oak'; DROP TABLE t", "sql parser error"),
        ("n = 'oak'", "could not convert|Cannot|Error"),
        ("key IN (SELECT key FROM t)", "not supported"),
        (" ", "where is empty"),
    ],
)
def test_a_wrong_condition_is_one_line(both: tuple[Index, LanceIndex], where: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        both[1].search(unit(1), where=where)
    assert "\n" not in str(raised.value)
    assert ".rs" not in str(raised.value)


def test_names_and_types_of_metadata_decide_on_columns(place: Path) -> None:
    table = LanceIndex.create(place, WIDTH)
    odd = {"odd name": 1, "vector": 2, "Key": 3, "nested": {"a": 1}, "big": 10**400, "bad": "\ud800", "LABEL": "x"}
    table.add(["a", "b"], unit(2), [{"label": "oak", "n": 1, "is": True}, {"label": 7, "n": 1.5, "is": None} | odd])
    assert table.metadata("b") == {"label": 7, "n": 1.5, "is": None} | odd
    for where, keys in (("label = 'oak'", ["a"]), ("n > 0", ["a", "b"]), ("`is`", ["a"]), ("label IS NULL", ["b"])):
        assert sorted(each.key for each in table.search(unit(1), where=where)[0]) == keys


def test_a_version_can_be_read_until_compaction_removes_it(both: tuple[Index, LanceIndex], place: Path) -> None:
    _, table = both
    before = table.version
    table.remove(named(100))
    assert [each.vectors for each in table.versions()][-1] == 100
    old = Index.open(place, version=before)
    assert isinstance(old, LanceIndex)
    assert old.keys == tuple(named(200))
    with pytest.raises(InputError, match="is read-only"):
        old.add(["new"], unit(1))
    with pytest.raises(InputError, match="is read-only"):
        old.compact()
    table.compact()
    assert Index.open(place, version=before).keys == tuple(named(200))
    table.compact(keep=1)
    assert [each.number for each in table.versions()] == [table.version]
    with pytest.raises(InputError, match=f"has no version {before}"):
        Index.open(place, version=before)
    assert table.keys == tuple(named(200)[100:])


def test_about_is_written_by_save(both: tuple[Index, LanceIndex], place: Path) -> None:
    _, table = both
    table.about["folder"] = "photos"
    assert LanceIndex.open(place).about == {}
    seen = []
    table.save(place, check=seen.append)
    assert seen == [{}]
    assert LanceIndex.open(place).about == {"folder": "photos"}
    assert len(LanceIndex.open(place)) == 200


def test_wrong_changes_leave_the_table_unchanged(both: tuple[Index, LanceIndex]) -> None:
    index, table = both
    here, there = named(1), ["none"]
    wrong = [
        (lambda: table.add([*there, *here], unit(2)), "in the index already"),
        (lambda: table.remove([*here, *there]), "'none' is not in the index"),
        (lambda: table.replace([*here, *there], unit(2)), "'none' is not in the index"),
        (lambda: table.vectors(there), "'none' is not in the index"),
        (lambda: table.metadata("none"), "'none' is not in the index"),
        (lambda: table.add(there, 2 * unit(1)), "length must be 1"),
        (lambda: table.add(there, unit(1), [{"x": {1}}]), "cannot be written as JSON"),
        (lambda: table.search(unit(1), k=0), "k must be >= 1"),
        (lambda: table.compact(keep=0), "keep must be >= 1"),
        (lambda: table.compact(engine="spark"), "engine must be"),
        (lambda: table.compact(workers=2), "workers is a number"),
    ]
    before = table.version
    for change, message in wrong:
        with pytest.raises(InputError, match=message):
            change()
    assert table.version == before
    assert_equal(table, index)


def test_creation_refuses_wrong_arguments_and_what_is_there(both: tuple[Index, LanceIndex], tmp_path: Path) -> None:
    new = tmp_path / "new.lance"
    (tmp_path / "folder.lance").mkdir()
    (tmp_path / "folder.lance" / "photo.png").touch()
    for make, message in (
        (lambda: LanceIndex.create(both[1].place, WIDTH), "exists"),
        (lambda: LanceIndex.create(tmp_path / "folder.lance", WIDTH), "exists"),
        (lambda: LanceIndex.create(new, 0), "width must be"),
        (lambda: LanceIndex.create(new, WIDTH, kind="hnsw"), "kind of a Lance table"),
        (lambda: LanceIndex.create(new, WIDTH, least_recall=0), "least_recall must be"),
        (lambda: LanceIndex.create("file:///new.lance", WIDTH), "use a path, or an address"),
        (lambda: LanceIndex.create(str(tmp_path / "\udcff.lance"), WIDTH), "valid UTF-8"),
        (lambda: both[1].save(tmp_path / "folder.lance"), "exists"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    assert not new.exists()


def test_an_index_is_opened_by_what_lies_there(both: tuple[Index, LanceIndex], tmp_path: Path, place: Path) -> None:
    index, _ = both
    index.save(tmp_path / "folder")
    index.save(tmp_path / "named.lance")  # a folder of an index may have any name
    assert isinstance(Index.open(tmp_path / "folder"), Index)
    assert isinstance(Index.open(tmp_path / "named.lance"), Index)
    assert isinstance(Index.open(place), LanceIndex)
    place.rename(tmp_path / "renamed")
    assert isinstance(Index.open(str(tmp_path / "renamed")), LanceIndex)
    with pytest.raises(InputError, match="keep no versions"):
        Index.open(tmp_path / "folder", version=1)
    with pytest.raises(InputError, match="is no Lance table"):
        Index.open(tmp_path / "none.lance")
    with pytest.raises(InputError, match="embed again"):
        Index.open(tmp_path / "renamed", fingerprint="f")
