"""`fewshot report`: what an encoder learned and where it errs, as one page that stands alone; reading as the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder_files import SHIPPED
from fewshot.evaluation.benchmark import BenchmarkReport
from fewshot.evaluation.embedded import UPRIGHT, Embed, embed_once
from fewshot.evaluation.measure import NEEDED, Result, measure, refusal, seconds_to_measure
from fewshot.evaluation.models import Model, by_embedding
from fewshot.omniglot.dataset import Omniglot, lake_runs, locate, read_omniglot
from fewshot.omniglot.splits import EVALUATION, SPLITS, select
from fewshot.report.curves import SameOrDifferent, koch_pairs, pairs_of, same_or_different
from fewshot.report.hardest import hardest_alphabets, hardest_classes, way_curves, wrong_neighbours
from fewshot.report.held_out import Tested, fair_split, remembering, tested_drawings, tested_folder
from fewshot.report.map import draw_map
from fewshot.report.page import EncoderFindings, page_of
from fewshot.report.run import Trained, read_run
from finetune.errors import InputError
from finetune.files import check_writable, write_text
from finetune.progress import Display
from finetune.training.expected_time import in_words

REPORT_FILE = "report.html"
# Protocols that take as long as all others together and have nothing published to stand beside.
SLOW = ("all-way-1692",)


@dataclass(frozen=True)
class Written:
    """path: the page. tested: what the encoder was asked about, None where there was nothing that it may be asked.

    report: the published protocols. wrong: pictures that have one of another class nearer than all of their own, of so
    many.
    """

    path: Path
    tested: str | None
    report: BenchmarkReport
    same_or_different: SameOrDifferent | None
    wrong: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        pairs = self.same_or_different
        return {
            "path": str(self.path),
            "tested": self.tested,
            **asdict(self.report),
            "same_or_different": pairs and {"auc": pairs.auc, "eer": pairs.eer, "pairs": pairs.pairs},
            "wrong_neighbours": self.wrong and {"count": self.wrong[0], "of": self.wrong[1]},
        }


def report(
    run: str,
    out: Path | None = None,
    *,
    data: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    display: Display | None = None,
) -> Written:
    """Measure the encoder of `run` on what it has not learned from, and write it all down as a page.

    run: "omniglot", the encoder that ships, or the folder of a finished run of `fewshot train`. out: the file; by
    default report.html in the run's folder, and of the encoder that ships omniglot.html here. data: as in
    `dataset.locate`; a run on Omniglot that finds none is reported without any figure, unless data is given. A run on a
    folder is measured on the classes that it held out, and on Omniglot only where `data` is given.

    InputError for what cannot be used, before anything is computed.
    """
    display = display or Display()
    trained = read_run(run)
    path = out or (Path(f"{run}.html") if run in SHIPPED else trained.folder / REPORT_FILE)
    check_writable(path, "--out", is_folder=False)
    embedder = Embedder.load(run, device=device)
    embed = remembering(embedder.embed_drawings)
    model = by_embedding(run, embed, embedder.trained_on, embedder.fingerprint)
    place, notes = _omniglot(trained, data)
    names, skipped = _allowed(model) if place is not None else ([], {})

    omniglot = None if place is None else _read(place, model, names)
    split = None if omniglot is None else fair_split(embedder.trained_on)
    runs = lake_runs(place) if any(not NEEDED[name] for name in names) else []
    tested = None
    if not trained.on_omniglot:
        try:
            tested = tested_folder(embedder, Path(str(trained.config["source"])), display)
        except InputError as error:
            notes.append(str(error))
    explored = split if tested is None and omniglot is not None else None
    if display.console is not None and (names or explored):
        plain = by_embedding(run, embedder.embed_drawings)
        seconds = seconds_to_measure([plain], names, omniglot, runs, explored=explored)
        display.say(f"making the report; expected time: {in_words(seconds)}")
    if explored is not None and omniglot is not None and split is not None:
        display.say(f"{split}: {len(SPLITS[split].characters):,} characters that were not trained on")
        tested = tested_drawings(omniglot, split, embed)

    results: list[Result] = []
    if names:
        display.say(f"measuring by {', '.join(names)}")
        results = measure(model, omniglot, runs, protocols=names, seed=seed)
    benchmarked = BenchmarkReport(model.name, model.fingerprint, tuple(results), skipped)

    findings = EncoderFindings(trained, benchmarked, tuple(notes), seed)
    if tested is not None:
        display.say("looking for the hardest classes and the nearest wrong neighbours")
        alphabets = hardest_alphabets(tested.embedded, seed=seed) if tested.grouped else []
        findings = replace(
            findings,
            tested=tested,
            curves=way_curves(tested.embedded, seed, results),
            alphabets=alphabets,
            classes=hardest_classes(tested.embedded, seed=seed),
            wrong=wrong_neighbours(tested.embedded),
            pairs=_pairs(tested, embed, omniglot, "koch" in names, embedder.verification, seed),
            map=draw_map(tested, alphabets, seed),
        )
    write_text(path, page_of(findings))
    return Written(
        path,
        tested.what if tested else None,
        benchmarked,
        findings.pairs,
        findings.wrong[:2] if findings.wrong else None,
    )


def _omniglot(trained: Trained, data: Path | None) -> tuple[Path | None, list[str]]:
    """Where Omniglot is, where it is wanted; and what to tell where it is not found."""
    if data is not None:
        return locate(data), []
    if not trained.on_omniglot:
        return None, []
    try:
        return locate(), []
    except InputError as error:
        return None, [f"Nothing was measured. {error}"]


def _allowed(model: Model) -> tuple[list[str], dict[str, str]]:
    """The protocols that the model is measured by, and why it is not by the others."""
    reasons = {name: refusal(model, name) for name in NEEDED}
    reasons |= {name: f"{name}: takes long; fewshot benchmark measures it" for name in SLOW if reasons[name] is None}
    names = [name for name, reason in reasons.items() if reason is None]
    return names, {name: reason for name, reason in reasons.items() if reason is not None}


def _read(place: Path, model: Model, names: Sequence[str]) -> Omniglot | None:
    """What the protocols and the questions need of Omniglot: to read both sets takes twice as long."""
    split = fair_split(model.trained_on)
    needed = {each for name in names for each in NEEDED[name]} | ({split} if split else set())
    if not needed:
        return None
    alphabets = {character.alphabet for each in needed for character in SPLITS[each].characters}
    return read_omniglot(place, ("evaluation",) if alphabets <= EVALUATION.keys() else ("background", "evaluation"))


def _pairs(
    tested: Tested,
    embed: Embed,
    omniglot: Omniglot | None,
    published: bool,
    verification: dict[str, Any] | None,
    seed: int,
) -> SameOrDifferent:
    """The very pairs of the published protocol where it may be used, so that the curves are of the table's figures."""
    if published and tested.grouped and omniglot is not None:
        validation, test = (
            embed_once(select(omniglot, SPLITS[split]), embed, turns=UPRIGHT) for split in NEEDED["koch"]
        )
        return same_or_different(*koch_pairs(validation, test, seed), verification)
    return same_or_different(*pairs_of(tested.embedded, seed), verification)
