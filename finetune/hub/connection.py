"""The connection to the hub: whether it can be reached, and its client's errors as one line."""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from finetune.errors import InputError
from finetune.hub.address import Address
from finetune.progress import Display
from finetune.terminal import reason_of

# Seconds to wait for the hub's first answer. Its own client gives up only after half a minute.
PATIENCE = 3.0
# Libraries whose errors mean that a connection failed; the client has used several.
_CONNECTIONS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def why_offline(address: str) -> str | None:
    """Why the hub is not asked, or does not answer at `address` within PATIENCE seconds; None where it does."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    reasons: list[str | None] = []
    # In a thread, because nothing else bounds the time of a name look-up.
    asking = threading.Thread(target=lambda: reasons.append(_ask(address)), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return reasons[0] if reasons else f"no answer within {PATIENCE:g} seconds"


@contextmanager
def progress_of(display: Display) -> Iterator[None]:
    """The hub's client shows no progress bar where `display` shows nothing, or on no terminal."""
    shown = display.console is not None and display.console.is_terminal
    hidden = not shown and not are_progress_bars_disabled()
    if hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        if hidden:
            enable_progress_bars()


@contextmanager
def errors_in_words(address: Address, doing: str) -> Iterator[None]:
    """InputError, one line, for what the hub's client raises; its own log is silent meanwhile.

    address: What is asked for. doing: Such as "fetched", for the message.
    """
    before = get_verbosity()
    set_verbosity_error()
    try:
        yield
    except Exception as error:
        why = _why(error, address)
        if why is None:
            raise
        raise InputError(f"{address} cannot be {doing}: {why}") from error
    finally:
        set_verbosity(before)


def _why(error: Exception, address: Address) -> str | None:
    """The reason in words; None for an error that is not the client's."""
    repository = f"{constants.ENDPOINT}/{address.repository}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, InputError):
        return None
    if isinstance(error, GatedRepoError):
        return f"it is gated; accept its conditions at {repository}, and {_LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no repository {repository}, or it is private; check the name, or {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no branch, tag or commit {address.revision!r}"
    if isinstance(error, HfHubHTTPError) and status in (401, 403):
        return f"the hub refuses it ({status}); {_LOG_IN}, with a token that may do this"
    if isinstance(error, HfHubHTTPError) and status is not None:
        said = getattr(error, "server_message", None)
        return f"the hub answers {status}" + (f" ({reason_of(ValueError(said))})" if said else "") + "; try again later"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return f"the connection to the hub failed ({reason_of(error)}); try again"
    if isinstance(error, OSError | EOFError) or type(error).__module__.split(".")[0] in _CONNECTIONS:
        return f"{reason_of(error)}; try again"
    if isinstance(error, KeyError | TypeError | AttributeError):
        return f"{constants.ENDPOINT} does not answer as a hub does"
    # The client wraps errors of its threads; those of xet come from Rust.
    if isinstance(error, RuntimeError | ValueError):
        cause = error.__cause__
        return _why(cause, address) if isinstance(cause, Exception) else f"{reason_of(error)}; try again"
    return None


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
