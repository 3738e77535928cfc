"""
One example of each class
=========================

Is one picture of each class enough to recognise the next ones? This tutorial enrols symbols from a single drawing,
asks what may change before they are no longer recognised, lets the recogniser say "unknown", and tries it on pictures
that it was not made for.
"""

# %%
# Enrol and recognise
# -------------------
#
# A *recogniser* has an encoder, which maps a picture to a vector, and the vectors of the enrolled pictures. Nothing
# is trained: a new picture gets the class whose vector is most similar to its own. The encoder that ships learned
# from handwritten characters of 30 alphabets. The symbols here are invented: three strokes through random points,
# drawn a little differently each time.

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fewshot import Embedder, Recognizer, RecognizerClassifier, SiameseConfig, train_folder

SIDE = 64
random = np.random.default_rng(0)


def draw(strokes, pen=2):
    """A picture of three curves, dark on white. strokes: (3, 3, 2), points from -1 to 1."""
    page = Image.new("L", (4 * SIDE, 4 * SIDE), 255)
    t = np.linspace(0, 1, 16)[:, None]
    for a, b, c in strokes:
        curve = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        ImageDraw.Draw(page).line([tuple(point) for point in (curve + 1) * 2 * SIDE], fill=0, width=4 * pen)
    return page.resize((SIDE, SIDE))


def turned(strokes, degrees):
    angle = np.radians(degrees)
    return strokes @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def by_hand(strokes):
    """The symbol as somebody draws it: its points moved, the whole turned, scaled and shifted."""
    moved = strokes + random.normal(0, 0.03, strokes.shape)
    return draw(turned(moved, random.normal(0, 8)) * random.normal(1, 0.1) + random.normal(0, 0.08, 2))


symbols = random.uniform(-0.7, 0.7, (40, 3, 3, 2))
drawings = [[by_hand(symbol) for _ in range(12)] for symbol in symbols]
names = [f"symbol {number}" for number in range(len(symbols))]

encoder = Embedder.load("omniglot", device="cpu")
recognizer = Recognizer(encoder)
for name, pictures in zip(names[:12], drawings, strict=False):
    recognizer.enrol(name, pictures[0])

figure, axes = plt.subplots(3, 5, figsize=(5, 3.8), layout="constrained")
for number, column in enumerate(axes.T):
    answer = recognizer.recognize(drawings[number][1], nearest=True)
    wrong = answer.nearest != names[number]
    titles = ("enrolled", f"new: {answer.similarity:.2f}", "wrong" if wrong else "answer")
    shown = (drawings[number][0], drawings[number][1], drawings[names.index(answer.nearest)][0])
    for axis, picture, title in zip(column, shown, titles, strict=True):
        axis.imshow(picture, cmap="gray")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()

# %%
new = [picture for pictures in drawings[:12] for picture in pictures[4:]]
label = np.repeat(names[:12], 8)
found = [answer.nearest for answer in recognizer.recognize_all(new, nearest=True)]
print(f"12 symbols, one example of each: {np.mean(found == label):.1%} of {len(new)} new drawings are right")

# %%
# What may change
# ---------------
#
# One enrolled symbol is drawn again, each time with a single change. The similarity is the cosine of two vectors: 1
# for the same direction. The line is the similarity to its own example; the band begins at the most similar other
# symbol. Where the line is inside the band, the answer is wrong.

symbol = symbols[0]
changes = {
    "turned, degrees": (np.linspace(0, 180, 13), lambda value: draw(turned(symbol, value))),
    "size": (np.linspace(0.3, 1.3, 11), lambda value: draw(symbol * value)),
    "shift, share of the page": (np.linspace(0, 0.25, 6), lambda value: draw(0.6 * symbol + 2 * value)),
    "pen, pixels": (np.arange(1, 10), lambda value: draw(symbol, pen=int(value))),
}
figure, axes = plt.subplots(2, 2, figsize=(5, 4), sharey=True, layout="constrained")
for axis, (name, (values, change)) in zip(axes.flat, changes.items(), strict=True):
    answers = recognizer.recognize_all([change(value) for value in values], nearest=True)
    own = [answer.similarities[names[0]] for answer in answers]
    other = [max(value for name, value in answer.similarities.items() if name != names[0]) for answer in answers]
    axis.plot(values, own, marker=".")
    axis.fill_between(values, -0.2, other, color="gray", alpha=0.25)
    axis.set(xlabel=name, ylim=(-0.2, 1.02))
axes[0, 0].set(ylabel="similarity")
axes[1, 0].set(ylabel="similarity")

