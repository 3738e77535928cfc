"""
Augmentation: when it helps and when it harms
=============================================

Which changes of a picture leave its class as it is? Augmentation shows a network changed copies of the training
pictures. This tutorial looks at the copies, and then measures one of them, the mirror, on two sets of pictures: on one
it helps, on the other it harms.
"""

# %%
# What each one does
# ------------------
#
# These are the transforms of torchvision that ``fit`` uses, on a photograph that comes with scikit-learn. A *crop*
# takes a part of the picture and enlarges it (``crop_scale`` is the smallest share of the area), a *flip* mirrors it,
# and *TrivialAugment* applies one random change of colour or shape. *Mixup* blends two pictures, and their labels with
# them.

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

from finetune import Config, fit, write_digits

place = Path(mkdtemp())
street, flower = (Image.fromarray(image).resize((128, 96)) for image in load_sample_images().images)
crop, colour = v2.RandomResizedCrop(96, scale=(0.35, 1.0)), v2.TrivialAugmentWide(fill=128)
changes = {
    "crop": crop,
    "flip": lambda picture: v2.RandomHorizontalFlip()(v2.CenterCrop(96)(picture)),
    "Trivial-\nAugment": lambda picture: colour(v2.CenterCrop(96)(picture)),
    "mixup": lambda picture: Image.blend(v2.CenterCrop(96)(picture), v2.CenterCrop(96)(street), float(torch.rand(1))),
}

torch.manual_seed(0)
figure, axes = plt.subplots(len(changes), 5, figsize=(5.2, 4.4))
for row, (name, change) in zip(axes, changes.items(), strict=True):
    for axis in row:
        axis.imshow(change(flower))
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, fontsize=9)
figure.suptitle("one photograph, five copies of each kind")

# %%
# A flower stays a flower in each of them. Now the same question for digits: the mirror of a 2 looks much like a 5, and
# a 6 that is turned by half a turn is a 9. TrivialAugment turns pictures too, by up to 135 degrees.

write_digits(place / "digits", per_class=10)
digits = {name: [Image.open(path) for path in sorted((place / "digits/train" / name).iterdir())] for name in "2569"}

mirrored = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in digits["2"]]
turned = [picture.rotate(180) for picture in digits["6"]]
columns = {"2": digits["2"], "2, mirrored": mirrored, "5": digits["5"], "6": digits["6"]}
columns |= {"6, turned": turned, "9": digits["9"]}

figure, axes = plt.subplots(2, 6, figsize=(5.2, 2.2))
for column, (name, shown) in zip(axes.T, columns.items(), strict=True):
    for axis, picture in zip(column, shown, strict=False):
        axis.imshow(picture, cmap="gray")
        axis.set_axis_off()
    column[0].set_title(name, fontsize=9)
figure.suptitle("changes that change the digit")

# %%
# Where the mirror harms
# ----------------------
#
# There are ten training pictures of each of four digits, and a network from random weights: ``--strategy head`` uses no
# augmentation, because it needs no training loop. The last row adds training pictures that are turned by half a turn.
# Each row has two trainings, with two seeds; the bars are 95 % intervals.


def accuracy(pictures, **options):
    """Accuracy on the test pictures with its 95 % interval."""
    config = Config(
        **{"flip": False, "trivial_augment": False, "crop_scale": 0.8} | options,
        strategy="scratch",
        backbone="fewtune_conv4",
        image_size=16,
        batch_size=10,
        epochs=10,
        val_fraction=0.2,
        keep_features=False,
        device="cpu",
        workers=0,
    )
    metrics = fit(pictures, config=config).metrics
    return metrics["accuracy"], metrics["interval"]


def compare(title, runs):
    """Draw the accuracy of each of `runs`, functions of a seed, with its interval for two seeds."""
    _, axis = plt.subplots(figsize=(5.2, 2.6))
    for position, (name, run) in enumerate(runs.items()):
        for seed in range(2):
            share, (low, high) = run(seed)
            y = -position - 0.2 * seed
            axis.plot([low, high], [y, y], color=f"C{position}", linewidth=3)
            axis.plot(share, y, "o", color=f"C{position}")
            print(f"{name.replace(chr(10), ' ')}, seed {seed}: {share:.1%} ({low:.1%} to {high:.1%})")
    axis.set(title=title, xlabel="accuracy on test pictures", yticks=[-0.1 - n for n in range(len(runs))])
    axis.set_yticklabels(runs, fontsize=9)


def rows(split, names, each=None):
    folders = [place / "digits" / split / name for name in names]
    return [(path, folder.name, split) for folder in folders for path in sorted(folder.iterdir())[:each]]


four = rows("train", "2569") + rows("val", "2569") + rows("test", "2569", 60)
(place / "turned").mkdir()
turned = []
for path, name, split in four:
    if split == "train":
        turned.append((place / "turned" / f"{name}-{path.name}", name, "train"))
        Image.open(path).rotate(180).save(turned[-1][0])

