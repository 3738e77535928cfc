"""Every file format that is loaded, changed by its structure and its bytes, signed again: only documented errors."""

from __future__ import annotations

import random
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from campaigns.attempts import Answer, Outcome, Workshop, complaint, copied, each_file, forked, run_command
from campaigns.mutations import mutate_file, resign_index
from campaigns.scenarios import FAST, ON_CPU

MEMORY = 1 << 30  # bytes beyond the undisturbed load
SECONDS = 30.0


@dataclass(frozen=True)
class Kind:
    """A kind of files.

    Attributes:
        name: For results.
        make: Makes the files in a folder.
        load: Loads and uses them, in a fork.
        chosen: Which of the files are changed.
    """

    name: str
    make: Callable[[Path], None]
    load: Callable[[Path], object]
    chosen: Callable[[Path], bool] = lambda path: True


class Formats:
    """Kinds in turn; the number draws the file and its change."""

    total = 8000

    def __init__(self, shop: Workshop):
        self.shop = shop
        self.picture = sorted(shop.pictures.rglob("*.png"))[0]
        self.kinds = self._kinds()
        self._usual: dict[str, int] = {}

    def attempt(self, number: int) -> list[Outcome]:
        kind, draw = self.kinds[number % len(self.kinds)], random.Random(number)
        template = self.shop.scratch / "formats" / kind.name.replace(" ", "-")
        if kind.name not in self._usual:
            template.mkdir(parents=True)
            kind.make(template)
            answer = self._loaded(kind, copied(template, self.shop.scratch / "attempt"))
            if problem := complaint(answer, (0,)):
                raise SystemExit(f"{kind.name} cannot be loaded: {problem}\n{answer.err}")
            self._usual[kind.name] = answer.peak
        folder = copied(template, self.shop.scratch / "attempt")
        path = draw.choice([path for path in each_file(folder) if kind.chosen(path)])
        done = mutate_file(path, draw)
        resign_index(folder)
        canary = self.shop.scratch / "canary"  # hostile values name it: "../../canary"
        canary.write_text("untouched")
        answer = self._loaded(kind, folder)
        problem = complaint(answer)
        if not problem and answer.peak > self._usual[kind.name] + MEMORY:
            problem = f"takes {answer.peak >> 20} MB of memory"
        if not problem and canary.read_text() != "untouched":
            problem = "a file outside its folder was written to"
        return [Outcome(kind.name, f"{problem} [{done}]" if problem else "")]

    def _loaded(self, kind: Kind, folder: Path) -> Answer:
        def load() -> None:
            from finetune.errors import FewtuneError

            try:
                kind.load(folder)
            except FewtuneError as error:
                print(error, file=sys.stderr)
                sys.exit(2)

        return forked(load, {"FEWTUNE_CACHE": str(folder / "cache")}, longest=SECONDS)

    def _kinds(self) -> list[Kind]:
        shop, picture = self.shop, self.picture

        def fit(*options: object) -> list[object]:
            return ["finetune", "fit", shop.pictures, *FAST, *options]

        def stopped(folder: Path) -> None:
            """A run that ended after its first epoch."""

            def stop(result: object) -> None:
                raise KeyboardInterrupt

            def job() -> None:
                import finetune

                options = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0, "lr": 1e-3, "epochs": 3}
                finetune.fit(shop.pictures, folder / "run", strategy="full", on_epoch=stop, **options)  # type: ignore[arg-type]

            forked(job, {"FEWTUNE_CACHE": str(folder / "cache")})
            shutil.rmtree(folder / "cache", ignore_errors=True)

        def run(folder: Path) -> None:
            import finetune

            finetune.load(folder / "run", device="cpu").predict(picture)

        def gallery(folder: Path) -> None:
            from fewshot.recognition.recognizer import Recognizer

            Recognizer.load(folder / "gallery", device="cpu").recognize(picture)

        def index(folder: Path) -> None:
            from fewshot.search.index import Index

            found = Index.load(folder / "index")
            found.search(found.vectors(found.keys[:1]), 3)
            if len(found):
                found.add(["new"], found.vectors(found.keys[:1]))
            found.save(folder / "index")

        def encoder(folder: Path) -> None:
            from fewshot.embedding.embedder import Embedder

            Embedder.load(str(folder / "run"), device="cpu").embed([picture])

        def archives(folder: Path) -> None:
            from fewshot.omniglot.dataset import contents

            for path in folder.glob("*.zip"):
                for _ in contents(path):
                    pass

        def zipped(folder: Path) -> None:
            for name in ("images_background.zip", "images_evaluation.zip", "all_runs.zip"):
                with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
                    for number in range(4):
                        archive.write(picture, f"images/Alphabet/character01/{number:04d}_01.png")

        def table(folder: Path) -> None:
            rows = [f"{path},{path.parent.name}" for path in sorted(shop.pictures.rglob("*.png"))]
            (folder / "table.csv").write_text("\n".join(["path,label", *rows]) + "\n")

        def listed(folder: Path) -> None:
            from finetune.data.table import list_pictures

            list_pictures(folder / "table.csv")

        def cached(folder: Path) -> None:
            shop.prepare(fit("--strategy", "head", "--out", shop.scratch / "formats" / "once"), folder / "cache")
            shutil.rmtree(shop.scratch / "formats" / "once")

        return [
            Kind("run", lambda folder: shop.prepare(fit("--strategy", "head", "--out", folder / "run")), run,
                 lambda path: path.suffix in (".json", ".safetensors")),
            Kind("evaluate a run", lambda folder: shop.prepare(fit("--strategy", "head", "--out", folder / "run")),
                 lambda folder: run_command(["finetune", "report", folder / "run"]),
                 lambda path: path.suffix != ".html"),
            Kind("gallery", lambda folder: shop.prepare(
                ["fewshot", "enrol", folder / "gallery", "one", picture, *ON_CPU]), gallery),
            Kind("index", lambda folder: shop.prepare(
                ["fewshot", "embed", shop.pictures, "--out", folder / "index", "--workers", "0", *ON_CPU]), index),
            Kind("checkpoint", stopped, lambda folder: run_command(
                fit("--strategy", "full", "--lr", "0.001", "--epochs", "3", "--resume", "--out", folder / "run")),
                 lambda path: "state" in path.parts),
            Kind("encoder", lambda folder: shop.prepare(
                ["fewshot", "train", shop.pictures, "--out", folder / "run", "--epochs", "1", "--side", "32", *ON_CPU]),
                 encoder, lambda path: path.suffix in (".json", ".safetensors")),
            Kind("archives", zipped, archives),
            Kind("table", table, listed),
            Kind("cache", cached, lambda folder: run_command(
                fit("--strategy", "head", "--out", folder / "run"))),
        ]  # fmt: skip
