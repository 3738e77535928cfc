"""The paths of a service over a recogniser: /predict and /metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from fewshot.recognition.answers import Recognition
from fewshot.recognition.recognizer import Recognizer
from finetune.app.refusals import Refused, check_options
from finetune.app.service import BODY, REFUSALS, Service, predictions
from finetune.app.uploads import MEGABYTE, Bounds
from finetune.config import MAX_PIXELS
from finetune.errors import UnreadablePicture

# Most classes in an answer; digits of a rate, which bound how many thresholds are kept.
MOST_CLASSES, RATE_DIGITS = 100, 3


class ClassSimilarity(BaseModel):
    """A class with the similarity of a picture to it: the cosine with the mean of its examples."""

    label: str
    similarity: float


class PictureAnswer(BaseModel):
    """The answer for one picture. label: null for unknown. An unreadable one has `error`, the reason."""

    name: str | None = None
    label: str | None = None
    nearest: str | None = None
    similarity: float | None = None
    threshold: float | None = None
    score: float | None = None
    top: list[ClassSimilarity] | None = None
    error: str | None = None


class Predictions(BaseModel):
    """The answers, in the order of the pictures."""

    predictions: list[PictureAnswer]


class GalleryService(Service[Recognition]):
    """Answers pictures with a recogniser."""

    def __init__(self, recognizer: Recognizer, bounds: Bounds):
        super().__init__(self.recognize, bounds)
        self.recognizer = recognizer

    def recognize(self, pictures: Sequence[bytes]) -> list[Recognition | UnreadablePicture]:
        """The nearest classes, each picture as if it were the only one."""
        return self.recognizer.recognize_all(pictures, nearest=True, alone=True)

    async def threshold(self, rate: float | None = None) -> float | None:
        """The smallest similarity that is accepted, for a rate of false accepts; None where none is known."""
        found = await self.batches.thread.run(lambda: self.recognizer.expect(rate))
        return None if found is None else found.value

    async def metadata(self) -> dict[str, Any]:
        """What a client may know of the gallery, as JSON values."""
        recognizer, bounds = self.recognizer, self.uploads.bounds
        return {
            "classes": recognizer.gallery.counts,
            "threshold": await self.threshold(),
            "network": recognizer.embedder.spec.network,
            "device": recognizer.embedder.fabric.device.type,
            "most_megabytes": bounds.request / MEGABYTE,
            "most_pictures": bounds.pictures,
            "most_pixels": MAX_PIXELS,
        }


def add_paths(app: FastAPI, service: GalleryService) -> None:
    """Add /predict and /metadata."""

    @app.post(
        "/predict",
        summary="Recognise one or many pictures",
        response_model=Predictions,
        responses=REFUSALS,
        openapi_extra=BODY,
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=MOST_CLASSES, description="Classes in each answer.")] = 5,
        false_accept_rate: Annotated[
            float | None,
            Query(ge=10**-RATE_DIGITS, lt=1, description="In place of the gallery's own; three digits count."),
        ] = None,
        threshold: Annotated[float | None, Query(ge=-1, le=1, description="In place of one for a rate.")] = None,
        nearest: Annotated[bool, Query(description="Always name the nearest class.")] = False,
    ) -> Response:
        check_options(request, ("top", "false_accept_rate", "threshold", "nearest"))
        if (false_accept_rate is not None) + (threshold is not None) + nearest > 1:
            raise Refused(422, "give only one of false_accept_rate, threshold and nearest")
        if threshold is None and not nearest:
            rate = None if false_accept_rate is None else round(false_accept_rate, RATE_DIGITS)
            threshold = await service.threshold(rate)
        answers = await service.answers(request)
        return predictions(
            [{"name": upload.name} | row(answer, top, threshold, nearest=nearest) for upload, answer in answers]
        )

    @app.get("/metadata", summary="Classes, threshold, encoder and bounds", responses={401: REFUSALS[401]})
    async def metadata() -> dict[str, Any]:
        return await service.metadata()


def row(
    answer: Recognition | UnreadablePicture, top: int, threshold: float | None, *, nearest: bool = False
) -> dict[str, Any]:
    """An answer as JSON values, with the names of `fewshot recognize --json`."""
    if isinstance(answer, UnreadablePicture):
        return {"error": answer.reason}
    accepted = nearest or (threshold is not None and answer.similarity >= threshold)
    ranked = list(answer.similarities.items())[:top]
    return {
        "label": answer.nearest if accepted else None,
        "nearest": answer.nearest,
        "similarity": round(answer.similarity, 6),
        "threshold": None if threshold is None else round(threshold, 6),
        "score": None if answer.score is None else round(answer.score, 6),
        "top": [{"label": label, "similarity": round(similarity, 6)} for label, similarity in ranked],
    }
