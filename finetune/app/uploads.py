"""Pictures in the body of a request: one as it is, or several as multipart/form-data, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from finetune.app.refusals import ClientGone, Refused, busy
from finetune.errors import InputError

MEGABYTE = 10**6
# Seconds that a body may still take when the service stops.
_GRACE = 2.0


@dataclass(frozen=True)
class Bounds:
    """What a service takes.

    Attributes:
        request: Most bytes in the body of a request.
        pictures: Most pictures in a request.
        waiting: Most pictures in the queue, or those of one request where these are more.
        together: Most pictures that are answered in one call.
        window: Most seconds that a call waits for more pictures.
        held: Most bytes of all requests together, until they are answered.
        seconds: In which a body must arrive.
    """

    request: int = 32 * MEGABYTE
    pictures: int = 64
    waiting: int = 256
    together: int = 32
    window: float = 0.002
    held: int = 256 * MEGABYTE
    seconds: float = 30.0

    @classmethod
    def of(
        cls, *, most_megabytes: float, most_pictures: int, most_waiting: int, most_together: int, window: float
    ) -> Bounds:
        """The bounds that a user gives. InputError for one that takes nothing."""
        given = {"most_pictures": most_pictures, "most_waiting": most_waiting, "most_together": most_together}
        for name, number in given.items():
            if number < 1:
                raise InputError(f"{name} must be at least 1, not {number}")
        if not most_megabytes > 0 or not 0 <= window <= 1:
            raise InputError("most_megabytes must be above 0, and window between 0 and 1 second")
        size = max(1, int(most_megabytes * MEGABYTE))
        waiting = max(most_waiting, most_pictures)
        return cls(size, most_pictures, waiting, most_together, window, held=max(8 * size, cls.held))


@dataclass(frozen=True)
class Upload:
    """A picture as a client sent it. name: That of its file, where the client gave one."""

    name: str | None
    content: bytes


class Uploads:
    """Reads pictures from requests. bounds: What is taken."""

    def __init__(self, bounds: Bounds):
        self.bounds = bounds
        self._held = 0
        self._reading: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[list[Upload]]:
        """The pictures of a request, one or more. Their bytes count as held until the end of the block.

        Raises:
            Refused: Where the body is larger, slower or of another form than is taken.
            ClientGone: Where the client closes the connection before the end.
        """
        taken: list[bytes] = []
        try:
            await self._receive(request, taken)
            yield await self._pictures(request, b"".join(taken))
        finally:
            self._held -= sum(map(len, taken))

    def stop(self) -> None:
        """Bodies that are on their way have two more seconds."""
        for reading in self._reading:
            reading.reschedule(asyncio.get_running_loop().time() + _GRACE)

    async def _receive(self, request: Request, taken: list[bytes]) -> None:
        too_large = Refused(413, f"the request has more than {self.bounds.request / MEGABYTE:g} MB")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.bounds.request:
            raise too_large
        size = 0
        try:
            async with asyncio.timeout(self.bounds.seconds) as reading:
                self._reading.add(reading)
                try:
                    more = True
                    while more:
                        message = await request.receive()
                        if message["type"] == "http.disconnect":
                            raise ClientGone
                        chunk, more = message.get("body", b""), message.get("more_body", False)
                        size += len(chunk)
                        if size > self.bounds.request:
                            raise too_large
                        if self._held + len(chunk) > self.bounds.held:
                            raise busy(1, "other requests take all the memory that is set apart for pictures")
                        taken.append(chunk)
                        self._held += len(chunk)
                finally:
                    self._reading.discard(reading)
        except TimeoutError as error:
            raise Refused(408, f"the body did not arrive within {self.bounds.seconds:g} seconds") from error

    async def _pictures(self, request: Request, body: bytes) -> list[Upload]:
        how = "send a picture as the body, or several as multipart/form-data"
        if not body:
            raise Refused(400, f"the request has no picture; {how}")
        kind = request.headers.get("content-type", "")
        if kind.split(";")[0].strip().lower() != "multipart/form-data":
            return [Upload(None, body)]
        parser = MultiPartParser(request.headers, _once(body), max_files=self.bounds.pictures, max_fields=1)
        parser.spool_max_size = len(body) + 1  # nothing is written to a disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise Refused(400, f"the body is not valid multipart/form-data: {error.message}") from error
        async with _closing(form.multi_items()) as parts:
            found = []
            for name, part in parts:
                if not isinstance(part, UploadFile):
                    raise Refused(400, f"the part {name[:100]!r} has no file name, and only pictures are taken")
                found.append(Upload(part.filename, await part.read()))
        if not found:
            raise Refused(400, f"the request has no picture; {how}")
        return found


@asynccontextmanager
async def _closing(parts: list[tuple[str, UploadFile | str]]) -> AsyncIterator[list[tuple[str, UploadFile | str]]]:
    try:
        yield parts
    finally:
        for _, part in parts:
            if isinstance(part, UploadFile):
                await part.close()


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
