"""`python -m fewshot` runs the `fewshot` command."""

from __future__ import annotations

from fewshot.cli.main import main

main()
