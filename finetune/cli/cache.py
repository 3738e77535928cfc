"""`finetune cache`: list and clear the activation cache; forget recorded splits."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from finetune.options.command_line import as_json, print_json
from finetune.options.help_text import InOrderOfUse
from finetune.terminal import in_markup, printable

_DAY = 86_400


@click.group(cls=InOrderOfUse)
def cache() -> None:
    """Show or clear the outputs of frozen layers kept on disk.

    Later runs on the same pictures use them and are faster. The environment variable FEWTUNE_CACHE names another
    folder for them.
    """


@cache.command("list")
@as_json
def list_cache(as_json: bool) -> None:
    """Show the contents of the cache, the most recently used first."""
    from finetune.features.cache_files import default_bound, entries, size_of
    from finetune.files.folders import default_folder

    folder = default_folder()
    kept, total, bound = entries(folder), size_of(folder), default_bound(folder)
    if as_json:
        rows = [
            {"name": row.name, "pictures": row.pictures, "bytes": row.bytes, "last_used": row.last_used}
            | {"about": {key: value for key, value in row.about.items() if key != "made_by"}}
            for row in kept
        ]
        print_json({"folder": str(folder), "bytes": total, "bound": bound, "families": rows})
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("backbone", "cut", "view", "pictures", "size", "last used"):
        table.add_column(heading, justify="right" if heading in ("pictures", "size") else "left", no_wrap=True)
    for row in kept:
        backbone, cut = (in_markup(str(row.about.get(key, "?"))) for key in ("backbone", "cut"))
        table.add_row(
            backbone, cut, in_markup(_view(row.about)), str(row.pictures), _size(row.bytes), _ago(row.last_used)
        )
    # No line breaks: a shortened name could not be copied to `clear`.
    out = Console(highlight=False, soft_wrap=True, width=1000, emoji=False)
    if kept:
        out.print(table)
    out.print(f"{_size(total)} of at most {_size(bound)} in {in_markup(str(folder))}")


@cache.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    show_default="any age",
    help="Delete only outputs that were not used for this many days.",
)
@click.option("--backbone", metavar="NAME", show_default="all backbones", help="Delete only outputs of this backbone.")
@as_json
def clear(older_than: float | None, backbone: str | None, as_json: bool) -> None:
    """Delete the contents of the cache, or a part.

    A later run computes again what it needs.
    """
    from finetune.features.cache_files import clear_cache
    from finetune.files.folders import default_folder

    folder = default_folder()
    freed = clear_cache(folder, older_than=(older_than or 0) * _DAY, backbone=backbone)
    if as_json:
        print_json({"folder": str(folder), "bytes": freed.bytes, "files": freed.files, "families": freed.entries})
    else:
        files = "1 file" if freed.files == 1 else f"{freed.files} files"
        click.echo(printable(f"{_size(freed.bytes)} freed in {folder}: {files}"))


@cache.command("forget-splits")
@click.argument("pictures", required=False, metavar="[FOLDER|TABLE]", type=click.Path(path_type=Path))
@as_json
def forget_splits(pictures: Path | None, as_json: bool) -> None:
    """Forget which split each picture of a folder or table was in.

    A run records the splits that it makes, so that pictures which are added later move no others. After this, the next
    run divides the pictures anew. Without an argument, the splits of all folders and tables are forgotten.
    """
    from finetune.data.split_record import forget_splits

    count = forget_splits(pictures)
    if as_json:
        print_json({"records": count})
    else:
        click.echo("1 record forgotten" if count == 1 else f"{count} records forgotten")


def _view(about: object) -> str:
    """The transform of the pictures, in a few words."""
    if not isinstance(about, dict) or "view" not in about:
        return "?"
    view = "evaluation" if about.get("seed") is None else f"random, seed {about['seed']}"
    return view if about.get("test_time") == "plain" else f"{view}, {about.get('test_time')}"


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"


def _ago(moment: float) -> str:
    days = (time.time() - moment) / _DAY
    if days < 1:
        return "today" if days * 24 >= 1 else "within the hour"
    return "a day ago" if days < 2 else f"{days:.0f} days ago"
