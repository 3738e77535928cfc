"""Weights on the Hugging Face hub: the local cache, and a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from finetune.data.folder import some
from finetune.errors import InputError
from finetune.hub.connection import progress_of, why_offline
from finetune.progress import Display

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


class WeightsUnavailable(InputError):
    """Pretrained weights are not in the local cache and cannot be fetched."""


def weights_from_hub(
    name: str,
    repository: str,
    file: str,
    display: Display,
    *,
    option: str,
    instead: Sequence[str],
    weights_option: str = "--weights",
) -> Path:
    """The path in the local cache of a file with the weights of model `name`; a missing file is downloaded.

    WeightsUnavailable within seconds, where the hub cannot be reached; its message recommends `option`, the
    option that names a model, `weights_option`, the one that names a file or a folder of files with weights, and
    `instead`, alternatives that need no network.
    """
    if (found := cached_file(repository, file)) is not None:
        return found
    address = f"{constants.ENDPOINT}/{repository}"
    reason = why_offline(f"{address}/resolve/main/{file}")
    if reason is None:
        display.say(f"the weights of {name} are not in the cache; downloading them from {address}")
        try:
            with progress_of(display):
                return Path(hf_hub_download(repository, file))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            reason = f"the download failed ({type(error).__name__})"
    cached = cached_models()
    given = "FILE" if weights_option == "--weights" else f"DIR with {name}.safetensors"
    ways = [f"{weights_option} {given} ({file} from {address}, fetched on a machine with a network)"]
    ways += [f"{option} with a model in the cache ({some(cached, 8)})"] if cached else []
    raise WeightsUnavailable(
        f"the weights of {name} are not in the cache, and the hub cannot be reached: {reason}. "
        f"What works here: {', '.join((*ways, *instead))}"
    )


def cached_file(repository: str, file: str) -> Path | None:
    """The path of a file of the hub in its local cache; None where it is not there."""
    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def cached_models() -> list[str]:
    """Names of timm's models whose weights are in the local cache of the hub."""
    cache = Path(constants.HF_HUB_CACHE)
    found = []
    for folder in sorted(cache.glob("models--timm--*")):
        name = folder.name.removeprefix("models--timm--")
        complete = any((snapshot / file).exists() for snapshot in folder.glob("snapshots/*") for file in WEIGHTS_FILES)
        if complete and timm.is_model(name.split(".")[0]):
            found.append(name)
    return found
