"""fewshot embed, search and info with a Lance table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from called import Answer

pytest.importorskip("lance", reason="pylance is not installed: pip install 'fewtune[lance]'")

from fewshot import Index, LanceIndex

Call = Callable[..., Answer]


@pytest.fixture
def table(pictures: Path, model: Path, tmp_path: Path, call: Call) -> Path:
    """A table of pictures/CLASS/DRAWER.png."""
    answer = call("embed", pictures, "--out", tmp_path / "signs.lance", "--model", model)
    assert answer.code == 0, answer.err
    assert "12 pictures in" in answer.out
    return tmp_path / "signs.lance"


def test_a_table_is_made_updated_and_searched(table: Path, pictures: Path, model: Path, call: Call) -> None:
    query = pictures / "sign 1" / "0.png"
    assert call("search", table, query, "-k", 1).out.endswith("1.000  sign 1/0.png\n")
    found = call("search", table, query, "-k", 9, "--where", "label = 'sign 2'")
    shown = {line.split("  ")[-1] for line in found.out.splitlines()[1:]}
    assert shown == {f"sign 2/{drawer}.png" for drawer in range(3)}
    before = LanceIndex.open(table).version
    shutil.rmtree(pictures / "sign 1")
    assert "3 removed" in call("embed", pictures, "--out", table, "--model", model).out
    other = pictures / "sign 0" / "0.png"
    assert "sign 1/" not in call("search", table, other, "-k", 12).out
    assert "sign 1/" in call("search", table, other, "-k", 12, "--at-version", before).out
    assert "version: " in call("info", table).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--where", "lable = 'x'"), "columns: key, sha256, label"),
        (("--at-version", 99), "has no version 99"),
    ],
)
def test_wrong_conditions_and_versions_are_one_line(
    table: Path, pictures: Path, call: Call, words: tuple[object, ...], message: str
) -> None:
    answer = call("search", table, pictures / "sign 1" / "0.png", *words)
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_conditions_and_versions_need_a_table(pictures: Path, model: Path, tmp_path: Path, call: Call) -> None:
    call("embed", pictures, "--out", tmp_path / "index", "--model", model)
    for words, message in ((("--where", "label = 'x'"), "needs a Lance table"), (("--at-version", 1), "no versions")):
        answer = call("search", tmp_path / "index", pictures / "sign 1" / "0.png", *words)
        assert (answer.code, message in answer.err) == (2, True)
    assert Index.load(tmp_path / "index").metadata("sign 1/0.png")["label"] == "sign 1"
    wrong = call("embed", pictures, "--out", tmp_path / "t.lance", "--kind", "hnsw", "--model", model)
    assert (wrong.code, "must be one of" in wrong.err) == (2, True)
    assert call("search", "file://x.lance", pictures / "sign 1" / "0.png").err.count("use a path, or an address") == 1
