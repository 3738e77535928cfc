"""
A Siamese network and the contrastive loss, from scratch
========================================================

How can a network compare things that it never saw? A classifier learns its classes and no others. A *Siamese network*
learns when two pictures show the same thing, and one example of a new thing is then enough to find it again. This
tutorial trains one in 60 lines of PyTorch, on characters that a program invents, and then with ``fewshot train``.
"""

# %%
# Characters that nobody knows
# ----------------------------
#
# A character is three curved strokes through random points. Each drawing of it moves, turns and scales them a little,
# as a hand does. The network learns from 100 characters, and is measured on 40 others.

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image, ImageDraw
from torch import nn

SIDE = 28
random = np.random.default_rng(0)
torch.manual_seed(0)


def draw(strokes):
    """One drawing (28, 28) of a character, ink 1 on 0. strokes: (3, 3, 2), the points of three curves."""
    angle, size = random.normal(0, 0.2), random.normal(1, 0.1)
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (strokes + random.normal(0, 0.035, strokes.shape)) @ turn + random.normal(0, 0.1, 2)
    page = Image.new("L", (4 * SIDE, 4 * SIDE))
    t = np.linspace(0, 1, 12)[:, None]
    for a, b, c in points:
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        ImageDraw.Draw(page).line([tuple(point) for point in (curve + 1) * 2 * SIDE], fill=255, width=9)
    return np.asarray(page.resize((SIDE, SIDE)), np.float32) / 255


def characters(count, each):
    """Drawings (count, each, 28, 28) of new characters."""
    shapes = random.uniform(-0.75, 0.75, (count, 3, 3, 2))
    return torch.from_numpy(np.stack([[draw(strokes) for _ in range(each)] for strokes in shapes]))


train, test = characters(100, 8), characters(40, 8)

figure, axes = plt.subplots(3, 6, figsize=(5, 2.8), layout="constrained")
for row, drawings in zip(axes, train, strict=False):
    for axis, drawing in zip(row, drawings, strict=False):
        axis.imshow(1 - drawing, cmap="gray")
        axis.set_axis_off()
figure.suptitle("three characters, six drawings of each")

# %%
# The contrastive loss
# --------------------
#
# Both pictures of a pair go through *one* network, hence "Siamese". It maps each to a vector of length 1, and D is
# the distance of the two vectors. Hadsell, Chopra and LeCun (2006) let a pair cost:
#
# - D² / 2 where both pictures show the same character: training pulls them together;
# - (margin - D)² / 2 where they show different ones and D is below the margin: training pushes them apart. Beyond the
#   margin they cost nothing. Without a margin, pairs that are far apart already would go on being pushed.
#
# Most different pairs of a batch are soon beyond the margin. Averaged with the others, their zeros would hide the few
# pairs that are still too near, so the mean is over the pairs that cost something.

MARGIN = 1.0


def contrastive_loss(distance, same):
    """Loss of pairs with these distances, (n,); `same` says which of them show one character."""
    pull = distance[same].square() / 2
    push = (MARGIN - distance[~same]).clamp_min(0).square() / 2
    return pull.mean() + push.sum() / (push > 0).sum().clamp_min(1)


figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
distance = torch.linspace(0, 2, 100)
axis.plot(distance, distance.square() / 2, label="same character")
axis.plot(distance, (MARGIN - distance).clamp_min(0).square() / 2, label="different characters")
axis.axvline(MARGIN, linestyle=":", color="gray", label="margin")
axis.set(xlabel="distance D of the two vectors", ylabel="cost of the pair")
axis.legend()

# %%
# The network and its training
# ----------------------------
#
# Three convolutions and a linear layer. A batch has 24 characters with 4 drawings of each; all 4,560 pairs of its 96
# drawings count, which costs no more than embedding the drawings once.


def block(before, after):
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]


network = nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 48), nn.Flatten(), nn.Linear(48 * 9, 48))


def embed(drawings):
    """Vectors (n, 48) of unit length of drawings (n, 28, 28)."""
    network.eval()
    with torch.no_grad():
        return F.normalize(network(drawings[:, None]))


