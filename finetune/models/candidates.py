"""The networks that --backbone auto compares: the default list with its reasons, and the weights that are at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm

from finetune.config import Config
from finetune.errors import InputError
from finetune.models.backbone import Backbone, check_name
from finetune.models.hub import WEIGHTS_FILES, cached_file
from finetune.models.pretrained import WITHOUT_A_NETWORK, load_pretrained
from finetune.progress import Display

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Candidate:
    """A network that can be compared with others.

    Attributes:
        name: timm's name of the network.
        image_size: Side of its pictures in pixels; None for the network's own.
        weights: File with its weights. None for the published ones, from this package, the hub's cache or the hub.
        licence: Licence of the published weights, as timm states it; None where it states none.
        reason: Why the default list has it; empty for a network that the user brings.
        named: Whether --backbones names it. A candidate that nobody named is left out where it cannot be used.
    """

    name: str
    image_size: int | None = None
    weights: str | None = None
    licence: str | None = None
    reason: str = ""
    named: bool = False

    @property
    def source(self) -> str:
        """Where its weights come from: a file, this package, or the address of the published ones."""
        published = timm.models.get_pretrained_cfg(self.name)
        if self.weights is not None or published is None:
            return self.weights or "unknown"
        return "this package" if published.file else f"https://huggingface.co/{published.hf_hub_id}"


# A convolutional network and a transformer at each of two costs, and the encoder that ships with the package. All
# licences are permissive, which rules out DINOv3 (a licence of its own) and ConvNeXt V2 (non-commercial). DINOv2 reads
# 224 pixels here: its own 518 have five times as many patches, at nine times the cost. The list is in
# docs/backbones.md too.
DEFAULT = (
    Candidate("fewtune_conv4", None, None, "mit", "drawings and written characters; ships with the package"),
    Candidate(
        "tf_efficientnet_lite0", None, None, "apache-2.0", "convolutional, low cost: 0.4 G multiplications a picture"
    ),
    Candidate(
        "convnext_tiny.in12k_ft_in1k",
        None,
        None,
        "apache-2.0",
        "convolutional, high cost: 4.5 G; 12,000 ImageNet classes",
    ),
    Candidate(
        "vit_small_patch14_reg4_dinov2.lvd142m",
        224,
        None,
        "apache-2.0",
        "transformer, low cost: 5.5 G; learned from 142 M pictures without labels",
    ),
    Candidate(
        "vit_base_patch14_reg4_dinov2.lvd142m",
        224,
        None,
        "apache-2.0",
        "transformer, high cost: 22 G; learned from 142 M pictures without labels",
    ),
)


def candidates(names: str | None, weights_dir: str | None) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """The networks to compare.

    Args:
        names: --backbones: names separated by commas, compared whatever it takes. None for those of the default list
            whose weights are at hand, and all files in `weights_dir`.
        weights_dir: Folder with files NAME.safetensors, or None.

    Returns:
        The candidates, and lines about networks that are not among them.

    Raises:
        InputError: For a name that timm does not know, a folder that cannot be read, and where nothing is left.
    """
    files = _files(weights_dir)
    if names is not None:
        return tuple(_named(name, files) for name in _separated(names)), ()
    found, absent, lines = [], [], []
    for candidate in DEFAULT:
        file = _file_of(candidate.name, files)
        if file is not None:
            found.append(replace(candidate, weights=str(file)))
        elif is_at_hand(candidate.name):
            found.append(candidate)
        else:
            absent.append(candidate.name)
    used = {candidate.weights for candidate in found}
    for name, file in files.items():
        if str(file) in used:
            continue
        try:
            check_name(name, f"{file.name} in --weights-dir")
        except InputError as error:
            lines.append(f"{file} is left out: {error}.")
        else:
            found.append(Candidate(name, None, str(file), licence_of(name)))
    if absent:
        lines.append(
            f"not compared, because their weights are not here: {', '.join(absent)}. --backbones NAME,NAME downloads "
            f"those that it names; without a network, put NAME{SUFFIX} into --weights-dir."
        )
    distinct = tuple(_distinct(found, lines))
    return distinct, tuple(lines)


def load_weights(
    backbone: Backbone, config: Config, display: Display, *, instead: Sequence[str] = WITHOUT_A_NETWORK
) -> None:
    """Load the weights that --weights or --weights-dir names, else the published ones. Errors as of `load_pretrained`.

    instead: As for `load_pretrained`.
    """
    weights, option = config.weights, "--weights"
    if config.weights_dir is not None:
        file = _file_of(backbone.name, _files(config.weights_dir))
        if file is None:
            raise InputError(f"{config.weights_dir} (--weights-dir) has no file {backbone.name}{SUFFIX}")
        weights, option = str(file), "--weights-dir"
    load_pretrained(backbone, weights, display, weights_option=option, instead=instead)


def is_at_hand(name: str) -> bool:
    """Whether the published weights of a network ship with this package or are in the hub's local cache."""
    published = timm.models.get_pretrained_cfg(name)
    if published is None:
        return False
    if published.file:
        return Path(published.file).is_file()
    if not published.hf_hub_id:
        return False
    return cached_file(published.hf_hub_id, published.hf_hub_filename or WEIGHTS_FILES[0]) is not None


