"""
Calibrated, unsure, unknown
===========================

How far can a probability be trusted? Three questions are kept apart here: is a probability of 90 % right nine times in
ten (*calibrated*), is the classifier between two of its classes (*unsure*), and is the picture like none of its classes
(*unknown*)?
"""

# %%
# Eight classes, and pictures of something else
# ---------------------------------------------
#
# The classifier learns the digits 0 to 7: ten pictures of each, and forty of each to calibrate on. The digits 8 and 9
# are unknown to it, and near its classes. Patches of the photographs that come with scikit-learn are unknown, and far.

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from finetune import Config, fit, write_digits

place = Path(mkdtemp())
write_digits(place / "digits", per_class=40)


def pictures_of(source, digits, each):
    """Pairs (path, digit), `each` pictures of each digit in the folder `source`."""
    folders = [place / "digits" / source / str(digit) for digit in digits]
    return [(path, folder.name) for folder in folders for path in sorted(folder.iterdir())[:each]]


known = range(8)
test = pictures_of("test", known, 60)
near = [path for path, _ in pictures_of("test", (8, 9), 60)]
photographs = load_sample_images().images
far = [image[y : y + 64, x : x + 64] for image in photographs for y in range(0, 384, 64) for x in range(0, 640, 64)]

figure, axes = plt.subplots(3, 8, figsize=(5.2, 2.4))
shown = ([path for path, _ in test[::60]], near[::15], far[::15])
for row, pictures, name in zip(axes, shown, ("known", "near", "far"), strict=True):
    for axis, picture in zip(row, pictures, strict=True):
        axis.imshow(picture if isinstance(picture, np.ndarray) else Image.open(picture), cmap="gray")
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
figure.suptitle("test pictures: known classes, near and far unknown ones")

# %%
# Calibrated
# ----------
#
# A network that is trained for long on few pictures becomes too confident. ``label_smoothing=0`` and
# ``keep="trained"`` let that happen here. ``fit`` then finds one number on the validation pictures, the *temperature*,
# and divides all log-probabilities by it.

rows = [(*row, "train") for row in pictures_of("train", known, 10)]
rows += [(*row, "val") for row in pictures_of("val", known, 40)]
rows += [(*row, "test") for row in test]
config = Config(
    backbone="fewtune_conv4",
    strategy="train",
    keep="trained",
    epochs=10,
    lr=0.003,
    label_smoothing=0,
    flip=False,
    trivial_augment=False,
    crop_scale=1,
    device="cpu",
    workers=0,
)
classifier = fit(rows, place / "run", config=config)

answers = classifier.predict_all([path for path, _ in test], top=len(known))
after = np.array([[dict(answer.top)[name] for name in classifier.classes] for answer in answers])
before = after**classifier.temperature
before /= before.sum(axis=1, keepdims=True)
truth = np.array([classifier.classes.index(label) for _, label in test])

bins = np.array([0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.01])
figure, axis = plt.subplots(figsize=(4.4, 3.8))
axis.plot([0, 1], [0, 1], ":", color="gray", label="calibrated")
for name, probabilities in (("before", before), ("after", after)):
    claimed, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    part = np.digitize(claimed, bins)
    groups = [part == each for each in np.unique(part)]
    axis.plot([claimed[g].mean() for g in groups], [right[g].mean() for g in groups], marker="o", label=name)
    print(f"{name:6} mean probability {claimed.mean():.1%}, right {right.mean():.1%}, {[int(g.sum()) for g in groups]}")
axis.set(title="reliability before and after the temperature", xlabel="probability", ylabel="share that is right")
axis.legend()
found = classifier.metrics["calibration"]
print(
    f"temperature {found['temperature']:.2f}: calibration error {found['ece_before']:.1%} -> {found['ece_after']:.1%}"
)

# %%
# Each dot is a group of test pictures with similar probabilities; the lists say how many each has. Below the dotted
# line the network promises more than it keeps. A temperature above 1 lowers all probabilities together. It changes no
# answer, only how sure it is, so the share that is right stays the same.
#
# Unsure
# ------
#
# Now the probability can serve: leave the doubtful pictures to a person. The curve shows how many of the answers are
# wrong, if only the most probable share of the pictures is answered.