before = embed(test.flatten(0, 1))

STEPS = 120
optimizer = torch.optim.AdamW(network.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
labels = torch.arange(24).repeat_interleave(4)
first, second = torch.triu_indices(len(labels), len(labels), 1)
losses = []
for _ in range(STEPS):
    chosen = torch.randperm(len(train))[:24]
    shown = torch.stack([torch.randperm(train.shape[1])[:4] for _ in chosen])
    network.train()
    vectors = F.normalize(network(train[chosen[:, None], shown].flatten(0, 1)[:, None]))
    distance = (2 - 2 * (vectors[first] * vectors[second]).sum(1)).clamp_min(1e-6).sqrt()
    loss = contrastive_loss(distance, labels[first] == labels[second])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())

after = embed(test.flatten(0, 1))

figure, axis = plt.subplots(figsize=(5, 2.5), layout="constrained")
axis.plot(losses)
axis.set(xlabel="step", ylabel="contrastive loss", ylim=(0, None))

# %%
# Distances of same and different pairs
# -------------------------------------
#
# All pairs of the drawings of the 40 new characters. Before training, all drawings are near each other, and no
# threshold on the distance separates the two kinds. Afterwards most different pairs are a margin apart or further.
# Where the histograms still overlap, every threshold makes mistakes.

label = torch.arange(len(test)).repeat_interleave(test.shape[1])
pairs = torch.ones(len(label), len(label), dtype=torch.bool).triu(1)
same = label[:, None] == label


def by_kind(vectors):
    """Distances of same pairs, and of different pairs."""
    distances = torch.cdist(vectors, vectors)
    return distances[pairs & same], distances[pairs & ~same]


figure, axes = plt.subplots(2, 1, figsize=(5, 4.4), sharex=True, layout="constrained")
for axis, title, vectors in zip(axes, ("before training", "after training"), (before, after), strict=True):
    for name, values in zip(("same character", "different characters"), by_kind(vectors), strict=True):
        axis.hist(values.numpy(), bins=np.linspace(0, 2, 60), density=True, alpha=0.6, label=name)
    axis.axvline(MARGIN, linestyle=":", color="gray")
    axis.set(title=title, yticks=[])
axes[0].legend()
axes[1].set(xlabel="distance of two drawings of new characters (dotted: margin)")

# %%
# A map of new characters
# -----------------------
#
# The vectors of eight new characters, drawn in the two directions in which they vary most. Drawings of one character
# lie together, though the network saw none of these characters in training. Characters that overlap here may be apart
# in the other 46 directions.

COUNT = 8
shown = after[: COUNT * test.shape[1]]
centred = shown - shown.mean(0)
place = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T

figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
for number, (x, y) in enumerate(place.tolist()):
    color = plt.get_cmap("tab10")(number // test.shape[1])
    picture = np.ones((SIDE, SIDE, 4)) * color
    picture[..., 3] = test.flatten(0, 1)[number]
    axis.add_artist(AnnotationBbox(OffsetImage(picture, zoom=0.9), (x, y), frameon=False))
axis.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), xticks=[], yticks=[])

# %%
# The same with the product
# -------------------------
#
# ``fewshot train`` takes a folder with one sub-folder for each class. It adds to the loop above:
#
# - a residual network with 1.65 million weights;
# - the hard pairs of a batch: each drawing is pushed from its 8 nearest of other characters, and not from all;
# - distortions: each drawing is turned, stretched, bent and drawn thicker or thinner at random, every time;
# - averaged weights: what is kept is a running mean of the weights, which is steadier than the last ones;
# - held-out classes: a fifth of the characters, never trained on, choose the weights that are kept and a threshold;
# - a run that can be killed and resumed, and a folder that is an encoder for ``fewshot enrol``, ``search`` and
#   ``verify``.
#
# ``alphabets=1`` and ``ways=24`` make batches as large as those above; the default is for larger collections.

from fewshot import Embedder, SiameseConfig, Verifier, train_folder  # noqa: E402


