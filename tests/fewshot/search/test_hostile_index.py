"""index.json and keys that somebody has made to harm."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from damage import JSON
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_index import KINDS, WIDTH, assert_same, endless_table, file_of, filled, named, sign_again, unit

from fewshot.search.index import Index
from finetune.errors import InputError

ROWS = 60


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Index.load(folder)
    assert "\n" not in str(caught.value)


def same_or_refused(folder: Path, expected: Index) -> None:
    try:
        index = Index.load(folder)
    except InputError:
        return
    assert_same(index, expected)
    assert index.search(unit(2), 3).keys.shape == (2, 3)


# --- index.json -------------------------------------------------------------------------------------------------------

BAD = (None, -1, 0, 1, 1 << 31, 1 << 53, 1 << 62, 1 << 63, 10**30, -(10**30), 0.5, -0.5, 1e308, "", "x", "\ud800")
NESTED: tuple[Any, ...] = ([], {}, [1], {"x": 1}, True, [[[[]]]])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_value_of_a_field_is_refused_or_does_no_harm(kind: str, tmp_path: Path) -> None:
    expected = filled(ROWS, kind)
    expected.save(tmp_path)
    whole = (tmp_path / "index.json").read_text()
    about = json.loads(whole)
    assert len(about) == 17
    for name in about:
        for value in (*BAD, *NESTED):
            (tmp_path / "index.json").write_text(json.dumps(about | {name: value}))
            same_or_refused(tmp_path, expected)
        (tmp_path / "index.json").write_text(json.dumps({key: about[key] for key in about if key != name}))
        if name != "memory":  # which indexes had not always
            refused(tmp_path, "index.json")


FIELDS = ("width", "vectors", "rows", "effort", "recall", "built_at", "changed", "about", "fingerprint", "least_recall")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_json_is_refused_or_does_no_harm(kind: str, tmp_path: Path) -> None:
    expected = filled(ROWS, kind)
    expected.save(tmp_path)
    about = json.loads((tmp_path / "index.json").read_text())

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
    def check(changes: dict[str, Any]) -> None:
        (tmp_path / "index.json").write_text(json.dumps(about | changes))
        same_or_refused(tmp_path, expected)

    check()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("exact", {"width": 1 << 40}, "index.json may be damaged: width: expected int <= 1048576"),
        ("exact", {"rows": 10**30}, "index.json may be damaged: rows"),
        ("exact", {"recall": 1.5}, "index.json may be damaged: recall"),
        ("exact", {"effort": 1}, "the effort is 1"),
        ("exact", {"kind": "ivf"}, "the kind is ivf"),
        ("exact", {"token": "../../../../etc/x"}, "index.json may be damaged: token"),
        ("ivf", {"effort": 0}, "the effort is 0"),
        ("ivf", {"effort": 1 << 40}, "the effort is 1099511627776"),
        ("ivf", {"built_at": 1 << 50}, "built_at is 1125899906842624"),
        ("hnsw", {"effort": 5000}, "the effort is 5000"),
    ],
)
def test_fields_out_of_bounds_are_named(kind: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    filled(ROWS, kind).save(tmp_path)
    sign_again(tmp_path, **change)
    refused(tmp_path, message)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    filled(5).save(tmp_path)
    about = (tmp_path / "index.json").read_text().rstrip().rstrip("}")
    (tmp_path / "index.json").write_text(about + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}")
    refused(tmp_path, "index.json")


def test_an_index_wider_than_can_be_loaded_is_refused() -> None:
    with pytest.raises(InputError, match="width must be <= 1048576, not 1048577"):
        Index((1 << 20) + 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
@pytest.mark.parametrize("suffix", ["faiss", "sqlite"])
def test_a_pipe_does_not_block(suffix: str, tmp_path: Path) -> None:
    filled(5).save(tmp_path)
    path = file_of(tmp_path, suffix)
    about = json.loads((tmp_path / "index.json").read_text())
    about["files"][path.name]["bytes"] = 0
    (tmp_path / "index.json").write_text(json.dumps(about))
    path.unlink()
    os.mkfifo(path)
    refused(tmp_path, "is not a file")


# --- keys -------------------------------------------------------------------------------------------------------------

TABLE = "CREATE TABLE entries (place INTEGER PRIMARY KEY, key BLOB NOT NULL, vector INTEGER NOT NULL, metadata TEXT)"
ENDLESS = (
    "CREATE VIEW entries AS WITH RECURSIVE n(place) AS (SELECT 1 UNION ALL SELECT place + 1 FROM n) "
    "SELECT place, CAST('key' AS BLOB) AS key, 0 AS vector, NULL AS metadata FROM n"
)


def rewrite(folder: Path, *statements: str) -> None:
    """Change the SQLite file and sign it again."""
    with closing(sqlite3.connect(file_of(folder, "sqlite"))) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()
    sign_again(folder)


@pytest.mark.parametrize(
    "statements",
    [
        ("DROP TABLE entries", ENDLESS),
        ("ALTER TABLE entries RENAME TO others", ENDLESS),
        ("DROP TABLE entries",),
        ("DROP TABLE entries", "CREATE TABLE entries (place, key, vector, metadata)"),
        ("DROP TABLE entries", TABLE[:-1] + ", more AS (hex(zeroblob(100000000))) VIRTUAL)"),
        ("CREATE TABLE more (x)",),
        ("CREATE TRIGGER more AFTER INSERT ON entries BEGIN DELETE FROM entries; END",),
        ("CREATE INDEX more ON entries (key)",),
    ],
)
def test_another_schema_is_refused_at_once(statements: tuple[str, ...], tmp_path: Path) -> None:
    filled(ROWS).save(tmp_path)
    rewrite(tmp_path, *statements)
    start = time.monotonic()
    refused(tmp_path, "sqlite cannot be read: it does not hold the one table of an index; it may be damaged")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("vector = -1 WHERE place = 3", "a row is not in the FAISS file"),
        (f"vector = {ROWS} WHERE place = 3", "a row is not in the FAISS file"),
        ("vector = 9223372036854775807 WHERE place = 3", "a row is not in the FAISS file"),
        ("vector = 'x' WHERE place = 3", "a row is not in the FAISS file"),
        ("vector = 1.5 WHERE place = 3", "a row is not in the FAISS file"),
        ("vector = 7 WHERE place = 3", "two keys have one row"),
        ("key = 'text' WHERE place = 3", "a key is not text"),
        ("key = 5 WHERE place = 3", "a key is not text"),
        ("key = x'' WHERE place = 3", "a key is not text"),
        ("key = x'ff' WHERE place = 3", "can't decode byte"),
        ("key = (SELECT key FROM entries WHERE place = 9) WHERE place = 3", "two keys are the same"),
        ("metadata = x'00' WHERE place = 3", "the metadata of a key are not text"),
        ("metadata = CAST(x'ff' AS TEXT) WHERE place = 3", "sqlite cannot be read"),
    ],
)
def test_entries_that_are_wrong_are_refused(change: str, message: str, tmp_path: Path) -> None:
    filled(ROWS).save(tmp_path)
    rewrite(tmp_path, f"UPDATE entries SET {change}")
    refused(tmp_path, message)


def test_keys_of_another_number_are_refused(tmp_path: Path) -> None:
    for change in ("DELETE FROM entries WHERE place = 3", "INSERT INTO entries VALUES (99, x'61', 0, NULL)"):
        filled(ROWS).save(tmp_path)
        rewrite(tmp_path, change)
        refused(tmp_path, "the number of vectors differs|it holds more than its size allows")


@pytest.mark.parametrize("metadata", ["{", "[1]", "5", "[" * 100_000, '{"a": ' * 5000 + "1" + "}" * 5000, "9" * 5000])
def test_metadata_that_are_no_json_are_refused_when_asked_for(metadata: str, tmp_path: Path) -> None:
    filled(ROWS).save(tmp_path)
    rewrite(tmp_path, f"UPDATE entries SET metadata = '{metadata}' WHERE place = 3")
    index = Index.load(tmp_path)
    with pytest.raises(InputError, match=r"metadata of key 'key 2' are not .*; the index is damaged"):
        index.metadata("key 2")


def test_pages_that_lead_to_each_other_do_not_hang(tmp_path: Path) -> None:
    filled(ROWS).save(tmp_path)
    endless_table(file_of(tmp_path, "sqlite"))
    sign_again(tmp_path)
    refused(tmp_path, "it holds more than its size allows")


@pytest.mark.slow
def test_any_change_of_the_keys_is_refused_or_does_no_harm(tmp_path: Path) -> None:
    index = Index(WIDTH)
    index.add(named(ROWS), unit(ROWS), [{"number": number} for number in range(ROWS)])
    index.save(tmp_path)
    path = file_of(tmp_path, "sqlite")
    whole = path.read_bytes()

    @settings(max_examples=300, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: Any) -> None:
        contents = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(contents) - 1)))
            contents[at] = data.draw(st.integers(0, 255))
        path.write_bytes(contents[: len(contents) - data.draw(st.sampled_from([0, 0, 0, 1, 4096]))])
        sign_again(tmp_path)
        try:
            loaded = Index.load(tmp_path)
            assert len(loaded) == ROWS
            for key in loaded.keys:
                loaded.metadata(key)
        except InputError:
            pass

    check()