# %%
# The place on the page does not matter, and the size only where it is very small, since the encoder looks at the
# window that the ink fills. A symbol that is turned far is another symbol to it, as a 6 is no 9. A pen much finer or
# broader than that of the enrolled drawing changes the answer too, although broad strokes are thinned before they are
# embedded.
#
# Unknown
# -------
#
# The other 28 symbols are not enrolled. The nearest class is always some class, so a threshold on the similarity must
# say "unknown". It is chosen from the enrolled classes, each treated as unknown to the others, and from what the
# encoder brings along. ``recognizer.expect()`` says which errors to expect.

strangers = [picture for pictures in drawings[12:] for picture in pictures[:4]]  # 112 drawings
of_known = [answer.similarity for answer in recognizer.recognize_all(new)]
of_strangers = [answer.similarity for answer in recognizer.recognize_all(strangers)]

figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
bins = np.linspace(0, 1, 40)
axis.hist(of_known, bins, density=True, alpha=0.6, label="enrolled symbols")
axis.hist(of_strangers, bins, density=True, alpha=0.6, label="other symbols")
axis.axvline(recognizer.threshold, color="black", linestyle=":", label="threshold")
axis.set(xlabel="similarity to the nearest class", yticks=[])
axis.legend()

# %%
# The rate of false accepts is a choice, and the price is paid in drawings of enrolled symbols that are refused or
# misnamed. Below are the errors that the recogniser expects, and those that are found on the drawings above: first
# with one example of each symbol, then with four. With one, it cannot know how much the drawings of one symbol vary.
# It then takes what the encoder saw in its own alphabets, and may be far off. With several examples it measures this.
# The first row is the default, equal shares of both errors; "exp." is what is expected.


def show_errors(recognizer):
    known = recognizer.recognize_all(new)
    unknown = recognizer.recognize_all(strangers)
    print("        strangers      enrolled")
    print("        accepted       not named")
    print("rate    exp.  found    exp.  found")
    for name, rate in (("equal", None), ("10%", 0.1), ("2%", 0.02)):
        expected = recognizer.expect(rate)
        accepted = np.mean([answer.similarity >= expected.value for answer in unknown])
        named = [answer.similarity >= expected.value for answer in known]
        named &= np.array([answer.nearest for answer in known]) == label
        shares = (expected.false_accepts.value, accepted, expected.refusals.value, 1 - np.mean(named))
        print("{:6}{:6.1%}{:7.1%} {:7.1%}{:7.1%}".format(name, *shares))


show_errors(recognizer)

# %%
for name, pictures in zip(names[:12], drawings, strict=False):
    recognizer.enrol(name, pictures[1:4])
show_errors(recognizer)

# %%
# More examples
# -------------
#
# All 40 symbols now, with one to six examples of each, drawn five times. ``RecognizerClassifier`` does the same on
# vectors, so that each drawing is embedded once. Each class is the mean of its examples. The first further examples
# bring most.

vectors = encoder.embed([picture for pictures in drawings for picture in pictures]).reshape(40, 12, -1)
accuracy = {}
for count in (1, 2, 3, 6):
    runs = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(12)
        examples, others = vectors[:, order[:count]], vectors[:, order[6:]]
        learned = RecognizerClassifier().fit(examples.reshape(-1, encoder.width), np.repeat(names, count))
        runs.append((learned.predict(others.reshape(-1, encoder.width)) == np.repeat(names, 6)).mean())
    accuracy[count] = runs

figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
for count, runs in accuracy.items():
    axis.plot(np.full(5, count) + np.linspace(-0.1, 0.1, 5), runs, ".", color="C0", alpha=0.5)
axis.plot(list(accuracy), [np.mean(runs) for runs in accuracy.values()], color="C0")
axis.set(xlabel="examples of each symbol (a dot: one choice of them)", ylabel="accuracy")

# %%
# Another kind of picture
# -----------------------
#
# Photographs, drawn by code: a toy of four coloured parts, turned and moved on some ground, in some light, with blur
# and noise. The encoder for drawings sees ink and paper, not colours and things.


def new_toy():
    return [
        (random.choice(["ellipse", "rectangle"]), random.uniform(-0.6, 0.6, 4), tuple(random.integers(30, 255, 3)))
        for _ in range(4)
    ]


