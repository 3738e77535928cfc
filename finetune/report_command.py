"""The command that makes a run's report anew."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.options.command_line import as_json, existing, print_json


@click.command()
@click.argument("run", type=existing)
@as_json
def report(run: Path, as_json: bool) -> None:
    """Write the report of a run again.

    RUN is a folder that `finetune fit` or `finetune evaluate` wrote. report.html in it is replaced; it is one file that
    opens offline.
    """
    import finetune
    from finetune.classifier.classifier import WEIGHTS_FILE
    from finetune.classifier.explain import explanation
    from finetune.report.report import write_report

    # What `evaluate` left has no classifier of its own.
    explain = explanation(finetune.load(run)) if (run / WEIGHTS_FILE).is_file() else None
    path = write_report(run, explain=explain)
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        click.echo(str(path))
