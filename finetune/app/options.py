"""Options that `finetune serve`, `finetune try` and those of `fewshot` share, and what the commands say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune.extras import check_extra
from finetune.terminal import printable

if TYPE_CHECKING:
    from fastapi import FastAPI

Command = Callable[..., Any]
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Where a service listens, and who may ask.

    Attributes:
        host, port: To listen on.
        token: Wanted of every request; None for no token.
        hosts: Names that the service may be called by, beside IP addresses.
    """

    host: str
    port: int
    token: str | None
    hosts: frozenset[str]


def at_place(port: int) -> Callable[[Command], Command]:
    """Decorator: --host, --port, --token-file and --allow-host. port: The default."""
    options = (
        click.option(
            "--host",
            default=LOOPBACK,
            show_default=True,
            help="Address to listen on. 127.0.0.1 can be reached from this machine alone, 0.0.0.0 from others too.",
        ),
        click.option(
            "--port",
            type=click.IntRange(0, 65535),
            default=port,
            show_default=True,
            help="Port to listen on. 0 takes a free one.",
        ),
        click.option(
            "--token-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            show_default="the environment variable FEWTUNE_TOKEN, else no token",
            help="File with a token that every request must have.",
        ),
        click.option(
            "--allow-host",
            "allowed",
            multiple=True,
            metavar="NAME",
            show_default="localhost, the name of this machine, and IP addresses",
            help="Name that the service is called by, such as that of a proxy before it. Repeatable.",
        ),
    )

    def attached(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return attached


def most_megabytes(command: Command) -> Command:
    """The option --most-megabytes."""
    return click.option(
        "--most-megabytes",
        type=click.FloatRange(0, 1000, min_open=True),
        default=32.0,
        show_default=True,
        help="Largest request that is read, in MB.",
    )(command)


def waiting(command: Command) -> Command:
    """The option --queue."""
    return click.option(
        "--queue",
        type=click.IntRange(1),
        default=256,
        show_default=True,
        help="Most pictures that wait. More are refused with status 503 and a time to try again.",
    )(command)


def browser(command: Command) -> Command:
    """The option --browser/--no-browser."""
    return click.option(
        "--browser/--no-browser", default=True, show_default=True, help="Open the page in the browser of this machine."
    )(command)


def opener(name: str, browser: bool) -> Callable[[str], None]:
    """What says where the page is, and opens it. name: Of the run or gallery."""

    def ready(address: str) -> None:
        page = address.replace("//0.0.0.0:", f"//{LOOPBACK}:").replace("//[::]:", "//[::1]:")
        click.echo(printable(f"{name}: open {page}/ in a browser; Ctrl-C ends it"))
        if browser:
            import webbrowser
            from threading import Thread

            # Browsers of a terminal end only when they are closed.
            Thread(target=webbrowser.open, args=(f"{page}/",), daemon=True).start()

    return ready


def place_of(host: str, port: int, token_file: Path | None, allowed: tuple[str, ...]) -> Place:
    """What the options say.

    Raises:
        InputError: If the extra `app` is not installed, or the token cannot be used.
    """
    check_extra("app", "a service or a page")
    import socket

    from finetune.app.access import read_token

    hosts = {"localhost", host, socket.gethostname(), socket.getfqdn() if _is_open(host) else "localhost"}
    return Place(host, port, read_token(token_file), frozenset(hosts | set(allowed)))


def say_starting(name: str, place: Place) -> None:
    """Say that the service takes a while to start. name: Of the run or gallery. InputError if the port is taken."""
    from finetune.app.running import check_port

    check_port(place.host, place.port)
    click.echo(printable(f"{name}: starting; the network is prepared first, which takes some seconds"), err=True)


def serve(app: FastAPI, place: Place, ready: Callable[[str], None]) -> None:
    """Run `app` until a signal. ready: Called with the address."""
    from finetune.app.running import run

    if _is_open(place.host) and place.token is None:
        click.echo(
            f"warning: everybody who can reach {place.host} can ask, and no token is set: see --token-file", err=True
        )
    run(app, host=place.host, port=place.port, ready=ready)


def _is_open(host: str) -> bool:
    """Whether other machines may reach an address to listen on."""
    import ipaddress

    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
