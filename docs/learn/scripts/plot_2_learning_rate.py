"""
The learning rate and its schedule
==================================

How far should the weights move in each training step? This tutorial trains one network at five learning rates, asks
whether a quick test finds a good one, changes the rate during the training, and gives lower stages lower rates.
"""

# %%
# The pictures and the network
# ----------------------------
#
# There are ten pictures of each handwritten digit to train on, and fifteen of each to measure the training on. The
# network is small and starts from random weights (``strategy="scratch"``), because the rate matters most there.

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np

from finetune import Config, find_rate, fit, write_digits

place = Path(mkdtemp())
write_digits(place / "digits", per_class=10)


def pictures_of(source, split, each):
    """Rows (path, label, split): `each` pictures of each digit in the folder `source`."""
    digits = sorted((place / "digits" / source).iterdir())
    return [(path, digit.name, split) for digit in digits for path in sorted(digit.iterdir())[:each]]


pictures = pictures_of("train", "train", 10) + pictures_of("test", "val", 15)


def config(**options):
    """Options that all trainings share, and `options`."""
    shared = {
        "strategy": "scratch",
        "epochs": 5,
        "batch_size": 10,
        "patience": 5,
        "image_size": 16,
        "crop_scale": 0.6,
        "flip": False,  # a mirrored 2 is no 2
        "trivial_augment": False,
        "test_fraction": 0,
        "keep_features": False,
        "backbone": "fewtune_conv4",
        "device": "cpu",
        "workers": 0,
    }
    return Config(**shared | options)


def train(**options):
    """Train, and return an `EpochResult` for each epoch."""
    epochs = []
    fit(pictures, config=config(**options), on_epoch=epochs.append)
    return epochs


def loss_by_epoch(axis, epochs, name):
    """Draw the training loss."""
    axis.plot([each.epoch for each in epochs], [each.train_loss for each in epochs], marker="o", label=name)


# %%
# One training at five rates
# --------------------------
#
# Each step moves the weights against the gradient, by an amount that the learning rate sets. The loss is the mean
# negative logarithm of the probability of the right class: 2.3 is guessing among ten digits, 0 is perfect.

rates = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
runs = {rate: train(lr=rate) for rate in rates}

figure, axis = plt.subplots()
for rate, epochs in runs.items():
    loss_by_epoch(axis, epochs, f"rate {rate:g}")
axis.axhline(np.log(10), linestyle=":", color="gray")
axis.set(title="training loss at five learning rates (dotted: guessing)", xlabel="epoch", ylabel="training loss")
axis.set(ylim=(0, 5), xticks=range(1, 6))
figure.legend(loc="outside lower center", ncols=3)

# %%
# At the lowest rate the loss falls, but slowly: the training ends before it has arrived. At the highest rates the first
# steps throw the weights far away, the loss starts above guessing, and the rest of the training goes into the way back.
#
# A grid, and a quick test
# ------------------------
#
# A *grid* runs whole trainings and compares their validation loss. A *range test* takes 50 steps while the rate rises,
# and suggests the rate where the loss falls fastest (``lr="auto"``). It costs a fraction of the grid, but it sees the
# first steps alone: neither the end of the training nor the validation pictures. So it is checked against the grid.

sweep = find_rate(pictures, config=config())
final = [epochs[-1].val_loss for epochs in runs.values()]

figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(5.2, 4.6))
above.plot(sweep.rates, sweep.smoothed)
above.set(title="range test: loss of 50 steps at rising rates", ylabel="training loss", ylim=(0, 5))
below.plot(rates, final, marker="o")
below.set(title="grid: validation loss of whole trainings", ylabel="validation loss", xlabel="learning rate")
below.set(xscale="log", ylim=(0, 5))
for axis in (above, below):
    if sweep.suggestion is not None:
        axis.axvline(sweep.suggestion, linestyle=":", color="gray", label=f"suggestion {sweep.suggestion:.2g}")
        axis.legend()
for rate, epochs in runs.items():
    print(f"rate {rate:g}: validation loss {epochs[-1].val_loss:.2f}, accuracy {epochs[-1].val_accuracy:.0%}")

