"""The page and the requests that it makes, the same for a run and for a gallery."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from finetune.app.batching import OneThread
from finetune.app.refusals import Refused
from finetune.app.service import new_app
from finetune.app.uploads import MEGABYTE, Bounds, Uploads
from finetune.errors import InputError, UnreadablePicture
from finetune.report.page import render
from finetune.terminal import printable

# Longest name of a class that the page gives; most changes that it lists.
LONGEST_LABEL, MOST_SHOWN = 100, 10
# Scripts of other sites cannot send a header of their own without being asked first, which nothing here answers.
_OWN_HEADER = "x-fewtune-page"
_MOST_WAITING = 32
_PACKAGE = "finetune.app.page"
_POLICY = "frame-ancestors 'none'"


@dataclass(frozen=True)
class Bar:
    """A class in an answer. share: Length of its bar, in [0, 1]. text: Its value in words."""

    label: str
    share: float
    text: str


@dataclass(frozen=True)
class Near:
    """A picture that the classifier learned from. picture: A data URI; None where its file is gone or has changed."""

    label: str
    text: str
    picture: str | None


@dataclass(frozen=True)
class Answer:
    """What the page shows of a picture.

    Attributes:
        picture: The picture as a data URI.
        verdict, sentence: The answer in a word, and what is worth knowing of it.
        kind: "label", "unsure" or "unknown".
        bars: The most likely classes.
        mark: Place of a threshold among the bars, in [0, 1]; None without one.
        heat_map: A data URI; None where there is none.
        nearest: The most similar pictures that it learned from.
    """

    picture: str
    verdict: str
    sentence: str
    kind: str
    bars: Sequence[Bar]
    mark: float | None = None
    heat_map: str | None = None
    nearest: Sequence[Near] = ()


@dataclass(frozen=True)
class Past:
    """A change that was made. number: Of the change. text: What was done. undoable: Whether it can be taken back, after
    all that came later."""

    number: int
    text: str
    undoable: bool


# An option of the page: name, label, and its values with their texts, the default first.
Choice = tuple[str, str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Wording:
    """The words of the page that differ between a run and a gallery.

    Attributes:
        title, about: Of the page.
        bars: Heading of the classes in an answer.
        question: Before the name of a class that a picture is added to.
        add: On the button that adds it.
        choices: Options of an answer.
    """

    title: str
    about: str
    bars: str
    question: str
    add: str
    choices: Sequence[Choice] = ()


class Tried(Protocol):
    """What the page is about. All methods are called by one thread."""

    def wording(self) -> Wording: ...

    def classes(self) -> Sequence[str]: ...

    def past(self) -> Sequence[Past]:
        """The changes, the last one first."""
        ...

    def answer(self, picture: bytes, choices: dict[str, str]) -> Answer:
        """The answer for a picture; UnreadablePicture or another InputError says why there is none."""
        ...

    def add(self, picture: bytes, label: str) -> str:
        """Add a picture to a class; what was done, in a sentence. InputError where it cannot be added."""
        ...

    def undo(self, number: int) -> str:
        """Take back the last change; what was done, in a sentence. InputError where it cannot be taken back, or has
        another number."""
        ...


def page_app(tried: Tried, *, token: str | None, hosts: Collection[str] | None, most_megabytes: float) -> FastAPI:
    """The app of the page. token, hosts: As for `Access`."""
    uploads = Uploads(Bounds(request=int(most_megabytes * MEGABYTE), pictures=1))
    thread = OneThread(_MOST_WAITING)
    app = new_app(
        thread,
        uploads,
        title="try",
        about="A page to try a run or a gallery on.",
        token=token,
        hosts=hosts,
        in_browser=True,
    )
    app.add_exception_handler(InputError, _impossible)

    async def state() -> dict[str, Any]:
        def now() -> dict[str, Any]:
            past = [asdict(each) | {"text": printable(each.text)} for each in tried.past()[:MOST_SHOWN]]
            return {"classes": list(tried.classes()), "past": past, "about": printable(tried.wording().about)}

        return await thread.run(now)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        words = await thread.run(tried.wording)
        text = render("try.html.j2", package=_PACKAGE, words=words, longest=LONGEST_LABEL, **await state())
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    @app.post("/answer", summary="The answer for a picture")
    async def answer(request: Request) -> Response:
        async with _picture(uploads, request) as picture:
            choices = dict(request.query_params)
            found = await thread.run(lambda: tried.answer(picture, choices))
        return JSONResponse(asdict(found))

    @app.post("/add", summary="Add a picture to a class")
    async def add(request: Request, label: str) -> Response:
        name = _label(label)
        async with _picture(uploads, request) as picture:
            said = await thread.run(lambda: tried.add(picture, name))
        return JSONResponse({"said": printable(said)} | await state())

    @app.get("/state", summary="Classes and changes")
    async def now() -> Response:
        return JSONResponse(await state())

    @app.post("/undo", summary="Take back the last change")
    async def undo(request: Request, number: int) -> Response:
        _check_own(request)
        said = await thread.run(lambda: tried.undo(number))
        return JSONResponse({"said": printable(said)} | await state())

    return app


@asynccontextmanager
async def _picture(uploads: Uploads, request: Request) -> AsyncIterator[bytes]:
    _check_own(request)
    async with uploads.read(request) as read:
        yield read[0].content


def _check_own(request: Request) -> None:
    if _OWN_HEADER not in request.headers:
        raise Refused(403, f"the request is not from the page: the header {_OWN_HEADER} is missing")


def _label(text: str) -> str:
    """The name of a class as a person typed it."""
    label = " ".join(text.split())
    if not label or len(label) > LONGEST_LABEL or printable(label) != label:
        raise Refused(422, f"the name of a class is a text of 1 to {LONGEST_LABEL} visible characters")
    return label


def _impossible(request: Request, error: Exception) -> Response:
    reason = error.reason if isinstance(error, UnreadablePicture) else str(error)
    return JSONResponse({"detail": printable(reason)}, 422)
