"""Entry point of the `finetune` command, and of `python -m finetune`."""

from __future__ import annotations

import sys

try:
    from finetune.entry.start import start
except KeyboardInterrupt:  # in the milliseconds before signals are handled
    if sys.stderr is not None:
        sys.stderr.write("finetune: stopped\n")
    sys.exit(130)


def main() -> None:
    """Run the command, which is imported when signals are handled."""
    start("finetune", "finetune.cli.main")


if __name__ == "__main__":
    main()
