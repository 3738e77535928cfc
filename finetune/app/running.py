"""A service run by uvicorn until a signal stops it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetune.entry.signals import TWICE_SECONDS
from finetune.errors import InputError

# Seconds in which the headers of a request must arrive, and a connection may wait for its next request.
_HEADERS, _IDLE = 10.0, 5
# Seconds in which requests are finished after a signal, and connections that wait to be accepted.
_FINISHING, _BACKLOG = 30, 1024
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def run(app: FastAPI, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, finish the requests that are under way, and raise the signal again.

    Args:
        app: Of `new_app`.
        host, port: To listen on; port 0 takes a free one.
        ready: Called with the address, such as http://127.0.0.1:8000, when requests are answered.

    Raises:
        InputError: If the port cannot be taken.
    """
    # It logs what is wrong with a body, and Python prints what nothing handles. The response says it.
    logging.getLogger("python_multipart").addHandler(logging.NullHandler())
    server = Server(app, host=host, port=port, ready=ready)
    server.run()
    if server.stopped_by is not None:
        signal.raise_signal(server.stopped_by)


def check_port(host: str, port: int) -> None:
    """InputError if the port cannot be taken."""
    _listening(host, port).close()


class Server(uvicorn.Server):
    """Says when it is ready, and leaves the signal that stopped it, `stopped_by`, to the command. Arguments as `run`.

    Every process that serves has one; it ends when `should_exit` is set too.
    """

    def __init__(self, app: FastAPI, *, host: str, port: int, ready: Callable[[str], None]):
        self._listening = _listening(host, port)
        self._ready, self._stop = ready, app.state.stop
        self.stopped_by: int | None = None
        self._first = 0.0  # time of the first signal
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=_FINISHING,
            backlog=_BACKLOG,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end."""
        log = logging.getLogger("uvicorn.error")
        log.addFilter(self._is_news)
        try:
            with self._listening:
                super().run(sockets=[self._listening])
        finally:
            log.removeFilter(self._is_news)

    def _is_news(self, _: logging.LogRecord) -> bool:
        """A second signal cancels what is under way, and uvicorn would log each with a traceback."""
        return not self.force_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready(_address(self._listening))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        # A second signal waits for no request.
        self.force_exit = self.should_exit and now - self._first > TWICE_SECONDS
        if not self.should_exit:
            self._first = now
        self.should_exit = True
        self.stopped_by = self.stopped_by or sig

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Protocol(H11Protocol):
    """Closes connections whose request does not arrive: uvicorn has no bound for its headers."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(_HEADERS, self._late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_deadline()
        elif self._deadline is None:  # the beginning of another request
            self._deadline = self.loop.call_later(_HEADERS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _late(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        free = "; --port 0 takes a free port" if port else ""
        raise InputError(f"{host}:{port} cannot be listened on ({error.strerror or error}){free}") from error
    # For its connections: asyncio sets it only on sockets that name their protocol. Without it, the body of an answer
    # waits 40 ms for the client to confirm the headers.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _address(listening: socket.socket) -> str:
    host, port, *_ = listening.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
