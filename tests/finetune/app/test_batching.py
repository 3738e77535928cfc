"""The queue between requests and the thread that answers: what is answered together, refused, and given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from finetune.app.batching import Batches
from finetune.app.refusals import Refused


class Lengths:
    """Answers a picture with its number of bytes, when it may; calls: what was asked together."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.may, self.asked = threading.Event(), threading.Event()

    def __call__(self, pictures: Sequence[bytes]) -> list[int]:
        self.calls.append(len(pictures))
        self.asked.set()
        assert self.may.wait(30)
        if b"bad" in pictures:
            raise ValueError("bad")
        return [len(picture) for picture in pictures]


async def begun(lengths: Lengths) -> None:
    await asyncio.get_running_loop().run_in_executor(None, lengths.asked.wait)


def test_pictures_that_wait_are_answered_together_and_in_order() -> None:
    lengths = Lengths()
    batches = Batches(lengths, at_once=8)

    async def asked() -> list[list[int]]:
        first = asyncio.create_task(batches.ask([b"a"]))
        await begun(lengths)
        others = [asyncio.create_task(batches.ask([b"x" * number, b""])) for number in range(6)]
        await asyncio.sleep(0)
        lengths.may.set()
        return [await each for each in (first, *others)]

    assert asyncio.run(asked()) == [[1], *([number, 0] for number in range(6))]
    assert lengths.calls == [1, 8, 4]
    batches.thread.close()


def test_a_call_waits_for_as_many_pictures_as_there_were_and_for_no_more() -> None:
    lengths = Lengths()
    lengths.may.set()
    batches = Batches(lengths, window=100.0)

    async def asked() -> None:
        for _ in range(3):  # a client alone
            await asyncio.wait_for(batches.ask([b"x"]), 30)
        lengths.may.clear()
        lengths.asked.clear()
        first = asyncio.create_task(batches.ask([b"x"]))
        await begun(lengths)
        second = asyncio.create_task(batches.ask([b"x"]))
        await asyncio.sleep(0)
        lengths.may.set()
        await first
        third = asyncio.create_task(batches.ask([b"x"]))  # of the first client
        await asyncio.wait_for(asyncio.gather(second, third), 30)

    asyncio.run(asked())
    assert lengths.calls == [1, 1, 1, 1, 2]
    batches.thread.close()


def test_a_call_waits_no_longer_than_the_window_for_clients_that_are_gone() -> None:
    lengths = Lengths()
    lengths.may.set()
    batches = Batches(lengths, window=0.001)

    async def asked() -> None:
        await batches.ask([b"x"] * 5)
        await asyncio.wait_for(batches.ask([b"x"]), 30)

    asyncio.run(asked())
    assert lengths.calls == [5, 1]
    batches.thread.close()


def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    lengths = Lengths()
    batches = Batches(lengths, most_waiting=3)

    async def asked() -> list[int]:
        first = asyncio.create_task(batches.ask([b""]))
        await begun(lengths)
        waiting = asyncio.create_task(batches.ask([b"", b"x"]))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await batches.ask([b"", b""])
        assert refused.value.status == 503
        assert int(refused.value.headers["Retry-After"]) >= 1
        third = asyncio.create_task(batches.ask([b"yy"]))
        await asyncio.sleep(0)
        lengths.may.set()
        await first
        return [*await waiting, *await third]

    assert asyncio.run(asked()) == [0, 1, 2]
    batches.thread.close()


def test_pictures_of_a_caller_that_is_gone_are_not_answered() -> None:
    lengths = Lengths()
    batches = Batches(lengths)

    async def asked() -> None:
        first = asyncio.create_task(batches.ask([b""]))
        await begun(lengths)
        gone = asyncio.create_task(batches.ask([b""] * 5))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        lengths.may.set()
        await first
        assert await batches.ask([b"x"]) == [1]

    asyncio.run(asked())
    assert lengths.calls == [1, 1]
    batches.thread.close()


def test_an_error_reaches_those_who_asked_and_later_pictures_are_answered() -> None:
    lengths = Lengths()
    lengths.may.set()
    batches = Batches(lengths)

    async def asked() -> None:
        with pytest.raises(ValueError, match="bad"):
            await batches.ask([b"", b"bad"])
        assert await batches.ask([b"x"]) == [1]

    asyncio.run(asked())
    asyncio.run(asked())  # in another event loop
    batches.thread.close()
