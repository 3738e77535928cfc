"""
Embeddings, search and recognition
==================================

How does a program find similar pictures among many? It compares vectors. This tutorial embeds handwritten digits,
searches them by picture, names digits by their neighbours, changes the index, and shows what an approximate search
gains and loses.
"""

# %%
# Pictures as vectors
# -------------------
#
# An *encoder* maps a picture to a vector of length 1, the *embedding*. The similarity of two pictures is the cosine
# of their vectors: 1 for the same direction, about 0 for pictures with nothing in common. The digits come with
# scikit-learn; the encoder that ships learned from characters of 30 alphabets, not from digits.

import time
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from fewshot import Embedder, Index, InputError, RecognizerClassifier, embed_folder, open_index, search_pictures
from finetune import write_digits

work = Path(mkdtemp())
write_digits(work / "digits", per_class=60)
collection, queries = work / "digits" / "train", work / "digits" / "val"

encoder = Embedder.load("omniglot", device="cpu")
some = [path for digit in range(10) for path in sorted((queries / str(digit)).iterdir())[:20]]
vectors = encoder.embed(some)
print(f"{len(some)} pictures, {vectors.shape[1]} numbers each, length {np.linalg.norm(vectors[0]):.2f}")

similarity = (vectors @ vectors.T).reshape(10, 20, 10, 20)
mean = similarity.mean((1, 3))
np.fill_diagonal(mean, (mean.diagonal() - 1 / 20) * 20 / 19)  # without each picture's similarity to itself
figure, axis = plt.subplots(figsize=(5, 4.2), layout="constrained")
shown = axis.imshow(mean, cmap="viridis", vmin=0, vmax=1)
axis.set(xticks=range(10), yticks=range(10), xlabel="digit", ylabel="digit")
figure.colorbar(shown, label="mean similarity of two pictures")

# %%
# The diagonal is the brightest: two pictures of one digit are more similar than pictures of two digits.
#
# An index, and a search
# ----------------------
#
# ``embed_folder`` embeds a collection and keeps its vectors in an *index*, by the names of the files. Called again,
# it embeds only what is new or changed. Indexes need ``pip install 'fewtune[search]'``.

index, update = embed_folder(collection, work / "digits.index", encoder)
print(index, "-", update.embedded, "pictures embedded")
print(embed_folder(collection, work / "digits.index", encoder)[1].embedded, "pictures embedded by a second call")

asked = [min((queries / digit).iterdir()) for digit in ("2", "4", "7", "8")]
found, _ = search_pictures(index, encoder, asked, k=5)

figure, axes = plt.subplots(4, 6, figsize=(5, 4), layout="constrained")
for row, (query, neighbours) in zip(axes, found, strict=True):
    row[0].imshow(Image.open(query), cmap="gray")
    row[0].set_title("query", fontsize=9, color="C0")
    for axis, neighbour in zip(row[1:], neighbours, strict=True):
        axis.imshow(Image.open(collection / neighbour.key), cmap="gray")
        label = index.metadata(neighbour.key)["label"]
        axis.set_title(f"{label}: {neighbour.similarity:.2f}", fontsize=9)
    for axis in row:
        axis.set_axis_off()

# %%
# Names from neighbours
# ---------------------
#
# The metadata of a picture hold its label, the name of its folder. So a search is a classifier: the query gets the
# label that most of its nearest pictures have. A recogniser compares with the mean of each class instead, and can
# also answer "unknown" (:doc:`the previous tutorial <plot_9_one_example>`). ``RecognizerClassifier`` is the
# recogniser of vectors. All get the same examples, and more and more of them; the 200 queries are other pictures.

truth = np.repeat([str(digit) for digit in range(10)], 20)
by_label = {label: [key for key in index.keys if index.metadata(key)["label"] == label] for label in set(truth)}


def named_by_neighbours(small, k):
    """Share of the queries that are named rightly by most of their k nearest in the index `small`."""
    answers = [
        Counter(small.metadata(each.key)["label"] for each in near).most_common(1)[0][0]
        for near in small.search(vectors, k=k)
    ]
    return (np.array(answers) == truth).mean()


counts = (1, 3, 10, 30, 60)
accuracy = {"nearest picture": [], "most of 5 nearest": [], "nearest class mean": []}
for count in counts:
    keys = [key for label in sorted(by_label) for key in by_label[label][:count]]
    small = Index(index.width, fingerprint=index.fingerprint)
    small.add(keys, index.vectors(keys), [index.metadata(key) for key in keys])
    accuracy["nearest picture"].append(named_by_neighbours(small, 1))
    accuracy["most of 5 nearest"].append(named_by_neighbours(small, 5))
    means = RecognizerClassifier().fit(index.vectors(keys), [index.metadata(key)["label"] for key in keys])
    accuracy["nearest class mean"].append((means.predict(vectors) == truth).mean())

figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for name, shares in accuracy.items():
    axis.plot(counts, shares, marker="o", label=name)
