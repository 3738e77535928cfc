"""Pretrain fewtune_conv4, the encoder that ships with the package, on Omniglot's background set.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/pretrain_conv4.py --minutes 20

Data     $FEWTUNE_DATA/omniglot/images_background.zip (or --data FOLDER) alone: 25 alphabets to train on, and the 5 of
         VALIDATION, held out, to choose the recipe on.
Recipe   every character in four rotations is a class; softmax over cosines; affine distortion, stroke thickness,
         resolution, ink and paper colours drawn anew for every picture; AdamW, cosine schedule over the time given.
Machine  2 shared cores of an AMD EPYC (bfloat16), torch 2.15. The environment variable keeps torch's threads from
         spinning while they wait for one another on busy cores (1,270 pictures/s instead of 670, compared once).
Result   20 minutes, 7,632 steps of 128 pictures, seed 0, one run: 80.3 % within-alphabet 20-way one-shot on VALIDATION
         (benchmarks/results/pretrain_conv4.json). The schedule follows the clock, so another run differs a little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import provenance
from PIL import Image
from torch import Tensor, nn

from finetune.files.writing import write_json, write_tensors
from finetune.models.conv4 import WEIGHTS, fewtune_conv4

# Fixed before the first run: 188 characters in all, at least 20 in each alphabet.
VALIDATION = ("Bengali", "Futurama", "Hebrew", "Japanese_(hiragana)", "Sanskrit")
RESULT = Path(__file__).parent / "results" / "pretrain_conv4.json"

SIDE = 35  # what the network sees
FINE = 70  # what distortions are computed on
CHUNK = 16  # pictures of a batch that share a thickness and a resolution, which convolve whole batches

# --- data -------------------------------------------------------------------------------------------------------------


def read_background(path: Path) -> dict[str, Tensor]:
    """Ink, 0 to 255, as uint8 (characters, 20 drawers, 70, 70) for every alphabet."""
    drawings: dict[str, dict[str, list[Any]]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(".png"):
                continue
            _, alphabet, character, _ = name.split("/")
            with archive.open(name) as file, Image.open(file) as picture:
                ink = Image.fromarray(255 - np.array(picture.convert("L")))
            pixels = np.array(ink.resize((FINE, FINE), Image.Resampling.BOX))
            drawings.setdefault(alphabet, {}).setdefault(character, []).append(pixels)
    return {
        alphabet: torch.from_numpy(np.stack([np.stack(characters[name]) for name in sorted(characters)]))
        for alphabet, characters in drawings.items()
    }


# --- distortions ------------------------------------------------------------------------------------------------------


def uniform(n: int, low: float, high: float) -> Tensor:
    return torch.empty(n).uniform_(low, high)


def maps(n: int, quarter_turns: Tensor) -> Tensor:
    """Random affine maps (n, 2, 3) on top of the quarter turns (n,): rotation, shear, scale, translation."""
    angle = quarter_turns * (math.pi / 2) + uniform(n, -0.3, 0.3)
    shear = uniform(n, -0.4, 0.4)
    size = torch.exp(uniform(n, -0.5, 0.3))  # of the source seen: below 1 enlarges the character
    width, height = size * torch.exp(uniform(n, -0.2, 0.2)), size * torch.exp(uniform(n, -0.2, 0.2))
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * width, cos * shear * height - sin * height, uniform(n, -0.2, 0.2)], 1),
        torch.stack([sin * width, sin * shear * height + cos * height, uniform(n, -0.2, 0.2)], 1),
    ]
    return torch.stack(rows, 1)


def thicken(ink: Tensor) -> Tensor:
    """Strokes 0 to 8 fine pixels wider, one width a chunk, thin ones more often."""
    grown = []
    for part in torch.split(ink, CHUNK):
        radius = min(int(torch.empty(()).exponential_(0.8)), 4)
        if radius:
            part = F.max_pool2d(part, (2 * radius + 1, 1), 1, (radius, 0))
            part = F.max_pool2d(part, (1, 2 * radius + 1), 1, (0, radius))
        grown.append(part)
    return torch.cat(grown)


def coarsen(ink: Tensor, share: float = 0.5) -> Tensor:
    """(n, 1, 35, 35), with a `share` of the chunks passed through 7 to 24 pixels and back."""
    parts = []
    for part in torch.split(ink, CHUNK):
        if float(torch.rand(())) < share:
            part = through(part, int(torch.randint(7, 25, ())))
        parts.append(part)
    return torch.cat(parts)


def through(ink: Tensor, side: int) -> Tensor:
    """Ink (n, 1, 35, 35) as a scanner of side x side pixels would have seen it."""
    small = F.interpolate(ink, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)


def paint(ink: Tensor) -> Tensor:
    """Ink on paper (n, 3, 35, 35), in [-1, 1]: dark on light or light on dark, grey or slightly coloured."""
    n = len(ink)
    strength = ink * uniform(n, 0.7, 1.6).view(n, 1, 1, 1)
    ink = strength.clamp(max=1)
    dark, light = uniform(n, -1, -0.4), uniform(n, 0.4, 1)
    swap = torch.rand(n) < 0.5
    pen, paper = torch.where(swap, light, dark), torch.where(swap, dark, light)
    tint = torch.randn(n, 3) * 0.15 * (torch.rand(n, 1) < 0.5)
    pen3 = (pen[:, None] + tint).clamp(-1, 1)[:, :, None, None]
    paper3 = (paper[:, None] + tint.roll(1, 1)).clamp(-1, 1)[:, :, None, None]
    return paper3 + ink * (pen3 - paper3)


def distort(ink: Tensor, quarter_turns: Tensor) -> Tensor:
    """Ink, uint8 (n, 70, 70), to training pictures (n, 3, 35, 35)."""
    fine = thicken(ink[:, None].float().div_(255))
    grid = F.affine_grid(maps(len(ink), quarter_turns.float()), [len(ink), 1, FINE, FINE], align_corners=False)
    fine = F.grid_sample(fine, grid, align_corners=False)
    return paint(coarsen(F.avg_pool2d(fine, 2))).contiguous(memory_format=torch.channels_last)


# --- validation -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def one_shot_accuracy(
    model: nn.Module, alphabets: list[Tensor], *, side: int = SIDE, chalk: bool = False, episodes: int = 100
) -> float:
    """20-way one-shot accuracy within held-out alphabets: nearest by cosine, two different drawers, fixed episodes.

    side: pixels that the pictures are passed through first. chalk: white on black instead of black on white.
    """
    model.eval()
    random = np.random.default_rng(0)
    right = []
    for drawings in alphabets:
        characters, drawers = drawings.shape[:2]
        ink = F.avg_pool2d(drawings.flatten(0, 1)[:, None].float().div_(255), 2)
        pictures = (ink if side == SIDE else through(ink, side)).mul(2).sub(1) * (1 if chalk else -1)
        pictures = pictures.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = F.normalize(model(pictures).float()).view(characters, drawers, -1)
        for _ in range(episodes):
            chosen = torch.from_numpy(random.choice(characters, 20, replace=False))
            first, second = random.choice(drawers, 2, replace=False)
            nearest = (vectors[chosen, second] @ vectors[chosen, first].T).argmax(1)
            right.append((nearest == torch.arange(20)).float().mean().item())
    return float(np.mean(right))


def validate(model: nn.Module, alphabets: list[Tensor]) -> dict[str, float]:
    return {
        "one_shot": one_shot_accuracy(model, alphabets),
        "one_shot_white_on_black": one_shot_accuracy(model, alphabets, chalk=True),
        "one_shot_8_pixels": one_shot_accuracy(model, alphabets, side=8),
    }


# --- training ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FEWTUNE_DATA", ".")) / "omniglot")
    parser.add_argument("--minutes", type=float, default=20, help="of training; validation is not counted")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--scale", type=float, default=20, help="inverse temperature of the cosines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    alphabets = read_background(args.data / "images_background.zip")
    held_out = [alphabets.pop(name) for name in VALIDATION]
    drawings = torch.cat(list(alphabets.values()))
    characters, drawers = drawings.shape[:2]
    ink = drawings.flatten(0, 1)
    print(f"{characters} characters of {len(alphabets)} alphabets, {len(ink)} drawings, 4 rotations each", flush=True)

    model = fewtune_conv4(num_classes=0).to(memory_format=torch.channels_last)
    # Features are never negative; centred, their cosines spread over the sphere and the first steps already learn.
    neck = nn.BatchNorm1d(model.head_hidden_size, affine=False)
    classes = nn.Linear(model.head_hidden_size, characters * 4, bias=False)
    optimizer = torch.optim.AdamW([*model.parameters(), *classes.parameters()], weight_decay=0.02)
    history: list[dict[str, float]] = []
    budget, spent, steps, recent = args.minutes * 60, 0.0, 0, []
    next_look = budget / 10

    while spent < budget:
        started = time.perf_counter()
        progress = spent / budget
        rate = args.learning_rate * min(1.0, progress / 0.03 + 0.01) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        picked = torch.randint(len(ink), (args.batch,))
        turns = torch.randint(4, (args.batch,))
        target = (picked // drawers) * 4 + turns
        with torch.autocast("cpu", torch.bfloat16):
            features = model(distort(ink[picked], turns))
            cosines = F.linear(F.normalize(neck(features.float())), F.normalize(classes.weight))
        loss = F.cross_entropy(cosines.float() * args.scale, target)
        if not math.isfinite(loss.item()):
            sys.exit(f"the loss is {loss.item()} at step {steps}")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        steps += 1
        recent.append(loss.item())
        spent += time.perf_counter() - started

        if spent >= next_look:
            next_look += budget / 10
            row = {"step": steps, "minutes": round(spent / 60, 2), "loss": round(float(np.mean(recent)), 3)}
            row |= {name: round(value, 4) for name, value in validate(model, held_out).items()}
            history.append(row)
            recent = []
            print(json.dumps(row), f"{steps * args.batch / spent:.0f} pictures/s", flush=True)

    metadata = {"model": "fewtune_conv4", "data": "Omniglot background set", "seed": str(args.seed)}
    write_tensors(args.weights, model.state_dict(), metadata)
    result = {
        **provenance(),
        "seed": args.seed,
        "minutes": args.minutes,
        "steps": steps,
        "batch": args.batch,
        "pictures_per_second": round(steps * args.batch / spent),
        "validation_alphabets": list(VALIDATION),
        "validation": validate(model, held_out),
        "history": history,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    write_json(args.result, result)
    print(json.dumps(result["validation"]))


if __name__ == "__main__":
    main()