def as_pictures(drawings):
    """Drawings (n, 28, 28) as pictures, dark on white."""
    return [Image.fromarray(np.uint8(255 * (1 - drawing.numpy()))) for drawing in drawings]


work = Path(mkdtemp())
for number, drawings in enumerate(train):
    folder = work / "characters" / f"{number:03d}"
    folder.mkdir(parents=True)
    for position, picture in enumerate(as_pictures(drawings)):
        picture.save(folder / f"{position}.png")

config = SiameseConfig(epochs=10, side=SIDE, alphabets=1, ways=24, distortion="drawing", device="cpu")
encoder = train_folder(work / "characters", work / "run", config=config)
shipped = Embedder.load("omniglot", device="cpu")

# %%
# Both are measured on the same 40 new characters: twenty of them, one example of each, and one other drawing of each
# to name by its nearest example. The encoder that ships with the package is there too. It learned from 964 characters
# of 30 real alphabets, and never from these.


def one_shot(vectors, ways=20, episodes=100):
    """Share of drawings whose nearest of `ways` examples shows their character."""
    vectors = vectors.unflatten(0, test.shape[:2])
    right = []
    for seed in range(episodes):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(test), generator=generator)[:ways]
        example, query = torch.randperm(test.shape[1], generator=generator)[:2]
        nearest = torch.cdist(vectors[chosen, query], vectors[chosen, example]).argmin(1)
        right.append((nearest == torch.arange(ways)).float().mean().item())
    return np.mean(right)


pictures = as_pictures(test.flatten(0, 1))
accuracy = {
    "pixels": one_shot(test.flatten(0, 1).flatten(1)),
    "untrained network": one_shot(before),
    "60 lines": one_shot(after),
    "fewshot train": one_shot(torch.from_numpy(encoder.embed(pictures))),
    "encoder that ships": one_shot(torch.from_numpy(shipped.embed(pictures))),
}

figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
bars = axis.barh(list(accuracy), list(accuracy.values()))
axis.bar_label(bars, [f"{value:.1%}" for value in accuracy.values()], padding=3)
axis.axvline(1 / 20, linestyle=":", color="gray")
axis.set(xlabel="20-way one-shot accuracy\n(dotted: guessing)", xlim=(0, 1.2), xticks=[0, 0.5, 1])
axis.invert_yaxis()

# %%
# The run also leaves a threshold for "same or different", chosen on the held-out characters such that one in a
# hundred different pairs is accepted. On the new characters:

verifier = Verifier(encoder)
for name, other in (("another drawing of it", pictures[1]), ("another character", pictures[test.shape[1]])):
    answer = verifier.verify(pictures[0], other)
    print(f"similarity {answer.similarity:.2f}, same: {answer.same} ({name})")

together, apart = by_kind(torch.from_numpy(encoder.embed(pictures)))
limit = (2 - 2 * verifier.calibration.threshold) ** 0.5  # a cosine as a distance of unit vectors
print(f"threshold {verifier.calibration.threshold:.2f}")
print(f"different pairs accepted: {(apart <= limit).float().mean():.1%}")
print(f"same pairs refused:       {(together > limit).float().mean():.1%}")

# %%
# When this does not hold
# -----------------------
#
# - **Other pictures.** A network compares what it learned to compare. The threshold above is for drawings of this
#   program; photographs need their own training and their own threshold (``fewshot verify --calibrate``).
# - **Few classes.** What is learned is what varies *between* classes. With ten classes there is little of it, and a
#   pretrained network of timm may be the better encoder.
# - **Classes that will not change.** If all classes are known and have some pictures each, a classifier (``finetune
#   fit``) is more accurate among them.
# - **Small differences.** The figures are for one training and 40 characters. The next tutorial shows how far such
#   figures scatter.
#
# In the product
# --------------
#
# .. code-block:: text
#
#    fewshot train characters/ --out runs/characters
#    fewshot report runs/characters
#    fewshot verify a.png b.png --model runs/characters
#
# :doc:`/howto/train/siamese` trains on your own pictures; :doc:`/numbers/omniglot` has the figures of the encoder
# that ships.
