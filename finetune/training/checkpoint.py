"""Checkpoint of a training: named weights, the optimiser's state and a JSON state in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from finetune.errors import InputError
from finetune.files.reading import read_tensors_and_metadata
from finetune.files.writing import write_tensors

_OPTIMIZER, _STATE = "optimizer", "course"  # names in the file
_ADVICE = "remove it to train again from the start"


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint.

    Attributes:
        weights: State dictionaries by name, on the CPU.
        state: JSON values.
    """

    weights: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    _optimizer: dict[int, dict[str, Tensor]]

    def restore_optimizer(self, optimizer: Optimizer) -> None:
        """Load the saved state. The parameter groups of `optimizer` stay."""
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
        try:
            tensors, metadata = read_tensors_and_metadata(self.path)
        except InputError as error:
            raise InputError(f"{error}; {_ADVICE}") from error
        if metadata.get("pictures") != self.origin["pictures"]:
            raise InputError(f"{self.path} belongs to a run on other pictures; {_ADVICE}")
        inputs = self.origin.get("inputs")
        if metadata.get("inputs") != inputs:
            raise InputError(
                f"{self.path} was trained on {metadata.get('inputs')}, not on {inputs}: make room for the former, "
                f"or {_ADVICE}"
            )
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, name = key.split(".", 1)
            parts.setdefault(part, {})[name] = tensor
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in parts.pop(_OPTIMIZER, {}).items():
            position, name = key.split(".", 1)
            moments.setdefault(int(position), {})[name] = tensor
        return Checkpoint(parts, json.loads(metadata[_STATE]), moments)
