"""Completion in a shell, by click: what a started word can become, without the imports of a job."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# The program, and at its end whether torch was imported.
PROGRAM = """
import sys
sys.argv = [sys.argv[1]]
from importlib import import_module
try:
    import_module(f"{sys.argv[0]}.__main__").main()
finally:
    assert "torch" not in sys.modules and "numpy" not in sys.modules
"""


def completed(line: str, shell: str = "bash") -> list[str]:
    """What a shell offers for a line, whose last word is being written."""
    words = line.split(" ")
    given = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell == "fish":
        given["COMP_CWORD"] = words[-1]
    variables = os.environ | given | {f"_{words[0].upper()}_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, words[0]], env=variables, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_command_and_an_option_are_completed() -> None:
    assert completed("finetune f") == ["plain,fit", "plain,forget"]
    assert completed("finetune fit --backb") == ["plain,--backbone", "plain,--backbones"]
    assert completed("finetune fit photos --strategy s") == ["plain,scratch"]
    assert completed("fewshot s") == ["plain,serve", "plain,search"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_served(shell: str) -> None:
    assert any("forget" in line for line in completed("finetune f", shell))


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_the_line_of_the_documentation_prints_a_script(shell: str, word: str) -> None:
    variables = os.environ | {"_FINETUNE_COMPLETE": f"{shell}_source"}
    script = subprocess.run(
        [sys.executable, "-c", PROGRAM, "finetune"], env=variables, capture_output=True, text=True, check=False
    )
    assert word in script.stdout
    assert "finetune" in script.stdout