claimed, right = after.max(axis=1), after.argmax(axis=1) == truth
order = np.argsort(-claimed)
wrong = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
sure = (claimed >= 0.9).mean()

figure, axis = plt.subplots()
axis.plot(np.arange(1, len(order) + 1) / len(order), wrong)
axis.axvline(sure, linestyle=":", color="gray", label="min_probability=0.9")
axis.set(title="wrong answers, by share of pictures answered", xlabel="share answered", ylabel="share of answers wrong")
axis.legend(loc="upper left")
marked = classifier.predict_all([path for path, _ in test], min_probability=0.9)
print(f"unsure at 0.9: {sum(answer.unsure for answer in marked)} of {len(marked)}")
print(f"wrong: {(~right).mean():.1%} of all answers, {(~right[claimed >= 0.9]).mean():.1%} of those that are sure")

# %%
# Unknown
# -------
#
# A probability says nothing about pictures of another kind: it compares the classes with each other, and one of them
# always wins. ``false_accept_rate`` compares the picture with the classes themselves. Each dot is a picture: to the
# right the classifier is sure, at the top the picture is like none of the classes.

kinds = {"known": [path for path, _ in test], "near": near, "far": far}
asked = {name: classifier.predict_all(pictures, false_accept_rate=0.1) for name, pictures in kinds.items()}

figure, axis = plt.subplots(figsize=(5.2, 3.8))
for marker, (name, answers) in zip("o^x", asked.items(), strict=True):
    x, y = [answer.probability for answer in answers], [answer.unknown_score for answer in answers]
    axis.scatter(x, y, s=14, marker=marker, alpha=0.6, label=name)
passed = [answer.unknown_score for answers in asked.values() for answer in answers if not answer.unknown]
axis.axhline(max(passed), linestyle=":", color="gray", label="above: unknown")
axis.set(title="sure and known are two things", xlabel="probability of the answer", ylabel="unlike the classes")
figure.legend(loc="outside lower center", ncols=4, fontsize=9)


def table():
    """Print how many of each group are unsure, unknown, or both."""
    print("       neither  unsure  unknown   both")
    for name, pictures in kinds.items():
        answers = classifier.predict_all(pictures, min_probability=0.9, false_accept_rate=0.1)
        pairs = [(answer.unsure, answer.unknown) for answer in answers]
        counts = [pairs.count(pair) for pair in ((False, False), (True, False), (False, True), (True, True))]
        print(f"{name:6}" + "".join(f"{count / len(pairs):8.0%}" for count in counts))


table()

# %%
# The table counts each picture once. *Unsure* is about the classes: a badly written 4 is unsure, and known. *Unknown*
# is about the picture: it may be unlike every class, and still one class wins clearly. Only the second word refuses
# those. A rate has a price, too: some pictures of the classes are refused.
#
# Background pictures
# -------------------
#
# The threshold comes from the classes: each is held out in turn, and plays the unknown one. If pictures of what comes
# in use are at hand, they say more. Here, forty other pictures of 8 and 9 serve as such a background.

classifier.learn_background([path for path, _ in pictures_of("val", (8, 9), 20)])
table()

# %%
# What to take from it
# --------------------
#
# Calibrate before you believe a probability; ``fit`` does it where there are validation pictures. Answer "unsure" for
# pictures that a person should look at, and "unknown" for pictures that do not belong here. A system in use needs both.
#
# **When this does not hold.** The temperature is fitted on the validation pictures, and holds for pictures like them:
# in other light, or from another camera, the classifier may be too confident again. The rate of unknown pictures holds
# on average over unknown classes that are as different from the classes as the classes are from each other; a class
# that is more alike passes more often. Forty background pictures leave a wide interval.
#
# **Where the product does it.**
#
# .. code-block:: text
#
#    finetune predict runs/photos new/ --target-error 0.02
#    finetune predict runs/photos new/ --min-probability 0.9
#    finetune predict runs/photos new/ --false-accept-rate 0.05 --background other/
#
# ``--target-error`` chooses the probability for you, with a confidence of 95 %, from the validation pictures of the
# run. From Python: ``predict_all(..., min_probability=0.9, false_accept_rate=0.05)`` and ``learn_background``. How to:
# :doc:`/howto/use/unsure` and :doc:`/unknown`.
