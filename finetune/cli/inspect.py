"""`finetune inspect`: a summary of a folder before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from finetune.config import Config
from finetune.errors import InputError
from finetune.options.command_line import as_json, display_for, existing, hyper_parameters, print_json
from finetune.options.help_text import HelpfulCommand
from finetune.terminal import in_markup, printable

if TYPE_CHECKING:
    from finetune.api.inspect import Inspection, NearDuplicates
    from finetune.report.contact_sheet import Captioned, Section


# Lines of each kind that are printed; further ones are counted. --json lists all.
SHOWN = 10
# Most suspect labels, groups of duplicates of each kind, and classes on the contact sheet.
OF_SUSPECTS, OF_GROUPS, CLASSES = 24, 12, 60


@click.command(cls=HelpfulCommand)
@click.argument("folder", type=existing)
@click.option(
    "--sheet",
    type=click.Path(path_type=Path),
    show_default="no sheet",
    help="PNG file to draw a contact sheet to: pictures to label next, suspect labels, duplicates and examples of each "
    "class.",
)
@click.option(
    "--label-next",
    type=int,
    show_default="20 with --unlabelled",
    help="Number of pictures of --unlabelled to list, those whose labels would teach a classifier most: each "
    "stands for many doubtful ones.",
)
@click.option(
    "--csv",
    type=click.Path(path_type=Path),
    show_default="no table",
    help="CSV file to write the pictures of --label-next to: path, predicted class, probability, score and reason.",
)
@hyper_parameters(Config, "inspect")
@as_json
def inspect(
    folder: Path, sheet: Path | None, label_next: int | None, csv: Path | None, as_json: bool, **options: Any
) -> None:
    """Check a folder of pictures before training.

    Shows classes, picture sizes, unreadable files, duplicates and suspect labels of FOLDER, which has one sub-folder of
    pictures per class or is a CSV table path,label[,split]. FOLDER is never changed. Labels of
    test pictures are not judged.
    """
    from finetune.api.inspect import inspect_folder
    from finetune.api.unlabelled import IN_INSPECTION
    from finetune.files.folders import check_writable
    from finetune.report.contact_sheet import check_place, write_sections

    config = Config(**options)
    for name, given in (("--label-next", label_next), ("--csv", csv)):
        if given is not None and config.unlabelled is None:
            raise InputError(f"{name} lists unlabelled pictures; give their folder with --unlabelled DIR")
    if sheet is not None:
        check_place(sheet, folder)
    if csv is not None:
        check_writable(csv, "--csv", is_folder=False, untouched=[folder, Path(str(config.unlabelled))])
    found = inspect_folder(
        folder,
        config=config,
        display=display_for(as_json),
        label_next=IN_INSPECTION if label_next is None else label_next,
    )
    if csv is not None:
        _write_csv(csv, found)
    # Printed first: an error while drawing the sheet must not lose it.
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
    if sheet is not None:
        sections = _sections(found)
        if not sections:
            raise InputError(f"{sheet} (--sheet) was not drawn: no picture in {folder} can be read")
        write_sections(sheet, sections)
        if not as_json:
            click.echo(f"\ncontact sheet: {printable(str(sheet))}")


def _write_csv(path: Path, found: Inspection) -> None:
    """Write the pictures to label next; only the header where there are none."""
    from finetune.files.tables import write_csv

    listed = () if found.unlabelled is None else found.unlabelled.label_next
    rows = [
        (
            _unlabelled_path(found, each.path),
            each.predicted,
            f"{each.probability:.6f}",
            f"{each.score:.6f}",
            each.reason,
        )
        for each in listed
    ]
    write_csv(path, ("path", "predicted", "probability", "score", "reason"), rows)


def _print(found: Inspection) -> None:
    # No line breaks: a path over two lines could not be copied.
    out = Console(highlight=False, soft_wrap=True, emoji=False)
    megabytes = found.bytes / 1e6
    classes = "1 class" if len(found.counts) == 1 else f"{len(found.counts):,} classes"
    out.print(
        f"[bold]{in_markup(str(found.root))}[/bold]  {found.pictures:,} pictures, {classes}, "
        f"{megabytes:,.{0 if megabytes >= 10 else 1}f} MB"
    )
    if found.refusal is not None:
        out.print(f"[bold red]A run would stop:[/bold red] {in_markup(found.refusal)}")
    _print_list(
        out,
        f"{len(found.unreadable)} unreadable",
        [(in_markup(_path(found, entry.path)), in_markup(entry.reason)) for entry in found.unreadable],
    )
    _print_suspects(out, found)
    _print_groups(out, found, "identical", found.identical)
    _print_groups(out, found, "near-duplicates", found.near)
    _print_classes(out, found)
    _print_sizes(out, found)
    _print_unlabelled(out, found)
    for note in found.notes:
        out.print(in_markup(note), style="dim")


def _print_suspects(out: Console, found: Inspection) -> None:
    if found.not_judged is not None:
        out.print(f"\nSuspect labels are left out, because they need pretrained weights: {in_markup(found.not_judged)}")
        return
    if found.suspects is None:
        out.print("\nSuspect labels were not sought: that takes two classes with five different pictures each.")
        return
    labels = "1 suspect label" if len(found.suspects) == 1 else f"{len(found.suspects)} suspect labels"
    title = f"{labels} of {found.judged:,} judged, worst first"
    lines = [
        (in_markup(_path(found, each.path)), f"{in_markup(each.label)} → [bold]{in_markup(each.predicted)}[/bold]?")
        for each in found.suspects
    ]
    _print_list(out, title, lines)


def _print_unlabelled(out: Console, found: Inspection) -> None:
    unlabelled = found.unlabelled
    if unlabelled is None:
        return
    out.print(f"\n{in_markup(unlabelled.sentence)}")
    if unlabelled.label_next:
        out.print("\n[bold]to label next[/bold], the one that would teach most first")
    for each in unlabelled.label_next:
        out.print(f"  {in_markup(_unlabelled_path(found, each.path))}  [dim]{in_markup(each.reason)}[/dim]")


def _print_groups(out: Console, found: Inspection, kind: str, groups: Sequence[NearDuplicates]) -> None:
    lines = []
    for group in groups:
        where = []
        if len(group.splits) > 1:
            where.append(f"[bold]across {', '.join(group.splits)}[/bold]")
        if len(group.labels) > 1:
            where.append(f"[bold]labels {in_markup(', '.join(group.labels))}[/bold]")
        more = [f"and {len(group.paths) - 2} more"] if len(group.paths) > 2 else []
        first, second = (in_markup(_path(found, path)) for path in group.paths[:2])
        lines.append((f"{first}  {second}", ", ".join([*more, *where])))
    _print_list(out, f"{len(groups)} groups of {kind}" if len(groups) != 1 else f"1 group of {kind}", lines)


def _print_list(out: Console, title: str, lines: Sequence[tuple[str, str]]) -> None:
    """Print lines of a path and a remark under a heading; nothing without lines."""
    if not lines:
        return
    out.print(f"\n[bold]{title}[/bold]")
    for what, about in lines[:SHOWN]:
        out.print(f"  {what}" + (f"  [dim]{about}[/dim]" if about else ""))
    if len(lines) > SHOWN:
        out.print(f"  [dim]… and {len(lines) - SHOWN} more, all with --json[/dim]")


def _print_classes(out: Console, found: Inspection) -> None:
    splits = [split for split in ("train", "val", "test", "-") if any(split in each for each in found.counts.values())]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("class", no_wrap=True)
    for split in splits:
        table.add_column("not used" if split == "-" else split, justify="right")
    table.add_column("")
    totals = {label: sum(counts.values()) for label, counts in found.counts.items()}
    most = max(1, *totals.values())
    largest_first = sorted(totals, key=lambda label: (-totals[label], label))
    shown = largest_first if len(largest_first) <= 3 * SHOWN else [*largest_first[:SHOWN], *largest_first[-SHOWN:]]
    for label in shown:
        cells = [str(found.counts[label].get(split, 0)) for split in splits]
        table.add_row(in_markup(label), *cells, "█" * round(24 * totals[label] / most))
    out.print()
    out.print(table)
    if len(shown) < len(totals):
        out.print(f"[dim]the {SHOWN} largest and the {SHOWN} smallest of {len(totals)} classes[/dim]")
    if found.balance is None:
        out.print("a class has no readable picture")
    elif found.balance >= 1.5:
        out.print(f"the largest class has {found.balance:.1f} times the pictures of the smallest")


def _print_sizes(out: Console, found: Inspection) -> None:
    sizes = found.sizes
    if sizes is None:
        return
    smallest, median, largest = (f"{width}x{height}" for width, height in (sizes.smallest, sizes.median, sizes.largest))
    out.print(
        f"\n[bold]sizes[/bold]  {smallest} to {largest}, median {median}; {_counted(sizes.formats)}; "
        f"{_counted(sizes.modes)}"
    )
    if sizes.odd:
        _print_list(
            out, f"{len(sizes.odd)} much longer than wide", [(in_markup(_path(found, path)), "") for path in sizes.odd]
        )


def _counted(counts: dict[str, int]) -> str:
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _path(found: Inspection, path: str) -> str:
    return str(found.root / path)


def _unlabelled_path(found: Inspection, path: str) -> str:
    return path if found.unlabelled is None else str(Path(found.unlabelled.folder) / path)


def _sections(found: Inspection) -> list[Section]:
    from finetune.report.contact_sheet import Captioned, Section

    def pictured(path: str, note: str = "") -> Captioned:
        return Captioned(found.root / path, path, note)

    sections = []
    if found.unlabelled is not None and found.unlabelled.label_next:
        sections.append(
            Section(
                f"To label next: {len(found.unlabelled.label_next)} of {found.unlabelled.pictures:,} unlabelled",
                [
                    Captioned(_unlabelled_path(found, each.path), each.path, f"{each.predicted} or {each.second}?")
                    for each in found.unlabelled.label_next
                ],
            )
        )
    if found.suspects:
        shown = found.suspects[:OF_SUSPECTS]
        title = f"Suspect labels: {len(shown)} of {len(found.suspects)}, given → found, worst first"
        sections.append(Section(title, [pictured(each.path, f"{each.label} → {each.predicted}?") for each in shown]))
    for title, groups in (("Identical", found.identical), ("Near-duplicates", found.near)):
        if groups:
            pairs = [
                pictured(path, f"group {number}")
                for number, group in enumerate(groups[:OF_GROUPS], 1)
                for path in group.paths[:2]
            ]
            sections.append(Section(f"{title}: {min(len(groups), OF_GROUPS)} of {len(groups)} groups", pairs))
    totals = Counter({label: sum(counts.values()) for label, counts in found.counts.items()})
    for label, total in totals.most_common(CLASSES):
        if total:
            sections.append(Section(f"{label}: {total}", [pictured(path) for path in found.examples[label]]))
    return sections