def licence_of(name: str) -> str | None:
    """The licence of the weights that timm publishes under a name, where it states one."""
    published = timm.models.get_pretrained_cfg(name)
    return None if published is None else published.license


def _separated(names: str) -> list[str]:
    separated = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not separated:
        raise InputError(f"--backbones {names!r} names no network; write names separated by commas")
    return separated


def _named(name: str, files: dict[str, Path]) -> Candidate:
    check_name(name, "--backbones")
    file = _file_of(name, files)
    listed = next((listed for listed in DEFAULT if _same(listed.name, name)), Candidate(name, None))
    weights = None if file is None else str(file)
    return replace(listed, name=name, weights=weights, licence=licence_of(name), named=True)


def _files(weights_dir: str | None) -> dict[str, Path]:
    """The files NAME.safetensors of a folder, by NAME."""
    if weights_dir is None:
        return {}
    folder = Path(weights_dir)
    if not folder.is_dir():
        raise InputError(f"{folder} (--weights-dir) is not a folder")
    found = {file.name.removesuffix(SUFFIX): file for file in sorted(folder.glob(f"*{SUFFIX}")) if file.is_file()}
    if not found:
        raise InputError(f"{folder} (--weights-dir) has no file NAME{SUFFIX}")
    return found


def _file_of(name: str, files: dict[str, Path]) -> Path | None:
    """The file of a network: of this name, or of a name that means the same published weights."""
    if name in files:
        return files[name]
    same = [file for other, file in files.items() if _same(other, name)]
    if len(same) > 1:
        names = " and ".join(file.name for file in same)
        raise InputError(f"--weights-dir has {names}, which both fit {name}; name one of them in full")
    return same[0] if same else None


def _same(one: str, other: str) -> bool:
    """Whether two names mean the same published weights: "x" is short for "x.TAG" with timm's default tag of x."""
    return one == other or _whole(one) == _whole(other)


def _whole(name: str) -> str:
    published = timm.models.get_pretrained_cfg(name) if timm.is_model(name.split(".")[0]) else None
    return name if published is None or not published.tag else f"{published.architecture}.{published.tag}"


def _distinct(found: list[Candidate], lines: list[str]) -> Iterator[Candidate]:
    """The candidates without those whose file is a copy of another's: a file can fit two similar networks."""
    seen: dict[str, str] = {}
    for candidate in found:
        if candidate.weights is not None:
            try:
                with open(candidate.weights, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                lines.append(f"{candidate.weights} is left out: it cannot be read ({error.strerror}).")
                continue
            if digest in seen:
                lines.append(f"{candidate.weights} is left out: it is a copy of {seen[digest]}.")
                continue
            seen[digest] = candidate.weights
        yield candidate
