"""Several processes and threads on one folder, index, cache, or object."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from campaigns.attempts import Answer, Outcome, Workshop, complaint, emptied, forked, made_pictures
from campaigns.scenarios import FAST, ON_CPU

THREADS = 32
ROUNDS = 5


class Concurrency:
    """Each situation in turn, ROUNDS times, with another start of the second process each time."""

    def __init__(self, shop: Workshop):
        self.shop = shop
        self.out = shop.scratch / "attempt"
        self.other = made_pictures(shop.scratch / "other", classes=2, each=8, seed=1)
        self.cases: list[Callable[[float], str]] = [
            self.two_fits, self.two_embeds, self.two_enrolments, self.reader_beside_writer, self.shared_cache,
            self.threads_on_a_classifier, self.threads_on_an_embedder, self.threads_on_a_recognizer,
            self.threads_on_an_index, self.fork_after_import,
        ]  # fmt: skip
        self.total = ROUNDS * len(self.cases)

    def attempt(self, number: int) -> list[Outcome]:
        case = self.cases[number % len(self.cases)]
        emptied(self.out)
        return [Outcome(case.__name__.replace("_", " "), case(0.15 * (number // len(self.cases))))]

    def two_fits(self, delay: float) -> str:
        """One trains, the other is refused; the run is whole."""
        words = ["finetune", "fit", self.shop.pictures, "--out", self.out / "run", "--strategy", "head", *FAST]
        answers = self._together(words, words, delay)
        problem = next(filter(None, map(complaint, answers)), "")
        if not problem and sorted(str(answer.code) for answer in answers) != ["0", "2"]:
            problem = f"exit codes {[answer.code for answer in answers]}, not one 0 and one 2"
        return problem or self._whole(self.out / "run")

    def two_embeds(self, delay: float) -> str:
        """Of different folders: what is told as done is in the index."""
        index = self.out / "index"
        folders = [self.shop.pictures, self.other]
        jobs = [["fewshot", "embed", folder, "--out", index, "--workers", "0", *ON_CPU] for folder in folders]
        answers = self._together(jobs[0], jobs[1], delay)
        problem = next(filter(None, map(complaint, answers)), "")
        done = [folder for folder, answer in zip(folders, answers, strict=True) if answer.code == 0]
        if problem or not done:
            return problem or "neither was done"
        if len(done) == 2:
            return "both report success, and one folder's pictures are not in the index"
        expected = len(list(done[0].rglob("*.png")))
        found = forked(lambda: print(_index_size(index)))
        if complaint(found, (0,)):
            return f"the index: {complaint(found, (0,))}"
        return "" if int(found.out) == expected else f"{found.out.strip()} keys instead of {expected}"

    def two_enrolments(self, delay: float) -> str:
        gallery = self.out / "gallery"
        pictures = sorted(self.shop.pictures.rglob("*.png"))
        jobs = [["fewshot", "enrol", gallery, name, pictures[at], *ON_CPU] for at, name in enumerate(("one", "two"))]
        answers = self._together(jobs[0], jobs[1], delay)
        if problem := next(filter(None, (complaint(answer, (0,)) for answer in answers)), ""):
            return problem
        found = self.shop.forked(["fewshot", "info", gallery, "--json"])
        return "" if "one" in found.out and "two" in found.out else f"an enrolment is lost: {found.out.strip()[:100]}"

    def reader_beside_writer(self, delay: float) -> str:
        """An index that is read while it is written opens every time, with whole contents."""
        index = self.out / "index"
        words = ["fewshot", "embed", self.shop.pictures, "--out", index, "--workers", "0", *ON_CPU]
        if problem := complaint(self.shop.forked(words), (0,)):
            return problem

        def write() -> None:
            from fewshot.search.index import Index

            for turn in range(20):
                changed = Index.load(index)
                changed.add([f"new {turn}"], changed.vectors(changed.keys[:1]))
                changed.save(index)

        def read() -> None:
            for _ in range(60):
                _index_size(index)

        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(forked, (write, read)))
        return next(filter(None, (complaint(answer, (0,)) for answer in answers)), "")

    def shared_cache(self, delay: float) -> str:
        """Two fits with one cache that is cleared again and again: the results of a fit alone."""
        cache = self.out / "cache"
        fit = ["finetune", "fit", self.shop.pictures, "--strategy", "head", *FAST]
        jobs = [[*fit, "--out", self.out / name] for name in "ab"]

        def clear() -> None:
            from finetune.features.cache_files import clear_cache

            for _ in range(60):
                clear_cache(cache)
                time.sleep(0.05)

        with ThreadPoolExecutor(3) as pool:
            fits = [pool.submit(self.shop.forked, words, cache=cache) for words in jobs]
            clearing = pool.submit(forked, clear)
            answers = [fit.result() for fit in fits] + [clearing.result()]
        if problem := next(filter(None, (complaint(answer, (0,)) for answer in answers)), ""):
            return problem
        tables = {(self.out / name / "predictions.csv").read_bytes() for name in "ab"}
        return "" if len(tables) == 1 else "the two results differ"

    def threads_on_a_classifier(self, delay: float) -> str:
        def make() -> Callable[[Path], object]:
            import finetune

            options = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
            fitted = finetune.fit(self.shop.pictures, self.out / "run", strategy="head", **options)  # type: ignore[arg-type]
            return lambda picture: round(fitted.predict(picture).probability, 4)

        return self._threads(make)

    def threads_on_an_embedder(self, delay: float) -> str:
        def make() -> Callable[[Path], object]:
            from fewshot.embedding.embedder import Embedder

            embedder = Embedder.load("omniglot", device="cpu")
            return lambda picture: embedder.embed([picture]).round(3).tolist()

        return self._threads(make)

    def threads_on_a_recognizer(self, delay: float) -> str:
        def make() -> Callable[[Path], object]:
            from fewshot.embedding.embedder import Embedder
            from fewshot.recognition.recognizer import Recognizer

            recognizer = Recognizer(Embedder.load("omniglot", device="cpu"))
            for folder in sorted(self.shop.pictures.iterdir()):
                recognizer.enrol(folder.name, sorted(folder.glob("*.png"))[:2])
            return lambda picture: recognizer.recognize(picture).label

        return self._threads(make)

    def threads_on_an_index(self, delay: float) -> str:
        def job() -> None:
            import numpy as np

            from fewshot.search.index import Index

            vectors = np.random.default_rng(0).standard_normal((640, 32)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            index = Index(32)
            index.add([str(row) for row in range(640)], vectors)  # changes must run alone

            def wrong(turn: int) -> int:
                found = index.search(vectors[20 * turn : 20 * turn + 20], 1).keys[:, 0]
                return sum(key != str(20 * turn + row) for row, key in enumerate(found))

            with ThreadPoolExecutor(THREADS) as pool:
                total = sum(pool.map(wrong, [turn % 32 for turn in range(320)]))
            if total:
                raise SystemExit(f"{total} wrong answers")

        return complaint(forked(job), (0,))

    def fork_after_import(self, delay: float) -> str:
        """A host that imports the package and then forks, as servers do."""

        def job() -> None:
            import finetune

            options = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
            finetune.fit(self.shop.pictures, self.out / "run", strategy="head", **options)  # type: ignore[arg-type]
            context = multiprocessing.get_context("fork")
            pictures = sorted(map(str, self.shop.pictures.rglob("*.png")))[:4]
            with context.Pool(2) as pool:
                alone = [_label(str(self.out / "run"), picture) for picture in pictures[:1]]
                both = pool.starmap_async(_label, [(str(self.out / "run"), picture) for picture in pictures]).get(60)
            if both[:1] != alone:
                raise SystemExit("a forked process answers otherwise")

        return complaint(forked(job), (0,))

    def _threads(self, make: Callable[[], Callable[[Path], object]]) -> str:
        """THREADS threads on one object answer as one thread does."""
        pictures = sorted(self.shop.pictures.rglob("*.png"))

        def job() -> None:
            ask = make()
            alone = [ask(picture) for picture in pictures]
            with ThreadPoolExecutor(THREADS) as pool:
                together = list(pool.map(ask, pictures * 4))
            if together != alone * 4:
                raise SystemExit("threads get other answers")

        return complaint(forked(job), (0,))

    def _together(self, one: list[object], other: list[object], delay: float) -> list[Answer]:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(self.shop.forked, one)
            time.sleep(delay)
            second = pool.submit(self.shop.forked, other)
            return [first.result(), second.result()]

    def _whole(self, run: Path) -> str:
        def load() -> None:
            import finetune

            finetune.load(run, device="cpu")

        return complaint(forked(load), (0,))


def _index_size(folder: Path) -> int:
    from fewshot.search.index import Index

    index = Index.load(folder)
    index.vectors(index.keys)
    return len(index)


def _label(run: str, picture: str) -> str:
    import finetune

    return finetune.load(run, device="cpu").predict(picture).label
