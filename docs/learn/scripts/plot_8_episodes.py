"""
N-way evaluation, and how it is done wrong
==========================================

What is a one-shot accuracy worth? It depends on the way of measuring as much as on the network. This tutorial
measures one network in the right way, then makes three common mistakes on purpose and shows what each adds.
"""

# %%
# A network to measure
# --------------------
#
# The Siamese network of :doc:`the previous tutorial <plot_7_siamese>`, in short: it learns from 60 invented
# characters, with 6 drawings of each. There are as many new characters as we like, so the true accuracy can be
# measured too.

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn

SIDE = 28
random = np.random.default_rng(0)
torch.manual_seed(0)


def draw(strokes, pen=9):
    """One drawing (28, 28) of a character: its three curves, moved, turned and scaled a little."""
    angle, size = random.normal(0, 0.2), random.normal(1, 0.1)
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (strokes + random.normal(0, 0.035, strokes.shape)) @ turn + random.normal(0, 0.1, 2)
    page = Image.new("L", (4 * SIDE, 4 * SIDE))
    t = np.linspace(0, 1, 12)[:, None]
    for a, b, c in points:
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        ImageDraw.Draw(page).line([tuple(point) for point in (curve + 1) * 2 * SIDE], fill=255, width=pen)
    return np.asarray(page.resize((SIDE, SIDE)), np.float32) / 255


def drawings(shapes, each, pen=9):
    """Drawings (characters, each, 28, 28)."""
    return torch.from_numpy(np.stack([[draw(strokes, pen) for _ in range(each)] for strokes in shapes]))


def new_characters(count):
    return random.uniform(-0.75, 0.75, (count, 3, 3, 2))


def block(before, after):
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]


network = nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 48), nn.Flatten(), nn.Linear(48 * 9, 48))