axis.set(xscale="log", xticks=counts, xticklabels=counts, xlabel="examples of each digit", ylabel="accuracy")
axis.minorticks_off()
axis.legend()

# %%
# Adding, removing, metadata
# --------------------------
#
# An index changes without being built again. ``save`` writes it as a whole: a crash leaves the old state or the new.
# An index remembers which encoder made its vectors, since vectors of another encoder cannot be compared.

mine = Index(encoder.width, fingerprint=encoder.fingerprint)
mine.add(["first two", "first four"], encoder.embed(asked[:2]), [{"label": "2", "by": "ann"}, {"label": "4"}])
mine.add(["a seven"], encoder.embed([asked[2]]), [{"label": "7", "by": "ben"}])
mine.remove(["first four"])
mine.save(work / "mine.index")
again, _ = open_index(work / "mine.index", encoder)
print(again.keys, again.metadata("a seven"))
print(again.search(encoder.embed([asked[2]]), k=1)[0])
try:
    Index.load(work / "mine.index", fingerprint="another")
except InputError as error:
    print(str(error).replace(str(work), "…"))

# %%
# Exact and approximate
# ---------------------
#
# ``exact`` compares a query with every vector. That is right for some hundred thousand. Beyond, a structure compares
# with few: ``ivf`` with the vectors in the nearest of many lists, ``hnsw`` with those along a graph of neighbours,
# ``pq`` with short codes of all, of which the best are compared exactly. It then misses some: the *recall* is the
# share of the ten nearest that it finds. An index measures it on its own vectors, and works as hard as
# ``least_recall`` asks.
#
# 10,000 vectors, made by noise around those of the digits; 300 other queries, one at a time, and the best of three
# rounds.

random = np.random.default_rng(0)
embedded = index.vectors(index.keys)


def made(count):
    """Vectors (count, 256) of unit length near those of digits."""
    near = embedded[random.integers(len(embedded), size=count)] + random.normal(0, 0.03, (count, index.width))
    return np.float32(near / np.linalg.norm(near, axis=1, keepdims=True))


vectors, asked = made(10_000), made(300)
nearest = np.argsort(-asked @ vectors.T, axis=1)[:, :10].astype(str)
names = [str(number) for number in range(len(vectors))]
points = []
for kind, floor in (("exact", 1), *((kind, floor) for kind in ("ivf", "hnsw", "pq") for floor in (0.8, 0.95, 0.99))):
    started = time.process_time()
    structure = Index(index.width, kind=kind, least_recall=floor, device="cpu")
    structure.add(names, vectors)
    built = time.process_time() - started
    times = []
    for _ in range(3):
        started = time.process_time()
        keys = [structure.search(query[None], k=10).keys[0] for query in asked]
        times.append(time.process_time() - started)
    rate = len(asked) / min(times)
    recall = np.mean([len(set(found) & set(right)) / 10 for found, right in zip(keys, nearest, strict=True)])
    points.append((kind, floor, recall, rate, built))

figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for kind, marker in (("exact", "*"), ("ivf", "o"), ("hnsw", "s"), ("pq", "^")):
    recall, rate = zip(*((point[2], point[3]) for point in points if point[0] == kind), strict=True)
    axis.plot(recall, rate, marker, markersize=9, label=kind)
ticks = (1_000, 3_000, 10_000, 30_000)
axis.set(yscale="log", yticks=ticks, yticklabels=[f"{tick:,}" for tick in ticks])
axis.set(xlabel="recall of the ten nearest", ylabel="queries a second")
axis.minorticks_off()
axis.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))

print("kind    least_recall   recall   queries/s   seconds to build")
for kind, floor, recall, rate, built in points:
    print(f"{kind:8}{floor:12.2f}{recall:9.3f}{rate:12,.0f}{built:19.1f}")

# %%
# ``kind="auto"``, the default, is exact until codes are much faster, which is from about 100,000 vectors on, and then
# asks for a recall of 0.99.
#
# When this does not hold
# -----------------------
#
# - **Similar to the encoder is not similar to you.** This encoder finds strokes of one shape. It knows nothing of
#   colours or photographs; for these take a network of timm or one that ``fewshot train`` made from your pictures.
# - **A nearest picture always exists.** A search has no "unknown"; ``at_least`` sets a limit by hand, and a
#   ``Recognizer`` chooses one for a rate of errors.
# - **The recall of queries unlike the collection** can be lower than the recall that the index measured on its own
#   vectors.
# - **Speed** depends on width, size and machine. The curve above is for 10,000 vectors; the structures pay off with
#   more.
#
# In the product
# --------------
#
# .. code-block:: text
#
#    fewshot embed photos/ --out photos.index
#    fewshot search photos.index query.jpg --sheet near.png
#    fewshot info photos.index
#
# From Python: ``embed_folder``, ``search_pictures``, ``Index``. How to: :doc:`/howto/use/search`, :doc:`/collections`
# on several machines, :doc:`/lance` with conditions on metadata. Figures up to a million vectors:
# :doc:`/numbers/search`.
