"""Time and memory against the number of pictures, classes and keys: whether both grow linearly."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np

from campaigns.attempts import Answer, Outcome, Workshop, complaint, forked, made_pictures
from campaigns.scenarios import FAST, ON_CPU

SIDE = 16  # pixels of a tiny picture
PER_CLASS = 100
STEEP = 1.3  # exponent of the time above which growth is not linear
LONGEST = 3600.0


class Scale:
    """Four sizes of each kind, the largest by --largest; keys are ten times as many, gallery classes a twentieth."""

    def __init__(self, shop: Workshop):
        self.shop = shop
        sizes = [shop.largest // parts for parts in (64, 16, 4, 1)]
        self.kinds: dict[str, Callable[[int], list[tuple[str, Answer]]]] = {
            "pictures": self._pictures, "gallery classes": self._gallery, "index keys": self._index,
        }  # fmt: skip
        scale = {"pictures": 1.0, "gallery classes": 0.05, "index keys": 10.0}
        self.cases = [(kind, [max(8, round(size * scale[kind])) for size in sizes]) for kind in self.kinds]
        self.total = len(self.cases)

    def attempt(self, number: int) -> list[Outcome]:
        """All sizes of one kind, and the exponent of time and memory over them."""
        kind, sizes = self.cases[number]
        measured: dict[str, list[tuple[int, Answer]]] = {}
        idle = forked(lambda: None).peak
        for size in sizes:
            for job, answer in self.kinds[kind](size):
                if problem := complaint(answer, (0,)):
                    return [Outcome(f"{job}, {kind}", f"{size}: {problem}")]
                measured.setdefault(job, []).append((size, answer))
        return [_growth(f"{job}, {kind}", rows, idle) for job, rows in measured.items()]

    def _pictures(self, size: int) -> list[tuple[str, Answer]]:
        classes = max(2, size // PER_CLASS)
        folder = made_pictures(self.shop.scratch / f"pictures{size}", classes=classes, each=size // classes, side=SIDE)
        run, cache = self.shop.scratch / f"run{size}", self.shop.scratch / f"cache{size}"
        jobs: dict[str, list[object]] = {
            "fit head": ["finetune", "fit", folder, "--out", run, "--strategy", "head", *FAST],
            "report": ["finetune", "report", run],
            "predict": ["finetune", "predict", run, folder, "--csv", self.shop.scratch / "table.csv", *ON_CPU],
        }
        answers = [(job, self.shop.forked(words, cache=cache, longest=LONGEST)) for job, words in jobs.items()]
        for path in (folder, run, cache):
            shutil.rmtree(path)
        return answers

    def _gallery(self, size: int) -> list[tuple[str, Answer]]:
        """`size` classes enrolled one by one; the vectors are made up, the gallery is real."""
        folder = made_pictures(self.shop.scratch / f"enrolled{size}", classes=size, each=1, side=28)

        def enrol() -> None:
            from fewshot.embedding.embedder import Embedder
            from fewshot.recognition.recognizer import Recognizer

            recognizer = Recognizer(Embedder.load("omniglot", device="cpu"))
            for label in sorted(folder.iterdir()):
                recognizer.enrol(label.name, next(label.iterdir()))
            recognizer.save(self.shop.scratch / "gallery")

        answer = forked(enrol, longest=LONGEST)
        shutil.rmtree(folder)
        return [("enrol one by one", answer)]

    def _index(self, size: int) -> list[tuple[str, Answer]]:
        def fill() -> None:
            from fewshot.search.index import Index

            index, random = Index(64, kind="exact"), np.random.default_rng(0)
            for start in range(0, size, 10_000):
                rows = random.standard_normal((min(10_000, size - start), 64), dtype=np.float32)
                rows /= np.linalg.norm(rows, axis=1, keepdims=True)
                index.add([str(start + row) for row in range(len(rows))], rows)
            index.save(self.shop.scratch / "index")

        def load() -> None:
            from fewshot.search.index import Index

            Index.load(self.shop.scratch / "index").search(np.eye(1, 64, dtype=np.float32), 5)

        return [("fill and save", forked(fill, longest=LONGEST)), ("load and search", forked(load, longest=LONGEST))]


def _growth(group: str, rows: list[tuple[int, Answer]], idle: int) -> Outcome:
    """The exponents between the last two sizes, where fixed costs weigh least."""
    (few, before), (many, after) = rows[-2:]
    steps = np.log(many / few)
    time = float(np.log(max(after.seconds, 1e-3) / max(before.seconds, 1e-3)) / steps)
    floor = 8 << 20
    memory = float(np.log(max(after.peak - idle, floor) / max(before.peak - idle, floor)) / steps)
    figures = {f"seconds at {size}": round(answer.seconds, 2) for size, answer in rows}
    figures |= {f"MB at {size}": round(max(0, answer.peak - idle) / 2**20) for size, answer in rows}
    figures |= {"exponent of time": round(time, 2), "exponent of memory": round(memory, 2)}
    steep = [name for name, value in (("time", time), ("memory", memory)) if value > STEEP]
    return Outcome(group, f"{' and '.join(steep)} above linear: {figures}" if steep else "", figures)