def photograph(toy):
    """A photograph (64, 64) of a toy."""
    ground, side = random.uniform(60, 200, 3), 128
    texture = random.normal(0, 12, (8, 8, 3)) + ground
    page = Image.fromarray(np.uint8(texture.clip(0, 255))).resize((side, side), Image.Resampling.BICUBIC)
    layer = Image.new("RGBA", (side, side))
    for shape, (x, y, a, b), color in toy:
        middle, half = np.array([x, y]) * 0.6, np.abs([a, b]) * 0.6 + 0.12
        corners = (np.concatenate([middle - half, middle + half]) + 1) * side / 2
        getattr(ImageDraw.Draw(layer), shape)(corners.tolist(), fill=(*map(int, color), 255))
    layer = layer.resize([int(side * random.uniform(0.7, 1))] * 2).rotate(random.normal(0, 12))
    page.paste(layer, tuple(random.integers(0, side - layer.width + 1, 2).tolist()), layer)
    light = np.linspace(*random.uniform(0.6, 1.2, 2), side)[None, :, None]
    pixels = np.asarray(page.filter(ImageFilter.GaussianBlur(1)), float) * light + random.normal(0, 6, (side, side, 3))
    return Image.fromarray(np.uint8(pixels.clip(0, 255))).resize((SIDE, SIDE))


toys = [[photograph(toy) for _ in range(8)] for toy in (new_toy() for _ in range(100))]
figure, axes = plt.subplots(2, 6, figsize=(5, 1.9), layout="constrained")
for row, pictures in zip(axes, toys, strict=False):
    for axis, picture in zip(row, pictures, strict=False):
        axis.imshow(picture)
        axis.set_axis_off()
figure.suptitle("two toys, six photographs of each")

# %%
# The remedy is an encoder for such pictures. For photographs that is usually a network of timm,
# ``Embedder.load("tf_efficientnet_lite0")``, which is downloaded once. Offline, ``train_folder`` trains one on
# photographs of 60 toys. Both encoders then get one photograph of each of 40 *other* toys.

work = Path(mkdtemp())
for number, pictures in enumerate(toys[:60]):
    (work / "toys" / f"{number:02d}").mkdir(parents=True)
    for position, picture in enumerate(pictures):
        picture.save(work / "toys" / f"{number:02d}" / f"{position}.png")
config = SiameseConfig(epochs=10, side=28, alphabets=1, ways=12, device="cpu")
trained = train_folder(work / "toys", work / "run", config=config)


def one_example(encoder, classes):
    """Share of right answers among 40 classes, from the first picture of each."""
    vectors = encoder.embed([picture for pictures in classes for picture in pictures[:8]]).reshape(40, 8, -1)
    learned = RecognizerClassifier().fit(vectors[:, 0], names)
    return (learned.predict(vectors[:, 1:].reshape(-1, encoder.width)) == np.repeat(names, 7)).mean()


results = {
    "symbols,\nfor drawings": one_example(encoder, drawings),
    "symbols,\ntrained on toys": one_example(trained, drawings),
    "photographs,\nfor drawings": one_example(encoder, toys[60:]),
    "photographs,\ntrained on toys": one_example(trained, toys[60:]),
}
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
bars = axis.barh(list(results), list(results.values()), color=["C0", "C1", "C0", "C1"])
axis.bar_label(bars, [f"{share:.1%}" for share in results.values()], padding=3)
axis.axvline(1 / 40, linestyle=":", color="gray")
axis.set(xlabel="accuracy among 40 classes\n(dotted: guessing)", xlim=(0, 1.2), xticks=[0, 0.5, 1])
axis.invert_yaxis()

# %%
# When this does not hold
# -----------------------
#
# - **The wrong encoder.** No threshold and no further example makes up for it. Try a few pictures of your own first;
#   ``fewshot calibrate`` on a labelled folder says how many are right.
# - **Classes that differ in one detail.** Two symbols with the same strokes but for a dot are alike to the encoder.
#   ``recognizer.alike()`` names such pairs.
# - **The expected errors** are for strangers like those that the threshold was chosen on. Pictures of the unknown
#   classes (``add_background``, or ``calibrate`` on a folder) make them reliable.
# - **Many pictures of each class.** From a handful on, ``finetune fit`` is more accurate among classes that do not
#   change.
#
# In the product
# --------------
#
# .. code-block:: text
#
#    fewshot enrol signs/ stop stop.png
#    fewshot recognize signs/ new.png --false-accept-rate 0.02
#    fewshot calibrate signs/ labelled/
#
# ``Recognizer`` does the same from Python, and saves to a folder that the commands open. How to:
# :doc:`/howto/use/unknown-in-galleries`, :doc:`/howto/train/siamese`; figures on real pictures:
# :doc:`/numbers/recognition`.
