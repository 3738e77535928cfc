"""Does int8 pay on a CPU? OpenVINO in float32, bfloat16 and int8 (NNCF, after training): speed, and accuracy of heads.

    FEWTUNE_DATA=DATA python benchmarks/int8.py [--networks ...] [--datasets ...] [--draws 3] [--repeats 7]

It needs `nncf` beside the project (python -m pip install nncf). The network is that of `finetune fit`: a frozen
backbone with the pooled activations of every depth as its output.

Speed: one thread, batches of BATCH pictures in memory, the three precisions in turn, --repeats times; medians of
pictures per second of processor time, which other programs on the machine disturb less than the clock. Networks without
a file of weights have random ones: their speed counts, their cosines say nothing.

Accuracy: of each data set the pictures of val/ judge, or every second one by the hash of its name where there is none;
--draws times, so many training pictures of each class are drawn (benchmarks/draws.py). The head is fitted on the
activations of each precision and judged on those of the same precision. int8 is calibrated on at most CALIBRATION of
the training pictures of the draw. `loss` is the accuracy in float32 minus that in the other precision, in points.

int8 is kept if it is at least GAIN times as fast, at a mean loss below LOSS points. Rows are appended one by one to
benchmarks/results/int8.json and not made again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from draws import BACKBONE, DATASETS, FAST_BACKBONE, link
from machine import provenance, revision
from torch import Tensor

from finetune.computing.openvino_module import no_reports, openvino_core
from finetune.config import MAX_PIXELS
from finetune.data.folder import list_folder
from finetune.data.loader import Pictures
from finetune.data.transforms import Normalized, evaluation_view
from finetune.features.acceleration import CPU_BATCH, filled, openvino_model
from finetune.features.forward import in_memory
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.linear.head import solve_heads
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages
from finetune.models.pretrained import load_pretrained
from finetune.progress import Display

RESULT = Path(__file__).parent / "results" / "int8.json"
NETWORKS = (FAST_BACKBONE, BACKBONE, "resnet50", "vit_small_patch16_224")
BATCH, CALIBRATION, TIMED = 8, 128, 32
GAIN, LOSS = 1.5, 0.2
# What a processor needs for fast int8 and bfloat16, as the system names it.
INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "avx512_bf16")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}

Run = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--size", default="50", help="training pictures of each class; all for all")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"speed": [], "accuracy": []}

    def keep(kind: str, row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        result[kind].append(row | {"revision": revision()})
        write_json(RESULT, result | {"summary": summary(result)} | about())

    for name in args.networks:
        if name not in {row["network"] for row in result["speed"]}:
            keep("speed", speed(name, args.repeats))
    done = {(row["network"], row["dataset"], row["size"], row["draw"]) for row in result["accuracy"]}
    pretrained = [name for name in args.networks if weights_of(name)]
    for draw, name, dataset in product(range(args.draws), pretrained, args.datasets):
        if (name, dataset, args.size, draw) not in done:
            keep("accuracy", accuracy(name, dataset, args.size, draw))
    print(json.dumps(summary(result), indent=1))


def about() -> dict[str, Any]:
    """Machine and versions, with the instructions and packages that matter here."""
    found = provenance()
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    found["machine"] |= {"instructions": [name for name in INSTRUCTIONS if name in flags], "threads": 1}
    found["versions"] |= {name: importlib.metadata.version(name) for name in ("openvino", "nncf")}
    return found


def weights_of(name: str) -> Path | None:
    path = Path(os.environ["FEWTUNE_DATA"]) / "weights" / f"{name}.safetensors"
    return path if path.is_file() else None


def opened(name: str) -> tuple[PooledStages, Normalized]:
    torch.manual_seed(0)
    backbone, weights = Backbone(name), weights_of(name)
    if weights is not None:
        load_pretrained(backbone, str(weights), Display())
    stages = PooledStages(backbone.eval())
    return stages, Normalized(stages, backbone.preprocessing).eval()


def pixels_of(network: Normalized, paths: Sequence[Path]) -> Tensor:
    """The pictures, as `fit` reads them: uint8 (n, 3, size, size)."""
    preprocessing = network.preprocessing
    pictures = Pictures(list(paths), evaluation_view(preprocessing), preprocessing.shortest_side, MAX_PIXELS)
    return torch.cat([batch.pixels for batch in in_memory(open_engine("cpu", "float32"), pictures, None)])


class Converted:
    """A network in OpenVINO, from which each precision is compiled for one thread."""

    def __init__(self, network: Normalized, example: Tensor):
        self.core = openvino_core()
        # Folds batch norms into convolutions, without which int8 is far less accurate.
        from openvino._offline_transformations import apply_moc_transformations

        self.model = openvino_model(network, filled(example[:BATCH], BATCH))
        apply_moc_transformations(self.model, False)

    def compiled(self, precision: str, calibration: Tensor, transformer: bool) -> tuple[Run, float]:
        """The network as a function, and the seconds of processor time to calibrate and compile it."""
        start = time.process_time()
        model = quantized(self.model, calibration, transformer) if precision == "int8" else self.model
        options = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
        request = self.core.compile_model(model, "CPU", options).create_infer_request()

        def run(pixels: Tensor) -> Tensor:
            parts = [
                torch.from_numpy(np.array(request.infer([filled(part, BATCH).numpy()])[0])[: len(part)])
                for part in pixels.split(BATCH)
            ]
            return torch.cat(parts)

        return run, time.process_time() - start


def quantized(model: Any, pixels: Tensor, transformer: bool) -> Any:
    with no_reports():
        import nncf
    batches = [part.contiguous().numpy() for part in pixels.split(BATCH) if len(part) == BATCH]
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(batches),
        model_type=kind,
    )


def speed(name: str, repeats: int) -> dict[str, Any]:
    """Pictures per second of processor time, in each precision, one thread."""
    _, network = opened(name)
    samples = list_folder(Path(os.environ["FEWTUNE_DATA"]) / "flowers", to_train=False).samples
    root = Path(os.environ["FEWTUNE_DATA"]) / "flowers"
    trained = [root / sample.path for sample in samples if sample.split == "train"]
    pixels = pixels_of(network, trained[:: len(trained) // TIMED][:TIMED])
    converted = Converted(network, pixels)
    ways, seconds = {}, {}
    for precision in PRECISIONS:
        ways[precision], seconds[precision] = converted.compiled(precision, pixels, "vit" in name)
    outputs = {precision: run(pixels) for precision, run in ways.items()}  # warm
    rates: dict[str, list[float]] = {precision: [] for precision in ways}
    for _ in range(repeats):
        for precision, run in ways.items():
            start = time.process_time()
            run(pixels)
            rates[precision].append(len(pixels) / (time.process_time() - start))
    median = {precision: round(statistics.median(found), 1) for precision, found in rates.items()}
    return {
        "network": name,
        "weights": "pretrained" if weights_of(name) else "random",
        "pictures": len(pixels),
        "batch": BATCH,
        "pictures_per_processor_second": median,
        "all": {precision: [round(rate, 1) for rate in found] for precision, found in rates.items()},
        "int8_over_float32": round(median["int8"] / median["float32"], 2),
        "int8_over_bfloat16": round(median["int8"] / median["bfloat16"], 2),
        "bfloat16_over_float32": round(median["bfloat16"] / median["float32"], 2),
        "processor_seconds_to_convert": {precision: round(spent, 1) for precision, spent in seconds.items()},
        "cosine_with_float32": {precision: cosines(outputs[precision], outputs["float32"]) for precision in ways},
    }


def accuracy(name: str, dataset: str, size: str, draw: int) -> dict[str, Any]:
    """Accuracy of heads on the activations of each precision."""
    stages, network = opened(name)
    with tempfile.TemporaryDirectory() as folder:
        link(Path(os.environ["FEWTUNE_DATA"]) / dataset, Path(folder), size, draw)
        samples = list_folder(Path(folder), to_train=False).samples
        classes = sorted({sample.label for sample in samples})
        labels = torch.tensor([classes.index(sample.label) for sample in samples])
        pixels = pixels_of(network, [Path(folder) / sample.path for sample in samples])
    train = torch.tensor([sample.split == "train" for sample in samples])
    shuffled = torch.randperm(int(train.sum()), generator=torch.Generator().manual_seed(draw))
    calibration = pixels[train][shuffled[:CALIBRATION]]
    converted = Converted(network, calibration)
    right: dict[str, Tensor] = {}
    features: dict[str, Tensor] = {}
    for precision in PRECISIONS:
        run, _ = converted.compiled(precision, calibration, "vit" in name)
        found = features[precision] = run(pixels)
        head = solve_heads((found[train], labels[train]), (found[:0], labels[:0]), stages.widths).kept
        right[precision] = (head(found[~train]).argmax(1) == labels[~train]).double()
    shares = {precision: float(answers.mean()) for precision, answers in right.items()}
    return {
        "network": name,
        "dataset": dataset,
        "size": size,
        "draw": draw,
        "training_pictures": int(train.sum()),
        "judging_pictures": int((~train).sum()),
        "calibration_pictures": len(calibration),
        "accuracy": {precision: round(share, 5) for precision, share in shares.items()},
        "loss": {other: round(100 * (shares["float32"] - shares[other]), 3) for other in ("bfloat16", "int8")},
        "standard_error_of_loss": {
            other: round(100 * float((right["float32"] - right[other]).std()) / len(right[other]) ** 0.5, 3)
            for other in ("bfloat16", "int8")
        },
        "cosine_with_float32": {other: cosines(features[other], features["float32"]) for other in ("bfloat16", "int8")},
    }


def cosines(one: Tensor, other: Tensor) -> dict[str, float]:
    found = F.cosine_similarity(one.double(), other.double())
    return {"smallest": round(float(found.min()), 5), "mean": round(float(found.mean()), 5)}


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """For each network: gains, mean losses, and whether int8 is kept over float32 and over bfloat16."""
    found = {}
    for row in result["speed"]:
        judged = [each for each in result["accuracy"] if each["network"] == row["network"]]
        gains = {name: row[name] for name in ("int8_over_float32", "int8_over_bfloat16", "bfloat16_over_float32")}
        losses: dict[str, Any] = {}
        for other in ("bfloat16", "int8") if judged else ():
            all_of = [each["loss"][other] for each in judged]
            error = statistics.stdev(all_of) / len(all_of) ** 0.5 if len(all_of) > 1 else None
            losses[other] = {
                "mean": round(statistics.mean(all_of), 3),
                "standard_error": None if error is None else round(error, 3),
                "largest": max(all_of),
                "by_dataset": {
                    dataset: round(statistics.mean(e["loss"][other] for e in judged if e["dataset"] == dataset), 3)
                    for dataset in sorted({each["dataset"] for each in judged})
                },
                "runs": len(all_of),
            }
        small = bool(losses) and losses["int8"]["mean"] < LOSS
        found[row["network"]] = gains | {
            "loss": losses,
            "kept_over_float32": small and row["int8_over_float32"] >= GAIN if losses else None,
            "kept_over_bfloat16": small and row["int8_over_bfloat16"] >= GAIN if losses else None,
        }
    return found


if __name__ == "__main__":
    assert CPU_BATCH % BATCH == 0, "a batch of the product is a whole number of these"
    main()
