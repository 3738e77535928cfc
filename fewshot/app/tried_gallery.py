"""A gallery on the page: answers with similarities, and pictures enrolled from files and from the camera."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewshot.embedding.embedder import Embedder
from fewshot.recognition.gallery_files import GALLERY_FILE
from fewshot.recognition.recognizer import DEFAULT_ENCODER, Recognizer, change_gallery
from finetune.app.page.page import Answer, Bar, Choice, Past, Wording
from finetune.data.images import read_image
from finetune.errors import InputError, UnreadablePicture
from finetune.files.locks import locked
from finetune.files.writing import replacing
from finetune.report.page import thumbnail

SIDE = 320
_BARS = 5
# Earlier states of the gallery that are kept for undo, in memory.
_MOST_STATES = 50
_OWN, _NEAREST = "own", "nearest"
_RATES: Choice = (
    "rate",
    "pictures of no class that may pass as one",
    ((_OWN, "as the gallery has it"), ("0.01", "1 %"), ("0.05", "5 %"), ("0.2", "20 %"), (_NEAREST, "all of them")),
)


@dataclass(frozen=True)
class _Addition:
    """An addition. before, after: The content of the gallery's file; None where there was none."""

    number: int
    text: str
    before: bytes | None
    after: bytes


class TriedGallery:
    """A gallery that the page changes.

    Args:
        gallery: Its folder, which may be missing or empty.
        device: One of auto, cpu, cuda.
    """

    def __init__(self, gallery: Path, device: str):
        self._gallery, self._file, self._device = gallery, gallery / GALLERY_FILE, device
        self._before: list[_Addition] = []
        self._count = 0
        if self._file.exists():
            self._recognizer = Recognizer.load(gallery, device=device)
        else:
            self._recognizer = Recognizer(Embedder.load(DEFAULT_ENCODER, device=device))

    def wording(self) -> Wording:
        """The words of the page."""
        embedder, count = self._recognizer.embedder, len(self._recognizer.labels)
        classes = "1 class" if count == 1 else f"{count} classes"
        return Wording(
            title=self._gallery.resolve().name,
            about=f"{classes}, encoder {embedder.source or embedder.spec.network}",
            bars="Similarities",
            question="Enrol it as",
            add="Enrol",
            choices=(_RATES,),
        )

    def classes(self) -> tuple[str, ...]:
        return self._recognizer.labels

    def past(self) -> list[Past]:
        return [Past(each.number, each.text, True) for each in reversed(self._before)]

    def answer(self, picture: bytes, choices: dict[str, str]) -> Answer:
        shown = thumbnail(read_image(picture, at_least=SIDE), SIDE)
        if not self._recognizer.labels:
            return Answer(shown, "nothing is enrolled", "Enrol it as the first picture of a class.", "unknown", ())
        chosen = choices.get("rate", _OWN)
        rate = None if chosen in (_OWN, _NEAREST) else _rate(chosen)
        (found,) = self._recognizer.recognize_all(
            [picture], false_accept_rate=rate, nearest=chosen == _NEAREST, alone=True
        )
        if isinstance(found, UnreadablePicture):
            raise found
        if found.label is not None:
            kind, verdict = "label", found.label
        else:
            kind, verdict = "unknown", "unknown" if found.threshold is not None else "no threshold"
        if found.threshold is None:
            known = " No threshold is known: enrol a second class." if found.label is None else ""
        else:
            sign = "at least" if found.similarity >= found.threshold else "below"
            known = f" That is {sign} the threshold of {found.threshold:.2f}."
        ranked = list(found.similarities.items())[:_BARS]
        return Answer(
            picture=shown,
            verdict=verdict,
            sentence=f"The nearest class is {found.nearest}, with a similarity of {found.similarity:.2f}.{known}",
            kind=kind,
            bars=[Bar(label, max(0.0, similarity), f"{similarity:.2f}") for label, similarity in ranked],
            mark=None if found.threshold is None else min(1.0, max(0.0, found.threshold)),
        )

    def add(self, picture: bytes, label: str) -> str:
        read_image(picture, at_least=SIDE)
        before = self._content()
        with change_gallery(self._gallery, self._recognizer.embedder, device=self._device) as recognizer:
            count = recognizer.gallery.counts.get(label, 0)
            recognizer.enrol(label, picture)
        self._recognizer = recognizer
        if recognizer.gallery.counts[label] == count:
            return f"{label} has this picture already"
        after = self._content()
        assert after is not None
        self._count += 1
        self._before = [*self._before, _Addition(self._count, f"enrolled as {label}", before, after)][-_MOST_STATES:]
        alike = [pair for pair in recognizer.alike() if label in (pair.label, pair.other)]
        warned = f"; {alike[0].label} and {alike[0].other} are too similar to tell apart" if alike else ""
        return f"enrolled as {label}, which has {count + 1} {'example' if not count else 'examples'}{warned}"

    def undo(self, number: int) -> str:
        if not self._before:
            raise InputError("nothing was enrolled here")
        last = self._before[-1]
        if last.number != number:
            raise InputError(
                "the gallery was changed by another page meanwhile; read its changes, listed anew, and try again"
            )
        before = last.before
        with locked(self._gallery):
            if self._content() != last.after:
                self._before.clear()
                raise InputError("the gallery was changed by another program; fewshot forget takes classes out")
            if before is None:
                self._file.unlink()
            else:
                with replacing(self._file) as temporary:
                    temporary.write_bytes(before)
        self._before.pop()
        embedder = self._recognizer.embedder
        if before is None:
            self._recognizer = Recognizer(embedder)
        else:
            self._recognizer = Recognizer.load(self._gallery, embedder=embedder)
        return f"undone: {last.text}"

    def _content(self) -> bytes | None:
        return self._file.read_bytes() if self._file.exists() else None


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError("rate must be a number between 0 and 1") from error
