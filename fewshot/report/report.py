"""The job of `fewshot report`: measures an encoder and writes a page."""

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
from fewshot.report.curves import VerificationCurves, koch_pairs, pairs_of, verification_curves
from fewshot.report.hardest import hardest_alphabets, hardest_classes, way_curves, wrong_neighbours
from fewshot.report.held_out import HeldOutPictures, cached_embedding, fair_split, held_out_drawings, held_out_folder
from fewshot.report.map import draw_map
from fewshot.report.page import EncoderFindings, page_of
from fewshot.report.run import TrainedRun, read_run
from finetune.errors import InputError
from finetune.files.folders import check_writable
from finetune.files.writing import write_text
from finetune.progress import Display, in_words

REPORT_FILE = "report.html"
# Protocols that take as long as all others together and have no published accuracy.
SLOW = ("all-way-1692",)


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written.

    Attributes:
        path: Of the page.
        tested: The test pictures in words; None without any.
        report: Results by the published protocols.
        pairs: Verification of the test pictures.
        wrong: Number of pictures with a wrong nearest neighbour, and number of pictures compared.
    """

    path: Path
    tested: str | None
    report: BenchmarkReport
    pairs: VerificationCurves | None
    wrong: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON values."""
        pairs = self.pairs
        return {
            "path": str(self.path),
            "tested": self.tested,
            **asdict(self.report),
            "same_or_different": pairs and {"auc": pairs.auc, "eer": pairs.eer, "pairs": pairs.pairs},
            "wrong_neighbours": self.wrong and {"count": self.wrong[0], "of": self.wrong[1]},
        }


def write_report(
    run: str,
    out: Path | None = None,
    *,
    data: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    display: Display | None = None,
) -> WrittenReport:
    """Measure an encoder on pictures that it was not trained on, and write a page.

    A run on a folder is measured on the classes that it held out, and on Omniglot only if `data` is given. A run on
    Omniglot is reported without any accuracy if Omniglot is not found and `data` is not given.

    Args:
        run: "omniglot", the encoder that ships, or the folder of a finished run of `fewshot train`.
        out: The file; by default report.html in the run's folder, or omniglot.html for the encoder that ships.
        data: Folder of Omniglot, as `dataset.locate` takes it.
        seed: Of all random numbers.
        device: "auto", "cpu" or "cuda".
        display: Shows progress and the expected time.

    Raises:
        InputError: For unusable arguments, before anything is computed.

    Returns:
        The path of the page, and what was measured for it.

    Example:
        >>> from fewshot import write_report
        >>> written = write_report("runs/signs", device="cpu")
        >>> written.path.name
        'report.html'
    """
    display = display or Display()
    trained = read_run(run)
    path = out or (Path(f"{run}.html") if run in SHIPPED else trained.folder / REPORT_FILE)
    check_writable(path, "--out", is_folder=False)
    embedder = Embedder.load(run, device=device)
    embed = cached_embedding(embedder.embed_drawings)
    model = by_embedding(run, embed, embedder.trained_on, embedder.fingerprint)
    place, notes = _omniglot(trained, data)
    names, skipped = _allowed(model) if place is not None else ([], {})

    omniglot = None if place is None else _read(place, model, names)
    split = None if omniglot is None else fair_split(embedder.trained_on)
    runs = lake_runs(place) if any(not NEEDED[name] for name in names) else []
    tested = None
    if not trained.on_omniglot:
        try:
            tested = held_out_folder(embedder, Path(str(trained.config["source"])), display)
        except InputError as error:
            notes.append(str(error))
    explored = split if tested is None and omniglot is not None else None
    if display.console is not None and (names or explored):
        plain = by_embedding(run, embedder.embed_drawings)
        seconds = seconds_to_measure([plain], names, omniglot, runs, explored=explored)
        display.say(f"making the report; expected time: {in_words(seconds)}")
    if explored is not None and omniglot is not None and split is not None:
        display.say(f"split {split}: {len(SPLITS[split].characters):,} characters that were not trained on")
        tested = held_out_drawings(omniglot, split, embed)

    results: list[Result] = []
    if names:
        display.say(f"measuring by {', '.join(names)}")
        results = measure(model, omniglot, runs, protocols=names, seed=seed)
    benchmarked = BenchmarkReport(model.name, model.fingerprint, tuple(results), skipped)

    findings = EncoderFindings(trained, benchmarked, tuple(notes), seed)
    if tested is not None:
        display.say("finding the hardest classes and the nearest wrong neighbours")
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
    return WrittenReport(
        path,
        tested.what if tested else None,
        benchmarked,
        findings.pairs,
        findings.wrong[:2] if findings.wrong else None,
    )


def _omniglot(trained: TrainedRun, data: Path | None) -> tuple[Path | None, list[str]]:
    """The folder of Omniglot if it is needed, and notes if it is not found."""
    if data is not None:
        return locate(data), []
    if not trained.on_omniglot:
        return None, []
    try:
        return locate(), []
    except InputError as error:
        return None, [f"Nothing was measured. {error}"]


def _allowed(model: Model) -> tuple[list[str], dict[str, str]]:
    """The protocols to use, and why the others are not used."""
    reasons = {name: refusal(model, name) for name in NEEDED}
    reasons |= {name: f"{name}: takes long; use fewshot benchmark" for name in SLOW if reasons[name] is None}
    names = [name for name, reason in reasons.items() if reason is None]
    return names, {name: reason for name, reason in reasons.items() if reason is not None}


def _read(place: Path, model: Model, names: Sequence[str]) -> Omniglot | None:
    """The sets of Omniglot that are needed; reading both takes twice as long."""
    split = fair_split(model.trained_on)
    needed = {each for name in names for each in NEEDED[name]} | ({split} if split else set())
    if not needed:
        return None
    alphabets = {character.alphabet for each in needed for character in SPLITS[each].characters}
    return read_omniglot(place, ("evaluation",) if alphabets <= EVALUATION.keys() else ("background", "evaluation"))


def _pairs(
    tested: HeldOutPictures,
    embed: Embed,
    omniglot: Omniglot | None,
    published: bool,
    verification: dict[str, Any] | None,
    seed: int,
) -> VerificationCurves:
    """Verification on the pairs of the published protocol if it is used, so that curves and table agree."""
    if published and tested.grouped and omniglot is not None:
        validation, test = (
            embed_once(select(omniglot, SPLITS[split]), embed, turns=UPRIGHT) for split in NEEDED["koch"]
        )
        return verification_curves(*koch_pairs(validation, test, seed), verification)
    return verification_curves(*pairs_of(tested.embedded, seed), verification)