# %%
# The grid is a valley: rates in its floor, about a factor of ten wide, are nearly equally good, and far
# from it every rate is bad. A suggestion is good if it lies in the valley; it need not be the lowest point of the grid.
#
# Warm-up and cosine
# ------------------
#
# One rate need not fit the whole training. ``fit`` raises the rate during the *warm-up* and then lowers it along half a
# *cosine* to zero: long steps while the way is long, short ones at the end. The crosses are the rates that the training
# above used at the end of its epochs.


def schedule(step, steps, warmup):
    """Share of the full rate."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))


figure, axis = plt.subplots()
for warmup in (0, 5, 20):
    axis.plot([schedule(step, 50, warmup) for step in range(50)], label=f"warm-up of {warmup} steps")
ends = [10 * each.epoch - 1 for each in runs[0.01]]
axis.plot(ends, [each.lr / 0.01 for each in runs[0.01]], "x", color="black", label="the training at rate 0.01")
axis.set(title="share of the full learning rate", xlabel="step", ylabel="share", ylim=(0, 1.5))
axis.legend(ncols=2, fontsize=9)

# %%
# Does a warm-up matter? At a rate that is too high it does. Each line is a training at rate 0.1, for two seeds.

figure, axis = plt.subplots()
for colour, warmup in (("C0", 0), ("C1", 0.4)):
    for seed in range(2):
        epochs = train(lr=0.1, warmup=warmup, seed=seed)
        axis.plot([each.epoch for each in epochs], [each.train_loss for each in epochs], marker="o", color=colour)
        print(f"warm-up {warmup:.0%}, seed {seed}: validation loss {epochs[-1].val_loss:.2f}")
    axis.lines[-1].set_label(f"warm-up {warmup:.0%} of the steps")
axis.set(title="rate 0.1, with and without a warm-up", xlabel="epoch", ylabel="training loss", xticks=range(1, 6))
axis.legend()

# %%
# The first gradients of a random network are large and point anywhere. A warm-up takes small steps while that lasts.
#
# Lower stages, lower rates
# -------------------------
#
# A pretrained network knows strokes and edges in its lower stages, which every task needs. *Discriminative rates*
# protect them: each stage gets the rate of the stage above it times ``stage_decay``. The rate is high here, to show the
# damage, and ``keep="trained"`` shows the trained network even where the head alone is better.

stages = list(sweep.stages)  # from the lowest to the head
figure, (above, below) = plt.subplots(2, 1, figsize=(5.2, 4.8))
for decay in (1.0, 0.7, 0.3):
    above.plot(stages, 0.003 * decay ** np.arange(len(stages))[::-1], marker="o", label=f"stage_decay {decay:g}")
    epochs = train(strategy="full", keep="trained", stage_decay=decay, lr=0.003, image_size=None)
    below.plot([each.epoch for each in epochs], [each.val_loss for each in epochs], marker="o")
    print(f"stage_decay {decay:g}: validation loss {epochs[-1].val_loss:.2f}, accuracy {epochs[-1].val_accuracy:.0%}")
above.set(title="rate of each stage", yscale="log", ylabel="learning rate")
above.legend(fontsize=9)
below.set(title="from pretrained weights", xlabel="epoch", ylabel="validation loss", xticks=range(1, 6))

# %%
# All three start from the same weights and the same head. Compare the first epochs: with one rate for all stages, they
# do the most damage. The decay matters while the rate is high; at the end of the cosine the curves come near each
# other.
#
# What to take from it
# --------------------
#
# Search the rate by factors of three or ten, not by tenths: the valley is wide and its walls are steep. Warm up. From
# pretrained weights, give the lower stages less.
#
# **When this does not hold.** The valley moves with the batch size, the optimiser (SGD needs about 30 times the rate of
# AdamW), the pictures and the length of the training: a good rate is no constant of a network. With a hundred
# validation pictures, neighbours in the grid differ by chance; two seeds show more than two digits.
#
# **Where the product does it.** ``strategy="head"`` has no learning rate. Every other strategy has a rate of its own, a
# warm-up and a cosine, so that none of this is needed to start.
#
# .. code-block:: text
#
#    finetune lr-find photos/ --strategy full
#    finetune fit photos/ --out runs/photos --strategy full --lr auto --warmup 0.1 --stage-decay 0.7
#
# From Python: ``find_rate`` and ``fit(..., lr="auto")``. How to: :doc:`/howto/train/learning-rate`.
