"""Weights on the Hugging Face hub: the local cache, whether the hub can be reached, and a download."""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from finetune.data.folder import some
from finetune.errors import InputError
from finetune.progress import Display

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
# Seconds to wait for the hub's first answer. Its own client gives up only after half a minute.
PATIENCE = 3.0


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

    WeightsUnavailable within PATIENCE seconds, where the hub cannot be reached; its message recommends `option`, the
    option that names a model, `weights_option`, the one that names a file or a folder of files with weights, and
    `instead`, alternatives that need no network.
    """
    if (found := cached_file(repository, file)) is not None:
        return found
    address = f"{constants.ENDPOINT}/{repository}"
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _why_unreachable(f"{address}/resolve/main/{file}")
    if reason is None:
        display.say(f"the weights of {name} are not in the cache; downloading them from {address}")
        try:
            with _without_bars(display):
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


@contextmanager
def _without_bars(display: Display) -> Iterator[None]:
    """The hub's client shows no progress bar where `display` shows nothing."""
    hidden = display.console is None and not are_progress_bars_disabled()
    if hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        if hidden:
            enable_progress_bars()


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


def _why_unreachable(address: str) -> str | None:
    """Why the server of `address` does not answer, through the proxy where there is one; None where it does."""
    reasons: list[str | None] = []
    # In a thread, because nothing else bounds the time of a name look-up.
    asking = threading.Thread(target=lambda: reasons.append(_ask(address)), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return reasons[0] if reasons else f"no answer within {PATIENCE:g} seconds"


def _ask(address: str) -> str | None:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=PATIENCE):
            return None
    except urllib.error.HTTPError as error:
        # Below 500 the server answers, and the hub's client reports what the answer means.
        return f"it answers {error.code}" if error.code >= 500 else None
    except urllib.error.URLError as error:
        # The hub's client may know certificates that Python does not.
        return None if isinstance(error.reason, ssl.SSLError) else _sentence(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return _sentence(error)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer; it is not followed to where the file lies."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


def _sentence(reason: object) -> str:
    return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
