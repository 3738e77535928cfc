"""A run on the page: answers with heat map and nearest pictures, and corrections that extend it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from finetune.api.changes.extend import extend
from finetune.api.changes.undo import undo
from finetune.app.page.nearest import NearestPictures
from finetune.app.page.page import Answer, Bar, Choice, Near, Past, Wording
from finetune.classifier.classifier import Classifier, Prediction
from finetune.classifier.explain import HeatMap, heat_maps
from finetune.classifier.loading import load
from finetune.classifier.published.fetched import check_local, run_at
from finetune.data.images import read_image
from finetune.errors import InputError, UnreadablePicture
from finetune.extras import installed
from finetune.kept.added import keep_picture, used_copies
from finetune.kept.features import keeps_features, read_features
from finetune.kept.history import read_changes, undoable
from finetune.report.page import thumbnail

SIDE = 320
_BARS = 5
_NEVER = "0"
_UNSURE = (("0.5", "50 %"), ("0.7", "70 %"), ("0.9", "90 %"), (_NEVER, "never"))
_UNKNOWN = ((_NEVER, "all of them"), ("0.2", "20 %"), ("0.1", "10 %"), ("0.05", "5 %"), ("0.01", "1 %"))


class TriedRun:
    """A run that the page changes. run: Its folder, or an address, where nothing is changed. device: One of auto, cpu,
    cuda."""

    def __init__(self, run: Path | str, device: str):
        self._given, self._run, self._device = run, run_at(run), device
        self._use(load(self._run, device=device))

    def wording(self) -> Wording:
        """The words of the page."""
        metrics = self._classifier.run_metrics
        about = f"{len(self._classifier.classes)} classes, {self._classifier.config.backbone}"
        if metrics is not None and metrics.accuracy is not None:
            about += f"; accuracy {metrics.accuracy:.1%} on {metrics.n:,} {metrics.split} pictures"
        choices: list[Choice] = [("unsure", "unsure below a probability of", _UNSURE)]
        if self._tells_unknown:
            choices.append(("unknown", "pictures of no class that may pass as one", self._rates()))
        return Wording(
            title=self._run.name if isinstance(self._given, Path) else self._given,
            about=about,
            bars="Probabilities",
            question="Wrong? It is",
            add="Add to the run",
            choices=choices,
        )

    def _rates(self) -> list[tuple[str, str]]:
        """The rates with what each costs."""
        model, found = self._classifier.require_unknown(), []
        for value, text in _UNKNOWN:
            refused = None if value == _NEVER else model.expected(float(value)).refused
            found.append((value, text if refused is None else f"{text}, {refused:.0%} of the classes refused"))
        return found

    def classes(self) -> tuple[str, ...]:
        return self._classifier.classes

    def past(self) -> list[Past]:
        changes, kept = read_changes(self._run), set(undoable(self._run))
        past, can = [], isinstance(self._given, Path)
        for change in reversed(changes):
            can = can and change.number in kept
            past.append(Past(change.number, f"{change.when[:16].replace('T', ' ')} UTC: {change.sentence}", can))
        return past

    def answer(self, picture: bytes, choices: dict[str, str]) -> Answer:
        unsure, unknown = (_number(choices, name) for name in ("unsure", "unknown"))
        rate = unknown if unknown and self._tells_unknown else None
        (found,) = self._classifier.predict_all(
            [picture], top=_BARS, min_probability=unsure, false_accept_rate=rate, alone=True
        )
        if isinstance(found, UnreadablePicture):
            raise found
        kind, sentence = _kind(found)
        most = self._classifier.config.max_pixels
        return Answer(
            picture=thumbnail(read_image(picture, at_least=SIDE, max_pixels=most), SIDE),
            verdict=found.label if kind == "label" else kind,
            sentence=sentence,
            kind=kind,
            bars=[Bar(label, share, f"{share:.1%}") for label, share in found.top],
            mark=unsure or None,
            heat_map=self._heat_map(picture),
            nearest=self._near(picture),
        )

    def add(self, picture: bytes, label: str) -> str:
        check_local(self._given)
        digest = hashlib.sha256(picture).hexdigest()
        read_image(picture, at_least=SIDE, max_pixels=self._classifier.config.max_pixels)  # before it is kept
        self._check_new(digest)
        path = keep_picture(self._run, picture)
        try:
            # To learn from: pictures that are chosen because the answer was wrong would make a wrong test.
            classifier = extend(self._run, [(str(path), label, "train")], device=self._device)
        except BaseException:
            path.unlink()
            raise
        change = read_changes(self._run)[-1]
        self._use(classifier)
        if not self._uses(digest):
            self.undo(change.number)
            raise InputError(
                "the picture is nearly the same as one that the run is tested on, or as one of another class, and was "
                "left out"
            )
        measured = "" if change.accuracy is None else f"; accuracy {change.accuracy:.1%} on {change.split} pictures"
        return f"added to {label} in {change.seconds:.1f} s; the run has {change.pictures:,} pictures{measured}"

    def undo(self, number: int) -> str:
        check_local(self._given)
        changes = read_changes(self._run)
        if not changes:
            raise InputError("the run has no change to undo")
        if changes[-1].number != number:
            self._use(load(self._run, device=self._device))
            raise InputError(
                "the run was changed by another program meanwhile; read its changes, listed anew, and try again"
            )
        before = used_copies(self._run)
        self._use(undo(self._run, device=self._device))
        for path in before - used_copies(self._run):
            path.unlink(missing_ok=True)
        return f"undone: {changes[-1].sentence}"

    def _use(self, classifier: Classifier) -> None:
        classifier.folder = self._run
        self._classifier = classifier
        self._kept = read_features(self._run, classifier.classes) if keeps_features(self._run) else None
        self._nearest = None if self._kept is None else NearestPictures(classifier, self._kept)
        try:
            classifier.require_unknown()
            self._tells_unknown = True
        except InputError:
            self._tells_unknown = False
        self._explains = installed("explain")

    def _heat_map(self, picture: bytes) -> str | None:
        if not self._explains:
            return None
        try:
            (found,) = heat_maps(self._classifier, [picture])
        except InputError:  # a transformer
            self._explains = False
            return None
        return thumbnail(found.overlay(), SIDE) if isinstance(found, HeatMap) else None

    def _near(self, picture: bytes) -> list[Near]:
        return [] if self._nearest is None else self._nearest.find(picture)

    def _check_new(self, digest: str) -> None:
        """InputError for a picture that the run has: under two labels, it would be left out altogether."""
        if self._kept is None:
            return
        for sample, content in zip(self._kept.listing.samples, self._kept.contents, strict=True):
            if content.sha256 == digest:
                raise InputError(
                    f"the run has this picture as {sample.label!r}; to take it out: finetune forget {self._run} "
                    f"--pictures {digest}"
                )

    def _uses(self, digest: str) -> bool:
        return self._kept is None or digest in self._kept.splits_by_content


def _kind(found: Prediction) -> tuple[str, str]:
    if found.unknown:
        return "unknown", f"It is like none of the classes; the nearest is {found.label}."
    if found.unsure:
        return "unsure", f"It is between classes; the most probable is {found.label}."
    return "label", f"{found.probability:.1%} probable."


def _number(choices: dict[str, str], name: str) -> float:
    """A share that the page sent; 0 where there is none."""
    try:
        number = float(choices.get(name, _NEVER))
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise InputError(f"{name} must be a number from 0 to 1")
    return number
