"""Several processes on one job, as torchrun starts them: not supported yet, and refused before anything is written."""

from __future__ import annotations

import os

from finetune.errors import InputError


class SeveralProcesses(InputError):
    """The job was started as several processes. rank: the number of this process, from 0."""

    def __init__(self, command: str, rank: int, world_size: int):
        super().__init__(
            f"{command} does not support several processes yet (WORLD_SIZE is {world_size}); "
            f"run it as one process: {command} …, without torchrun"
        )
        self.rank = rank


def require_one_process(command: str) -> None:
    """SeveralProcesses where a launcher such as torchrun started this process as one of several.

    command: what the user ran, for the message.
    """
    world_size, rank = _number("WORLD_SIZE"), _number("RANK")
    rank = _number("LOCAL_RANK") if rank is None else rank
    if world_size is not None and world_size > 1 and rank is not None:
        raise SeveralProcesses(command, rank, world_size)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else None
