"""`finetune push`: a run on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.options.command_line import ChoiceOption, as_json, display_for, local_run, print_json
from finetune.options.help_text import HelpfulCommand
from finetune.terminal import printable


@click.command(cls=HelpfulCommand)
@click.argument("run", type=local_run)
@click.argument("repository", metavar="USER/NAME")
@click.option(
    "--private",
    is_flag=True,
    help="Let nobody else see a repository that is made. Without it, anyone can fetch the run.",
)
@click.option(
    "--licence",
    metavar="ID",
    show_default="none is stated",
    help="The hub's name of a licence, such as mit or apache-2.0, for the model card.",
)
@click.option(
    "--include",
    multiple=True,
    type=ChoiceOption(["hashes", "features", "report"]),
    show_default="none of them",
    help="What is pushed besides: hashes of the pictures, by which finetune evaluate leaves out those that the run has "
    "learned from; features of the pictures with their names, which finetune extend needs; the report, with small "
    "pictures. Repeatable.",
)
@as_json
def push(
    run: Path, repository: str, private: bool, licence: str | None, include: tuple[str, ...], as_json: bool
) -> None:
    """Push a run to the Hugging Face hub.

    RUN is a folder that `finetune fit` wrote. Weights, options, figures and a model card are pushed to USER/NAME, which
    is made where it is missing; an earlier run there is replaced. Pictures, their names, hashes and features, and
    folders of this machine stay here; names of the classes are pushed. Log in with `hf auth login`, or set HF_TOKEN.
    Then `finetune predict hf://USER/NAME PICTURES` works anywhere.
    """
    import finetune

    address = finetune.push_to_hub(
        run, repository, private=private, licence=licence, include=include, display=display_for(as_json)
    )
    if as_json:
        print_json({"address": address})
    else:
        click.echo(printable(address))
