"""`python -m finetune` runs the `finetune` command."""

from __future__ import annotations

from finetune.cli.main import main

main()
