"""What a run stores about pictures of none of its classes: the likeness, the scores behind its threshold, its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from finetune.errors import InputError
from finetune.files.reading import as_type, parse_json, read_tensors_and_metadata
from finetune.files.tensors import check_tensor
from finetune.files.writing import as_json, write_tensors
from finetune.open_set.evidence import Evidence
from finetune.open_set.likeness import Likeness
from finetune.open_set.score_values import Floats
from finetune.open_set.unknown_scores import UnknownScores, estimate

UNKNOWN_FILE = "unknown.safetensors"
FORMAT = "1"
# Largest deviation that a score can have, in a file.
_MOST = 1e6


class Expected(NamedTuple):
    """What a rate of false accepts leads to.

    threshold: Pictures with a likeness below it are unknown; minus infinity where none is. accepted: expected share of
    unknown pictures that are accepted, with its 95 % interval. refused: expected share of pictures of the classes that
    are refused; None where no class has two pictures. of_other_classes: expected share of pictures of other classes,
    as unlike the classes as these are unlike each other, that are accepted; None where no class could be held out.
    """

    threshold: float
    accepted: tuple[float, float, float]
    refused: float | None
    of_other_classes: float | None


@dataclass(frozen=True, eq=False)
class UnknownModel:
    """Tells pictures of the classes from others.

    Attributes:
        likeness: Score of a picture; larger is more like one of the classes.
        held_out: Scores (n,) of pictures whose class was held out.
        of_class: Their classes, (n,).
        known: Scores (k,) of pictures of the classes, held out themselves.
        background: Scores (m,) of pictures given as unknown.
        more_classes: How many times as many classes there are as a held-out picture was compared with.
    """

    likeness: Likeness
    held_out: Floats
    of_class: NDArray[np.int64]
    known: Floats
    background: Floats
    more_classes: float

    @classmethod
    def of(cls, evidence: Evidence) -> UnknownModel:
        known, held_out = evidence.known, evidence.held_out
        return cls(
            known.likeness,
            held_out.scores.double().numpy(),
            held_out.of_class.numpy(),
            known.known.double().numpy(),
            np.empty(0),
            held_out.more_classes,
        )

    def with_background(self, scores: Floats) -> UnknownModel:
        """The same with pictures of none of the classes, whose likeness is `scores`, (m,)."""
        return replace(self, background=np.concatenate([self.background, scores]))

    @cached_property
    def unknown(self) -> UnknownScores:
        """The distribution of the likeness of unknown pictures."""
        found = estimate(self.held_out, self.of_class, self.background, self.known, self.more_classes)
        if found is None:
            raise InputError("nothing shows how unknown pictures score: give pictures of none of the classes")
        return found

    @cached_property
    def other_classes(self) -> UnknownScores | None:
        """The same by held-out classes alone, without background pictures; None where no class could be held out."""
        if not len(self.held_out):
            return None
        if not len(self.background):
            return self.unknown
        return estimate(self.held_out, self.of_class, np.empty(0), self.known, self.more_classes)

    def threshold(self, rate: float) -> float:
        """The likeness below which pictures are unknown, so that a share `rate` of unknown ones is accepted."""
        if not 0 < rate <= 1:
            raise InputError(f"false_accept_rate must be above 0 and at most 1, not {rate}")
        return self.unknown.threshold(rate)

    def expected(self, rate: float) -> Expected:
        """The threshold for a rate of false accepts, and the shares of both kinds of error that it leads to."""
        threshold = self.threshold(rate)
        refused = float((self.known < threshold).mean()) if len(self.known) else None
        others = None if self.other_classes is None else float(self.other_classes.at(np.array(threshold)))
        if threshold == -np.inf:
            return Expected(threshold, (1.0, 1.0, 1.0), refused, others)
        share = float(self.unknown.at(np.array(threshold)))
        return Expected(threshold, (share, *self.unknown.interval(threshold)), refused, others)

    def rate_that_refuses(self, share: float) -> float | None:
        """The smallest rate of false accepts at which at most a share of the pictures of the classes is refused; None
        where none of these could be held out."""
        if not len(self.known):
            return None
        ordered = np.sort(self.known)
        return float(self.unknown.at(np.array(ordered[min(int(share * len(ordered)), len(ordered) - 1)])))

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The content of the file: tensors and metadata."""
        scores = {"held_out": self.held_out, "known": self.known, "background": self.background}
        tensors = {name: torch.from_numpy(values.astype(np.float64)) for name, values in scores.items()}
        tensors |= {name: value.detach().cpu().contiguous() for name, value in self.likeness.state_dict().items()}
        tensors["of_class"] = torch.from_numpy(self.of_class.astype(np.int64))
        about = {
            "format": FORMAT,
            "widths": as_json(self.likeness.widths),
            "more_classes": as_json(self.more_classes),
        }
        return tensors, about

    def write(self, folder: Path) -> None:
        """Write the file into a run folder."""
        write_tensors(folder / UNKNOWN_FILE, *self.tensors())

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], about: Mapping[str, str], classes: int, source: str
    ) -> UnknownModel:
        """What `tensors` gave. InputError, which names `source`, for anything else."""
        if about.get("format") != FORMAT:
            raise InputError(f"{source} has format {about.get('format')}, this version reads {FORMAT}")
        widths = as_type(parse_json(about.get("widths", ""), source), tuple[int, ...], source)
        more = as_type(parse_json(about.get("more_classes", ""), source), float, source)
        if not widths or min(widths) < 1 or not 1 <= more <= classes:
            raise InputError(f"{source} may be damaged: widths or more_classes is out of range")
        means = check_tensor(tensors, "means", (classes, sum(widths)), source, formats=[torch.float32])
        checked = {"means": means}
        shapes: dict[str, tuple[int, ...]] = {
            "weight": (classes, sum(widths)),
            "bias": (classes,),
            "centre": (2,),
            "scale": (2,),
        }
        for name, shape in shapes.items():
            checked[name] = check_tensor(tensors, name, shape, source, formats=[torch.float32])
        if not bool((checked["scale"] >= 0).all()) or float(checked["scale"][0]) == 0:
            raise InputError(f"{source} may be damaged: scale is out of range")
        likeness = Likeness(widths, classes)
        likeness.load_state_dict(checked)
        scores = {
            name: check_tensor(tensors, name, (None,), source, formats=[torch.float64]).numpy()
            for name in ("held_out", "known", "background")
        }
        held_out = scores["held_out"]
        of_class = check_tensor(
            tensors, "of_class", (len(held_out),), source, formats=[torch.int64], finite=False
        ).numpy()
        if len(of_class) and not (of_class.min() >= 0 and of_class.max() < classes):
            raise InputError(f"{source} may be damaged: of_class names a class that is not there")
        if any(len(values) and np.abs(values).max() > _MOST for values in scores.values()):
            raise InputError(f"{source} may be damaged: a score is out of range")
        if not len(held_out) + len(scores["background"]):
            raise InputError(f"{source} may be damaged: it has no score of an unknown picture")
        return cls(likeness, held_out, of_class, scores["known"], scores["background"], more)

    @classmethod
    def from_bytes(cls, content: bytes, classes: int, source: str) -> UnknownModel:
        """What the bytes of a safetensors file hold; metadata included. InputError as for `from_tensors`."""
        length = int.from_bytes(content[:8], "little")
        header = parse_json(content[8 : 8 + length], source)
        about = header.get("__metadata__", {}) if isinstance(header, dict) else {}
        return cls.from_tensors(load(content), about, classes, source)


def read_unknown(folder: Path, classes: int) -> UnknownModel:
    """What a run folder stores about unknown pictures.

    Raises:
        InputError: If it stores nothing, or the file is damaged; the message names the file and what to do.
    """
    path = folder / UNKNOWN_FILE
    if not path.exists():
        raise InputError(
            f"{folder} has no {UNKNOWN_FILE}, by which unknown pictures are refused: it is of an older version, or its "
            "backbone was trained with --minutes or interrupted; run finetune fit again, without --minutes"
        )
    return UnknownModel.from_tensors(*read_tensors_and_metadata(path), classes, str(path))
