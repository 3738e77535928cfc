"""A backbone's pretrained weights, from this package, the hub, its local cache or a file."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from finetune.errors import InputError
from finetune.files.reading import read_tensors
from finetune.files.tensors import listed, size_of, unusable
from finetune.models.backbone import Backbone
from finetune.models.hub import WEIGHTS_FILES, weights_from_hub
from finetune.progress import Display
from finetune.terminal import in_one_line, reason_of

# Names of what files hold beside weights: counters, positions and masks.
_NO_WEIGHT = re.compile(r"num_batches_tracked$|position_ids$|_index$|mask$")

# Alternatives that need no weights from the hub.
WITHOUT_A_NETWORK = ("--backbone fewtune_conv4 (small, ships with this package)", "--strategy scratch")


def load_pretrained(
    backbone: Backbone,
    weights: str | None,
    display: Display,
    *,
    option: str = "--backbone",
    weights_option: str = "--weights",
    instead: Sequence[str] = WITHOUT_A_NETWORK,
) -> None:
    """Load pretrained weights into a backbone.

    Args:
        backbone: The backbone.
        weights: File with the weights. None for timm's weights, from this package, the hub's local cache or a download.
        display: Shows one line before a download.
        option: As for `weights_from_hub`.
        weights_option: The option that `weights` came from.
        instead: As for `weights_from_hub`.

    Raises:
        InputError: If the file does not fit the backbone.
        WeightsUnavailable: If timm's weights are not in the cache, and the hub cannot be reached.
    """
    source = backbone.model.pretrained_cfg
    if weights is None and source.get("hf_hub_id"):
        name = source.get("hf_hub_filename") or WEIGHTS_FILES[0]
        file = weights_from_hub(
            backbone.name,
            source["hf_hub_id"],
            name,
            display,
            option=option,
            instead=instead,
            weights_option=weights_option,
        )
        _fill_published(backbone, file)
    elif weights is None and not source.get("file"):
        raise InputError(
            f"timm knows no pretrained weights for {backbone.name}; "
            "give a file with --weights, or use --strategy scratch"
        )
    else:
        path = Path(weights or source["file"])
        origin = f"{path} ({weights_option})"
        _fill(backbone, _read_weights(path, origin), origin)
        if weights is not None:
            _check_features(backbone, origin)


def _fill_published(backbone: Backbone, file: Path) -> None:
    """Load a file from the hub's cache, by timm where it can."""
    safe = file.suffix == ".safetensors"
    tensors = read_tensors(file) if safe else {}  # a damaged file is named here
    try:
        _fill_by_timm(backbone, {"file": str(file)})
    except RuntimeError as error:
        if not safe:
            raise InputError(f"{file} does not fit {backbone.name} ({reason_of(error)})") from error
        _fill(backbone, tensors, str(file))
    _check_values(
        backbone.model.state_dict(), backbone.model.state_dict(), f"{file} cannot be used for {backbone.name}"
    )


