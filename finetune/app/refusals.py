"""Requests that are refused, each with its status and one sentence that says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse

from finetune.options.suggestions import did_you_mean

# Characters of a wrong name that a refusal repeats.
_SHOWN = 40


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: Of HTTP.
        reason: One sentence for the client.
        headers: Further headers of the response.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})

    def response(self) -> JSONResponse:
        """What the client gets."""
        return JSONResponse({"detail": self.reason}, self.status, self.headers)


class ClientGone(Exception):
    """The client has closed its connection; nobody reads the response."""


def check_options(request: Request, names: Sequence[str]) -> None:
    """Refused for an option in the address that has none of these names: it would be ignored without a word."""
    for name in request.query_params:
        if name not in names:
            meant = did_you_mean(name, names, {}) or f"; there are {', '.join(names)}"
            raise Refused(422, f"there is no option {name[:_SHOWN]!r}{meant}")


def busy(seconds: float, what: str) -> Refused:
    """503, with the number of seconds after which the client may try again."""
    return Refused(503, f"{what}; try again", {"Retry-After": str(max(1, round(seconds + 0.5)))})
