"""Requests that are refused, each with its status and one sentence that says why."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse


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


def busy(seconds: float, what: str) -> Refused:
    """503, with the number of seconds after which the client may try again."""
    return Refused(503, f"{what}; try again", {"Retry-After": str(max(1, round(seconds + 0.5)))})