def _read_weights(path: Path, origin: str) -> dict[str, Tensor]:
    """The tensors in a file by name. InputError, which names `origin`, for one that holds anything else."""
    if not path.is_file():
        raise InputError(f"{origin} is not a file")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    if path.stat().st_size == 0:
        raise InputError(f"{origin} is empty")
    try:
        _check_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats of tensors that are refused below
            value = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load names no set of errors for a file that is damaged or holds more than tensors.
    except Exception as error:
        raise InputError(
            f"{origin} is neither safetensors nor a torch file of plain tensors; nothing else is loaded, "
            f"because it could run code ({type(error).__name__})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise InputError(f"{origin} holds no dictionary of tensors")
    if other := next((name for name in value if not isinstance(name, str)), None):
        raise InputError(f"{origin} holds no dictionary of tensors by name: a key is {in_one_line(repr(other))}")
    return value


def _check_stored(path: Path) -> None:
    """ValueError for a zip archive with compressed members: torch writes none, and they unpack to any size."""
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\3\4"
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its members are compressed")


def _fill(backbone: Backbone, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors by name, converted by timm for this model where they do not fit. Only a classifier may be left over.

    InputError, which names `origin`, for tensors that do not fit.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("backbone.") for name in tensors):  # a run's own model.safetensors
        tensors = {
            name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")
        }
    expected = backbone.model.state_dict()
    tensors = _without_classifier(backbone, tensors)
    wrong = _differences(tensors, expected)
    _check_values(tensors, expected, f"{origin} cannot be used for {backbone.name}")
    if not wrong:
        backbone.model.load_state_dict({name: tensors[name] for name in expected if name in tensors}, strict=False)
        return
    # Counters of batches seen matter to no result and are absent from many files.
    counters = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
    problem: Exception | None = None
    # Some of timm's filters (hiera's) do not resample position embeddings.
    for offered in (tensors, _resized_positions(backbone.model, tensors)):
        try:
            # classifier: None makes timm refuse a file with missing tensors instead of leaving them random.
            return _fill_by_timm(backbone, {"state_dict": counters | offered, "classifier": None})
        # A model's filter raises arbitrary errors for another model's tensors.
        except Exception as error:
            problem = error
    raise InputError(f"{origin} does not fit {backbone.name}: {listed(wrong)}") from problem


def _check_values(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], problem: str) -> None:
    """InputError, which begins with `problem`, for weights that are no finite floating-point numbers.

    A tensor may hold whole numbers where the model's does, and where its name is of no weight: timm's filters drop it.
    """
    found = []
    for name, tensor in tensors.items():
        whole = not expected[name].is_floating_point() if name in expected else _NO_WEIGHT.search(name) is not None
        reason = unusable(tensor, floating=not whole, finite=not whole)
        if reason is not None:
            found.append(f"{name} {reason}")
    if found:
        raise InputError(f"{problem}: {listed(found)}")


def _check_features(backbone: Backbone, origin: str) -> None:
    """InputError where finite weights compute features that are not, such as by a negative variance."""
    size = backbone.preprocessing.size
    with torch.inference_mode():
        features = backbone.model(torch.zeros(1, 3, size, size))
    if not features.isfinite().all():
        raise InputError(f"{origin} cannot be used for {backbone.name}: the features of a grey picture are not finite")


def _fill_by_timm(backbone: Backbone, overlay: Mapping[str, Any]) -> None:
    """Load weights by timm, whose filter of each family renames tensors, and resamples position embeddings, position
    biases and patch embeddings to the image size.

    overlay: Replaces fields of the model's pretrained_cfg, among them the source of the weights.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's resampling uses deprecated calls
        filled = timm.create_model(
            backbone.name, pretrained=True, num_classes=0, pretrained_cfg_overlay=dict(overlay), **backbone.options
        )
    backbone.model.load_state_dict(filled.state_dict())


def _resized_positions(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with an absolute position embedding (1, tokens, width) for another image size resampled to `model`'s.

    An embedding that fits already, or is no square grid, stays unchanged.
    """
    resized = dict(tensors)
    given, wanted = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    if given is None or not isinstance(wanted, Tensor) or given.ndim != 3 or given.shape == wanted.shape:
        return resized
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 0)
    sides = [math.isqrt(max(0, tokens.shape[1] - prefix)) for tokens in (given, wanted)]
    if all(side**2 == tokens.shape[1] - prefix for side, tokens in zip(sides, (given, wanted), strict=True)):
        side = sides[1]
        resized["pos_embed"] = resample_abs_pos_embed(given, [side, side], num_prefix_tokens=prefix)
    return resized


def _without_classifier(backbone: Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without the layers that a model has only together with its classifier."""
    classifiers = backbone.model.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    expected = backbone.model.state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if name in expected or not name.startswith(prefixes)}
    if set(kept) <= set(expected):
        return kept
    # Some families also normalise before the classifier, and only there.
    whole = timm.create_model(backbone.name, pretrained=False, **backbone.options).state_dict()
    return {name: tensor for name, tensor in kept.items() if name in expected or name not in whole}


def _differences(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Differences that prevent copying by name; those that resampling cannot remove come first."""
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    shapes = {
        name: f"{name} is {size_of(tensor)}, the model's is {size_of(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    }
    return [
        *(f"{name} is missing" for name in missing),
        *(shapes[name] for name in sorted(shapes, key=lambda name: "pos" in name)),
        *(f"{name} is not in the model" for name in tensors if name not in expected),
    ]
