"""Laws of the tutorials: each compiles, uses exported names and real options, is listed, and one runs as a notebook."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest
from test_documentation import DOCS, generator
from test_documented_examples import COMMAND, PACKAGES, wrong_words

LEARN = DOCS / "learn"
SCRIPTS = sorted((LEARN / "scripts").glob("plot_*.py"))
# The tutorial that takes the least time, so that it can run here.
SHORTEST = LEARN / "scripts" / "plot_5_report.py"

each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def not_exported(text: str) -> list[str]:
    """Names of finetune and fewshot that `text` uses and that these do not export."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            known = PACKAGES[node.module].__all__ if node.module in PACKAGES else []
            found += [f"{node.module}.{name.name}" for name in node.names if name.name not in known]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if "." in name.name and name.name.split(".")[0] in PACKAGES]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PACKAGES:
            found += [] if node.attr in PACKAGES[node.value.id].__all__ else [f"{node.value.id}.{node.attr}"]
    return found


@each
def test_a_tutorial_compiles_and_uses_exported_names(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    compile(text, script.name, "exec")
    assert not_exported(text) == []


def test_a_name_that_is_not_exported_is_found() -> None:
    assert not_exported("from finetune import fit\nimport fewshot\nfewshot.Index") == []
    assert not_exported("from finetune import fit, nothing") == ["finetune.nothing"]
    assert not_exported("from finetune.data.images import read_image") == ["finetune.data.images.read_image"]
    assert not_exported("import fewshot\nimport finetune.config\nfewshot.nothing") == [
        "finetune.config",
        "fewshot.nothing",
    ]


@each
def test_a_tutorial_asks_a_question_and_names_commands_that_exist(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert "?" in (ast.get_docstring(ast.parse(text)) or "")
    blocks = re.findall(r"^#    (\w.*)$", text, re.MULTILINE) + re.findall(r"``([^`\n]+)``", text)
    lines = [line for block in blocks for line in COMMAND.findall(block)]
    assert {line: words for line in lines if (words := wrong_words(line))} == {}


@each
def test_a_tutorial_is_listed(script: Path) -> None:
    assert f"](gallery/{script.stem}.rst)" in (LEARN / "index.md").read_text(encoding="utf-8")


def test_the_tenth_tutorial_comes_after_the_ninth() -> None:
    names = ["plot_10_last.py", "plot_9_late.py", "plot_1_first.py"]
    assert sorted(names, key=generator("tutorials").Numbered("scripts")) == names[::-1]


def test_copies_of_pages_link_to_copies_of_tutorials_which_have_no_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(DOCS)
    tutorial = tmp_path / "plot_1_strategies.rst"
    tutorial.write_text("before\n\n.. raw:: html\n\n    <iframe></iframe>\n\nafter\n", encoding="utf-8")
    sources = {"learn/index": LEARN / "index.md", "learn/gallery/plot_1_strategies": tutorial}
    generator("copies").write_copies(sources, tmp_path / "site")
    copy = (tmp_path / "site" / "learn" / "index.md").read_text(encoding="utf-8")
    assert "](gallery/plot_1_strategies.md)" in copy
    assert ".rst)" not in copy
    linked = tmp_path / "site" / "learn" / "gallery" / "plot_1_strategies.md"
    assert linked.read_text(encoding="utf-8") == "before\n\nafter\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of the notebook's packages
def test_a_tutorial_runs_as_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = pytest.importorskip("sphinx_gallery.notebook", reason="sphinx-gallery makes the notebook")
    nbformat = pytest.importorskip("nbformat", reason="nbformat reads the notebook")
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs the notebook")
    pytest.importorskip("ipykernel", reason="ipykernel runs the notebook")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # pictures go into the notebook
    shutil.copy(SHORTEST, tmp_path)
    notebook.python_to_jupyter_cli([str(tmp_path / SHORTEST.name)])
    book = nbformat.read((tmp_path / SHORTEST.name).with_suffix(".ipynb"), as_version=4)

    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=300, startup_timeout=300, resources=place).execute()

    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/png" in shown
    assert "text/html" in shown
    assert any("train/8/wrong.png" in output.get("text", "") for output in outputs)
