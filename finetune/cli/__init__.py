"""The `finetune` command: click, over `finetune.api`."""
