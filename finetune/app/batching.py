"""Pictures of several requests, answered together by one thread, with a bounded queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from finetune.app.refusals import busy

# Pictures answered in one call, pictures that may wait, and seconds in which a call waits for more pictures.
AT_ONCE, MOST_WAITING, WINDOW = 32, 256, 0.002
# Share of the newest batch in the running mean of seconds per picture.
_NEWEST = 0.2

Answer = TypeVar("Answer")
Result = TypeVar("Result")


class OneThread:
    """Runs jobs one after the other, in a thread of its own. most_waiting: Most jobs that wait or run."""

    def __init__(self, most_waiting: int = MOST_WAITING):
        self._most_waiting, self._waiting = most_waiting, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def run(self, job: Callable[[], Result]) -> Result:
        """The result of `job`. `Refused` with status 503 where too many jobs wait."""
        if self._waiting >= self._most_waiting:
            raise busy(1, f"{self._waiting} requests are waiting, which is all that may")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, job)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the thread when its job is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Answer]):
    picture: bytes
    answer: asyncio.Future[Answer]


class Batches(Generic[Answer]):
    """Collects pictures and has them answered, in the order of their arrival.

    Args:
        answer: From the contents of pictures to an answer for each. It is called by one thread, one call at a time.
        at_once: Most pictures in one call.
        most_waiting: Most pictures that wait for a call.
        window: Most seconds that a call waits for more pictures. It waits for as many as were asked about at the time
            of the call before, and at most for `at_once`, so that a client alone does not wait.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[bytes]], Sequence[Answer]],
        *,
        at_once: int = AT_ONCE,
        most_waiting: int = MOST_WAITING,
        window: float = WINDOW,
    ):
        self._answer = answer
        self._at_once, self._most_waiting, self._window = at_once, most_waiting, window
        self._waiting: deque[_Waiting[Answer]] = deque()
        self.thread = OneThread(most_waiting)
        self._work: asyncio.Task[None] | None = None
        self._seconds = 0.05  # for a picture
        self._expected = 1  # pictures that are asked about at the same time
        self._enough: asyncio.Event | None = None  # while a call waits for so many

    def check_room(self, pictures: int = 1) -> None:
        """`Refused` with status 503 where so many pictures do not fit into the queue."""
        if len(self._waiting) + pictures > self._most_waiting:
            waiting = f"{len(self._waiting)} pictures are waiting, and at most {self._most_waiting} may"
            raise busy(len(self._waiting) * self._seconds, waiting)

    async def ask(self, pictures: Sequence[bytes]) -> list[Answer]:
        """The answers, in order. Pictures of a caller that is cancelled meanwhile leave the queue.

        Raises:
            Refused: With status 503, where the queue has no room.
        """
        self.check_room(len(pictures))
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in pictures]
        self._waiting.extend(map(_Waiting, pictures, futures))
        if self._enough is not None and self._has_enough():
            self._enough.set()
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._work_off())
        try:
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()

    async def _work_off(self) -> None:
        """Answer until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            if not self._has_enough():
                await self._wait_for_more()
            batch = self._next_batch()
            if not batch:
                continue
            started = loop.time()
            try:
                answers = await self.thread.run(lambda batch=batch: self._answer([each.picture for each in batch]))  # type: ignore[misc]
                for each, answer in zip(batch, answers, strict=True):
                    if not each.answer.done():
                        each.answer.set_result(answer)
            except Exception as error:  # raised again in the requests that wait for it
                for each in batch:
                    if not each.answer.done():
                        each.answer.set_exception(error)
            finally:
                for each in batch:
                    each.answer.cancel()  # of a task that is cancelled itself
            self._expected = len(batch) + len(self._waiting)
            newest = (loop.time() - started) / len(batch)
            self._seconds += _NEWEST * (newest - self._seconds)

    def _has_enough(self) -> bool:
        return len(self._waiting) >= min(self._expected, self._at_once)

    async def _wait_for_more(self) -> None:
        self._enough = asyncio.Event()
        try:
            async with asyncio.timeout(self._window):
                await self._enough.wait()
        except TimeoutError:
            pass  # the others are gone, or slower
        finally:
            self._enough = None

    def _next_batch(self) -> list[_Waiting[Answer]]:
        batch: list[_Waiting[Answer]] = []
        while self._waiting and len(batch) < self._at_once:
            each = self._waiting.popleft()
            if not each.answer.done():  # its client is still there
                batch.append(each)
        return batch
