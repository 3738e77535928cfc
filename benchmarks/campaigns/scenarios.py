"""Commands that write, what they leave when nothing happens, and how a state that a fault left is judged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns.attempts import Workshop, complaint, copied, forked, names_below

FAST = ("--backbone", "fewtune_conv4", "--device", "cpu", "--workers", "0")
ON_CPU = ("--device", "cpu")


@dataclass(frozen=True)
class Scenario:
    """A command on a folder of its own.

    Attributes:
        name: For results.
        before: What the folder holds before, made once; None for nothing.
        words: The command, given the folder.
        state: Runs in a fork: a digest of what a reader finds in the folder; raises where that is between two states.
        again: The next start, given the folder; by default the same command.
        same: Whether the end state has one digest, so that a resumed result is compared.
        between: Whether a reader may find other whole states than the first and the last.
        own_cache: Whether the activation cache lies in the folder.
    """

    name: str
    words: Callable[[Path], list[object]]
    state: Callable[[Path], str]
    before: Callable[[Path], None] | None = None
    again: Callable[[Path], list[object]] | None = None
    same: bool = True
    between: bool = False
    own_cache: bool = False


@dataclass(frozen=True)
class Baseline:
    """A scenario without a fault: digests before and after, names of the files after, seconds, the folder before."""

    before: str
    after: str
    names: list[str]
    seconds: float
    template: Path


class Scenarios:
    """All scenarios on the pictures of a workshop, with their baselines."""

    def __init__(self, shop: Workshop):
        self.shop = shop
        self.all = [*_fits(shop), *_fewshot(shop), *_of_a_run(shop)]
        self._baselines: dict[str, Baseline] = {}

    def baseline(self, scenario: Scenario) -> Baseline:
        if scenario.name not in self._baselines:
            self._baselines[scenario.name] = self._measured(scenario)
        return self._baselines[scenario.name]

    def fresh(self, scenario: Scenario) -> Path:
        """A new folder as it is before the command."""
        folder = self.shop.scratch / "attempt" / "work"
        copied(self.baseline(scenario).template, folder)
        shutil.rmtree(folder.parent / "cache", ignore_errors=True)
        return folder

    def cache(self, scenario: Scenario) -> Path:
        return self.shop.scratch / "attempt" / ("work/cache" if scenario.own_cache else "cache")

    def judged(self, scenario: Scenario, folder: Path) -> str:
        """What is wrong with the state that a fault left, and with what the next start makes of it; else empty."""
        known = self.baseline(scenario)
        state, problem = found(scenario, folder)
        if problem:
            return f"between two states: {problem}"
        if not scenario.between and scenario.same and state not in (known.before, known.after):
            return "neither the state before nor the one after"
        answer = self.shop.forked((scenario.again or scenario.words)(folder), cache=self.cache(scenario))
        if problem := complaint(answer, (0,)):
            return f"the next start: {problem}"
        state, problem = found(scenario, folder)
        if problem:
            return f"after the next start: {problem}"
        if scenario.same and state != known.after:
            return "the resumed result differs"
        extra = sorted(set(names_below(folder)) - set(known.names))
        return f"leftovers: {extra[:3]}" if extra else ""

    def _measured(self, scenario: Scenario) -> Baseline:
        place = self.shop.scratch / "baselines" / scenario.name.replace(" ", "-")
        template, folder = place / "before", place / "attempt" / "work"
        template.mkdir(parents=True)
        if scenario.before is not None:
            scenario.before(template)
        folder = copied(template, self.shop.scratch / "attempt" / "work")  # the same path, which some files name
        shutil.rmtree(self.shop.scratch / "attempt" / "cache", ignore_errors=True)
        before, problem = found(scenario, folder)
        answer = self.shop.forked(scenario.words(folder), cache=self.cache(scenario))
        after, worse = found(scenario, folder)
        if problem := problem or complaint(answer, (0,)) or worse:
            raise SystemExit(f"{scenario.name} fails without a fault: {problem}\n{answer.err}")
        return Baseline(before, after, names_below(folder), answer.seconds, template)


def found(scenario: Scenario, folder: Path) -> tuple[str, str]:
    """Digest of the state in the folder, and what is wrong with it."""
    answer = forked(lambda: print(scenario.state(folder)))
    return answer.out.strip(), complaint(answer, (0,))


def digest(*parts: Any) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else repr(part).encode())
    return total.hexdigest()[:16]


def _fits(shop: Workshop) -> list[Scenario]:
    def fit(strategy: str) -> Callable[[Path], list[object]]:
        epochs: tuple[str, ...] = () if strategy == "head" else ("--epochs", "2", "--lr", "0.001", "--keep", "trained")
        if strategy == "scratch":
            epochs = ("--epochs", "2", "--lr", "0.001")
        return lambda folder: [
            "finetune", "fit", shop.pictures, "--out", folder / "run", "--strategy", strategy, *FAST, *epochs,
        ]  # fmt: skip

    def again(strategy: str) -> Callable[[Path], list[object]]:
        def words(folder: Path) -> list[object]:
            run = folder / "run"
            if not (run / "state").exists() and (run / "model.safetensors").exists():
                return [*fit(strategy)(folder), "--overwrite"]  # it was finished
            return [*fit(strategy)(folder), *(["--resume"] if run.exists() else [])]

        return words

    return [
        Scenario(f"fit {strategy}", fit(strategy), classifier_state, again=again(strategy), between=True)
        for strategy in ("head", "partial", "full", "train", "scratch")
    ]


def classifier_state(folder: Path) -> str:
    """The weights and predictions of a run that holds a classifier."""
    run = folder / "run"
    if not (run / "model.safetensors").exists():
        return "nothing"
    import finetune
    from finetune.files.reading import read_tensors

    try:
        classifier = finetune.load(run, device="cpu")
    except finetune.InputError as error:
        if "has not finished" in str(error):
            return "unfinished"
        raise
    if classifier.metrics["interrupted"]:
        return "unfinished"
    tensors = read_tensors(run / "model.safetensors")
    weights = [(name, tensor.contiguous().numpy().tobytes()) for name, tensor in sorted(tensors.items())]
    return digest(weights, (run / "predictions.csv").read_bytes())


def _fewshot(shop: Workshop) -> list[Scenario]:
    one, other = (sorted(shop.pictures.glob(f"class000{label}/*.png"))[:2] for label in (0, 1))

    def enrolled(folder: Path) -> None:
        shop.prepare(["fewshot", "enrol", folder / "gallery", "zero", *one, *ON_CPU])

    def embedded(folder: Path) -> None:
        some = shop.scratch / "some"
        if not some.exists():
            shutil.copytree(shop.pictures / "class0000", some / "class0000")
        shop.prepare(["fewshot", "embed", some, "--out", folder / "index", "--workers", "0", *ON_CPU])
        about = folder / "index" / "index.json"
        text = about.read_text().replace(str(some), str(shop.pictures))  # as if pictures had come since
        about.write_text(text)

    def embed(folder: Path) -> list[object]:
        return ["fewshot", "embed", shop.pictures, "--out", folder / "index", "--workers", "0", *ON_CPU]

    def train(folder: Path) -> list[object]:
        return [
            "fewshot", "train", shop.pictures, "--out", folder / "run", "--epochs", "3", "--side", "32", *ON_CPU,
            "--precision", "float32",
        ]  # fmt: skip

    def train_again(folder: Path) -> list[object]:
        return [*train(folder), *(["--resume"] if (folder / "run").exists() else [])]

    def enrol(folder: Path) -> list[object]:
        return ["fewshot", "enrol", folder / "gallery", "one", *other, *ON_CPU]

    def enrol_again(folder: Path) -> list[object]:
        """A second enrolment would add the same pictures once more."""
        done = found(Scenario("", enrol, gallery_state), folder)[0].startswith("one,")
        return ["fewshot", "info", folder / "gallery"] if done else enrol(folder)

    return [
        Scenario("embed", embed, index_state, between=True),
        Scenario("embed more", embed, index_state, before=embedded, between=True),
        Scenario("enrol", enrol, gallery_state, before=enrolled, again=enrol_again),
        Scenario("fewshot train", train, encoder_state, again=train_again, same=False, between=True),
    ]


def index_state(folder: Path) -> str:
    """Keys and vectors of an index."""
    if not (folder / "index" / "index.json").exists():
        return "nothing"
    from fewshot.search.index import Index

    index = Index.load(folder / "index")
    order = sorted(index.keys)
    return digest(order, index.vectors(order).round(5).tobytes())


def gallery_state(folder: Path) -> str:
    if not (folder / "gallery" / "gallery.safetensors").exists():
        return "nothing"
    from fewshot.recognition.recognizer import Recognizer

    recognizer = Recognizer.load(folder / "gallery", device="cpu")
    return (
        ",".join(sorted(recognizer.labels)) + "," + digest((folder / "gallery" / "gallery.safetensors").stat().st_size)
    )


def encoder_state(folder: Path) -> str:
    if not (folder / "run" / "config.json").exists() or not list((folder / "run").glob("*.safetensors")):
        return "nothing"
    from fewshot.embedding.embedder import Embedder
    from finetune.errors import InputError

    try:
        Embedder.load(str(folder / "run"), device="cpu")
    except InputError as error:
        if "has not finished" in str(error):
            return "unfinished"
        raise
    return "encoder"


def _of_a_run(shop: Workshop) -> list[Scenario]:
    def trained(folder: Path) -> None:
        made = shop.scratch / "a run"
        if not made.exists():
            words = ["finetune", "fit", shop.pictures, "--out", made, "--strategy", "head", *FAST]
            shop.prepare(words)
        copied(made, folder / "run")

    def with_an_old_report(folder: Path) -> None:
        trained(folder)
        (folder / "run" / "report.html").write_text("old")

    def with_a_cache(folder: Path) -> None:
        words = ["finetune", "fit", shop.pictures, "--out", folder / "run", "--strategy", "full", "--epochs", "1"]
        shop.prepare([*words, *FAST], cache=folder / "cache")
        shutil.rmtree(folder / "run")

    return [
        Scenario(
            "export", lambda folder: ["finetune", "export", folder / "run", "--out", folder / "net.onnx"], export_state,
            before=trained, same=False,
        ),
        Scenario(
            "report", lambda folder: ["finetune", "report", folder / "run"],
            lambda folder: digest((folder / "run" / "report.html").read_bytes()), before=with_an_old_report,
        ),
        Scenario(
            "cache clear", lambda folder: ["finetune", "cache", "clear"], cache_state,
            before=with_a_cache, same=False, own_cache=True,
        ),
    ]  # fmt: skip


def export_state(folder: Path) -> str:
    """A file and its description. A description without its file is between two states."""
    model, about = folder / "net.onnx", folder / "net.onnx.json"
    if model.exists():
        import onnx

        onnx.checker.check_model(str(model))
    if about.exists():
        json.loads(about.read_text())
        if not model.exists():
            raise ValueError("net.onnx.json without net.onnx")
    return str((model.exists(), about.exists()))


def cache_state(folder: Path) -> str:
    from finetune.features.cache_files import entries

    return str(len(entries(folder / "cache")))
