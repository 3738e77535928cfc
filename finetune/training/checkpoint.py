"""Checkpoint of a training: named weights, the optimiser's state and a JSON state in one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from finetune.errors import InputError
from finetune.files.reading import as_type, parse_json, read_tensors_and_metadata
from finetune.files.tensors import check_fits, unusable
from finetune.files.writing import write_tensors
from finetune.metrics import Count, Finite, Share
from finetune.terminal import in_one_line
from finetune.training.selection import Score

_OPTIMIZER, _STATE = "optimizer", "course"  # names in the file
_ADVICE = "remove it to train again from the start"
# Tensors of the optimiser that are never negative: AdamW takes roots of them.
_POSITIVE = ("step", "exp_avg_sq")
# Of the number of a parameter.
_DIGITS = 9

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint.

    Attributes:
        weights: State dictionaries by name, on the CPU.
        state: JSON values.
        source: The file, for errors.
    """

    weights: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    source: str
    _optimizer: dict[int, dict[str, Tensor]]

    def state_as(self, kind: type[T]) -> T:
        """The state as a dataclass. InputError for a field that is missing or wrong."""
        return _advised(lambda: as_type(self.state, kind, self.source))

    def weights_for(self, part: str, network: nn.Module) -> dict[str, Tensor]:
        """The state dictionary of this name, which fits `network`. InputError if it does not."""
        found = self.weights.get(part, {})
        _advised(lambda: check_fits(found, network.state_dict(), f"{self.source} may be damaged: of {part}"))
        return found

    def restore(self, part: str, network: nn.Module) -> None:
        """Load a state dictionary into `network`. InputError if it does not fit."""
        network.load_state_dict(self.weights_for(part, network))

    def restore_optimizer(self, optimizer: Optimizer) -> None:
        """Load the saved state. The parameter groups of `optimizer` stay. InputError if it does not fit."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        wanted = {"momentum_buffer"} if isinstance(optimizer, SGD) else {"step", "exp_avg", "exp_avg_sq"}
        for position, moments in self._optimizer.items():
            shape = parameters[position].shape if position < len(parameters) else None
            fits = shape is not None and moments.keys() == wanted
            if not fits or any(tensor.shape != (() if name == "step" else shape) for name, tensor in moments.items()):
                raise InputError(f"{self.source} may be damaged: the optimiser's state does not fit; {_ADVICE}")
            for name, tensor in moments.items():
                problem = unusable(tensor)
                if problem is None and name in _POSITIVE and tensor.numel() and bool(tensor.min() < 0):
                    problem = "is negative"
                if problem is not None:
                    raise InputError(f"{self.source} may be damaged: {name} of the optimiser {problem}; {_ADVICE}")
        optimizer.load_state_dict({"state": self._optimizer, "param_groups": optimizer.state_dict()["param_groups"]})


@dataclass(frozen=True)
class CheckpointFile:
    """The file from which an interrupted training continues. One write replaces it, so that a crash leaves it whole.

    Attributes:
        path: None for a training that saves nothing.
        origin: What the weights are trained on: fingerprints under "pictures" and, where they matter, "inputs". Only a
            training of the same origin continues from the file.
    """

    path: Path | None
    origin: Mapping[str, str]

    def save(self, weights: Mapping[str, Mapping[str, Tensor]], optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Write state dictionaries by name, the optimiser's state and JSON values."""
        if self.path is None:
            return
        tensors = {f"{part}.{name}": tensor for part, of in weights.items() for name, tensor in of.items()}
        for position, moments in optimizer.state_dict()["state"].items():
            for name, tensor in moments.items():
                if tensor is not None:
                    tensors[f"{_OPTIMIZER}.{position}.{name}"] = tensor
        write_tensors(self.path, tensors, {_STATE: json.dumps(state), **self.origin})

    def read(self) -> Checkpoint | None:
        """Read the file.

        Returns:
            The checkpoint; None when there is no file.

        Raises:
            InputError: If the file is damaged or of another origin.
        """
        if self.path is None or not self.path.exists():
            return None
        path = self.path
        tensors, metadata = _advised(lambda: read_tensors_and_metadata(path))
        if metadata.get("pictures") != self.origin["pictures"]:
            raise InputError(f"{self.path} belongs to a run on other pictures; {_ADVICE}")
        inputs = self.origin.get("inputs")
        if metadata.get("inputs") != inputs:
            raise InputError(
                f"{self.path} was trained on {metadata.get('inputs')}, not on {inputs}: make room for the former, "
                f"or {_ADVICE}"
            )
        state = _advised(lambda: parse_json(metadata.get(_STATE, ""), f"the state in {path}"))
        parts: dict[str, dict[str, Tensor]] = {}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            if part == _OPTIMIZER:
                position, _, name = name.partition(".")
                if not position.isdecimal() or len(position) > _DIGITS:
                    raise InputError(f"{path} may be damaged: it holds {in_one_line(key)}; {_ADVICE}")
                moments.setdefault(int(position), {})[name] = tensor
            else:
                parts.setdefault(part, {})[name] = tensor
        return Checkpoint(parts, state, str(path), moments)


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """A finished epoch in a checkpoint."""

    epoch: Count
    train_loss: Finite
    val_loss: Finite
    val_accuracy: Share
    lr: Finite


@dataclass(frozen=True, kw_only=True)
class LoopState:
    """What a checkpoint of `finetune.training.loop` keeps beside the weights. Older ones have no plan."""

    history: tuple[EpochRow, ...]
    best: Score | None
    best_epoch: Count
    lr: Annotated[float, Meta(gt=0, le=1e100)] | None
    sweep: dict[str, Any] | None
    planned: Count = 0
    out_of_time: bool = False

    def __post_init__(self) -> None:
        if [row.epoch for row in self.history] != list(range(1, len(self.history) + 1)):
            raise ValueError("history: its epochs are not counted from 1")
        if self.best_epoch > len(self.history):
            raise ValueError("best_epoch: there is no such epoch")


def _advised(call: Callable[[], T]) -> T:
    """What `call` returns; its InputError says what to do, too."""
    try:
        return call()
    except InputError as error:
        raise InputError(f"{error}; {_ADVICE}") from error
