"""The `fewshot` command."""

from __future__ import annotations

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fewtune", prog_name="fewshot")
@click.pass_context
def main(context: click.Context) -> None:
    """One-shot learning: the command is not part of this version yet.

    It will train Siamese networks with a contrastive loss on Omniglot, measure them by every published N-way protocol,
    embed and search folders of pictures, and recognise a class from one example.
    """
    click.echo(context.get_help(), err=True)
    context.exit(2)
