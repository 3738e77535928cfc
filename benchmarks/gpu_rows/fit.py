"""`fit` on the device, with fastai beside it where that is installed; and a job of torchrun and NCCL on one card."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fewshot.training.config import SiameseConfig
from fewshot.training.steps import SiameseSteps
from finetune import Classifier, Prediction, fit, load
from finetune.ranks.group import Ranks
from finetune.ranks.launched import Launched
from finetune.ranks.start import _fabric
from gpu_rows.embed import weights_of
from gpu_rows.setting import Setting, made_pictures, waits
from gpu_rows.siamese import SMALL, _data, _task

EPOCHS = 3


def measure(setting: Setting, strategy: str) -> dict[str, Any]:
    device = setting.device()
    with tempfile.TemporaryDirectory() as scratch:
        folder, what = _folder(setting, Path(scratch))
        network, options = _options(setting)
        weights, trained = weights_of(setting, network, Path(scratch))
        seconds: list[float] = []
        if strategy != "head":
            options |= {"epochs": setting.of_size(EPOCHS, 1), "keep": "trained"}
        started = time.perf_counter()

        def fitted(where: str, **more: Any) -> Classifier:
            return fit(
                folder,
                Path(scratch) / where,
                strategy=strategy,
                backbone=network,
                weights=weights,
                device=device.type,
                on_epoch=lambda epoch: seconds.append(epoch.seconds),
                **options | more,
            )

        run = fitted("run")
        whole, epochs = time.perf_counter() - started, list(seconds)
        waiting = waits(lambda: fitted("again", epochs=1)) if epochs and device.type == "cuda" else {}
        asked = sorted(path for path in folder.rglob("*.jp*g"))[:: setting.of_size(20, 10)]
        ours, theirs = (_answers(one, asked) for one in (run, load(Path(scratch) / "run", device="cpu")))
        fastai = _fastai(setting, network, weights, folder, len(epochs) or 1)
        metrics = run.metrics
    differences = [abs(one[1] - other[1]) for one, other in zip(ours, theirs, strict=True) if one[0] == other[0]]
    agrees = {
        "pictures": len(asked),
        "share_of_equal_labels": len(differences) / len(asked),
        "largest_difference_of_probability": max(differences, default=1.0),
    }
    measured = {
        "pictures": what,
        "network": network,
        "weights": trained,
        "seconds": whole,
        "seconds_of_epochs": epochs,
        "waits_in_a_run_of_one_epoch": waiting,
        "accuracy": metrics["accuracy"],
        "fastai": fastai,
    }
    beside = None
    if "seconds" in fastai:
        # Without the first epoch of each, which sets things up; the head alone against fastai's frozen epoch.
        beside = fastai["seconds"][0] / whole if strategy == "head" else fastai["seconds"][-1] / min(epochs)
        measured["fastai_over_ours"] = beside
    reached = agrees["share_of_equal_labels"] >= 0.99 and (beside is None or beside >= 1)
    return setting.row(
        "no slower than fastai on the same card, where that is installed; the same labels on the CPU",
        reached,
        measured,
        agrees,
    )


def _answers(run: Classifier, asked: list[Path]) -> list[tuple[str, float]]:
    return [(found.label, found.probability) for found in run.predict(asked) if isinstance(found, Prediction)]


def measure_nccl(setting: Setting) -> dict[str, Any]:
    """torchrun with one process, and a group of one process that exchanges by NCCL; one card allows no more."""
    device, measured = setting.device(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as scratch:
        folder, _ = _folder(setting, Path(scratch), dry=True)
        network, options = _options(setting, dry=True)
        words = ["--backbone", network, "--image-size", options["image_size"], "--workers", 0, "--epochs", 1]
        words += ["--strategy", "full", "--device", device.type, "--out", Path(scratch) / "run", "--json"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        done = subprocess.run(
            [*launcher, *map(str, ["-m", "finetune", "fit", folder, *words])],
            capture_output=True,
            text=True,
            check=False,
        )
        measured["torchrun_exit_code"] = done.returncode
        measured["torchrun"] = "one process, which trains without a group"
        if done.returncode:
            measured["torchrun_said"] = done.stderr.strip().splitlines()[-1:]
    data, _ = _data(setting)
    config, steps = SiameseConfig(**SMALL, lr=1e-4), setting.of_size(20, 3)  # type: ignore[arg-type]
    placed = Launched(0, 1, 0, 1)
    _fabric(placed, device.type, "32-true").launch()

    def engine(precision: str) -> Any:
        made = _fabric(placed, device.type, precision)
        made.launch()
        return made

    ranks = Ranks(placed, engine, device)
    alone = SiameseSteps(_task(data, config, device, "float32"), streamed=False)
    together = SiameseSteps(_task(data, config, device, "float32"), ranks)
    pairs = [(float(together.take_step()), float(alone.take_step())) for _ in range(steps)]
    agrees = {"steps": steps, "largest_difference_of_loss": max(abs(one - other) for one, other in pairs)}
    measured["group_of_one"] = f"{'nccl' if device.type == 'cuda' else 'gloo'}: {steps} steps of DDP"
    reached = done.returncode == 0 and agrees["largest_difference_of_loss"] < 1e-3
    row = setting.row("one process runs through: the most that one card allows", reached, measured, agrees)
    return row if done.returncode == 0 else row | {"error": f"torchrun ended with exit code {done.returncode}"}


def _folder(setting: Setting, scratch: Path, *, dry: bool = False) -> tuple[Path, str]:
    real = setting.real("cats-dogs")
    if real is not None and not setting.dry and not dry:
        return real, "cats-dogs"
    count, size = (12, (80, 60)) if dry else (setting.of_size(200, 12), (80, 60) if setting.dry else (500, 375))
    made_pictures(scratch / "made", dict.fromkeys(("a", "b", "c"), count), size)
    return scratch / "made", f"made, 3 classes of {count}"


def _options(setting: Setting, *, dry: bool = False) -> tuple[str, dict[str, Any]]:
    """The network, and options of `fit` beside it."""
    if dry or setting.device().type == "cpu":
        return "fewtune_conv4", {"image_size": 64, "workers": 0}
    return "tf_efficientnet_lite0", {}


def _fastai(setting: Setting, network: str, weights: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """Seconds of the epochs of fastai's fine_tune, and its accuracy; or why there are none."""
    python = setting.fastai or (sys.executable if importlib.util.find_spec("fastai") else None)
    if python is None:
        return {"left_out": "fastai is not installed; --fastai names a Python that has it"}
    if not (folder / "val").is_dir():
        return {"left_out": "it needs the folders train and val of real pictures"}
    program = Path(__file__).parents[1] / "fastai_loop.py"
    done = subprocess.run(
        [python, program, network, weights, folder, str(epochs)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"left_out": f"it failed: {done.stderr.strip().splitlines()[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found
