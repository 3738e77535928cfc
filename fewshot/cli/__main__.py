"""`python -m fewshot.cli` runs the `fewshot` command."""

from __future__ import annotations

from fewshot.__main__ import main

if __name__ == "__main__":
    main()
