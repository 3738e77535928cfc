"""The commands for a gallery: enrol, recognize, calibrate, forget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fewshot.cli.shared import at_rate, by_model, folder_path, given_embedder, print_unreadable
from finetune.errors import InputError
from finetune.options.command_line import as_json, display_for, existing, on_device, print_json
from finetune.terminal import printable

if TYPE_CHECKING:
    from fewshot.recognition.answers import Recognition
    from fewshot.recognition.operating_point import Share, Threshold
    from fewshot.recognition.recognizer import Recognizer


# Largest number of too similar pairs of classes that is shown.
_SHOWN_PAIRS = 5

NO_THRESHOLD = (
    "no threshold: the encoder carries none, and a single class says nothing about unknown pictures; enrol a second "
    "class, give --background pictures, or use fewshot calibrate"
)


@click.command()
@click.argument("gallery", type=folder_path)
@click.argument("label")
@click.argument("pictures", nargs=-1, required=True, type=existing)
@click.option(
    "--background",
    type=existing,
    show_default="none",
    help="Folder of pictures that show none of the classes and resemble the unknown pictures in use. About 80 of them "
    "give a good threshold.",
)
@at_rate("that of the gallery; equal errors for a new one")
@by_model(None, "the encoder of the gallery; omniglot for a new one")
@on_device
@as_json
def enrol(
    gallery: Path,
    label: str,
    pictures: Sequence[Path],
    background: Path | None,
    false_accept_rate: float | None,
    model: str | None,
    weights: Path | None,
    tolerance: float,
    device: str,
    as_json: bool,
) -> None:
    """Add a class to a gallery from one or a few pictures.

    GALLERY is a folder, created if it does not exist. LABEL is the name of the class. Without --false-accept-rate, the
    threshold is chosen for equal errors: as many unknown pictures are accepted as pictures of the classes are refused,
    at most a fifth.
    """
    from fewshot.recognition.recognizer import change_gallery
    from finetune.data.folder import list_unlabelled

    given = given_embedder(model, weights, tolerance, device, as_json)
    with change_gallery(gallery, given, false_accept_rate=false_accept_rate, device=device) as recognizer:
        recognizer.enrol(label, list_unlabelled(pictures))
        if background is not None:
            recognizer.add_background(background)
    _print_gallery(gallery, recognizer, as_json)


@click.command()
@click.argument("gallery", type=existing)
@click.argument("labels", metavar="LABEL...", nargs=-1, required=True)
@on_device
@as_json
def forget(gallery: Path, labels: Sequence[str], device: str, as_json: bool) -> None:
    """Remove classes from a gallery.

    GALLERY is a folder that `fewshot enrol` wrote.
    """
    from fewshot.recognition.recognizer import change_gallery

    with change_gallery(gallery, None, device=device) as recognizer:
        for label in labels:
            recognizer.forget(label)
    _print_gallery(gallery, recognizer, as_json)


@click.command()
@click.argument("gallery", type=existing)
@click.argument("folder", type=existing)
@at_rate("that of the gallery")
@on_device
@as_json
def calibrate(gallery: Path, folder: Path, false_accept_rate: float | None, device: str, as_json: bool) -> None:
    """Choose the threshold of a gallery on labelled pictures.

    FOLDER has one sub-folder of pictures per class. Pictures in a sub-folder with the name of an enrolled class measure
    how many of its pictures are refused; all others measure how many unknown pictures are accepted. None of them
    becomes an example.
    """
    from fewshot.recognition.recognizer import change_gallery

    with change_gallery(gallery, None, device=device) as recognizer:
        trial = recognizer.calibrate(folder, false_accept_rate=false_accept_rate, display=display_for(as_json))
    if as_json:
        print_json(asdict(trial) | {"threshold": _threshold_figures(trial.threshold)})
        return
    if trial.known:
        click.echo(
            f"{trial.known} pictures of enrolled classes: {trial.right:.1%} named correctly, "
            f"{trial.refused:.1%} refused, {trial.misnamed:.1%} named wrongly"
        )
    if trial.unknown:
        click.echo(f"{trial.unknown} pictures of other classes: {trial.accepted:.1%} accepted")
    _print_gallery(gallery, recognizer, as_json)


@click.command()
@click.argument("gallery", type=existing)
@click.argument("pictures", nargs=-1, required=True, type=existing)
@at_rate("that of the gallery")
@click.option(
    "--threshold",
    type=float,
    show_default="chosen for the rate",
    help="Smallest similarity at which a class is accepted.",
)
@click.option("--nearest", is_flag=True, help="Always name the nearest class; never answer unknown.")
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="Number of classes shown for each picture."
)
@on_device
@as_json
def recognize(
    gallery: Path,
    pictures: Sequence[Path],
    false_accept_rate: float | None,
    threshold: float | None,
    nearest: bool,
    top: int,
    device: str,
    as_json: bool,
) -> None:
    """Name the class that each picture shows, or answer unknown.

    GALLERY is a folder that `fewshot enrol` wrote. The nearest classes are shown with every answer. Without a
    threshold, they are the whole answer.
    """
    from fewshot.recognition.recognizer import Recognizer
    from finetune.data.folder import list_unlabelled
    from finetune.errors import UnreadablePicture

    if (false_accept_rate is not None) + (threshold is not None) + nearest > 1:
        raise click.UsageError("give only one of --false-accept-rate, --threshold and --nearest")
    recognizer, paths = Recognizer.load(gallery, device=device), list_unlabelled(pictures)
    answers = recognizer.recognize_all(
        paths,
        display=display_for(True) if as_json else None,
        false_accept_rate=false_accept_rate,
        threshold=threshold,
        nearest=nearest,
    )
    unreadable = {str(p): a.reason for p, a in zip(paths, answers, strict=True) if isinstance(a, UnreadablePicture)}
    print_unreadable(unreadable)
    known = [(str(p), a) for p, a in zip(paths, answers, strict=True) if not isinstance(a, UnreadablePicture)]
    if as_json:
        print_json([{"picture": path} | asdict(answer) for path, answer in known])
    else:
        for path, answer in known:
            line = f"{path}: {_answer(answer)}  ({', '.join(_candidates(answer)[:top])})"
            click.echo(printable(line))
        _print_threshold(recognizer, known, nearest)
    if unreadable and not known:
        sys.exit(InputError.exit_code)


def _answer(answer: Recognition) -> str:
    if answer.label is not None:
        return answer.label
    return "unknown" if answer.threshold is not None else "no threshold"


def _candidates(answer: Recognition) -> list[str]:
    return [f"{label} {similarity:.2f}" for label, similarity in answer.similarities.items()]


def _print_threshold(recognizer: Recognizer, known: list[tuple[str, Recognition]], nearest: bool) -> None:
    """Print the threshold of the answers on stderr."""
    if not known or nearest:
        return
    threshold = known[0][1].threshold
    if threshold is None:
        click.echo(NO_THRESHOLD, err=True)
    else:
        click.echo(f"threshold of similarity: {threshold:.2f}", err=True)


def _print_gallery(gallery: Path, recognizer: Recognizer, as_json: bool) -> None:
    expectation = recognizer.expect() if recognizer.labels else None
    alike = recognizer.alike()
    if as_json:
        print_json(
            {
                "classes": recognizer.gallery.counts,
                "threshold": None if expectation is None else expectation.value,
                "expected": _threshold_figures(expectation),
                "alike": [pair._asdict() for pair in alike],
            }
        )
        return
    examples = sum(recognizer.gallery.counts.values())
    classes = "1 class" if len(recognizer.labels) == 1 else f"{len(recognizer.labels)} classes"
    click.echo(printable(f"{gallery}: {classes}, {examples} example{'' if examples == 1 else 's'}"))
    if not recognizer.labels:
        return
    if expectation is None:
        click.echo(NO_THRESHOLD)
        return
    for line in _expectation_lines(expectation):
        click.echo(line)
    for pair in alike[:_SHOWN_PAIRS]:
        click.echo(printable(f"too similar: {pair.label} and {pair.other} ({pair.similarity:.2f})"))
    if len(alike) > _SHOWN_PAIRS:
        click.echo(f"too similar: {len(alike) - _SHOWN_PAIRS} more pairs")


def _expectation_lines(expectation: Threshold) -> list[str]:
    """A threshold and its expected errors, as lines of text."""
    chosen = {
        "equal error": "for equal errors of both kinds",
        "rate": "for the rate of false accepts",
        "similarity": "by you",
    }[expectation.chosen_by]
    lines = [f"threshold of similarity: {expectation.value:.2f}, chosen {chosen}"]
    if expectation.false_accepts is not None:
        lines.append(f"expected: {_percent(expectation.false_accepts)} of unknown pictures are accepted")
    measure = "enrol a second picture of each class, or use fewshot calibrate"
    if expectation.refusals is None:
        lines.append(f"the share of refused pictures of the classes is not known: {measure}")
    else:
        lines.append(f"expected: {_percent(expectation.refusals)} of pictures of the classes are refused or misnamed")
        if not expectation.refusals_measured:
            lines.append(f"this was measured on other pictures and may not hold for yours: {measure}")
    return lines


def _threshold_figures(threshold: Threshold | None) -> dict[str, Any] | None:
    """A threshold as JSON values."""
    if threshold is None:
        return None
    shares = {"false_accepts": threshold.false_accepts, "refusals": threshold.refusals}
    named = {name: None if share is None else share._asdict() for name, share in shares.items()}
    return {
        "value": threshold.value,
        "chosen_by": threshold.chosen_by,
        "refusals_measured": threshold.refusals_measured,
    } | named


def _percent(share: Share) -> str:
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
