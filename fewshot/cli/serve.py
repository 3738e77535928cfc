"""Commands that answer over HTTP: serve, for programs, and try, for people."""

from __future__ import annotations

from pathlib import Path

import click

from fewshot.cli.shared import folder_path
from finetune.app.options import at_place, browser, most_megabytes, opener, place_of, say_starting, waiting
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
    say_starting(str(gallery), place)
    app = fewshot.make_app(
        recognizer, token=place.token, hosts=place.hosts, most_megabytes=most_megabytes, most_waiting=queue
    )
    run_service(app, place, lambda address: click.echo(printable(f"{gallery}: POST pictures to {address}/predict")))


@click.command("try", cls=HelpfulCommand)
@click.argument("gallery", type=folder_path)
@at_place(8001)
@browser
@most_megabytes
@on_device
def try_gallery(
    gallery: Path,
    host: str,
    port: int,
    token_file: Path | None,
    allowed: tuple[str, ...],
    browser: bool,
    most_megabytes: float,
    device: str,
) -> None:
    """Try a gallery on a page in the browser.

    GALLERY is a folder that `fewshot enrol` wrote; a new one is created by the first picture that is enrolled. The page
    takes pictures from files and from the camera. It shows the similarity to each class beside the threshold, and
    enrols pictures, which can be undone. The page can be reached from this machine alone, unless --host says otherwise.
    Ctrl-C ends it.
    """
    place = place_of(host, port, token_file, allowed)
    from fewshot.app.tried_gallery import TriedGallery
    from finetune.app.page.page import page_app

    app = page_app(TriedGallery(gallery, device), token=place.token, hosts=place.hosts, most_megabytes=most_megabytes)
    run_service(app, place, opener(str(gallery), browser))
