"""The `fewshot` command: click, over the other rooms."""
