"""Entry point of the `fewshot` command, and of `python -m fewshot`."""

from __future__ import annotations

import sys

try:
    from finetune.entry.start import start
except KeyboardInterrupt:  # in the milliseconds before signals are handled
    if sys.stderr is not None:
        sys.stderr.write("fewshot: stopped\n")
    sys.exit(130)


def main() -> None:
    """Run the command, which is imported when signals are handled."""
    start("fewshot", "fewshot.cli.main")


if __name__ == "__main__":
    main()
