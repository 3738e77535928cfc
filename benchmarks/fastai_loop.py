"""fastai's `fine_tune` as its users call it, as a program of its own, in an environment that has fastai.

    PYTHON-WITH-FASTAI benchmarks/fastai_loop.py NETWORK WEIGHTS FOLDER EPOCHS [SEED]

FOLDER holds train/, and val/ or test/. Without val/ fastai sets 15 % of train/ aside, and the accuracy is that on
test/. One epoch with the body frozen, then EPOCHS with everything learning, fastai's defaults throughout. Nothing of
this project takes part. Prints, as JSON, the seconds of every epoch, validation included, and the accuracy at the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from fastai.callback.core import Callback
from fastai.callback.schedule import Learner  # noqa: F401  it is this import that gives learners their fine_tune
from fastai.data.transforms import Normalize, get_image_files
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from safetensors.torch import load_file


class Timed(Callback):
    """Seconds of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_epoch(self) -> None:
        self.started = time.perf_counter()

    def after_epoch(self) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def accuracy(outputs: Any, targets: Any) -> Any:
    return (outputs.argmax(1) == targets).float().mean()


def main() -> None:
    network, weights, folder, epochs = sys.argv[1:5]
    seed, divided = int(sys.argv[5]) if len(sys.argv) > 5 else 0, os.path.isdir(os.path.join(folder, "val"))
    set_seed(seed)
    splits = {"train": "train", "valid": "val"} if divided else {"valid_pct": 0.15}
    loaders = ImageDataLoaders.from_folder(
        folder if divided else os.path.join(folder, "train"),
        **splits,
        item_tfms=Resize(256),
        batch_tfms=[*aug_transforms(size=224), Normalize.from_stats([0.5] * 3, [0.5] * 3)],
        bs=32,
        seed=seed,
    )
    learner = vision_learner(loaders, network, pretrained=False, normalize=False, metrics=accuracy)
    body = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("classifier")}
    missing, unexpected = learner.model[0].model.load_state_dict(body, strict=False)
    if missing or any(not name.startswith(("classifier", "fc")) for name in unexpected):
        sys.exit(f"the weights do not fit fastai's body: {missing[:3]}, {unexpected[:3]}")
    timed = Timed()
    accuracies: list[float] = []
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(int(epochs), cbs=timed)
        files = [] if divided else get_image_files(os.path.join(folder, "test"))
        judged = loaders.valid if divided else loaders.test_dl(files, with_labels=True)
        accuracies.append(float(learner.validate(dl=judged)[1]))
    print(json.dumps({"seconds": timed.seconds, "accuracy": accuracies}))


if __name__ == "__main__":
    main()
