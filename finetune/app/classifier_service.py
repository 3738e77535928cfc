"""The paths of a service over a classifier: /predict and /metadata."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from finetune.app.refusals import Refused, check_options
from finetune.app.service import BODY, REFUSALS, Service, predictions
from finetune.app.uploads import MEGABYTE, Bounds
from finetune.classifier.classifier import Classifier, Prediction
from finetune.errors import InputError, UnreadablePicture
from finetune.terminal import in_one_line

# Most classes in an answer; digits of a rate that count.
MOST_CLASSES, RATE_DIGITS = 100, 4


class ClassShare(BaseModel):
    """A class with its probability, in [0, 1]."""

    label: str
    probability: float


class PictureAnswer(BaseModel):
    """The answer for one picture. An unreadable one has `error`, the reason, and no label."""

    name: str | None = None
    label: str | None = None
    probability: float | None = None
    unsure: bool | None = None
    unknown: bool | None = None
    top: list[ClassShare] | None = None
    error: str | None = None


class Predictions(BaseModel):
    """The answers, in the order of the pictures."""

    predictions: list[PictureAnswer]


class ClassifierService(Service[Prediction]):
    """Answers pictures with a classifier. classifier: May be replaced by another one between two calls."""

    def __init__(self, classifier: Classifier, bounds: Bounds):
        super().__init__(self.predict, bounds)
        self.classifier = classifier

    def predict(self, pictures: Sequence[bytes]) -> list[Prediction | UnreadablePicture]:
        """The predictions, each as if its picture were the only one. They carry unknown scores where the run can."""
        rate = None if self._why_not_unknown() else 1.0
        return self.classifier.predict_all(pictures, top=MOST_CLASSES, false_accept_rate=rate, alone=True)

    async def most_unknown(self, rate: float | None) -> float:
        """The unknown score above which a picture is unknown, for a rate of false accepts; none is for None.

        Raises:
            Refused: Where the run stores nothing about unknown pictures.
        """
        if rate is None:
            return math.inf
        if why := self._why_not_unknown():
            raise Refused(422, f"false_accept_rate: {why}")
        return -await self.batches.thread.run(
            lambda: self.classifier.require_unknown().threshold(round(rate, RATE_DIGITS))
        )

    def _why_not_unknown(self) -> str | None:
        try:
            self.classifier.require_unknown()
        except InputError as error:
            return in_one_line(str(error))
        return None

    def metadata(self) -> dict[str, Any]:
        """What a client may know of the classifier, as JSON values."""
        classifier, bounds = self.classifier, self.uploads.bounds
        metrics = classifier.run_metrics
        return {
            "classes": list(classifier.classes),
            "backbone": classifier.config.backbone,
            "image_size": classifier.preprocessing.size,
            "strategy": None if metrics is None else metrics.kept or metrics.strategy,
            "accuracy": None if metrics is None else metrics.accuracy,
            "interval": None if metrics is None or metrics.interval is None else list(metrics.interval),
            "measured_on": None if metrics is None or metrics.accuracy is None else [metrics.n, metrics.split],
            "tells_unknown": self._why_not_unknown() is None,
            "device": classifier.fabric.device.type,
            "most_megabytes": bounds.request / MEGABYTE,
            "most_pictures": bounds.pictures,
            "most_pixels": classifier.config.max_pixels,
        }


def add_paths(app: FastAPI, service: ClassifierService) -> None:
    """Add /predict and /metadata."""

    @app.post(
        "/predict",
        summary="Predict the class of one or many pictures",
        response_model=Predictions,
        responses=REFUSALS,
        openapi_extra=BODY,
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=MOST_CLASSES, description="Classes in each answer.")] = 5,
        min_probability: Annotated[
            float, Query(ge=0, le=1, description="Less probable answers are marked as unsure.")
        ] = 0.0,
        false_accept_rate: Annotated[
            float | None,
            Query(
                ge=10**-RATE_DIGITS,
                le=1,
                description="Share of pictures of none of the classes that may be accepted; others are marked unknown.",
            ),
        ] = None,
    ) -> Response:
        check_options(request, ("top", "min_probability", "false_accept_rate"))
        most = await service.most_unknown(false_accept_rate)
        answers = await service.answers(request)
        rows = [{"name": upload.name} | row(answer, top, min_probability, most) for upload, answer in answers]
        return predictions(rows)

    @app.get("/metadata", summary="Classes, backbone, accuracy and bounds", responses={401: REFUSALS[401]})
    async def metadata() -> dict[str, Any]:
        return service.metadata()


def row(
    answer: Prediction | UnreadablePicture, top: int, min_probability: float, most_unknown: float
) -> dict[str, Any]:
    """An answer as JSON values, with the names of `finetune predict --json`."""
    if isinstance(answer, UnreadablePicture):
        return {"error": answer.reason}
    return {
        "label": answer.label,
        "probability": round(answer.probability, 6),
        "unsure": answer.probability < min_probability,
        "unknown": answer.unknown_score is not None and answer.unknown_score > most_unknown,
        "top": [{"label": label, "probability": round(share, 6)} for label, share in answer.top[:top]],
    }
