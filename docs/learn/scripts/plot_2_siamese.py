"""
A Siamese network and the contrastive loss, from scratch
========================================================

A classifier learns the classes that it was shown. A *Siamese network* learns when two pictures show the same thing, and
can then compare classes that it never saw: one example of each is enough. Here it is in about 60 lines, on characters
that a program invents; then the same with ``fewshot train``.
"""

# %%
# Characters that nobody knows
# ----------------------------
#
# A character is three strokes, each a smooth curve through random points. Every drawing of it moves the points a
# little, as a hand does. There are as many characters as we like.

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from torch import nn

SIDE = 28
torch.manual_seed(0)
torch.set_num_threads(1)
random = np.random.default_rng(0)


def draw(strokes):
    """One drawing (28, 28) of a character, ink 1: its points, moved and turned a little."""
    moved = strokes + random.normal(0, 0.035, strokes.shape)
    angle, scale = random.normal(0, 0.2), random.normal(1, 0.1)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = moved @ turn + random.normal(0, 0.1, 2)
    image = Image.new("L", (4 * SIDE, 4 * SIDE))
    t = np.linspace(0, 1, 12)[:, None]
    for a, b, c in moved:
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        ImageDraw.Draw(image).line([tuple((point + 1) * 2 * SIDE) for point in curve], fill=255, width=9)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1)).resize((SIDE, SIDE)), np.float32) / 255


def characters(count, each):
    """Drawings (count, each, 28, 28) of new characters."""
    shapes = random.uniform(-0.75, 0.75, (count, 3, 3, 2))
    return torch.from_numpy(np.stack([[draw(strokes) for _ in range(each)] for strokes in shapes]))


train, test = characters(100, 8), characters(40, 8)
figure, axes = plt.subplots(3, 8, figsize=(8, 3))
for row, drawings in zip(axes, train, strict=False):
    for axis, drawing in zip(row, drawings, strict=True):
        axis.imshow(1 - drawing, cmap="gray")
        axis.set_axis_off()
figure.suptitle("three characters, eight drawings of each")

# %%
# One-shot accuracy
# -----------------
#
# Twenty characters, one example of each, and one new drawing of each to name by its nearest example. This is
# measured on characters that no training saw. In pixels, the nearest example is often wrong: the same character,
# moved a little, is far away.


def one_shot(embed, drawings, ways=20, episodes=20):
    """Share of queries whose nearest example shows their character."""
    right = 0.0
    generator = torch.Generator().manual_seed(1)
    for _ in range(episodes):
        chosen = torch.randperm(len(drawings), generator=generator)[:ways]
        example, query = torch.randperm(drawings.shape[1], generator=generator)[:2]
        distances = torch.cdist(embed(drawings[chosen, query]), embed(drawings[chosen, example]))
        right += (distances.argmin(1) == torch.arange(ways)).float().mean().item() / episodes
    return right


accuracy = {"pixels": one_shot(lambda pictures: pictures.flatten(1), test)}
print(f"nearest in pixels: {accuracy['pixels']:.1%}; guessing: 5.0%")

# %%
# The network and the loss
# ------------------------
#
# Both pictures of a pair go through *one* network, hence "Siamese". It maps a picture to a vector of length 1. The
# contrastive loss of Hadsell, Chopra and LeCun (2006) pulls two pictures of one class together, and pushes two of
# different classes apart until they are a margin away:
#
# - same class: half the squared distance;
# - different classes: half the square of what the distance lacks to the margin, or 0 beyond it.


def block(before, after):
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]


network = nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 48), nn.Flatten(), nn.Linear(48 * 9, 48))


def embed(pictures):
    network.eval()
    with torch.no_grad():
        return F.normalize(network(pictures[:, None]))


