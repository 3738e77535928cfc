"""The threshold that the shipped encoder carries, and what it does on alphabets that neither chose nor learned it.

    python benchmarks/verification.py --data DATA

The shipped encoder has learned from every background alphabet, so no alphabet is left there to choose a threshold on.
An encoder of the same kind, trained on 25 of the 30 (the run in --run, made when it is missing), gives it: at a share
of --rate false accepts on pairs of drawings from the other five alphabets. That goes into the shipped encoder's
config.json, and so does a calibration on pairs from within one alphabet, which the recogniser starts from;
--recognition-only makes that alone. Then the shipped encoder is asked about pairs from the evaluation alphabets: false
accepts and false rejects at that threshold, AUC and equal error rate, to benchmarks/results/verification.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from machine import provenance
from rich.console import Console

from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder_files import CONFIG_FILE, SHIPPED, WEIGHTS_FILE
from fewshot.evaluation.embedded import embed_once
from fewshot.evaluation.threshold import Calibration, calibrate
from fewshot.evaluation.verification import labelled_pairs, similarity
from fewshot.omniglot.dataset import read_omniglot
from fewshot.training.config import SiameseConfig
from fewshot.training.train import train_omniglot
from fewshot.training.training_data import OmniglotSource, omniglot_data
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.progress import Display

RESULT = Path(__file__).parent / "results" / "verification.json"
PAIRS = 400_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--run", type=Path, default=Path("runs/omniglot/held-out-0"))
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--recognition-only", action="store_true", help="choose no threshold, measure nothing")
    args = parser.parse_args()
    if not (args.run / WEIGHTS_FILE).exists():
        recipe = SiameseConfig(side=40, early_side=32, minutes=22.0)
        train_omniglot(args.run, "lake", config=recipe, data=args.data, display=Display(Console()))
    path, held_out = SHIPPED["omniglot"] / CONFIG_FILE, Embedder.load(args.run)
    assert held_out.recognition is not None, "its training held alphabets out"
    write_json(path, read_json(path) | {"recognition": held_out.recognition})
    if args.recognition_only:
        return
    chosen = calibrated(held_out, args.data, args.rate)
    write_json(path, read_json(path) | {"verification": chosen.to_dict()})
    shipped = Embedder.load("omniglot")
    found = {
        "fingerprint": shipped.fingerprint,
        "chosen_by": held_out.fingerprint,
        "asked_false_accept_rate": args.rate,
        "threshold": chosen.threshold,
        "on_held_out_alphabets": {"false_reject_rate": chosen.false_reject_rate, "auc": chosen.auc, "eer": chosen.eer},
        "on_evaluation_alphabets": tested(shipped, chosen, args.data),
    }
    print(found)
    write_json(RESULT, found | provenance())


def calibrated(embedder: Embedder, data: Path | None, rate: float) -> Calibration:
    """On the alphabets that the encoder's training held out."""
    training_data = omniglot_data(read_omniglot(data, ("background",)), OmniglotSource("lake"), embedder.spec.side)
    assert training_data.held_out is not None, "this split holds alphabets out"
    rows, same = labelled_pairs(training_data.held_out.classes)
    vectors = embedder.embed_framed(training_data.held_out.pictures)
    return calibrate(similarity(vectors, rows), same, false_accept_rate=rate)


def tested(embedder: Embedder, chosen: Calibration, data: Path | None) -> dict[str, float]:
    embedded = embed_once(read_omniglot(data, ("evaluation",)), embedder.embed_drawings)
    rows, same = labelled_pairs(embedded.label, most=PAIRS)
    scores = similarity(embedded.vectors, rows)
    there = calibrate(scores, same)
    accepted = scores.numpy() >= chosen.threshold
    return {
        "false_accept_rate": float(accepted[~same.numpy()].mean()),
        "false_reject_rate": float(np.mean(~accepted[same.numpy()])),
        "auc": there.auc,
        "eer": there.eer,
        "pairs": len(rows),
    }


if __name__ == "__main__":
    main()
