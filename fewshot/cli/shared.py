"""Options and output that several commands of `fewshot` share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from finetune.errors import InputError
from finetune.extras import check_extra
from finetune.options.command_line import ChoiceOption, Command, display_for, existing
from finetune.terminal import printable

if TYPE_CHECKING:
    from fewshot.embedding.embedder import Embedder
    from fewshot.search.index import Index


folder_path = click.Path(path_type=Path)


class IndexPlace(click.ParamType):  # type: ignore[type-arg]  # generic in new releases alone
    """Path of an index, or the address of a Lance table, such as s3://bucket/name.lance.

    exists: Whether a path must exist. Addresses are not looked up here.
    """

    name = "path"

    def __init__(self, exists: bool):
        self._path = existing if exists else folder_path

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from fewshot.search.table.location import is_address

        return value if is_address(value) else self._path.convert(value, param, ctx)


def check_search(index: str | Path) -> None:
    """InputError where FAISS is missing, for an index that is no Lance table."""
    from fewshot.search.table.location import is_table

    if not is_table(index):
        check_extra("search", "an index")


in_batches = click.option(
    "--batch-size",
    type=click.IntRange(1),
    show_default="chosen for the device",
    help="Number of pictures computed at once.",
)
of_kind = click.option(
    "--kind",
    type=ChoiceOption(["auto", "exact", "ivf", "hnsw", "pq"]),
    default="auto",
    show_default=True,
    help="Structure of the index. exact compares all vectors; ivf, hnsw and pq are approximate. pq compares short "
    "codes, and the best of them exactly. auto is exact until the collection is so large that another is much faster. "
    "hnsw is for folders alone.",
)
by_workers = click.option(
    "--workers",
    type=click.IntRange(0),
    show_default="one per CPU core",
    help="Number of processes or threads that decode pictures.",
)


def on_engine(command: Command) -> Command:
    """The options --engine and --address."""
    address = click.option(
        "--address",
        metavar="HOST:PORT",
        show_default="RAY_ADDRESS, or a local cluster that ends with the command",
        help="Address of a running Ray cluster of which this machine is a part. auto takes the one that runs here.",
    )
    engine = click.option(
        "--engine",
        type=ChoiceOption(["process", "ray"]),
        default="process",
        show_default=True,
        help="Where pictures are embedded: in this process, or by the workers of a Ray cluster, all of which see "
        "SOURCE and --out. --workers is then the number of processes that embed.",
    )
    return engine(address(command))


class MemorySize(click.ParamType[int]):
    """A number of bytes with a unit, as 500MB or 2GB: powers of 1,000."""

    name = "size"
    _UNITS: ClassVar = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(kb|mb|gb|tb)", value.strip().lower(), re.ASCII)
        size = int(float(found[1]) * self._UNITS[found[2]]) if found else 0
        if not 1 <= size < 1 << 53:
            self.fail(f"{value!r} is no size; write a number and a unit, for example 500MB or 2GB", param, ctx)
        return size


within_memory = click.option(
    "--memory",
    type=MemorySize(),
    show_default="no limit",
    help="Most memory that vectors and keys may take in a search, for example 2GB. Where vectors do not fit, pq keeps "
    "short codes in memory and leaves the vectors on disk. Making the index holds all vectors in memory.",
)


def print_memory(index: Index) -> None:
    """Say what was chosen for the memory that is allowed, and why."""
    if index.memory is not None:
        click.echo(index.memory_use())


def at_rate(default: str) -> Callable[[Command], Command]:
    """The option --false-accept-rate. default: Its default in words."""
    return click.option(
        "--false-accept-rate",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        show_default=default,
        help="Share of pictures of other things that may be accepted by mistake.",
    )


def by_model(default: str | None, otherwise: str = "") -> Callable[[Command], Command]:
    """The options --model, --weights and --tolerance. otherwise: The meaning of the default None, in words."""

    def attached(command: Command) -> Command:
        options = (
            click.option(
                "--model",
                default=default,
                show_default=otherwise or True,
                help="Encoder: omniglot (ships with the package, for signs and characters), a run folder of "
                "`fewshot train` or `finetune fit`, or the name of a timm model (for photographs).",
            ),
            click.option(
                "--weights",
                type=existing,
                show_default="the published weights",
                help="File with the weights of a timm model: safetensors, or a torch file of plain tensors.",
            ),
            click.option(
                "--tolerance",
                type=click.FloatRange(0, 1, min_open=True),
                default=0.999,
                show_default=True,
                help="Smallest cosine between the vectors and those of plain float32. Lower values allow faster "
                "arithmetic; 1 means plain float32.",
            ),
        )
        for option in reversed(options):
            command = option(command)
        return command

    return attached


def open_embedder(model: str, weights: Path | None, tolerance: float, device: str, quiet: bool) -> Embedder:
    from fewshot.embedding.embedder import Embedder

    return Embedder.load(model, weights=weights, tolerance=tolerance, device=device, display=display_for(quiet))


def given_embedder(
    model: str | None, weights: Path | None, tolerance: float, device: str, quiet: bool
) -> Embedder | None:
    if model is None and weights is not None:
        raise InputError("--weights needs --model, the name of their network")
    return None if model is None else open_embedder(model, weights, tolerance, device, quiet)


def print_unreadable(unreadable: Any) -> None:
    for path, reason in unreadable.items():
        click.echo(printable(f"{path}: {reason}"), err=True)
