"""`compare_backbones`: several networks measured on one folder; the choice that --backbone auto makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.api.prepare import every_class
from finetune.computing.threads import one_thread_if_small
from finetune.config import AUTO, DEFAULT_BACKBONE, Config
from finetune.data.folder import Listing
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError
from finetune.features.extraction import StageReader
from finetune.features.speed import measure_speed
from finetune.features.table import FeatureTable
from finetune.linear.comparison import BackboneComparison, BackboneFigures, best_for_its_cost, reason_for
from finetune.linear.probe import held_out_errors
from finetune.metrics import accuracy_of
from finetune.models.backbone import Backbone
from finetune.models.candidates import Candidate, candidates
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages
from finetune.models.pretrained import WITHOUT_A_NETWORK, load_pretrained
from finetune.progress import Display
from finetune.random_state import restored_random_state

# Most pictures that networks are compared on; the rest is read by the chosen network alone.
SAMPLE = 2000


@dataclass(frozen=True)
class BackboneChoice:
    """Options with the network resolved. comparison: None where one network was named. splits: of the pictures by
    sha256, which the run keeps to: a picture that helped to choose is never a test picture."""

    config: Config
    comparison: BackboneComparison | None = None
    splits: Mapping[str, str] | None = None


@restored_random_state()
def compare_backbones(
    folder: Source, *, config: Config | None = None, display: Display | None = None
) -> BackboneComparison:
    """Measure several networks on the training and validation pictures of a folder, and choose one.

    The features of each network are computed once, and cached. Linear probes on them are cross-validated, and the
    network is timed on this machine. The network with the least squared error is chosen, or a faster one that is as
    good. Test pictures are not used. Of more than 2,000 pictures a sample of every class is used.

    Args:
        folder: A folder or a table, as `fit` takes it.
        config: Options of the run to come. `backbones` names the networks. Without it, they are those of the default
            list whose weights are in the local cache or in `weights_dir`, and all files in `weights_dir`. Networks that
            take longer than `max_ms` are left out before they read the folder.
        display: Shows progress.

    Returns:
        The figures of each network, the choice, and its reason.

    Raises:
        InputError: For a folder or option that cannot be used, for a named network whose weights cannot be loaded, and
            where no network is left.

    Example:
        >>> from finetune import Config, compare_backbones
        >>> found = compare_backbones("photos/", config=Config(backbones="fewtune_conv4", device="cpu"))
        >>> found.chosen, found.taken.licence
        ('fewtune_conv4', 'mit')
    """
    config, display = config or Config(backbone=AUTO), display or Display()
    if config.backbone != AUTO:
        raise InputError(f"compare_backbones needs --backbone auto or --backbones NAME,NAME, not {config.backbone}")
    comparison = choose_backbone(list_pictures(folder), config, display).comparison
    assert comparison is not None
    return comparison


def choose_backbone(listing: Listing, config: Config, display: Display) -> BackboneChoice:
    """`config` with the network that --backbone auto takes for a listing; unchanged where one network is named.

    Raises:
        InputError: As for `compare_backbones`.
    """
    if config.backbone != AUTO:
        return BackboneChoice(config)
    found, lines = candidates(config.backbones, config.weights_dir)
    for line in lines:
        display.say(line)
    fabric = open_engine(config.device, config.precision)
    opened = [_opened(candidate, fabric, listing, config, display) for candidate in found]
    usable = sorted((each for each in opened if each.reader is not None), key=lambda each: each.figures.ms or 0)
    if not usable:
        raise InputError(_none_left([each.figures for each in opened], config))
    measured, pictures = _measured(usable, listing, config, display)
    taken, least = pictures.choice
    figures = tuple(each.figures for each in measured)
    comparison = BackboneComparison(
        candidates=(*figures, *(each.figures for each in opened if each.reader is None)),
        chosen=figures[taken].name,
        reason=reason_for(figures, taken, least) if pictures.n else _unmeasured(figures[taken]),
        pictures=pictures.n,
        of=pictures.of,
        classes=pictures.classes,
    )
    display.say(f"backbone {comparison.reason}")
    candidate = measured[taken].candidate
    resolved = replace(
        config,
        backbone=candidate.name,
        weights=candidate.weights,
        image_size=config.image_size or candidate.image_size,
        backbones=None,
        weights_dir=None,
        max_ms=None,
    )
    return BackboneChoice(resolved, comparison, pictures.splits)


@dataclass(frozen=True)
class _Opened:
    """A candidate with its figures so far. reader: None where it was left out."""

    candidate: Candidate
    figures: BackboneFigures
    reader: StageReader | None = None


def _opened(candidate: Candidate, fabric: Fabric, listing: Listing, config: Config, display: Display) -> _Opened:
    """The network with its weights, timed on a few pictures."""
    size = config.image_size or candidate.image_size
    figures = BackboneFigures(
        name=candidate.name,
        image_size=size,
        weights=candidate.source,
        licence=candidate.licence,
    )
    torch.manual_seed(config.seed)
    try:
        backbone = Backbone(candidate.name, image_size=size)
        load_pretrained(
            backbone,
            candidate.weights,
            display,
            option="--backbones",
            weights_option="--weights-dir",
            instead=WITHOUT_A_NETWORK[:1],
        )
    except InputError as error:
        if candidate.named:
            raise
        display.say(f"{candidate.name} is left out: {error}.")
        return _Opened(candidate, replace(figures, left_out=str(error)))
    stages = PooledStages(backbone.to(fabric.device))
    reader = StageReader.of(fabric, stages, listing, config, display)
    speed = measure_speed(reader, display)
    figures = replace(
        figures,
        image_size=backbone.preprocessing.size,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        ms=float(f"{speed.ms:.4g}"),
        ms_single=float(f"{speed.ms_single:.4g}"),
        runtime=speed.runtime,
    )
    if config.max_ms is not None and speed.ms > config.max_ms:
        why = f"{speed.ms:.2g} ms a picture, above --max-ms {config.max_ms:g}"
        display.say(f"{candidate.name} is left out: {why}.")
        return _Opened(candidate, replace(figures, left_out=why))
    return _Opened(candidate, figures, reader)


@dataclass(frozen=True)
class _Compared:
    """Pictures of a comparison: their number n, of how many, the classes, the splits; and the choice made on them."""

    n: int
    of: int
    classes: int
    splits: Mapping[str, str]
    choice: tuple[int, int]


def _measured(
    usable: list[_Opened], listing: Listing, config: Config, display: Display
) -> tuple[list[_Opened], _Compared]:
    """The candidates with their probes, and the choice. The first candidate reads all pictures, which finds the splits;
    the others read the compared ones."""
    first, *others = usable
    assert first.reader is not None
    outputs = first.reader.read(display, bar=_bar(first))
    rows = FeatureTable.audited(listing, outputs, first.reader.stages.backbone.width, config)
    allowed = sorted([*rows.indices("train"), *rows.indices("val")])
    chosen = _compared_on(torch.tensor(allowed), rows.labels)
    about = (len(chosen), len(allowed), len(rows.folder.classes), rows.splits_by_content)
    if not len(chosen):
        return usable, _Compared(*about, choice=_without_probes(usable))
    _, labels = rows.labels[chosen].unique(return_inverse=True)
    probed, errors = [], []
    for each in (first, *others):
        assert each.reader is not None
        pooled = rows.pooled[chosen] if each is first else _read(each, chosen.tolist(), rows.paths(), display)
        with one_thread_if_small(pooled.numel()):
            error, right = held_out_errors(each.reader.stages.split(pooled), labels)
        share = accuracy_of(right.long(), torch.ones_like(labels))
        figures = replace(each.figures, accuracy=share.accuracy, interval=share.interval, error=float(error.mean()))
        display.say(
            f"{figures.name}: accuracy of a probe {share.accuracy:.1%} ({share.interval[0]:.1%} to "
            f"{share.interval[1]:.1%}), squared error {figures.error:.3f}, {figures.ms:.2g} ms a picture."
        )
        probed.append(replace(each, figures=figures))
        errors.append(error)
    return probed, _Compared(*about, choice=best_for_its_cost(errors))


def _read(each: _Opened, indices: list[int], paths: list[Path], display: Display) -> Tensor:
    """Pooled activations (n, sum of widths) of the pictures at n indices. InputError where one cannot be read now."""
    assert each.reader is not None
    outputs = each.reader.read(display, indices, bar=_bar(each))
    if len(outputs.index) < len(indices):
        lost = next(index for index in indices if outputs.contents[index].reason is not None)
        raise InputError(f"{paths[lost]} could be read by another network and cannot now; was the folder changed?")
    return outputs.values[:, 0]


def _bar(each: _Opened) -> str:
    return f"reading with {each.candidate.name}"


def _compared_on(allowed: Tensor, labels: Tensor) -> Tensor:
    """Positions of the pictures that networks are compared on, ascending: those of classes with two pictures or more,
    about SAMPLE at most. None where fewer than two classes have two."""
    names, counts = labels[allowed].unique(return_counts=True)
    several = names[counts >= 2]
    kept = allowed[torch.isin(labels[allowed], several)]
    if len(several) < 2:
        return kept[:0]
    return kept[every_class(labels[kept], SAMPLE)] if len(kept) > SAMPLE else kept


def _without_probes(usable: list[_Opened]) -> tuple[int, int]:
    """The default network where it is a candidate, else the slowest one."""
    names = [each.candidate.name for each in usable]
    position = names.index(DEFAULT_BACKBONE) if DEFAULT_BACKBONE in names else len(names) - 1
    return position, position


def _unmeasured(figures: BackboneFigures) -> str:
    return f"{figures.name}: no two classes have two pictures each, so networks cannot be compared on them."


def _none_left(figures: list[BackboneFigures], config: Config) -> str:
    if config.max_ms is not None and any(each.ms is not None for each in figures):
        fastest = min((each for each in figures if each.ms is not None), key=lambda each: each.ms or 0)
        return (
            f"no network is as fast as --max-ms {config.max_ms:g}; the fastest, {fastest.name}, takes "
            f"{fastest.ms:.2g} ms a picture"
        )
    reasons = "; ".join(f"{each.name}: {each.left_out}" for each in figures)
    return f"no network is left to compare (--backbone auto): {reasons}"
