"""
Too little and too much: under- and overfitting
===============================================

Has a network learned too little, or has it learned its training pictures by heart? This tutorial trains one network too
short and too long, shows how the curves tell the two apart, and measures what helps.
"""

# %%
# Few pictures, and some wrong labels
# -----------------------------------
#
# There are six training pictures of each handwritten digit, and one of the six has a wrong label, as in a folder that
# was sorted in a hurry. The labels of the validation and the test pictures are right.

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
from scipy.stats import binomtest

from finetune import Config, fit, write_digits

place = Path(mkdtemp())
write_digits(place / "digits", per_class=40)


def pictures_of(split, each):
    """Rows (path, label, split): `each` pictures of each digit."""
    digits = sorted((place / "digits" / split).iterdir())
    return [(path, digit.name, split) for digit in digits for path in sorted(digit.iterdir())[:each]]


measuring = pictures_of("val", 15) + pictures_of("test", 30)
right = pictures_of("train", 6)
hasty = [(path, str((int(label) + 3) % 10), split) for path, label, split in right[::6]]
hasty += [row for number, row in enumerate(right) if number % 6]


def train(pictures, **options):
    """The classifier, and an `EpochResult` for each epoch."""
    epochs = []
    shared = {
        "strategy": "scratch",
        "epochs": 16,
        "lr": 0.003,
        "batch_size": 10,
        "patience": 16,
        "label_smoothing": 0,
        "crop_scale": 1,
        "flip": False,
        "trivial_augment": False,
        "image_size": 16,
        "keep_features": False,
        "backbone": "fewtune_conv4",
        "device": "cpu",
        "workers": 0,
    }
    return fit(pictures + measuring, config=Config(**shared | options), on_epoch=epochs.append), epochs


def in_words(metrics):
    """The accuracy on the test pictures with its 95 % interval."""
    low, high = metrics["interval"]
    return f"{metrics['accuracy']:.1%} ({low:.1%} to {high:.1%})"


# %%
# Too short, and too long
# -----------------------
#
# The same network starts from random weights twice: three epochs at a low learning rate, and sixteen at a higher one.

short, short_epochs = train(hasty, epochs=3, lr=0.0001)
long, long_epochs = train(hasty)

figure, axes = plt.subplots(1, 2, figsize=(5.2, 3), sharey=True)
for axis, title, epochs in zip(axes, ("too short", "too long"), (short_epochs, long_epochs), strict=True):
    numbers = [each.epoch for each in epochs]
    axis.plot(numbers, [each.train_loss for each in epochs], marker=".", label="training")
    axis.plot(numbers, [each.val_loss for each in epochs], marker=".", label="validation")
    axis.set(title=title, xlabel="epoch", ylim=(0, 3.5))
axes[0].set(ylabel="loss", xticks=(1, 2, 3))
axes[1].legend()
for name, classifier in (("too short", short), ("too long", long)):
    print(
        f"{name}: training accuracy {classifier.metrics['train']['accuracy']:.0%}, test {in_words(classifier.metrics)}"
    )

# %%
# *Underfitting*: both losses are high, and the training loss still falls. Train longer, or at a higher rate.
# *Overfitting*: the training loss goes to zero, and the validation loss stays far above it. The network knows every
# training picture by heart, the wrong labels too. The gap between the curves is the sign, not the height of one of
# them.
#
# Stop early
# ----------
#
# ``fit`` measures the validation pictures after each epoch, keeps the weights of the best epoch, and ends the training
# after ``patience`` epochs without a better one.