def contrastive_loss(vectors, labels, margin=1.0):
    distances = (2 - 2 * vectors @ vectors.T).clamp_min(1e-6).sqrt()
    upper = torch.ones_like(distances, dtype=torch.bool).triu(1)
    same = labels[:, None] == labels
    pull = distances[same & upper].square().mean() / 2
    # Most different pairs are beyond the margin and teach nothing; the mean is over those that are not.
    push = (margin - distances[~same & upper]).clamp_min(0).square()
    return pull + push[push > 0].mean() / 2 if (push > 0).any() else pull


accuracy["untrained"] = one_shot(embed, test)
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
steps, losses, curve = 160, [], []
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
labels = torch.arange(24).repeat_interleave(4)
for step in range(steps):
    chosen = torch.randperm(len(train))[:24]  # a batch: 24 characters, 4 drawings of each
    shots = torch.stack([torch.randperm(train.shape[1])[:4] for _ in chosen])
    pictures = train[chosen[:, None], shots].flatten(0, 1)
    network.train()
    loss = contrastive_loss(F.normalize(network(pictures[:, None])), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    if step % 40 == 39:
        curve.append((step + 1, one_shot(embed, train), one_shot(embed, test)))
accuracy["Siamese"] = curve[-1][2]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
left.plot(losses)
left.set(xlabel="step", ylabel="contrastive loss")
at, seen, unseen = zip(*curve, strict=True)
right.plot(at, seen, marker="o", label="characters of the training")
right.plot(at, unseen, marker="o", label="new characters")
right.set(xlabel="step", ylabel="20-way one-shot accuracy", ylim=(0, 1.02))
right.legend(loc="lower right")
figure.tight_layout()

# %%
# Distances of same and different pairs
# -------------------------------------
#
# "Are these two the same?" needs a threshold between two histograms. Where they overlap, every threshold makes
# mistakes; the rate of false accepts is a choice. ``fewshot verify --calibrate`` makes it on pictures of your own.

vectors = embed(test.flatten(0, 1))
labels = torch.arange(len(test)).repeat_interleave(test.shape[1])
distances = torch.cdist(vectors, vectors)
pairs = torch.ones_like(distances, dtype=torch.bool).triu(1)
same = labels[:, None] == labels
figure, axis = plt.subplots(figsize=(7, 3))
for name, chosen in (("same character", same & pairs), ("different characters", ~same & pairs)):
    axis.hist(distances[chosen].numpy(), bins=60, density=True, alpha=0.6, label=name)
axis.set(xlabel="distance of two drawings of new characters", yticks=[])
axis.legend()

# %%
# The same with the product
# -------------------------
#
# ``fewshot train`` does this with a better network, distorted drawings, averaged weights and held-out classes. It
# takes a folder with one sub-folder for each class, and leaves an encoder for ``fewshot enrol``, ``search`` and
# ``verify``.

from fewshot import SiameseConfig, train_folder  # noqa: E402

place = Path(mkdtemp())
for number, drawings in enumerate(train):
    folder = place / "characters" / f"{number:03d}"
    folder.mkdir(parents=True)
    for position, drawing in enumerate(drawings):
        Image.fromarray(np.uint8(255 * (1 - drawing.numpy()))).save(folder / f"{position}.png")

config = SiameseConfig(epochs=2, side=SIDE, ways=24, symmetries=1, distortion="drawing", device="cpu")
encoder = train_folder(place / "characters", place / "run", config=config)


def by_product(pictures):
    return torch.from_numpy(encoder.embed([Image.fromarray(np.uint8(255 * (1 - each.numpy()))) for each in pictures]))


accuracy["fewshot train"] = one_shot(by_product, test, episodes=5)
for name, value in accuracy.items():
    print(f"{name:14} {value:.1%}")

figure, axis = plt.subplots(figsize=(7, 3))
axis.barh(list(accuracy), list(accuracy.values()))
for position, value in enumerate(accuracy.values()):
    axis.annotate(f"{value:.1%}", (value + 0.01, position), va="center")
axis.axvline(0.05, linestyle=":", color="gray")
axis.set(xlabel="20-way one-shot accuracy on new characters (dotted: guessing)", xlim=(0, 1.12))
axis.invert_yaxis()
figure.tight_layout()
