"""
Reading a report
================

What does each part of a report say, and what do you do about it? This tutorial plants three mistakes in a folder of
digits, inspects the folder, fits a classifier, and reads its report part by part.
"""

# %%
# A folder with three mistakes
# ----------------------------
#
# There are twenty pictures of each digit to train on, twenty to choose between settings, and forty to test. Then come
# the mistakes, as they happen in real folders: a 3 lies among the training pictures of the 8, a 7 lies among the test
# pictures of the 1, and a test picture of the 5 lies in the training folder too.

import re
import shutil
from html import escape
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
from PIL import Image

from finetune import Config, fit, inspect_folder, write_digits

place = Path(mkdtemp())
photos = place / "photos"
write_digits(photos, per_class=20)
for digit in (photos / "test").iterdir():
    for path in sorted(digit.iterdir())[40:]:
        path.unlink()


def first(folder):
    """The first picture of a folder."""
    return min((photos / folder).iterdir())


shutil.move(first("train/3"), photos / "train/8/wrong.png")
shutil.move(first("test/7"), photos / "test/1/wrong.png")
shutil.copy(first("test/5"), photos / "train/5/copy.png")

# %%
# Before training: inspect
# ------------------------
#
# ``inspect_folder`` reads every picture once and changes nothing. *Suspects* are pictures of which a linear classifier
# on the other pictures is sure that they show another class. Test pictures are not judged: a classifier must not choose
# the pictures that it is measured on.

config = Config(
    backbone="fewtune_conv4",
    strategy="partial",
    flip=False,  # a mirrored 2 is no 2
    trivial_augment=False,
    crop_scale=0.6,
    device="cpu",
    workers=0,
)
found = inspect_folder(photos, config=config)

rows = [(f"{each.label}, or {each.predicted}?", each.path) for each in found.suspects[:4]]
rows += [("in " + " and ".join(each.splits), path) for each in found.identical for path in each.paths]
figure, axes = plt.subplots(1, len(rows), squeeze=False, figsize=(5.2, 2.2))
for axis, (title, path) in zip(axes[0], rows, strict=True):
    axis.imshow(Image.open(photos / path), cmap="gray")
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()
figure.suptitle("labels in doubt, and identical pictures")
for title, path in rows:
    print(f"{path}: {title}")

# %%
# ``train/8/wrong.png`` is the planted 3. Any other suspect is a digit that a person may doubt too: look at each one,
# and correct those that are wrong. The identical pictures need no action: ``fit`` leaves the copy out of the training,
# so that it cannot raise the accuracy on ``test``. The planted 7 is not here, because it lies in ``test``.
#
# The result
# ----------
#
# ``fit`` writes ``report.html`` into the run folder. The frames below are parts of that page; scroll in them.

classifier = fit(photos, place / "run", config=config)
page = (place / "run" / "report.html").read_text(encoding="utf-8")


class Part:
    """A section of the report in a frame of its own, up to its heading number `headings`."""

    def __init__(self, name, height, headings=99):
        style = re.search(r"<style>.*?</style>", page, re.DOTALL)[0]
        section = re.search(rf'<section [^>]*id="{name}".*?</section>', page, re.DOTALL)[0]
        section = "<h3".join(section.split("<h3")[: headings + 1])
        self.text = f'<meta name="color-scheme" content="light dark">{style}<main>{section}</main>'
        self.name, self.height = name, height

    def _repr_html_(self):
        return (
            f'<iframe title="Part of the report: {self.name}" sandbox srcdoc="{escape(self.text)}" '
            f'style="width: 100%; height: {self.height}px; border: 1px solid gray"></iframe>'
        )


Part("result", 640)

# %%
# The large number is the accuracy on the test pictures. The interval says how far chance alone may have moved it. The
# bars below it are *baselines*: always the largest class, the nearest mean of a class, and a linear head on the frozen
# network. A result whose interval reaches down to a baseline is not shown to be better than that baseline.
#
# The diagnosis
# -------------

Part("diagnosis", 330)

# %%
# The report compares the errors on training and validation pictures, and says in words whether the classifier learned
# too little or too much, with the evidence, and with advice where there is any.
#
# The learning
# ------------

Part("learning", 560)

# %%
# The curves show the loss and the accuracy after each epoch, and the sentence above them says which weights were kept.
# ``fit`` keeps a trained network only where it is better on the validation pictures than the head.
# :doc:`Under- and overfitting <plot_3_fitting>` reads such curves.
#
# The confusion matrix
# --------------------

Part("confusion", 700)

# %%
# Rows are true classes, columns are predicted ones. Mistakes between one pair of classes point to classes that look
# alike. A single mistake between two classes that look different points to a wrong label.
#
# The most confident mistakes
# ---------------------------

Part("pictures", 640, headings=1)

# %%
# Start here. A mistake of which the classifier is certain is either the best lesson about its weakness or a wrong
# label. The name of the file is under each picture: look for ``test/1/wrong.png``. The heat map beside a picture shows
# which part of it spoke for the wrong answer.
#
# Probabilities
# -------------

Part("probabilities", 560)

# %%
# The first two charts compare each class with all others, for every threshold. The third, the reliability diagram, is
# the subject of :doc:`Calibrated, unsure, unknown <plot_6_sure_and_known>`. Its bars are long where few pictures have
# such a probability.
#
# The data
# --------

Part("data", 440)

# %%
# The copy of the test picture is listed under "Pictures left out", with the picture that it is a copy of. Read this
# part when a number looks too good: a leak between training and test is the usual reason.

for entry in classifier.metrics["left_out"]:
    print(f"{entry['path']}: {entry['reason']}")

# %%
# What to take from it
# --------------------
#
# Read in this order: the interval before the accuracy, the baselines before the joy, the confident mistakes before the
# next training. ``inspect_folder`` judges training and validation labels, the report shows doubtful test labels;
# neither changes a label.
#
# **When this does not hold.** A classifier that is wrong often is also surely wrong often: then most confident mistakes
# are its own, and not wrong labels. And with ten test pictures of a class, one wrong label is a tenth of its recall.
#
# **Where the product does it.**
#
# .. code-block:: text
#
#    finetune inspect photos/ --sheet photos.png
#    finetune fit photos/ --out runs/photos
#    finetune evaluate runs/photos other-photos/
#
# From Python: ``inspect_folder``, ``fit``, ``evaluate`` and ``write_report``. How to: :doc:`/howto/use/report` and
# :doc:`/howto/data/check`.