compare(
    "digits 2, 5, 6 and 9",
    {
        "no flip": lambda seed: accuracy(four, seed=seed),
        "flip": lambda seed: accuracy(four, seed=seed, flip=True),
        "no flip, with\nhalf turns": lambda seed: accuracy(four + turned, seed=seed),
    },
)

# %%
# The mirror and the half turn both cost accuracy: they teach that a picture which looks like a 5 may be a 2, and one
# that looks like a 9 may be a 6. No amount of training mends that, because the labels of the copies are wrong.
#
# Where the mirror helps
# ----------------------
#
# Four things are drawn as rough photographs. On all training pictures they face right, as if one person had taken them;
# on the test pictures they face both ways.

SHAPES = {
    "mug": lambda pen, ink: (pen.rectangle((14, 18, 38, 50), ink), pen.arc((30, 24, 52, 44), -90, 90, ink, 5)),
    "fish": lambda pen, ink: (pen.ellipse((18, 22, 54, 44), ink), pen.polygon(((22, 33), (8, 20), (8, 46)), ink)),
    "flag": lambda pen, ink: (pen.line((16, 10, 16, 56), ink, 4), pen.rectangle((16, 10, 50, 30), ink)),
    "boot": lambda pen, ink: (pen.rectangle((16, 10, 32, 50), ink), pen.rectangle((16, 40, 54, 54), ink)),
}


def photograph(name, random, mirrored):
    """A thing on a noisy ground, in random colours, turned a little."""
    ground, ink = random.integers(0, 110, 3), random.integers(140, 256, 3)
    canvas = Image.new("RGB", (64, 64), tuple(ground.tolist()))
    SHAPES[name](ImageDraw.Draw(canvas), tuple(ink.tolist()))
    canvas = canvas.rotate(random.uniform(-12, 12), fillcolor=tuple(ground.tolist()))
    canvas = canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else canvas
    return Image.fromarray(np.clip(np.asarray(canvas) + random.normal(0, 18, (64, 64, 3)), 0, 255).astype(np.uint8))


random = np.random.default_rng(0)
things = []
for split, each in (("train", 10), ("val", 10), ("test", 60)):
    for name in SHAPES:
        for number in range(each):
            things.append((place / "things" / split / f"{name}-{number:02d}.png", name, split))
            things[-1][0].parent.mkdir(parents=True, exist_ok=True)
            photograph(name, random, mirrored=split == "test" and number % 2 == 1).save(things[-1][0])

figure, axes = plt.subplots(2, 8, figsize=(5.2, 1.7))
for row, split in zip(axes, ("train", "test"), strict=True):
    shown = [path for path, name, where in things if where == split and path.stem[-2:] in ("00", "01")]
    for axis, path in zip(row, shown, strict=True):
        axis.imshow(Image.open(path))
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(split)
figure.suptitle("training pictures face right, test pictures both ways")

# %%
# The same network, with the same two seeds, learns these pictures.

compare(
    "things that face both ways",
    {
        "no flip": lambda seed: accuracy(things, seed=seed),
        "flip": lambda seed: accuracy(things, seed=seed, flip=True),
        "flip,\nTrivialAugment": lambda seed: accuracy(things, seed=seed, flip=True, trivial_augment=True),
    },
)

# %%
# Compare the first training of a row with the first of another, and the second with the second. The mirror turns each
# training picture into the pictures that the collection lacks. Between two seeds the accuracy differs by several
# points: with forty training pictures, a single run shows little, and a comparison needs its intervals.
#
# What to take from it
# --------------------
#
# Ask of each change: would a person still give the same name? Text, digits, arrows and the left and right hand say no
# to the mirror; most photographs say yes. Then measure, because a change can also be too strong to learn from.
#
# **When this does not hold.** With few pictures and a pretrained network, ``--strategy auto`` takes the head, and
# augmentation changes nothing. With many pictures, the collection has all views of its own, and augmentation gains
# less. Test pictures are never changed; ``--test-time flip`` averages a prediction over both mirror images, and harms
# where the mirror harms.
#
# **Where the product does it.** Crops, flips and TrivialAugment are on for strategies that train by gradient, mixup is
# off. Switch off what changes the class:
#
# .. code-block:: text
#
#    finetune fit digits/ --out runs/digits --strategy full --no-flip --no-trivial-augment --crop-scale 0.6
#    finetune fit photos/ --out runs/photos --strategy full --mixup 0.2
#
# From Python, the same names: ``fit(..., flip=False, trivial_augment=False, crop_scale=0.6, mixup=0.2)``. Every option
# with its default: :doc:`/reference/generated/commands/finetune-fit`. With few pictures, other things help more:
# :doc:`/howto/data/few`.
