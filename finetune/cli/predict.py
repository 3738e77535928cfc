"""`finetune predict`: the class of each picture, on the terminal, as a table or as sorted folders."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune.errors import UnreadablePicture
from finetune.options.command_line import any_run, as_json, display_for, on_device
from finetune.options.help_text import HelpfulCommand
from finetune.terminal import printable

if TYPE_CHECKING:
    from finetune.classifier.answers.prediction import Prediction
    from finetune.classifier.answers.sorting import PictureSorter
    from finetune.open_set.unknown_model import UnknownModel

# Pictures whose answers come all at once, under one progress bar.
AT_ONCE = 1024


@click.command(cls=HelpfulCommand)
@click.argument("run", type=any_run)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PICTURES_OR_FOLDERS...")
@click.option(
    "--top", type=click.IntRange(min=1), default=3, show_default=True, help="Number of classes shown for each picture."
)
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    show_default="0, every picture is answered",
    help='Answer "unsure" where the probability is below this value.',
)
@click.option(
    "--target-error",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    show_default="no limit",
    help='Largest share of wrong answers that is acceptable. Less certain pictures are answered "unsure", so that the '
    "others keep to this limit with 95 % confidence, judged by the run's validation pictures.",
)
@click.option(
    "--false-accept-rate",
    type=click.FloatRange(0, 1, min_open=True),
    show_default="1, no picture is refused",
    help='Share of pictures of none of the classes that may be accepted. The others are answered "unknown", and so are '
    "some pictures of the classes. The threshold comes from classes of the run that were held out in turn, and from "
    "--background; unknown pictures that are more like a class than those were are accepted more often.",
)
@click.option(
    "--background",
    type=click.Path(path_type=Path, exists=True),
    show_default="none",
    help="Folder of pictures of none of the classes, such as come in use, for --false-accept-rate, beside those that "
    "RUN keeps. From about ten on they outweigh the held-out classes. To keep them in RUN: finetune extend RUN "
    "--background.",
)
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path),
    show_default="none",
    help="Also write the predictions to this CSV file. Texts that a spreadsheet would run as a formula, those that "
    "begin with = + - or @, get a ' in front, and so do texts that begin with '.",
)
@click.option(
    "--sort-into",
    type=click.Path(path_type=Path),
    show_default="none",
    help='Copy each picture into a sub-folder of this folder that has the name of its class, "unsure" or "unknown". No '
    "file is replaced: a second picture of one name gets a number.",
)
@click.option("--link", is_flag=True, help="Make symbolic links instead of copies in --sort-into.")
@on_device
@as_json
def predict(
    run: Path | str,
    pictures: tuple[Path, ...],
    top: int,
    min_probability: float | None,
    target_error: float | None,
    false_accept_rate: float | None,
    background: Path | None,
    table: Path | None,
    sort_into: Path | None,
    link: bool,
    device: str,
    as_json: bool,
) -> None:
    """Predict the class of each picture.

    RUN is a folder that `finetune fit` wrote, or an address such as hf://user/name. Folders of pictures are searched
    with their sub-folders, a CSV file names pictures in its column `path`, and the members of a tar archive, or of a
    folder of them, are read without being extracted. Of more than a thousand pictures, answers are printed as they are
    found, and memory does not grow with their number. --json prints one object per line; a picture answered "unsure"
    (between classes) or "unknown" (none of them) has "unsure": true or "unknown": true there. Unreadable files are
    named on stderr, and the exit code is then 2.
    """
    import finetune
    from finetune.classifier.answers.rejection import rejection_for, rejections, validation_answers
    from finetune.classifier.answers.sorting import PictureSorter, check_target
    from finetune.classifier.answers.table import check_table, write_table
    from finetune.classifier.published.fetched import run_at
    from finetune.data.collection.collection import pictures_at

    if min_probability is not None and target_error is not None:
        raise click.UsageError("--min-probability and --target-error both set the threshold; give one of them")
    if background is not None and false_accept_rate is None:
        raise click.UsageError("--background goes with --false-accept-rate")
    if link and sort_into is None:
        raise click.UsageError("--link goes with --sort-into")
    if table is not None:
        check_table(table)
    if sort_into is not None:
        check_target(sort_into, pictures)
    classifier, display = finetune.load(run, device=device), display_for(as_json)
    if target_error is not None:
        chosen = rejection_for(rejections(*validation_answers(run_at(classifier.address or run))), target_error)
        min_probability = chosen.min_probability
        display.say(f"unsure below {chosen.min_probability:.2%}; {1 - chosen.coverage:.1%} of validation is")
    if false_accept_rate is not None:
        if background is not None:
            classifier.learn_background(list(pictures_at([background])), display=display)
        for line in _told(classifier.require_unknown(), false_accept_rate):
            display.say(line)
    sorter = None if sort_into is None else PictureSorter(sort_into, classifier.classes, link=link)
    output = _Output(as_json, sorter, others=table is not None or sorter is not None)
    least = min_probability or 0.0
    stream = pictures_at(pictures)
    first = list(islice(stream, AT_ONCE + 1))
    answers: Iterable[Prediction | UnreadablePicture]
    options: dict[str, Any] = {"top": top, "min_probability": least, "false_accept_rate": false_accept_rate}
    if len(first) <= AT_ONCE:
        answers = classifier.predict_all(first, **options, display=display)
    else:
        answers = classifier.predict_stream(chain(first, stream), **options)
    answers = output.passing(answers)
    if table is not None:
        write_table(table, answers, top=min(top, len(classifier.classes)))
    else:
        deque(answers, maxlen=0)
    if sorter is not None:
        display.say(f"{len(sorter)} pictures are in {sort_into}")
    if output.failed is not None:
        raise output.failed
    if output.unreadable:
        sys.exit(2)


def _told(model: UnknownModel, rate: float) -> Iterator[str]:
    """What a rate of false accepts leads to, in sentences."""
    from finetune.open_set.unknown_metrics import MOST_REFUSED
    from finetune.open_set.unknown_scores import PRIOR_PICTURES

    found, count = model.expected(rate), len(model.background)
    if count:
        which = "picture counts" if count == 1 else "pictures count"
        yield f"threshold of unknown pictures: {count:,} background {which} too."
    share, low, high = found.accepted
    accepted = f"{share:.1%} ({low:.1%} to {high:.1%}) of the pictures of none of the classes are expected to pass"
    if count >= PRIOR_PICTURES:
        accepted += " where they are like the background pictures"
    if found.refused is None:
        yield f"unknown: {accepted}; how many pictures of the classes are refused is not known without two of a class."
        return
    yield f"unknown: {accepted}, and {found.refused:.1%} of the pictures of the classes are refused."
    if count and found.of_other_classes is not None and found.of_other_classes > high:
        yield (
            "Pictures of another class, one that is as like the classes as these are like each other, pass more often: "
            f"{found.of_other_classes:.0%}. Where such come in between, add some of them to the background pictures."
        )
    bearable = model.rate_that_refuses(MOST_REFUSED)
    if found.refused <= MOST_REFUSED or bearable is None:
        return
    more = "" if count else "background pictures (--background DIR) such as really come in between, or "
    yield (
        f"That is the price of a low rate: these pictures of the classes were held out. Fewer are refused with {more}"
        f"a higher rate: {MOST_REFUSED:.0%} at --false-accept-rate {bearable:.2g}."
    )


class _Output:
    """Prints answers and sorts their pictures.

    Attributes:
        unreadable: Number of unreadable pictures.
        failed: What ended the printing, such as `| head`; other results, a table or sorted files, are still made.
    """

    def __init__(self, as_json: bool, sorter: PictureSorter | None, *, others: bool):
        self.unreadable = 0
        self.failed: BaseException | None = None
        self._as_json, self._sorter, self._others = as_json, sorter, others

    def passing(self, answers: Iterable[Prediction | UnreadablePicture]) -> Iterator[Prediction | UnreadablePicture]:
        """The same answers, printed and sorted as they pass."""
        for answer in answers:
            if isinstance(answer, UnreadablePicture):
                self.unreadable += 1
            elif self._sorter is not None:
                self._sorter.put(answer)
            if self.failed is None:
                try:
                    _print(answer, self._as_json)
                except (SystemExit, OSError) as error:
                    if not self._others:
                        raise
                    self.failed = error
            yield answer


def _print(answer: Prediction | UnreadablePicture, as_json: bool) -> None:
    if isinstance(answer, UnreadablePicture):
        click.echo(printable(f"finetune: {answer}"), err=True)
        if as_json:
            click.echo(json.dumps({"path": answer.source, "error": answer.reason}))
    elif as_json:
        top_classes = [{"label": label, "probability": round(share, 6)} for label, share in answer.top]
        row = {
            "path": answer.path,
            "label": answer.label,
            "probability": round(answer.probability, 6),
            "unsure": answer.unsure,
            "unknown": answer.unknown,
            "top": top_classes,
        }
        if answer.unknown_score is not None:
            row["unknown_score"] = round(answer.unknown_score, 6)
        click.echo(json.dumps(row))
    else:
        shares = [f"{label} {share:.1%}" for label, share in answer.top]
        word = "unknown" if answer.unknown else "unsure" if answer.unsure else None
        first, others = (shares[0], shares[1:]) if word is None else (word, shares)
        click.echo(printable(f"{answer.path}: {first}" + (f"  ({', '.join(others)})" if others else "")))
