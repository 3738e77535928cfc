"""Laws of the documentation: every page is reachable, every link has a target, every table is that of its result."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Pages that `make docs` writes from the code, and those of the executed tutorials.
MADE = ("reference/generated/", "learn/gallery/")
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if not path.relative_to(DOCS).as_posix().startswith((*MADE, "generate/"))
)
TOCTREE = re.compile(r"```\{toctree\}\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|``.*?``|`[^`\n]*`", "", text, flags=re.DOTALL)


def listed_in(page: Path) -> set[Path]:
    """Pages that the lists of `page` name."""
    found: set[Path] = set()
    for block in TOCTREE.findall(page.read_text(encoding="utf-8")):
        for line in block.split():
            if not line.startswith(":"):
                found |= {path.resolve() for path in page.parent.glob(f"{line}.md")}
    return found


def anchors(page: Path) -> set[str]:
    """Addresses of the headings of a page, as myst makes them."""
    titles = re.findall(r"^#{1,3} (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_a_list_of_pages_that_begins_at_the_first() -> None:
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting.extend(listed_in(page))
    assert [str(path.relative_to(DOCS)) for path in PAGES if path not in reached] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_page_has_a_target(page: Path) -> None:
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if "://" in link:
            # Whether it answers is not asked: tests are offline.
            assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[^\s<>]*)?", link), link
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if DOCS in target.parents and target.relative_to(DOCS).as_posix().startswith(MADE):
            continue  # `make docs` checks these
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_readme_fits_on_a_screen_and_its_figures_are_those_of_the_pages_it_names() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    rows = [line for line in text.splitlines() if re.match(r"\|.*\]\(docs/numbers/\w+\.md#", line)]
    assert len(rows) == 3
    for row in rows:
        _, _, ours, theirs, link, _ = row.split("|")
        (target,) = LINK.findall(link)
        page = (ROOT / target.partition("#")[0]).read_text(encoding="utf-8")
        figures = re.findall(r"\d+\.\d+%?", f"{ours} {theirs}")
        assert figures
        assert [figure for figure in figures if figure not in page] == []


@pytest.mark.slow
def test_the_pages_of_numbers_show_the_results_as_they_are() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from tables import pages
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python benchmarks/tables.py"


# Room of the code -> what the page of files calls its folder.
FORMATS = {
    "finetune/classifier/run_config.py": "run of a classifier",
    "finetune/kept/background.py": "background pictures of a run",
    "finetune/kept/features.py": "features of a run",
    "finetune/kept/history.py": "changes of a run",
    "finetune/open_set/unknown_model.py": "unknown pictures of a run",
    "finetune/data/split_record.py": "recorded splits",
    "finetune/features/cache_keys.py": "activation cache",
    "fewshot/embedding/encoder_files.py": "encoder",
    "fewshot/recognition/gallery_files.py": "gallery",
    "fewshot/search/index_files.py": "index",
    "fewshot/collection/parts.py": "parts",
    "fewshot/search/table/header.py": "Lance table",
}


def test_the_page_of_files_has_the_format_versions_of_the_code() -> None:
    text = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \| (\d+) \|$", text, re.MULTILINE))
    versions = {}
    for folder in ("finetune", "fewshot"):
        for file in (ROOT / folder).rglob("*.py"):
            if found := re.search(r"^FORMAT = \"?(\d+)\"?$", file.read_text(encoding="utf-8"), re.MULTILINE):
                versions[FORMATS[file.relative_to(ROOT).as_posix()]] = found[1]
    assert shown == versions


@pytest.mark.slow
def test_the_page_of_files_names_every_file_of_a_run() -> None:
    from finetune.classifier.run_folder import RUN_FILES

    text = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    assert [name for name in RUN_FILES if f"`{name}`" not in text and f"`{name}/`" not in text] == []


def test_the_page_of_files_names_every_file_that_the_code_names() -> None:
    text = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    named = set()
    for folder in ("finetune", "fewshot"):
        for file in (ROOT / folder).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            for names, values in re.findall(r"^((?:[A-Z_]+_FILE(?:, )?)+) = (.+)$", source, re.MULTILINE):
                found = re.findall(r'"([^"]+)"', values)
                assert len(found) in (0, len(names.split(", ")))
                named |= set(found)
    assert {"config.json", "head.safetensors", "parts.json"} <= named
    assert [name for name in sorted(named) if not re.search(rf"`(?:[\w/]+/)?{re.escape(name)}`", text)] == []


def generator(name: str) -> ModuleType:
    """A file of docs/generate."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(f"generate.{name}")
    finally:
        sys.path.remove(str(DOCS))


def test_the_pages_of_commands_have_every_option_with_its_default(tmp_path: Path) -> None:
    from finetune.cli.main import cli

    generator("commands").write_command_pages(tmp_path)
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    for name in ("finetune fit", "finetune cache list", "fewshot recognize"):
        assert f"[`{name}`]({name.replace(' ', '-')}.md)" in index
    page = (tmp_path / "finetune-fit.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(--[\w-]+)`.* \| ([^|]*) \|$", page, re.MULTILINE))
    options = [
        each for each in cli.commands["fit"].params if each.param_type_name == "option" and "--help" not in each.opts
    ]
    assert sorted(rows) == sorted(option.opts[0] for option in options)
    assert rows["--out"] == "required"
    assert rows["--strategy"] == "auto"
    assert rows["--batch-size"] == "32"
    assert rows["--resume"] == "off"
    assert "    " not in page  # an indented line would be shown as code


def test_error_messages_are_collected_with_names_in_place_of_values() -> None:
    module = generator("errors")
    source = 'raise InputError(f"{path} holds no {self.kind}: give --out " "another folder")\nValueError("not ours")'
    assert module.messages(source) == [("PATH holds no KIND: give --out another folder", "InputError")]


def messages_of_the_code() -> dict[str, str]:
    """Every error message of both packages, and the source of all files as one text under the empty key."""
    found = {"": ""}
    for folder in ("finetune", "fewshot"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            source = file.read_text(encoding="utf-8")
            found[""] += source
            found |= dict(generator("errors").messages(source))
    return found


def test_every_error_message_says_what_to_do_or_the_page_does_and_no_remedy_is_left_over() -> None:
    remedies = generator("remedies")
    found = messages_of_the_code()
    source = found.pop("")
    silent = [text for text in found if not remedies.SAYS_WHAT_TO_DO.search(text)]
    assert [text for text in silent if not remedies.remedy(text)] == []
    used = [
        {part for part in parts.split("|") if any(part in text for text in silent)} for _, parts in remedies.REMEDIES
    ]
    unused = [set(parts.split("|")) - hit for (_, parts), hit in zip(remedies.REMEDIES, used, strict=True)]
    assert [left for left in unused if left] == []
    assert [part for part in remedies.NOTICES if part not in source] == []


def test_the_page_of_messages_shows_the_remedy_beside_a_message_that_has_none(tmp_path: Path) -> None:
    (tmp_path / "finetune").mkdir()
    (tmp_path / "fewshot").mkdir()
    (tmp_path / "finetune" / "weights.py").write_text(
        'raise InputError(f"{path} does not exist")\nraise InputError(f"{path} is a table; give a folder")\n'
    )
    generator("errors").write_error_page(tmp_path, tmp_path / "errors.md")
    page = (tmp_path / "errors.md").read_text(encoding="utf-8")
    assert "| PATH does not exist | `InputError` | The path is misspelt" in page
    assert "| PATH is a table; give a folder | `InputError` |  |" in page
