"""How far a training has come, and the file from which it goes on after a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.errors import InputError
from finetune.files import read_tensors_and_metadata, write_tensors
from finetune.models.backbone import Network
from finetune.training.selection import Score


@dataclass
class TrainingState:
    """How far training has come. best_epoch: 0 is the start that training was given.

    lr: full learning rate of the head, None before it is known; sweep: the one that found it, as `Sweep.to_dict`, where
    it was looked for. share: how far on the way from the start to the best epoch's weights the kept ones lie. history:
    a row for each epoch.
    """

    epoch: int = 0
    best: Score | None = None
    best_epoch: int = 0
    interrupted: bool = False
    lr: float | None = None
    sweep: dict[str, Any] | None = None
    share: float = 1.0
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    network: Network,
    optimizer: Any,
    learned_from: Mapping[str, str],
    course: TrainingState,
    best: Mapping[str, Tensor],
) -> None:
    """Weights, optimiser and course in one file, so that no crash can part them.

    learned_from: what the weights come from; only a training from the same may go on with them. best: weights.
    """
    tensors = {f"now.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for position, state in optimizer.state_dict()["state"].items():
        for name, tensor in state.items():
            if tensor is not None:
                tensors[f"optimizer.{position}.{name}"] = tensor
    write_tensors(path, tensors, {"course": json.dumps(asdict(course)), **learned_from})


@dataclass(frozen=True)
class Checkpoint:
    """What `save_checkpoint` kept. best: weights."""

    course: TrainingState
    best: dict[str, Tensor]
    _now: dict[str, Tensor]
    _state: dict[int, dict[str, Tensor]]

    def put_into(self, network: Network, optimizer: Any) -> None:
        """Weights and the optimiser's state as they were."""
        network.load_state_dict(self._now)
        optimizer.load_state_dict({"state": self._state, "param_groups": optimizer.state_dict()["param_groups"]})


def read_checkpoint(path: Path, learned_from: Mapping[str, str]) -> Checkpoint:
    """InputError when the file is damaged, or of a training on other pictures or inputs."""
    try:
        tensors, metadata = read_tensors_and_metadata(path)
    except InputError as error:
        raise InputError(f"{error}; remove it to train again from the start") from error
    if metadata.get("pictures") != learned_from["pictures"]:
        raise InputError(f"{path} is of a run on other pictures; remove it to train again from the start")
    if metadata.get("inputs") != learned_from["inputs"]:
        raise InputError(
            f"{path} was trained on {metadata.get('inputs')}, not {learned_from['inputs']}: "
            "make room for the first, or remove it to train again from the start"
        )
    saved = json.loads(metadata["course"])
    best = saved.pop("best")
    course = TrainingState(**saved, best=None if best is None else Score(**best))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _part(tensors, "optimizer.").items():
        position, name = key.split(".", 1)
        state.setdefault(int(position), {})[name] = tensor
    return Checkpoint(course, _part(tensors, "best."), _part(tensors, "now."), state)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
