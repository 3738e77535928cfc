"""
The four strategies and the probe curve
=======================================

How much of a pretrained network should learn your pictures? This tutorial fits four strategies on ten pictures of each
handwritten digit, and looks inside the network to see why they differ.
"""

# %%
# The pictures
# ------------
#
# ``write_digits`` writes the digits of scikit-learn to a folder with one sub-folder for each class, the layout that
# every command reads: ten pictures of each digit to train on, ten to choose between settings, and all others to
# test.

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
from PIL import Image

from finetune import Config, fit, probe_folder, write_digits

place = Path(mkdtemp())
write_digits(place / "digits", per_class=10)

figure, axes = plt.subplots(2, 10, figsize=(5.2, 1.6))
for row, split in zip(axes, ("train", "test"), strict=True):
    for digit, axis in enumerate(row):
        path = min((place / "digits" / split / str(digit)).iterdir())
        axis.imshow(Image.open(path), cmap="gray")
        axis.set_axis_off()
figure.suptitle("first row: training pictures; second row: test pictures")

# %%
# What the network knows already
# ------------------------------
#
# ``fewtune_conv4`` was trained on handwritten characters of 30 alphabets, never on digits. A *linear probe* asks
# how much it knows: take the activations at one depth, fit a linear classifier on them, and measure it on pictures
# that it was not fitted on. The curve over all depths is the first thing to look at before training.

curve = probe_folder(place / "digits", config=Config(backbone="fewtune_conv4", device="cpu"))
names = [probe.depth for probe in curve.probes]
accuracy = [probe.accuracy for probe in curve.probes]
low, high = zip(*(probe.interval for probe in curve.probes), strict=True)

figure, axis = plt.subplots()
axis.fill_between(names, low, high, alpha=0.2, label="95 % interval")
axis.plot(names, accuracy, marker="o", label="linear probe")
axis.axhline(0.1, linestyle=":", color="gray", label="guessing")
axis.set(title="the probe curve", xlabel="depth of the network", ylabel="accuracy, held out", ylim=(0, 1.02))
axis.legend(loc="lower right")

# %%
# The curve rises from the pixels on: every block makes the digits easier to separate. If it fell at the end, the
# last blocks would be too special for the pictures; then it would pay to train them, or to leave them out
# (``--drop-above``).
print(f"best depth: {curve.best.depth}; different from the pretraining data: {curve.different}")

# %%
# Four strategies
# ---------------
#
# - ``head``: the network stays as it is; only a linear classifier is solved. No training loop.
# - ``partial``: the head first, then the upper stages.
# - ``full``: the head first, then all stages, lower ones at lower learning rates.
# - ``train``: all stages at one learning rate.
#
# ``keep="trained"`` keeps what each strategy trained, even where the head is better, so that they can be compared.

results = {}
for strategy in ("head", "partial", "full", "train"):
    config = Config(
        backbone="fewtune_conv4",
        strategy=strategy,
        keep="best" if strategy == "head" else "trained",
        epochs=None if strategy == "head" else 8,
        flip=False,  # a mirrored 2 is no 2
        trivial_augment=False,
        crop_scale=0.6,
        device="cpu",
        workers=0,
    )
    results[strategy] = fit(place / "digits", place / strategy, config=config).metrics

figure, axis = plt.subplots()
for position, metrics in enumerate(results.values()):
    low, high = metrics["interval"]
    axis.plot([position, position], [low, high], color="C0", linewidth=3)
    axis.plot(position, metrics["accuracy"], "o", color="C0")
    axis.annotate(f"{metrics['accuracy']:.1%}", (position + 0.08, metrics["accuracy"]))
axis.set(title="four strategies, each with its 95 % interval", ylabel="accuracy on test pictures")
axis.set(xticks=range(len(results)), xticklabels=results, xlim=(-0.5, 3.8))
for strategy, metrics in results.items():
    print(f"{strategy:8} {metrics['accuracy']:.1%}  ({metrics['interval'][0]:.1%} to {metrics['interval'][1]:.1%})")

# %%
# What to take from it
# --------------------
#
# With ten pictures of each class, the head is as good as any of them, and needs no training loop: so few pictures
# leave more training nothing to gain. That is why ``--strategy auto`` takes the head here. A strategy whose interval
# lies below that of the head has lost something that the pretrained network knew.
#
# **When this does not hold.** With hundreds of pictures of each class, or with pictures unlike those of the
# pretraining, the order changes: :doc:`the tables </numbers/accuracy>` have four data sets with 1 to 50 pictures of
# each class.
#
# **Where the product does it.** ``fit`` draws the probe curve into its report, and chooses the strategy by it and by
# the number of pictures. On the command line:
#
# .. code-block:: text
#
#    finetune probe photos/
#    finetune fit photos/ --out runs/photos --strategy full
#
# :doc:`/why/strategies` has the reasons, :doc:`/howto/data/few` and :doc:`/howto/train/backbone` say how.