best = long.metrics["best_epoch"]
figure, axis = plt.subplots()
axis.plot([each.epoch for each in long_epochs], [each.val_accuracy for each in long_epochs], marker="o")
axis.axvline(best, linestyle=":", color="gray", label=f"kept: epoch {best}")
axis.set(title="validation accuracy after each epoch", xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
axis.legend()
print(
    f"best epoch {long_epochs[best - 1].val_accuracy:.1%}, last epoch {long_epochs[-1].val_accuracy:.1%} (validation)"
)

# %%
# The curve is flat after the middle: the later epochs cost time and gain nothing. The accuracy of the best epoch is the
# largest of sixteen numbers that chance moves up and down, so it is a little too good. That is why the result of a run
# is measured on test pictures, which choose nothing.
#
# Remedies
# --------
#
# Each remedy makes it harder to learn by heart. *Crops* show another part of a picture each time. *Label smoothing*
# asks for less than certainty. *Weight decay* pulls the weights towards zero. The last training has no remedy but
# corrected labels. The bars are 95 % intervals of the accuracy on the test pictures.

remedies = {
    "none": (long, long_epochs),
    "crops": train(hasty, crop_scale=0.5),
    "label smoothing": train(hasty, label_smoothing=0.2),
    "weight decay": train(hasty, weight_decay=1.0),
    "right labels": train(right),
}
figure, (above, below) = plt.subplots(2, 1, figsize=(5.2, 5))
for position, (name, (classifier, epochs)) in enumerate(remedies.items()):
    above.plot([each.epoch for each in epochs], [each.val_loss for each in epochs], marker=".", label=name)
    below.plot(classifier.metrics["interval"], [-position] * 2, linewidth=3)
    below.plot(classifier.metrics["accuracy"], -position, "o", color=f"C{position}")
    print(f"{name:16} test {in_words(classifier.metrics)}")
above.set(title="validation loss", xlabel="epoch", ylabel="loss", ylim=(0, 3.5), xticks=range(2, 17, 2))
above.legend(ncols=2, fontsize=9)
below.set(title="accuracy on test pictures", yticks=[-n for n in range(len(remedies))], yticklabels=remedies)

# %%
# Compare each bar with the first one: where two bars overlap for the most part, the run does not show that the remedy
# helps. Corrected labels are the remedy that no option replaces.
#
# More pictures
# -------------
#
# The strongest remedies are pictures, and what a network has learned from other pictures. Here a linear head on a
# pretrained network learns from 1 to 40 pictures of each digit.

sizes = (1, 2, 5, 10, 20, 40)
options = {"strategy": "head", "backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
heads = [fit(pictures_of("train", size) + measuring, **options).metrics for size in sizes]

figure, axis = plt.subplots()
low, high = zip(*(metrics["interval"] for metrics in heads), strict=True)
axis.fill_between(sizes, low, high, alpha=0.2, color="C1")
axis.plot(sizes, [metrics["train"]["accuracy"] for metrics in heads], marker="o", label="training pictures")
axis.plot(sizes, [metrics["accuracy"] for metrics in heads], marker="o", label="test pictures (95 % interval)")
axis.set(title="a pretrained network, with more pictures", xscale="log", xticks=sizes, xticklabels=sizes)
axis.set(xlabel="training pictures of each digit", ylabel="accuracy", ylim=(0.4, 1.02))
axis.minorticks_off()
axis.legend(loc="lower right")

# %%
# The gap between the curves closes. Where it is closed, more pictures gain nothing, and a larger network may.
#
# Weights in between
# ------------------
#
# A training that starts from pretrained weights and a solved head can also lose by learning the wrong labels. The
# weights on the way from the start to the end form a line, and often a point between the ends is better than both.

options = {"strategy": "train", "image_size": None}
start, _ = train(hasty, **options, keep="trained", epochs=1, lr=1e-12)
trained, _ = train(hasty, **options, keep="trained", epochs=6, lr=0.001)
kept, _ = train(hasty, **options, keep="best", epochs=6, lr=0.001)

paths, labels = zip(*((path, label) for path, label, split in measuring if split == "test"), strict=True)
first = {name: value.clone() for name, value in start.network.state_dict().items()}
last = trained.network.state_dict()
figure, axis = plt.subplots()
for share in (0, 0.25, 0.5, 0.75, 1):
    between = {n: first[n].lerp(last[n], share) if last[n].is_floating_point() else last[n] for n in last}
    start.network.load_state_dict(between)
    hits = sum(answer.label == label for answer, label in zip(start.predict_all(paths), labels, strict=True))
    axis.plot([share, share], binomtest(hits, len(labels)).proportion_ci(method="wilson"), color="C0", linewidth=3)
    axis.plot(share, hits / len(labels), "o", color="C0")
axis.set(title="weights between start and end", xlabel="share of the way (0: start, 1: end)", ylabel="accuracy, test")
print(f"fit keeps: {kept.metrics['kept']}; test {in_words(kept.metrics)}")

# %%
# The intervals overlap: with 300 test pictures the line shows a direction and no proof. ``keep="best"``, the default,
# tries these points on the validation pictures, and the head alone, and keeps the best. With few pictures that is often
# the head: a training that cannot gain is not allowed to lose.
#
# What to take from it
# --------------------
#
# Look at both curves, never at one. First correct labels and get more pictures, then start from pretrained weights, and
# only then turn the options of regularisation.
#
# **When this does not hold.** A training loss that is measured on augmented pictures is higher than that of the
# pictures themselves: with strong augmentation it can lie above the validation loss, and that is no underfitting. The
# report measures the training pictures without augmentation. And a gap is no fault where the validation result is good
# enough.
#
# **Where the product does it.** The report of a run names the case ("Diagnosis"), shows the curves and the kept epoch,
# and says what to try next.
#
# .. code-block:: text
#
#    finetune fit photos/ --out runs/photos --strategy full --patience 5 --label-smoothing 0.1 --weight-decay 0.05
#    finetune inspect photos/
#
# From Python: ``fit`` with the same names, and ``on_epoch`` for curves of your own. How to: :doc:`/howto/use/report`,
# :doc:`/howto/data/check` and :doc:`/howto/data/few`. Why weights in between: :doc:`/why/strategies`.
