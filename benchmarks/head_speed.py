"""How long `--strategy head` takes against what it cannot do without: decoding every picture, the backbone run once.

    python benchmarks/head_speed.py --data DATA

Three programs, each started afresh and timed whole, imports included, one after the other, --repeats times:

obvious   the loop that people write: PIL, a DataLoader with one worker a core, float32, eager, evaluation mode
one_pass  this project's reading of every picture and one run of the backbone over it, and nothing else
fit       `finetune fit cats-dogs --strategy head`: the same and splits, baselines, head, report, run folder

The obvious loop's features also give the plain figure to reach: scikit-learn's LogisticRegression on them, its strength
chosen on a fifth of the training pictures, on val/. Ratios of medians go to benchmarks/results/head_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from machine import provenance
from PIL import Image
from plain import plain_accuracy
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from finetune.config import MAX_PIXELS
from finetune.data.folder import list_folder
from finetune.data.loader import Pictures
from finetune.data.transforms import evaluation_view
from finetune.features.forward import run_frozen
from finetune.files.writing import write_json
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine
from finetune.models.pretrained import load_pretrained
from finetune.processes import keep_freed_memory
from finetune.progress import Display

BACKBONE = "tf_efficientnet_lite0"
RESULT = Path(__file__).parent / "results" / "head_speed.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FEWTUNE_DATA", "data")))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["obvious", "one_pass"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    weights = args.data / "weights" / f"{BACKBONE}.safetensors"
    if args.only:
        print(json.dumps({"obvious": obvious, "one_pass": one_pass}[args.only](args.data / "cats-dogs", weights)))
        return

    seconds: dict[str, list[float]] = {"obvious": [], "one_pass": [], "fit": []}
    plain: dict[str, Any] = {}
    fitted: dict[str, Any] = {}
    for repeat in range(args.repeats):
        for name in ("one_pass", "fit", *(["obvious"] if repeat == 0 else [])):
            with tempfile.TemporaryDirectory() as scratch:
                command = [sys.executable, __file__, "--data", args.data, "--only", name]
                if name == "fit":
                    program = Path(sys.executable).parent / "finetune"
                    options = ["--weights", weights, "--strategy", "head", "--out", Path(scratch) / "run", "--json"]
                    command = [program, "fit", args.data / "cats-dogs", "--backbone", BACKBONE, *options]
                started = time.perf_counter()
                done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
                answer = json.loads(done.stdout)
                # What the obvious loop's program does beyond the loop is not in its time.
                seconds[name].append(time.perf_counter() - started - answer.get("not_counted", 0.0))
                print(f"{name} {seconds[name][-1]:.1f} s", flush=True)
                plain, fitted = (answer if name == "obvious" else plain), (answer if name == "fit" else fitted)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    result = {
        **provenance(),
        "pictures": sum(fitted["pictures"].values()),
        "seconds": seconds,
        "fit_over_one_pass": median["fit"] / median["one_pass"],
        "fit_over_obvious": median["fit"] / median["obvious"],
        "val_accuracy": {"plain": plain["val_accuracy"], "fit": fitted["val"]["accuracy"]},
        "val_interval": {"fit": fitted["val"]["interval"]},
    }
    write_json(RESULT, result)
    print(json.dumps({key: result[key] for key in ("fit_over_one_pass", "fit_over_obvious", "val_accuracy")}))


def obvious(folder: Path, weights: Path) -> dict[str, float]:
    model = timm.create_model(BACKBONE, num_classes=0)
    model.load_state_dict(load_file(weights))
    model.eval()
    steps = [transforms.Resize(256, Image.Resampling.BICUBIC), transforms.CenterCrop(224), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.5] * 3)])
    features, labels = {}, {}
    for split in ("train", "val"):
        rows, truth = [], []
        loader = DataLoader(ImageFolder(str(folder / split), transform), batch_size=32, num_workers=os.cpu_count() or 1)
        with torch.no_grad():
            for pictures, classes in loader:
                rows.append(model(pictures))
                truth.append(classes)
        features[split], labels[split] = torch.cat(rows).numpy(), torch.cat(truth).numpy()
    started = time.perf_counter()
    accuracy = plain_accuracy(features["train"], labels["train"], features["val"], labels["val"])
    return {"val_accuracy": accuracy, "not_counted": time.perf_counter() - started}


def one_pass(folder: Path, weights: Path) -> dict[str, int]:
    keep_freed_memory()  # as the commands do
    fabric = open_engine("cpu")
    backbone = Backbone(BACKBONE)
    load_pretrained(backbone, str(weights), Display())
    preprocessing = backbone.preprocessing
    listing = list_folder(folder)
    paths = [folder / sample.path for sample in listing.samples]
    pictures = Pictures(paths, evaluation_view(preprocessing), preprocessing.shortest_side, MAX_PIXELS)
    return {"pictures": len(run_frozen(fabric, backbone, preprocessing, pictures).index)}


if __name__ == "__main__":
    main()
