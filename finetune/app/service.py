"""What a service over a run and one over a gallery have in common: the app, its errors, and the way of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from finetune.app.access import Access
from finetune.app.batching import Answer, Batches, OneThread
from finetune.app.refusals import ClientGone, Refused
from finetune.app.uploads import Bounds, Upload, Uploads
from finetune.errors import FewtuneError, UnreadablePicture
from finetune.terminal import in_one_line

HEALTH = "/healthz"

# A white picture of one pixel.
_BLANK = b"P6 1 1 255\n\xff\xff\xff"
# How FastAPI describes a body that it does not read itself.
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"pictures": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}
_REASON = {
    "description": "Why the request is refused.",
    "content": {
        "application/json": {"schema": {"type": "object", "properties": {"detail": {"type": "string"}}}},
    },
}
# Errors of every request with pictures.
REFUSALS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 403, 408, 413, 421, 422, 503), _REASON)


class Service(Generic[Answer]):
    """Takes pictures from requests, and answers those of several requests together.

    Args:
        answer: From the contents of pictures to an answer for each, or the error of an unreadable one.
        bounds: What is taken.
    """

    def __init__(self, answer: Callable[[Sequence[bytes]], Sequence[Answer | UnreadablePicture]], bounds: Bounds):
        self._answer = answer
        self.batches = Batches(answer, at_once=bounds.together, most_waiting=bounds.waiting, window=bounds.window)
        self.uploads = Uploads(bounds)

    def new_app(self, *, title: str, about: str, token: str | None, hosts: Collection[str] | None) -> FastAPI:
        """An app for the paths of this service, ready to answer; arguments as for the function `new_app`."""
        self._answer([_BLANK])  # the first answer takes longer
        return new_app(self.batches.thread, self.uploads, title=title, about=about, token=token, hosts=hosts)

    async def answers(self, request: Request) -> list[tuple[Upload, Answer | UnreadablePicture]]:
        """The pictures of a request with their answers. One whose client goes meanwhile leaves the queue.

        Raises:
            Refused, ClientGone: As `Uploads.read` and `Batches.ask`.
        """
        self.batches.check_room()
        async with self.uploads.read(request) as uploads:
            asked = asyncio.ensure_future(self.batches.ask([upload.content for upload in uploads]))
            gone = asyncio.ensure_future(_disconnected(request))
            try:
                await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not asked.done():
                    raise ClientGone
                return list(zip(uploads, asked.result(), strict=True))
            finally:
                for task in (asked, gone):
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await task


def new_app(
    thread: OneThread,
    uploads: Uploads,
    *,
    title: str,
    about: str,
    token: str | None,
    hosts: Collection[str] | None,
    in_browser: bool = False,
) -> FastAPI:
    """An app with `GET /healthz` and errors as one sentence of JSON, to which paths are added.

    The end of the app closes `thread`; before, a server calls `app.state.stop`, which hurries `uploads`.
    It has no pages of documentation: FastAPI's load their scripts from elsewhere. /openapi.json describes all paths.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            thread.close()

    app = FastAPI(
        title=title,
        description=about,
        version=_version(),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        # Nothing is reported anywhere, whatever the environment says. Older releases ignore the argument.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.stop = uploads.stop
    app.add_middleware(Access, token=token, hosts=hosts, public={HEALTH}, in_browser=in_browser)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(ClientGone, _nothing)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(FewtuneError, _failed)

    @app.get(HEALTH, summary="Whether the service answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


def predictions(rows: Sequence[dict[str, Any]]) -> Response:
    """The response for the pictures of a request: status 422 where none of them can be read."""
    readable = any("error" not in row for row in rows)
    first = {} if readable else {"detail": rows[0]["error"]}
    return JSONResponse(first | {"predictions": rows}, 200 if readable else 422)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response()


def _nothing(request: Request, error: Exception) -> Response:
    return Response(status_code=400)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": in_one_line(f"{first['loc'][-1]}: {first['msg']}")}, 422)


def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": in_one_line(str(error))}, 500)


def _version() -> str:
    try:
        return version("fewtune")
    except PackageNotFoundError:
        return "0"
