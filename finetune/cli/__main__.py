"""`python -m finetune.cli` runs the `finetune` command."""

from __future__ import annotations

from finetune.__main__ import main

if __name__ == "__main__":
    main()
