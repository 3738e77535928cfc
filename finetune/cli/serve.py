"""Commands that answer over HTTP: serve, for programs, and try, for people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from finetune.app.options import at_place, browser, most_megabytes, opener, place_of, say_starting, waiting
from finetune.app.options import serve as run_service
from finetune.extras import installed, needs
from finetune.options.command_line import any_run, on_device
from finetune.options.help_text import HelpfulCommand
from finetune.terminal import printable


@click.command(cls=HelpfulCommand)
@click.argument("run", type=any_run)
@at_place(8000)
@most_megabytes
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    show_default="that of the run",
    help="Most pixels of a picture. Decoding takes up to 16 bytes for each, on every core.",
)
@waiting
@on_device
def serve(
    run: Path | str,
    host: str,
    port: int,
    token_file: Path | None,
    allowed: tuple[str, ...],
    most_megabytes: float,
    max_pixels: int | None,
    queue: int,
    device: str,
) -> None:
    """Answer pictures over HTTP.

    RUN is a folder that `finetune fit` wrote, or an address such as hf://user/name. POST /predict takes a picture as
    its body, or several as multipart/form-data; GET /metadata, /healthz and /openapi.json describe the service. Only
    programs of this machine can reach it, unless --host says otherwise. It stops at Ctrl-C, when the requests that have
    begun are answered.
    """
    import finetune

    place = place_of(host, port, token_file, allowed)
    classifier = finetune.load(run, device=device)
    if max_pixels is not None:
        classifier.config = replace(classifier.config, max_pixels=max_pixels)
    say_starting(str(run), place)
    app = finetune.make_app(
        classifier, token=place.token, hosts=place.hosts, most_megabytes=most_megabytes, most_waiting=queue
    )
    run_service(app, place, lambda address: click.echo(printable(f"{run}: POST pictures to {address}/predict")))


@click.command("try", cls=HelpfulCommand)
@click.argument("run", type=any_run)
@at_place(8001)
@browser
@most_megabytes
@on_device
def try_run(
    run: Path | str,
    host: str,
    port: int,
    token_file: Path | None,
    allowed: tuple[str, ...],
    browser: bool,
    most_megabytes: float,
    device: str,
) -> None:
    """Try a run on a page in the browser.

    RUN is a folder that `finetune fit` wrote, or an address such as hf://user/name. The page takes pictures from files
    and from the camera. It shows the classes with their probabilities, a heat map and the nearest training pictures. A
    wrong answer can be corrected: the picture is copied into RUN and added to it, as by `finetune extend`, and this can
    be undone; a run at an address is not changed. The page can be reached from this machine alone, unless --host says
    otherwise. Ctrl-C ends it.
    """
    place = place_of(host, port, token_file, allowed)
    from finetune.app.page.page import page_app
    from finetune.app.page.tried_run import TriedRun

    if not installed("explain"):
        click.echo(f"the page has no heat maps: {needs('explain', 'a heat map')}", err=True)

    app = page_app(TriedRun(run, device), token=place.token, hosts=place.hosts, most_megabytes=most_megabytes)
    run_service(app, place, opener(str(run), browser))
