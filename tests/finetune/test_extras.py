"""Jobs whose extra is missing: one sentence that names it, exit code 2, and nothing is begun."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from called import caller
from conftest import MakeFolder

import fewshot.cli.main
import finetune.cli.main
from fewshot import Index
from finetune import InputError, export
from finetune.extras import MODULES, check_extra, installed
from finetune.report.confusion import galleries
from finetune.report.results import Answer

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]


# Modules that a package of the extra depends on.
BROUGHT = {("ray", "pyarrow"), ("lance-ray", "ray")}


@cache
def distributions_of_modules() -> Mapping[str, list[str]]:
    return packages_distributions()


def hide(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No module of the extra can be imported or found."""
    for module in MODULES[extra]:
        monkeypatch.setitem(sys.modules, module, None)


def sentence(extra: str, what: str) -> str:
    return f"{what} needs a package that is missing: pip install 'fewtune[{extra}]'"


@pytest.mark.parametrize("extra", MODULES)
def test_a_missing_extra_is_one_sentence_that_names_it(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(extra, monkeypatch)
    assert not installed(extra)
    with pytest.raises(InputError, match=f"^{re.escape(sentence(extra, 'this'))}$"):
        check_extra(extra, "this")


def test_every_extra_of_the_package_has_its_modules_and_all_names_each() -> None:
    assert set(EXTRAS) == {*MODULES, "all"}
    (everything,) = EXTRAS["all"]
    assert everything == f"fewtune[{','.join(sorted(MODULES))}]"


@pytest.mark.parametrize("extra", MODULES)
def test_an_extra_installs_the_modules_that_are_looked_for(extra: str) -> None:
    if not installed(extra):
        pytest.skip(f"the extra {extra} is not installed")
    named = {re.split(r"[\[>=;]", requirement)[0] for requirement in EXTRAS[extra]}
    found = distributions_of_modules()
    for module in MODULES[extra]:
        distributions = {name.lower().replace("_", "-") for name in found[module]}
        assert distributions & named or (extra, module) in BROUGHT


def test_an_index_needs_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    hide("search", monkeypatch)
    with pytest.raises(InputError, match=re.escape(sentence("search", "an index"))):
        Index(4)


def test_faiss_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "faiss.py").write_text("raise RuntimeError('libcublas.so.12 is missing')")
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"^FAISS cannot be loaded \(libcublas\.so\.12 is missing\): pip install"):
        Index(4)


def test_commands_that_search_say_so_before_they_embed(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = make_folder(classes={"a": 2})
    call = caller(fewshot.cli.main.main, "fewshot", monkeypatch, capfd)
    hide("search", monkeypatch)
    monkeypatch.setattr("fewshot.embedding.embedder.Embedder.load", None)  # nothing is loaded before
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text("{}")
    picture = next(pictures.rglob("*.png"))
    for words in (
        ("embed", pictures, "--out", tmp_path / "new"),
        ("search", tmp_path / "index", picture),
        ("merge", tmp_path / "new", pictures),
    ):
        answer = call(*words)
        assert (answer.code, answer.err) == (2, f"fewshot: {sentence('search', 'an index')}\n")
    assert not (tmp_path / "new").exists()


def test_heat_maps_need_captum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hide("explain", monkeypatch)
    call = caller(finetune.cli.main.main, "finetune", monkeypatch, capfd)
    answer = call("explain", tmp_path, tmp_path, "--out", tmp_path / "out")
    assert (answer.code, answer.err) == (2, f"finetune: {sentence('explain', 'a heat map')}\n")
    assert not (tmp_path / "out").exists()


def test_a_report_without_captum_says_what_its_heat_maps_need(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [Answer("1.png", "cat", "dog", 0.9, 0.1)]
    assert galleries(wrong, explained=True)[0].explained
    hide("explain", monkeypatch)
    (gallery, *_) = galleries(wrong, explained=True)
    assert not gallery.explained
    assert gallery.sentence.endswith(f" {sentence('explain', 'A heat map')}.")
    assert "pip install" not in galleries(wrong)[0].sentence


def test_an_onnx_file_needs_the_extra_and_other_exports_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide("export", monkeypatch)
    with pytest.raises(InputError, match=re.escape(sentence("export", "--format onnx"))):
        export(tmp_path, tmp_path / "a.onnx")
    with pytest.raises(InputError, match="is not a run folder"):
        export(tmp_path, tmp_path / "a.pt2", format="torch-export")
