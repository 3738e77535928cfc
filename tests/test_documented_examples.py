"""Examples of the documentation: commands and options exist, and Python imports what is exported."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

import fewshot
import finetune
from fewshot.cli.main import cli as fewshot_command
from finetune.cli.main import cli as finetune_command

ROOT = Path(__file__).parents[1]
MADE = ("reference/generated/", "learn/gallery/", "generate/")
PAGES = [ROOT / "README.md"]
PAGES += sorted(
    path for path in (ROOT / "docs").rglob("*.md") if not path.relative_to(ROOT / "docs").as_posix().startswith(MADE)
)
GROUPS: dict[str, click.Command] = {"finetune": finetune_command, "fewshot": fewshot_command}
PACKAGES = {"finetune": finetune, "fewshot": fewshot}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?<![\w./-])(?:finetune|fewshot) [a-z][^#\n]*")

each = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def commands(text: str) -> list[str]:
    """Command lines in blocks without a language, and in quoted code."""
    blocks = [block for language, block in FENCE.findall(text) if not language]
    quoted = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return [found for part in (*blocks, *quoted) for found in COMMAND.findall(part)]


def wrong_words(line: str) -> list[str]:
    """Words of a command line that are no command and no option."""
    words = shlex.split(line.replace("…", "").replace("'", ""))
    command, rest = GROUPS[words[0]], words[1:]
    while isinstance(command, click.Group):
        if not rest:
            return []
        found = command.commands.get(rest[0].rstrip(",:;"))
        if found is None:
            return [rest[0]]
        command, rest = found, rest[1:]
    known = {"-h", "--help"} | {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return [word for word in rest if word.startswith("--") and word.split("=")[0].rstrip(",;") not in known]


@each
def test_commands_and_options_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = {line: words for line in commands(text) if (words := wrong_words(line))}
    assert wrong == {}


@each
def test_python_of_a_page_imports_what_is_exported(page: Path) -> None:
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module in PACKAGES:
                missing = {name.name for name in node.names} - set(PACKAGES[node.module].__all__)
                assert missing == set(), block


def test_a_command_or_option_that_is_not_there_is_found() -> None:
    assert wrong_words("finetune fit photos/ --out runs/photos --strategy head") == []
    assert wrong_words("finetune cache list") == []
    assert wrong_words("finetune fit photos/ --strength 3") == ["--strength"]
    assert wrong_words("fewshot recognise signs/") == ["recognise"]


def test_the_chart_of_commands_names_commands_that_exist_and_the_table_below_it() -> None:
    chart = (ROOT / "docs" / "pictures" / "which-command.svg").read_text(encoding="utf-8")
    words = " ".join(re.findall(r'<text class="code"[^>]*>([^<]*)<', chart)).replace(",", "").split()
    page = (ROOT / "docs" / "start" / "which-command.md").read_text(encoding="utf-8")
    program, named = "", []
    for word in words:
        if word in GROUPS:
            program = word
        elif isinstance(group := GROUPS[program], click.Group) and word not in ("then", "go", "on"):
            assert word in group.commands, word
            named.append(f"{program} {word}")
    assert len(named) == 14
    assert [name for name in named if f"`{name}" not in page] == []
