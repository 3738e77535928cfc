"""How this process was started: alone, or as one of several by a launcher."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launched:
    """This process among those that a launcher started. rank: from 0 to size - 1. local_*: the same on this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return max(1, self.size // self.local_size)


def launched() -> Launched | None:
    """From the variables of torchrun, of Lightning Fabric or of SLURM's srun; None for a process that runs alone."""
    size, rank, local_rank = _number("WORLD_SIZE"), _number("RANK"), _number("LOCAL_RANK")
    if size is not None and size > 1 and (rank is not None or local_rank is not None):
        # Fabric sets no RANK, and starts processes on one machine only.
        found = local_rank if rank is None else rank
        local = _number("LOCAL_WORLD_SIZE") or size
        assert found is not None
        return Launched(found, size, found % local if local_rank is None else local_rank, local)
    size, rank = _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_PROCID")
    if size is not None and size > 1 and rank is not None:
        local = max(1, size // (_number("SLURM_STEP_NUM_NODES") or 1))
        return Launched(rank, size, _number("SLURM_LOCALID") or 0, local)
    return None


def first_process() -> bool:
    """Whether this process alone prints and writes files."""
    found = launched()
    return found is None or found.rank == 0


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else None
