"""A recogniser over HTTP: `make_app`, for `fewshot serve` and for mounting in other apps."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from finetune.extras import check_extra

if TYPE_CHECKING:
    from fastapi import FastAPI

    from fewshot.recognition.recognizer import Recognizer


def make_app(
    recognizer: Recognizer,
    *,
    token: str | None = None,
    hosts: Collection[str] | None = None,
    most_megabytes: float = 32,
    most_pictures: int = 64,
    most_waiting: int = 256,
    most_together: int = 32,
    window: float = 0.002,
    compiled: bool = True,
) -> FastAPI:
    """An ASGI app that recognises pictures: `POST /predict`, `GET /metadata`, `GET /healthz`, `GET /openapi.json`.

    Pictures of requests that arrive together are answered together, on all cores. Each goes through the encoder alone,
    so that its answer does not depend on the others, bit for bit. On a CPU the encoder is compiled for this. The app
    can be run by any ASGI server, or mounted in another app. One picture is answered before this returns, because the
    first answer takes longer.

    Args:
        recognizer: With one enrolled class or more. It must not be changed meanwhile.
        token: Wanted in the header `Authorization: Bearer TOKEN` of every request but `GET /healthz`.
        hosts: Names that requests may call the service by, beside IP addresses. None for any.
        most_megabytes: Largest body of a request, in MB.
        most_pictures: Most pictures in a request.
        most_waiting: Most pictures in the queue; more are refused with status 503 and `Retry-After`.
        most_together: Most pictures that are answered together.
        window: Most seconds that pictures wait for as many others as there were before; a client alone does not wait.
        compiled: Whether to compile the encoder (`Embedder.compile_alone`), which takes seconds at the start.

    Returns:
        The app.

    Raises:
        InputError: If the extra `app` is not installed, a bound takes nothing, or nothing is enrolled.

    Example:
        >>> from fastapi.testclient import TestClient
        >>> from fewshot import Embedder, Recognizer, make_app
        >>> recognizer = Recognizer(Embedder.load("omniglot", device="cpu")).enrol("stop", "signs/class00/00.png")
        >>> client = TestClient(make_app(recognizer))
        >>> answer = client.post("/predict", content=Path("sign.png").read_bytes())
        >>> answer.json()["predictions"][0]["nearest"]
        'stop'
    """
    check_extra("app", "a service or a page")
    from fewshot.app.gallery_service import GalleryService, add_paths
    from finetune.app.uploads import Bounds

    recognizer.expect()  # InputError where nothing is enrolled
    bounds = Bounds.of(
        most_megabytes=most_megabytes,
        most_pictures=most_pictures,
        most_waiting=most_waiting,
        most_together=most_together,
        window=window,
    )
    if compiled:
        recognizer.embedder.compile_alone()
    service = GalleryService(recognizer, bounds)
    app = service.new_app(title="fewshot serve", about="Classes of pictures, or unknown.", token=token, hosts=hosts)
    add_paths(app, service)
    return app
