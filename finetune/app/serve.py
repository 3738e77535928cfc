"""A classifier over HTTP: `make_app`, for `finetune serve` and for mounting in other apps."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from finetune.extras import check_extra

if TYPE_CHECKING:
    from fastapi import FastAPI

    from finetune.classifier.classifier import Classifier


def make_app(
    classifier: Classifier,
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
    """An ASGI app that answers pictures: `POST /predict`, `GET /metadata`, `GET /healthz`, `GET /openapi.json`.

    Pictures of requests that arrive together are answered together, on all cores. Each goes through the network alone,
    so that its answer does not depend on the others, bit for bit. On a CPU the network is compiled for this. The app
    can be run by any ASGI server, or mounted in another app. One picture is answered before this returns, because the
    first answer takes longer.

    Args:
        classifier: Its run may change on the disk meanwhile; the app keeps what was loaded.
        token: Wanted in the header `Authorization: Bearer TOKEN` of every request but `GET /healthz`.
        hosts: Names that requests may call the service by, beside IP addresses. None for any.
        most_megabytes: Largest body of a request, in MB.
        most_pictures: Most pictures in a request.
        most_waiting: Most pictures in the queue; more are refused with status 503 and `Retry-After`.
        most_together: Most pictures that are answered together.
        window: Most seconds that pictures wait for as many others as there were before; a client alone does not wait.
        compiled: Whether to compile the network (`Classifier.compile_alone`), which takes seconds at the start.

    Returns:
        The app.

    Raises:
        InputError: If the extra `app` is not installed, or a bound takes nothing.

    Example:
        >>> from fastapi.testclient import TestClient
        >>> from finetune import load, make_app
        >>> client = TestClient(make_app(load("runs/photos", device="cpu")))
        >>> answer = client.post("/predict", content=Path("new.png").read_bytes())
        >>> answer.json()["predictions"][0]["label"]
        'cat'
    """
    check_extra("app", "a service or a page")
    from finetune.app.classifier_service import ClassifierService, add_paths
    from finetune.app.uploads import Bounds

    bounds = Bounds.of(
        most_megabytes=most_megabytes,
        most_pictures=most_pictures,
        most_waiting=most_waiting,
        most_together=most_together,
        window=window,
    )
    if compiled:
        classifier.compile_alone()
    service = ClassifierService(classifier, bounds)
    app = service.new_app(title="finetune serve", about="Classes of pictures.", token=token, hosts=hosts)
    add_paths(app, service)
    return app
