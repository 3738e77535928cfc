"""Where encoders come from: this package, the folder of a run of either command, timm."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from torch import nn

from fewshot.embedding.encoder import EncoderSpec, create
from fewshot.omniglot.dataset import Character
from finetune.classifier.classifier import load as load_classifier
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError
from finetune.files import read_json, read_tensors
from finetune.models.backbone import Backbone
from finetune.models.pretrained import load_pretrained

if TYPE_CHECKING:
    from fewshot.embedding.embedder import Embedder


SHIPPED = {"omniglot": Path(__file__).parent / "weights" / "omniglot"}


FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def open_source(
    made: type[Embedder], source: str | Path, *, weights: str | Path | None, told: Callable[[str], None], **options: Any
) -> Embedder:
    """What `Embedder.load` says. made: the class of what is returned; options: as its constructor takes them."""
    name = str(source)
    folder = SHIPPED.get(name, Path(source))
    if (folder / CONFIG_FILE).is_file():
        if weights is not None:
            raise InputError(f"--weights are for timm's models; {source} has its own")
        embedder = _of_run(made, folder, source, options)
        embedder.source = name if name in SHIPPED else os.path.abspath(folder)
        return embedder
    if folder.exists() or not timm.is_model(name):
        raise InputError(
            f"{source} is no encoder: give {', '.join(SHIPPED)}, the folder of a run of fewshot train or finetune fit, "
            "or a model that timm knows"
        )
    backbone = Backbone(name)
    file = None if weights is None else str(weights)
    load_pretrained(backbone, file, told, option="--model", instead=[f"--model {each}" for each in SHIPPED])
    embedder = made(backbone, _crop(name, backbone.preprocessing), **options)
    embedder.source, embedder.weights = name, None if weights is None else os.path.abspath(weights)
    return embedder


def _of_run(made: type[Embedder], folder: Path, source: str | Path, options: dict[str, Any]) -> Embedder:
    config = read_json(folder / CONFIG_FILE)
    if isinstance(config, dict) and isinstance(config.get("config"), dict) and "backbone" in config["config"]:
        classifier = load_classifier(folder, device="cpu", precision="float32")
        backbone = classifier.network.backbone
        # The run's own preprocessing: a later timm may give its model another.
        return made(backbone, _crop(backbone.name, classifier.preprocessing), **options)
    return _of_training(made, folder, config, options)


def _crop(name: str, preprocessing: Preprocessing) -> EncoderSpec:
    return EncoderSpec(name, preprocessing.size, "crop", preprocessing)


def _of_training(made: type[Embedder], folder: Path, config: Any, options: dict[str, Any]) -> Embedder:
    """What a run of `fewshot train` has left."""
    path = folder / CONFIG_FILE
    if not isinstance(config, dict) or config.get("format") != FORMAT or "recipe" not in config:
        raise InputError(f"{path} is not of a run that this version can read")
    if "spec" not in config or not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"the run in {folder} has not finished; go on with --resume")
    try:
        spec, trained_on = EncoderSpec(**config["spec"]), characters_from(config["trained_on"])
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not of a run that this version can read") from error
    network = create(spec)
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in read_tensors(folder / WEIGHTS_FILE).items()
    }
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS_FILE} does not fit {spec.network}; it may be damaged") from error
    embedder = made(network, spec, trained_on=trained_on, **options)
    if embedder.network_fingerprint != config.get("fingerprint"):
        raise InputError(f"{folder / WEIGHTS_FILE} is not what {path} was written with; one of them may be damaged")
    embedder.verification = config.get("verification")
    embedder.recognition = config.get("recognition")
    return embedder


def fingerprint_of(network: nn.Module, spec: EncoderSpec) -> str:
    """12 hexadecimal digits of weights, network and preprocessing."""
    found = hashlib.sha256(repr(sorted(spec.to_dict().items())).encode())
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def characters_to(characters: Collection[Character]) -> dict[str, list[int]]:
    """As JSON holds them: alphabet -> numbers."""
    found: dict[str, list[int]] = {}
    for alphabet, number in sorted(characters):
        found.setdefault(alphabet, []).append(number)
    return found


def characters_from(saved: dict[str, list[int]]) -> frozenset[Character]:
    """What characters_to was given."""
    return frozenset(Character(alphabet, number) for alphabet, numbers in saved.items() for number in numbers)
