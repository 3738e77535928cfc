"""Who may ask: a bearer token, the name that the service is called by, and no pages of other sites."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.app.refusals import Refused
from finetune.errors import InputError

TOKEN_VARIABLE = "FEWTUNE_TOKEN"
SHORTEST_TOKEN = 16
_LONGEST_TOKEN = 4096

# Seconds in which the rest of a refused body is read and dropped: a client that still sends would not read the reason.
_DROPPING = 2.0
_ERROR = 400
# Methods that change nothing.
_SAFE = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


class Access:
    """Refuses requests before a body is read, and adds the headers that keep answers out of other pages.

    Args:
        app: What is asked.
        token: Wanted in `Authorization: Bearer TOKEN`, or as the password of HTTP basic authentication, which browsers
            ask for. None for no token.
        hosts: Names that the service may be called by, beside IP addresses. A page of another site that has its own
            name resolved to this machine cannot ask then. None for any name.
        public: Paths that need no token.
        in_browser: Whether browsers ask for the token.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None = None,
        hosts: Collection[str] | None = None,
        public: Collection[str] = (),
        in_browser: bool = False,
    ):
        self._app, self._public = app, frozenset(public)
        self._token = None if token is None else token.encode()
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._challenge = 'Basic realm="fewtune"' if in_browser else "Bearer"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        body = _Body(receive)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= _ERROR:
                    await body.drop()
                there = {name.lower() for name, _ in message["headers"]}
                more = [pair for pair in _HEADERS.items() if pair[0] not in there]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            self._check(scope)
        except Refused as refused:
            await refused.response()(scope, body, send_with_headers)
            return
        await self._app(scope, body, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and not self._is_known(host):
            raise Refused(421, f"the service has another name than {host[:100]!r}; --allow-host adds one")
        if scope["method"] not in _SAFE:
            _check_origin(headers, host)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._token is not None and path not in self._public and not self._has_token(headers):
            challenge = {"WWW-Authenticate": self._challenge}
            raise Refused(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN", challenge)

    def _is_known(self, host: str) -> bool:
        assert self._hosts is not None
        name = (_split(host) or "").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True

    def _has_token(self, headers: Headers) -> bool:
        assert self._token is not None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("latin-1").partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token)


class _Body:
    """What the server receives of a request, and whether that is all of it."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._over = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._over = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def drop(self) -> None:
        """Read the rest for a moment."""
        with suppress(TimeoutError):  # the connection is closed with the response
            async with asyncio.timeout(_DROPPING):
                while not self._over:
                    await self()


def read_token(file: Path | None) -> str | None:
    """The token in a file, or in the environment variable; None without one.

    Raises:
        InputError: If the file cannot be read, or the token is too short or has other characters than ASCII's.
    """
    source = TOKEN_VARIABLE if file is None else str(file)
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE)
        if token is None:
            return None
    else:
        try:
            with file.open(encoding="ascii") as opened:
                token = opened.read(_LONGEST_TOKEN + 1)
        except UnicodeDecodeError as error:
            raise InputError(f"{source}: a token has letters, digits and signs of ASCII alone") from error
    token = token.strip()
    if not SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN or not token.isascii() or not token.isprintable():
        raise InputError(
            f"{source} must hold a token of {SHORTEST_TOKEN} or more letters, digits and signs, such as python -c "
            "'import secrets; print(secrets.token_urlsafe())' prints"
        )
    return token


def _check_origin(headers: Headers, host: str) -> None:
    """`Refused` for a request that a page of another site makes. Programs send none of these headers."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site in ("cross-site", "same-site") or (origin is not None and urlsplit(origin).netloc.lower() != host.lower()):
        raise Refused(403, "the request comes from a page of another site")


def _split(host: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
