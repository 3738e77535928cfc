"""Keys of the activation cache: everything but the picture that activations depend on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from finetune.data.loader import Pictures
from finetune.data.transforms import Preprocessing
from finetune.models.device import describe

# Raised by every change to this package that changes how pictures are read, transformed or run, but no other field.
FORMAT = 3

# Packages that decode, resize and compute. An upgrade of any may change bits, and a forward pass costs less than a
# wrong number.
_PACKAGES = ("fewtune", "torch", "torchvision", "timm", "numpy", "openvino", "pillow", "pillow-heif")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BYTES = "uint8"


@dataclass(frozen=True)
class FeatureKey:
    """Everything but the picture that activations depend on. `feature_key` makes it.

    One thing is left out: the order in which sums are added may depend on the other pictures of a batch and on the
    number of threads, and the last bits of float32 may depend on it.

    Attributes:
        backbone: timm's name of the backbone.
        weights: `weights_fingerprint` of the frozen network.
        preprocessing: The preprocessing as a mapping.
        cut: Where the network ends: the name of a stage for the input of that stage, "features" for the output of the
            backbone, "stages" for the pooled activations of every stage.
        view: The steps from a picture to pixels.
        seed: Seed of a random view, else None.
        at_least: Shortest side in pixels at which a large JPEG is decoded.
        max_pixels: Largest number of pixels of a picture.
        test_time: Views that are added in the forward pass.
        computed: Device, precision and runtime.
        kept_as: Number format in the cache.
        versions: Versions of the packages that read and compute.
        format: Version of this package's own part in it.
    """

    backbone: str
    weights: str
    preprocessing: Mapping[str, Any]
    cut: str
    view: tuple[str, ...]
    seed: int | None
    at_least: int
    max_pixels: int
    test_time: str
    computed: Mapping[str, str]
    kept_as: str
    versions: Mapping[str, str]
    format: int = FORMAT

    @property
    def name(self) -> str:
        """32 hexadecimal digits, a hash of every field."""
        canonical = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    @property
    def dtype(self) -> torch.dtype:
        """Number format in the cache."""
        return torch.uint8 if self.kept_as == _BYTES else DTYPES[self.kept_as]

    def row_key(self, sha256: str, index: int) -> str:
        """The key of a picture's row in hex: the picture's hash, and for a random view also its position.

        The seed of a random view is made of the key's seed and the picture's position.
        """
        return sha256 if self.seed is None else hashlib.sha256(f"{sha256}/{index}".encode()).hexdigest()


def feature_key(
    fabric: Fabric,
    module: nn.Module,
    pictures: Pictures,
    preprocessing: Preprocessing,
    *,
    backbone: str,
    cut: str = "features",
    test_time: str = "plain",
    runtime: str = "torch",
    kept_as: str = "float32",
) -> FeatureKey:
    """The key of the outputs of a frozen network for pictures; options are fields of `FeatureKey`.

    runtime: The program that runs the network, with its precision where that is not the precision of `fabric`.
    ValueError for another number format, and for a view whose parameters are unknown.
    """
    if kept_as not in DTYPES:
        raise ValueError(f"kept_as must be one of {', '.join(DTYPES)}, not {kept_as!r}")
    numerics = {
        "runtime": runtime,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
    }
    return FeatureKey(
        backbone=backbone,
        weights=weights_fingerprint(module),
        preprocessing=asdict(preprocessing),
        cut=cut,
        **view_of(pictures),
        test_time=test_time,
        computed=describe(fabric) | numerics,
        kept_as=kept_as,
        versions=_versions(),
    )


def fingerprint_key(key: FeatureKey) -> FeatureKey:
    """The key of the fingerprints of the same pictures, uint8 (FINGERPRINT_BYTES,) each.

    Fingerprints depend only on how pictures are decoded, so all backbones that decode at one scale share them.
    """
    decoders = {name: key.versions[name] for name in ("fewtune", "numpy", "pillow", "pillow-heif")}
    return replace(
        key,
        backbone="any",
        weights="",
        preprocessing={},
        cut="fingerprint",
        view=(),
        seed=None,
        test_time="plain",
        computed={},
        kept_as=_BYTES,
        versions=decoders | {"imagehash": _version("imagehash")},
    )


def view_of(pictures: Pictures) -> dict[str, Any]:
    """The fields of a key that say how pictures are read and transformed."""
    several = () if pictures.views is None else (f"{pictures.views} views",)
    return {
        "view": (*(_described(step) for step in pictures.view.steps), *several),
        "seed": pictures.seed if pictures.view.random else None,
        "at_least": pictures.at_least,
        "max_pixels": pictures.max_pixels,
    }


def weights_fingerprint(module: nn.Module) -> str:
    """sha256 in hex of the module's structure and of its state_dict: names, dtypes, shapes and values."""
    # Equal weights give other numbers in a layer with another activation or stride, which its text names. The text of
    # a traced module contains its code too.
    structure = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))
    found = hashlib.sha256(structure.encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _described(step: Any) -> str:
    """A step of a view, or a parameter of one, as text that differs between different ones. ValueError without one."""
    if isinstance(step, nn.Module):
        return repr(step)  # torchvision's repr contains every parameter
    if isinstance(step, (bool, int, float, str, Enum)):
        return repr(step)
    if isinstance(step, partial):
        parameters = dict(enumerate(step.args)) | step.keywords
        return _called(_described(step.func), parameters)
    if isinstance(step, FunctionType):
        name = f"{step.__module__}.{step.__qualname__}"
        if "<" in name:  # a lambda or a closure: the values that it uses are unknown
            raise ValueError(f"the parameters of the view's {name} are unknown; use a class or functools.partial")
        return name
    if hasattr(step, "__dict__"):
        return _called(type(step).__qualname__, vars(step))
    raise ValueError(f"the view has a parameter of an unknown kind: {step!r}")


def _called(name: str, parameters: Mapping[Any, Any]) -> str:
    return f"{name}({', '.join(f'{key}={_described(value)}' for key, value in parameters.items())})"


def _versions() -> dict[str, str]:
    return {package: _version(package) for package in _PACKAGES}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # pillow-heif is optional, and fewtune may run from its sources
        return ""
