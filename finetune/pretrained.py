"""A backbone's pretrained weights, from this package, the hub, its local cache or a file."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor

from finetune.backbone import Backbone
from finetune.errors import InputError
from finetune.files import read_tensors

HUB_FILE = "model.safetensors"


def load_pretrained(backbone: Backbone, weights: str | None, announce: Callable[[str], None]) -> None:
    """Fill `backbone` with the weights in the file `weights`, or when None with those timm names for it.

    timm's weights come from this package, the hub's local cache or, announced first, a download. InputError when the
    file does not fit or there is neither network nor cache.
    """
    source = backbone.model.pretrained_cfg
    if weights is None and source.get("hf_hub_id"):
        # timm knows how each model's published file is to be read; only where it lies is decided here.
        file = _from_hub(backbone.name, source["hf_hub_id"], source.get("hf_hub_filename") or HUB_FILE, announce)
        overlay = {"file": str(file)}
        filled = timm.create_model(
            backbone.name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **backbone.options
        )
        backbone.model.load_state_dict(filled.state_dict())
    elif weights is None and not source.get("file"):
        raise InputError(
            f"timm knows no pretrained weights for {backbone.name}; "
            "give a file with --weights, or use --strategy scratch"
        )
    else:
        path = Path(weights or source["file"])
        _fill(backbone, _read_weights(path), path)


def _from_hub(name: str, repository: str, file: str, announce: Callable[[str], None]) -> Path:
    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except LocalEntryNotFoundError:
        announce(f"the weights of {name} are not in the cache; fetching them from {ENDPOINT}/{repository}")
    unreachable = (
        f"{ENDPOINT}/{repository} cannot be reached for the weights of {name}: connect once, "
        f"or download {file} there and pass it with --weights"
    )
    if HF_HUB_OFFLINE or not _resolves(ENDPOINT):
        raise InputError(unreachable)
    try:
        return Path(hf_hub_download(repository, file))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(unreachable) from error


def _resolves(address: str) -> bool:
    """Whether the host has an address here; the hub's client would try for half a minute before it gave up."""
    if urllib.request.getproxies():
        return True  # the proxy looks it up
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path} (--weights) is not a file")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    # torch.load names no set of errors for a file that is damaged or holds more than tensors.
    except Exception as error:
        raise InputError(
            f"{path} (--weights) is neither safetensors nor a torch file of plain tensors; nothing else is loaded, "
            f"because it could run code ({type(error).__name__})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise InputError(f"{path} (--weights) holds no dictionary of tensors")
    return value


def _fill(backbone: Backbone, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors of the same names and shapes; only a classifier may be extra."""
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("backbone.") for name in tensors):  # a run's own model.safetensors
        tensors = {
            name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")
        }
    classifiers = backbone.model.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    expected = backbone.model.state_dict()
    # Counters of batches seen matter to no result and are absent from many files.
    wrong = [
        f"{name} is missing" for name in expected if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    for name, tensor in tensors.items():
        if name not in expected:
            if not name.startswith(prefixes):
                wrong.append(f"{name} is not in the model")
        elif tensor.shape != expected[name].shape:
            wrong.append(f"{name} is {_size(tensor)}, the model's is {_size(expected[name])}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{path} (--weights) does not fit {backbone.name}: {'; '.join(wrong[:3])}{more}")
    backbone.model.load_state_dict({name: tensors[name] for name in expected if name in tensors}, strict=False)


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
