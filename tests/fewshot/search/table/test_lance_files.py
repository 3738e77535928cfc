"""Tables that are damaged, of others, or made to do harm; and processes that must not use them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_index import WIDTH, named, unit

from finetune.errors import InputError

pytest.importorskip("lance", reason="pylance is not installed: pip install 'fewtune[lance]'")

import lance

from fewshot.search.table.columns import has_key, key_of, stored_key
from fewshot.search.table.lance_index import LanceIndex


@pytest.fixture
def place(tmp_path: Path) -> Path:
    table = LanceIndex.create(tmp_path / "signs.lance", WIDTH, fingerprint="f")
    table.add(named(20), unit(20))
    table.remove(named(1))
    return tmp_path / "signs.lance"


def read(place: Path) -> None:
    table = LanceIndex.open(place)
    table.search(unit(1), k=20)
    table.metadata(named(2)[1])


def refused(place: Path) -> str:
    """The one line with which a table is refused, when it is opened or read."""
    with pytest.raises(InputError) as raised:
        read(place)
    assert "\n" not in str(raised.value)
    assert ".rs:" not in str(raised.value)
    return str(raised.value)


def test_a_table_that_names_files_outside_of_its_folder_is_refused(place: Path, tmp_path: Path) -> None:
    (data,) = (place / "data").iterdir()
    dataset = lance.dataset(str(place))
    outside = tmp_path / "outside.lance"
    dataset.shallow_clone(str(outside), dataset.version)  # its manifest names the files of the first table
    assert "names files outside of its folder" in refused(outside)
    elsewhere = b"../" + b"x" * (len(data.name) - 3)
    for path in (place / "_versions").glob("*.manifest"):
        path.write_bytes(path.read_bytes().replace(data.name.encode(), elsewhere))
    assert "names files outside of its folder" in refused(place)


def test_links_and_pipes_in_the_folder_are_refused(place: Path, tmp_path: Path) -> None:
    (data,) = (place / "data").iterdir()
    moved = data.rename(tmp_path / "moved")
    data.symlink_to(moved)
    assert f"{data} is not a file" in refused(place)
    data.unlink()
    os.mkfifo(data)
    assert f"{data} is not a file" in refused(place)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not an index that fewtune made"),
        ("[]", "not an index that fewtune made"),
        ("{", "is not valid JSON"),
        ("[" * 1000 + "]" * 1000, "nested deeper"),
        ('{"made_by": "fewtune table", "format": 99}', "upgrade fewtune"),
        ('{"made_by": "fewtune table", "format": 1, "width": -1}', "may be damaged"),
    ],
)
def test_a_header_that_is_missing_or_wrong_is_refused(place: Path, metadata: str | None, message: str) -> None:
    lance.dataset(str(place)).update_schema_metadata({"fewtune": metadata})
    assert message in refused(place)


def test_columns_of_other_types_are_refused(tmp_path: Path, place: Path) -> None:
    import pyarrow as pa

    table = pa.table({"key": ["a"], "place": [1], "vector": [[1.0]], "metadata": [""]})
    header = lance.dataset(str(place)).schema.metadata
    lance.write_dataset(table.replace_schema_metadata(header), str(tmp_path / "other.lance"))
    assert "column vector is not" in refused(tmp_path / "other.lance")


def test_a_vector_of_another_length_and_text_that_is_no_key_are_found(place: Path) -> None:
    import pyarrow as pa

    dataset = lance.dataset(str(place))
    row = dataset.take([0])
    dataset.insert(row.set_column(0, row.schema.field(0), [["bad\x00key!"]]))
    with pytest.raises(InputError, match="the table may be damaged"):
        _ = LanceIndex.open(place).keys
    scaled = 3 * np.array(row["vector"][0].as_py(), np.float32)
    vector = row.schema.field("vector")
    dataset.insert(row.set_column(2, vector, pa.array([scaled.tolist()], vector.type)))
    with pytest.raises(InputError, match="whose length is not 1"):
        LanceIndex.open(place).search(unit(1))


@pytest.mark.parametrize("part", ["_versions", "data", "_deletions"])
def test_files_that_are_cut_or_gone_are_one_line(place: Path, part: str) -> None:
    for path in (place / part).iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refused(place)
    for path in (place / part).iterdir():
        path.unlink()
    assert refused(place)


def test_places_without_a_table_are_one_line(tmp_path: Path, place: Path) -> None:
    (tmp_path / "empty.lance").mkdir()
    (tmp_path / "file.lance").write_text("a,b")
    shutil.copytree(place / "data", tmp_path / "part.lance" / "data")
    for name in ("empty", "file", "part", "none"):
        assert "is no Lance table" in refused(tmp_path / f"{name}.lance")
    with pytest.raises(InputError, match="embed again"):
        LanceIndex.open(place, fingerprint="other")


def test_stored_keys_are_all_different_and_come_back() -> None:
    keys = ["a", "\x00", "\udcff", "\x00dcff", "\x000000", "\x00\x00", "dcff", "'", "''"]
    assert [key_of(stored_key(key)) for key in keys] == keys
    assert len({stored_key(key) for key in keys}) == len(keys)
    assert has_key(["it's", "a"]) == "key IN ('it''s', 'a')"


def _child(place: Path, answer: Any) -> None:
    try:
        answer.put(str(len(LanceIndex.open(place))))
    except InputError as error:
        answer.put(str(error))


def in_child(method: str, target: Callable[..., None], *words: object) -> str:
    context = multiprocessing.get_context(method)
    answer = context.SimpleQueue()
    process = context.Process(target=target, args=(*words, answer))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return str(answer.get())


def test_a_forked_child_of_a_process_that_uses_tables_is_refused(place: Path) -> None:
    assert "cannot be used in a forked process" in in_child("fork", _child, place)


@pytest.mark.slow
def test_a_dataloader_forks_while_a_table_is_open(place: Path) -> None:
    from torch.utils.data import DataLoader

    table = LanceIndex.open(place)
    table.search(unit(1))
    loaded = DataLoader(list(range(8)), batch_size=2, num_workers=2)
    assert sorted(int(number) for batch in loaded for number in batch) == list(range(8))
    assert len(table.search(unit(1), k=3)[0]) == 3
