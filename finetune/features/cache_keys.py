"""What activations depend on beyond the picture, and the name under which all that agree in it are kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from finetune.data.loader import Pictures
from finetune.data.transforms import Preprocessing
from finetune.models.device import describe

# Changed whenever this package comes to read, see or run pictures differently without any other part of a key changing.
FORMAT = 1

# What decodes, resizes and computes: an upgrade of any may change bits, and a pass costs less than a wrong number.
_PACKAGES = ("fewtune", "torch", "torchvision", "timm", "numpy", "openvino", "pillow", "pillow-heif")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BYTES = "uint8"


@dataclass(frozen=True)
class FeatureKey:
    """Everything but the picture that activations depend on; `feature_key` fills it in.

    backbone: timm's name. weights: `weights_fingerprint` of what was run. preprocessing: as a mapping. cut: where in
    the network, "features" for its output. view, at_least, max_pixels: how a picture is read and seen. seed: of a
    random view, else None. test_time: the views added while running. computed: device, precision, runtime. kept_as:
    dtype of what is kept. versions: of the packages at work. format: of this package's own part in it.

    One thing is left out: sums are added in an order that may hang on the other pictures of a batch and on the number
    of threads, and so may the last bits of float32.
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
        """32 hexadecimal digits that every field goes into."""
        canonical = json.dumps(asdict(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.kept_as == _BYTES else DTYPES[self.kept_as]

    def row_key(self, sha256: str, index: int) -> str:
        """Under which a picture's row is kept, in hex: its content; where the view is random also its index.

        A random view draws from a seed made of the family's and of the picture's place among the others.
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
    """The family of what `module`, the frozen part of the network called `backbone`, makes of `pictures`.

    cut: a stage's name for what that stage receives, "features", or "stages" for pooled activations of every stage.
    test_time: as for run_frozen. runtime: what runs the module, with its precision where that is not `fabric`'s.
    kept_as: "float32", "bfloat16" or "float16". ValueError for another one, or a view whose parameters cannot be told.
    """
    if kept_as not in DTYPES:
        raise ValueError(f"activations are kept as {', '.join(DTYPES)}, not {kept_as!r}")
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


def fingerprint_key(family: FeatureKey) -> FeatureKey:
    """The family of the fingerprints of the same pictures, uint8 (FINGERPRINT_BYTES,) each.

    These hang on how pictures are decoded and on nothing that is made of them later: all backbones that decode them at
    one scale share them.
    """
    decoders = {name: family.versions[name] for name in ("fewtune", "numpy", "pillow", "pillow-heif")}
    return replace(
        family,
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
    """The fields of a family that say how `pictures` are read and seen."""
    several = () if pictures.views is None else (f"{pictures.views} views",)
    return {
        "view": (*(_described(step) for step in pictures.view.steps), *several),
        "seed": pictures.seed if pictures.view.random else None,
        "at_least": pictures.at_least,
        "max_pixels": pictures.max_pixels,
    }


def weights_fingerprint(module: nn.Module) -> str:
    """sha256, in hex, of the module's structure and of its state_dict: names, dtypes, shapes and values."""
    # Equal weights in layers that are set up otherwise, another activation or stride, give other numbers. The text of
    # a traced module holds its code too.
    structure = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))
    found = hashlib.sha256(structure.encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _described(step: Any) -> str:
    """A step of a view, or a parameter of one, as text that two different ones do not share. ValueError without one."""
    if isinstance(step, nn.Module):
        return repr(step)  # torchvision tells every parameter
    if isinstance(step, (bool, int, float, str, Enum)):
        return repr(step)
    if isinstance(step, partial):
        parameters = dict(enumerate(step.args)) | step.keywords
        return _called(_described(step.func), parameters)
    if isinstance(step, FunctionType):
        name = f"{step.__module__}.{step.__qualname__}"
        if "<" in name:  # a lambda or a closure: what it holds cannot be told
            raise ValueError(f"the view's {name} does not tell its parameters; use a class or functools.partial")
        return name
    if hasattr(step, "__dict__"):
        return _called(type(step).__qualname__, vars(step))
    raise ValueError(f"the view has a parameter that cannot be told: {step!r}")


def _called(name: str, parameters: Mapping[Any, Any]) -> str:
    return f"{name}({', '.join(f'{key}={_described(value)}' for key, value in parameters.items())})"


def _versions() -> dict[str, str]:
    return {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # pillow-heif is optional, and fewtune may run from its sources
        return ""
