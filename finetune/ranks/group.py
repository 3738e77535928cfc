"""The processes of one training: rank 0 runs the job, and asks the others for a share of the work."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor

from finetune.errors import FewtuneError, InputError, TrainingDiverged
from finetune.ranks.launched import Launched

T = TypeVar("T")

# Key of the store that all processes share: the error of another rank than 0, as JSON.
ERROR = "fewtune/error"
_ERRORS = {kind.__name__: kind for kind in (FewtuneError, InputError, TrainingDiverged)}

# The group of the job that runs now.
_joined: list[Ranks] = []


class ProcessLost(FewtuneError):
    """Another process of the job ended without saying why."""


class Ranks:
    """This process among those of a job.

    Rank 0 runs the whole job as one process does. For the two parts that take long, frozen stages and training steps,
    it sends the others a function, and each works on its own share. So rank 0 alone decides, writes files and prints.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        apart: Whether rank 0 left a common task in the middle, after Ctrl-C for example. It then goes on alone.
        lost: Whether another process has failed.
        held: What the functions of rank 0 have left here for later ones, by name.
    """

    def __init__(self, launched: Launched, fabric_for: Callable[[str], Fabric], device: torch.device):
        self.rank, self.size = launched.rank, launched.size
        self.local_rank, self.local_size = launched.local_rank, launched.local_size
        self.device = device
        self.apart = self.lost = False
        self.held: dict[str, Any] = {}
        self._fabric_for = fabric_for

    def engine(self, like: Fabric) -> Fabric:
        """A Fabric that trains on all processes, in the precision of `like`."""
        return self._fabric_for(str(like._precision.precision))

    # --- what rank 0 asks of the others -------------------------------------------------------------------------------

    @contextmanager
    def asked(self, function: Callable[..., None], *arguments: Any) -> Iterator[None]:
        """The others run `function(ranks, *arguments)`, a function of a module; inside, rank 0 does its own part."""
        with self._in_common():
            self.broadcast((function, arguments))
            yield

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside, rank 0 takes steps by `step`; at the end, the others leave `steps`."""
        try:
            yield
        finally:
            if not self.apart:
                self._tell(-1, 0.0)

    @contextmanager
    def step(self, phase: int, value: float) -> Iterator[None]:
        """The others take a step with these numbers; inside, rank 0 takes it too."""
        with self._in_common():
            self._tell(phase, value)
            yield

    def steps(self) -> Iterator[tuple[int, float]]:
        """The numbers of each step of rank 0, on another rank."""
        while True:
            told = self._told(torch.empty(2, dtype=torch.float64))
            if told[0] < 0:
                return
            yield int(told[0]), float(told[1])

    def serve(self) -> Any:
        """Work for rank 0 until its job ends; what it passed to `finish`. SystemExit where the job failed."""
        try:
            while True:
                function, arguments = self.broadcast(None)
                if function is None:
                    break
                function(self, *arguments)
        except KeyboardInterrupt:
            raise SystemExit(0) from None  # rank 0 is stopped as well, and says so
        except Exception as error:
            if not connection_lost(error):
                self._report(error)
            # Rank 0 ends the job with the right exit code. Another code here would have the launcher end it first.
            raise SystemExit(0) from None
        if arguments is None:
            raise SystemExit(0)
        return arguments[0]

    def finish(self, result: tuple[Any, ...] | None) -> None:
        """End the work of the others. result: (value,) that `serve` returns there; None where the job failed."""
        if not self.apart:
            self.apart = True
            self.broadcast((None, result))

    @contextmanager
    def _in_common(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.apart = True
            raise

    # --- exchange -----------------------------------------------------------------------------------------------------

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0."""
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def broadcast_tensor(self, tensor: Tensor) -> None:
        """Fill `tensor`, on the CPU, with that of rank 0."""
        dist.broadcast(tensor, 0)

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, on rank 0; an empty list on others."""
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, 0)
        return values or []

    def total(self, tensor: Tensor) -> Tensor:
        """Sum of a detached tensor over all ranks."""
        summed = tensor.detach().clone()
        dist.all_reduce(summed)
        return summed

    def _tell(self, phase: int, value: float) -> None:
        self.broadcast_tensor(torch.tensor([phase, value], dtype=torch.float64))

    def _told(self, tensor: Tensor) -> list[float]:
        self.broadcast_tensor(tensor)
        found: list[float] = tensor.tolist()
        return found

    # --- errors -------------------------------------------------------------------------------------------------------

    def _report(self, error: Exception) -> None:
        lines = list(error.lines) if isinstance(error, FewtuneError) else [traceback.format_exc().rstrip()]
        _store().set(ERROR, json.dumps({"kind": type(error).__name__, "lines": lines}))

    def reported(self) -> Exception | None:
        """The error that another rank has met."""
        store = _store()
        if not store.check([ERROR]):
            return None
        found = json.loads(store.get(ERROR))
        kind = _ERRORS.get(found["kind"])
        return RuntimeError("\n".join(found["lines"])) if kind is None else kind(*found["lines"])


def current() -> Ranks | None:
    """The processes that this one can ask to work with it: None in one process, and on other ranks than 0."""
    ranks = _joined[-1] if _joined else None
    return None if ranks is None or ranks.rank > 0 or ranks.apart else ranks


def joined_ranks() -> Ranks | None:
    """The group of the job that runs now, on any rank."""
    return _joined[-1] if _joined else None


@contextmanager
def registered(ranks: Ranks) -> Iterator[None]:
    """Inside, `current` and `joined_ranks` return `ranks`."""
    _joined.append(ranks)
    try:
        yield
    finally:
        _joined.remove(ranks)


def connection_lost(error: BaseException) -> bool:
    """Whether torch.distributed raised `error` because another process has ended."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "Connection closed", "NCCL"))


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
