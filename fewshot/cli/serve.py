"""Commands that answer over HTTP: serve."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.app.options import at_place, most_megabytes, place_of, waiting
from finetune.app.options import serve as run_service
from finetune.options.command_line import existing, on_device
from finetune.options.help_text import HelpfulCommand
from finetune.terminal import printable


@click.command(cls=HelpfulCommand)
@click.argument("gallery", type=existing)
@at_place(8000)
@most_megabytes
@waiting
@on_device
def serve(
    gallery: Path,
    host: str,
    port: int,
    token_file: Path | None,
    allowed: tuple[str, ...],
    most_megabytes: float,
    queue: int,
    device: str,
) -> None:
    """Recognise pictures over HTTP.

    GALLERY is a folder that `fewshot enrol` wrote. POST /predict takes a picture as its body, or several as
    multipart/form-data; GET /metadata, /healthz and /openapi.json describe the service. Only programs of this machine
    can reach it, unless --host says otherwise. It stops at Ctrl-C, when the requests that have begun are answered.
    """
    import fewshot

    place = place_of(host, port, token_file, allowed)
    recognizer = fewshot.Recognizer.load(gallery, device=device)
    app = fewshot.make_app(
        recognizer, token=place.token, hosts=place.hosts, most_megabytes=most_megabytes, most_waiting=queue
    )
    app.state.service.warm_up()
    run_service(app, place, lambda address: click.echo(printable(f"{gallery}: POST pictures to {address}/predict")))
