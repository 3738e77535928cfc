"""Type checkers of users read the annotations of both packages; `make check` checks the program in tests/typed/."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import fewshot
import finetune

ROOT = Path(__file__).parents[1]


def test_both_packages_say_that_they_are_typed() -> None:
    for package in (finetune, fewshot):
        assert (Path(str(package.__file__)).parent / "py.typed").is_file()


def test_the_typed_program_is_checked_and_uses_public_names_alone() -> None:
    program = ROOT / "tests" / "typed" / "typed_program.py"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert settings["strict"]
    assert str(program.relative_to(ROOT).as_posix()) in settings["files"]
    imports = [node for node in ast.walk(ast.parse(program.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    packages = {"finetune": finetune.__all__, "fewshot": fewshot.__all__}
    names = [(node.module, each.name) for node in imports if node.module in packages for each in node.names]
    assert len(names) > 5
    assert all(name in packages[str(module)] for module, name in names)
    assert not any(str(node.module).startswith(("finetune.", "fewshot.")) for node in imports)