def train(pictures, steps=120, ways=24, shots=4):
    """The contrastive loss over all pairs of a batch."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    labels = torch.arange(ways).repeat_interleave(shots)
    first, second = torch.triu_indices(len(labels), len(labels), 1)
    same = labels[first] == labels[second]
    for _ in range(steps):
        chosen = torch.randperm(len(pictures))[:ways]
        shown = torch.stack([torch.randperm(pictures.shape[1])[:shots] for _ in chosen])
        vectors = F.normalize(network(pictures[chosen[:, None], shown].flatten(0, 1)[:, None]))
        distance = (2 - 2 * (vectors[first] * vectors[second]).sum(1)).clamp_min(1e-6).sqrt()
        push = (1 - distance[~same]).clamp_min(0).square()
        loss = distance[same].square().mean() + push.sum() / (push > 0).sum().clamp_min(1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def embed(pictures):
    """Vectors (characters, each, 48) of unit length."""
    network.eval()
    with torch.no_grad():
        return F.normalize(network(pictures.flatten(0, 1)[:, None])).unflatten(0, pictures.shape[:2])


known, new = new_characters(60), new_characters(60)
train(drawings(known, 6))

# %%
# One episode
# -----------
#
# An *episode* is a small exam. N characters are drawn at random (the *ways*), K examples of each (the *shots*) form
# the *support*, and other drawings of the same characters are the *queries*. A query is given the character of the
# nearest example, or of the nearest mean where K is above 1. The accuracy is the share of right answers over many
# episodes.


def draw_episodes(characters, drawings, ways, shots, episodes, seed=0):
    """Characters (episodes, ways), and their drawings (episodes, ways, shots + 1), of which the last is the query."""
    draw = np.random.default_rng(seed)
    classes = draw.random((episodes, characters)).argsort(1)[:, :ways]
    shown = draw.random((episodes, ways, drawings)).argsort(2)[..., : shots + 1]
    return classes, shown


def answers(vectors, classes, shown):
    """For each query, (episodes, ways), the place of the answer among the characters of its episode."""
    picked = vectors[torch.from_numpy(classes)[..., None], torch.from_numpy(shown)]
    support, query = F.normalize(picked[:, :, :-1].mean(2), dim=-1), picked[:, :, -1]
    return (query @ support.mT).argmax(2).numpy()


def measured(vectors, ways=20, shots=1, episodes=1000):
    """Accuracy of each episode."""
    answer = answers(vectors, *draw_episodes(*vectors.shape[:2], ways, shots, episodes))
    return (answer == np.arange(ways)).mean(1)


pictures = drawings(new, 10)
vectors = embed(pictures)

classes, shown = draw_episodes(len(new), 10, ways=5, shots=1, episodes=20)
answer = answers(vectors, classes, shown)
episode = (answer != np.arange(5)).any(1).argmax()  # the first of them with a mistake
figure, axes = plt.subplots(2, 5, figsize=(5, 2.6), layout="constrained")
for place, column in enumerate(axes.T):
    given = answer[episode, place]
    titles = f"example {place + 1}", f"{'right' if given == place else 'wrong'}: {given + 1}"
    for axis, number, title in zip(column, shown[episode, place], titles, strict=True):
        axis.imshow(1 - pictures[classes[episode, place], number], cmap="gray")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
figure.suptitle("a 5-way 1-shot episode: queries below, with their answers", fontsize=10)

# %%
# More ways are harder and more shots are easier, so an accuracy says nothing without both numbers.

print("          1 shot   5 shots")
for ways in (5, 20, 60):
    shares = [measured(vectors, ways, shots).mean() for shots in (1, 5)]
    print(f"{ways:2} ways   {shares[0]:.1%}     {shares[1]:.1%}")

# %%
# Mistake 1: characters of the training in the test
# -------------------------------------------------
#
# New drawings of the 60 characters of the training are not new characters. They answer another question: "does the
# network know what it learned?" and not "does it compare what it never saw?". In practice the leak is hidden: the
# same character in two alphabets, the same product in two folders, the same person under two names.

leaked = embed(drawings(known, 10))
fair, leak = measured(vectors).mean(), measured(leaked).mean()
print(f"{fair:.1%} new characters, 20-way 1-shot")
print(f"{leak:.1%} characters of the training")

# %%
# Mistake 2: statistics of the queries
# ------------------------------------
#
# Batch normalisation can take its mean and deviation from the pictures at hand in place of those of the training.
# Where the queries of an episode are embedded together, each answer then depends on the other queries: the network
# adapts to them (*transductive*). In use, pictures come one at a time or in any mixture, and the gain is gone. It is
# largest where the test pictures differ from those of the training; here the new characters are drawn with a thin
# pen.

thin = drawings(new, 6, pen=3)
EPISODES, WAYS, QUERIES = 20, 20, 5


def accuracy_in_batches(queries_at_once):
    """20-way 1-shot, with the statistics of each batch. queries_at_once: a function of queries (20, 5, 28, 28)."""
    credit = []
    for seed in range(EPISODES):
        draw = torch.Generator().manual_seed(seed)
        chosen = thin[torch.randperm(len(thin), generator=draw)[:WAYS]]
        support, query = embed_by_batch(chosen[:, 0]), chosen[:, 1:]
        found = [embed_by_batch(batch) for batch in queries_at_once(query)]
        credit.append((torch.cat(found) @ support.T).argmax(1) == torch.arange(WAYS).repeat_interleave(QUERIES))
    return torch.stack(credit).float().mean().item()


def embed_by_batch(pictures):
    """Vectors (n, 48), normalised with the statistics of these pictures alone."""
    network.train()
    with torch.no_grad():
        return F.normalize(network(pictures[:, None]))


of_training = {name: value.clone() for name, value in network.state_dict().items()}
shares = {
    "statistics of the training": measured(embed(thin)).mean(),
    "of all queries of the episode": accuracy_in_batches(lambda query: [query.flatten(0, 1)]),
    "of queries of one character": accuracy_in_batches(lambda query: list(query)),
    "of one query": accuracy_in_batches(lambda query: list(query.flatten(0, 1)[:, None])),
}
network.load_state_dict(of_training)  # embedding by batch has moved the statistics that the network keeps
figure, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
bars = axis.barh(list(shares), list(shares.values()), color=["C0", "C3", "C7", "C7"])
axis.bar_label(bars, [f"{share:.1%}" for share in shares.values()], padding=3)
axis.set(xlabel="20-way 1-shot, thin pen", xlim=(0, 1.15), xticks=[0, 0.5, 1])
axis.invert_yaxis()

# %%
# Mistake 3: too few episodes, and too much trust in many
# -------------------------------------------------------
#
# First the number of episodes. Each dot is one whole evaluation of the same network on the same 60 characters; only
# the episodes differ.

many = measured(vectors, episodes=10_000)
repeated = {count: many[: 10 * count].reshape(10, count).mean(1) for count in (20, 100, 1000)}
figure, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
for row, values in enumerate(repeated.values()):
    axis.plot(values, np.full(10, row) + np.linspace(-0.25, 0.25, 10), ".")
axis.set(yticks=range(3), yticklabels=[f"{count} episodes" for count in repeated], xlabel="20-way 1-shot accuracy")
axis.invert_yaxis()
for count, values in repeated.items():
    print(f"{count:5} episodes: from {values.min():.1%} to {values.max():.1%}")

# %%
# Evaluations of a thousand episodes nearly agree. But they use the same 60 characters again and again: more episodes
# cannot tell how the network does on *other* characters. Here are 20 sets of 60 other characters, with 1,000 episodes
# on each, and two 95 % intervals:
#
# - over episodes, as most papers print it: 1.96 standard deviations, divided by the root of the number of episodes;
# - over characters: the characters are the sample. Each contributes its right answers, less the queries of others
#   that it took.


def over_episodes(classes, answer):
    """Half the width of the interval."""
    shares = (answer == np.arange(20)).mean(1)
    return 1.96 * shares.std() / len(shares) ** 0.5


def over_characters(classes, answer):
    correct = answer == np.arange(20)
    asked = np.bincount(classes.ravel())
    earned = np.bincount(classes[correct], minlength=len(asked)) / asked
    given = np.take_along_axis(classes, answer, 1)
    taken = np.bincount(given[~correct], minlength=len(asked)) / asked
    return 1.96 * (earned - taken).std() / len(asked) ** 0.5


sets = []
for _ in range(20):
    others = embed(drawings(new_characters(60), 4))
    classes, shown = draw_episodes(60, 4, ways=20, shots=1, episodes=1000)
    sets.append((classes, answers(others, classes, shown)))
shares = [(answer == np.arange(20)).mean() for _, answer in sets]
figure, axes = plt.subplots(2, 1, figsize=(5, 4.6), sharex=True, sharey=True, layout="constrained")
for axis, half_width in zip(axes, (over_episodes, over_characters), strict=True):
    holds = 0
    for number, (share, questions) in enumerate(zip(shares, sets, strict=True)):
        half = half_width(*questions)
        inside = abs(share - np.mean(shares)) <= half
        holds += inside
        axis.errorbar(number, share, half, fmt=".", color="C0" if inside else "C3")
    axis.axhline(np.mean(shares), linestyle=":", color="gray")
    name = half_width.__name__.replace("_", " ")
    axis.set(title=f"interval {name}: {holds} of 20 hold the mean", ylabel="accuracy", xticks=[])
axes[1].set(xlabel="20 sets of 60 new characters (dotted: mean of all)")

# %%
# What the product does
# ---------------------
#
# ``fewshot benchmark`` knows the characters that an encoder was trained on, and refuses to test on them. It also
# refuses unfair comparisons: ``lake-minimal`` is for encoders that learned from five alphabets, and the one that
# ships learned from 30. This is checked before any picture is read.

from fewshot import InputError, benchmark  # noqa: E402

try:
    benchmark("omniglot", ["lake-minimal"], device="cpu")
except InputError as error:
    print(error)

# %%
# On Lake's 20 runs it may be measured. The interval resamples whole runs, since the 20 questions of a run share their
# pictures. This needs Omniglot: ``fewshot download`` fetches it, and without it there is a message.

try:
    (result,) = benchmark("omniglot", ["lake"], device="cpu").results
    low, high = result.interval
    print(f"{result.way}-way {result.shot}-shot: {result.accuracy:.2%} ({low:.1%} to {high:.1%}), {result.tested}")
except InputError as error:
    print(error)

# %%
# Also:
#
# - intervals are over characters, alphabets or runs, never over episodes;
# - networks are measured with the statistics of their training, one picture at a time or many, with the same result;
# - a tie is shared: a network that finds all pictures equal gets 1/N, and not the first answer;
# - two encoders are compared on the same questions (``--against``), with an interval of the difference.
#
# When this does not hold
# -----------------------
#
# - The interval over characters says how *this* network does on other characters. Another training gives another
#   network; its scatter comes on top and needs several seeds.
# - The interval is for characters that are drawn like these. Other alphabets can be harder as a whole; then the
#   alphabets are the sample, and ten of them are few.
# - With a transductive method, the figure is right for whoever really has all queries at once, in the mixture of the
#   test. It must be named, and compared with other transductive methods alone.
#
# In the product
# --------------
#
# .. code-block:: text
#
#    fewshot benchmark --protocol lake
#    fewshot benchmark --model runs/a --against runs/b
#    fewshot report runs/a
#
# ``fewshot.benchmark`` and ``fewshot.write_report`` do the same from Python. :doc:`/howto/use/omniglot` reproduces
# the published figures, which are in :doc:`/numbers/omniglot`.
