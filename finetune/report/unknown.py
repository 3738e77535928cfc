"""Unknown pictures in a report: the OSCR curve, and the pictures nearest to the threshold."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from finetune.open_set.unknown_metrics import UnknownMetrics
from finetune.report.charts import Line, line_chart
from finetune.report.confusion import Album

# Most characters of the thumbnails.
_THUMBNAILS = 300_000


def oscr_chart(found: UnknownMetrics | None) -> Markup | None:
    """Known pictures named right over unknown ones accepted; None where no known picture could be held out."""
    if found is None or len(found.curve) < 2:
        return None
    return line_chart(
        [Line("this model", [point[0] for point in found.curve], [point[1] for point in found.curve])],
        title="Open-set classification rate",
        x_label="pictures of held-out classes that are accepted",
        y_label="pictures of the classes named right",
        percent=True,
        percent_x=True,
        x_range=(0, 1),
        y_range=(0, 1),
        dots=False,
    )


def unknown_album(found: UnknownMetrics | None, pictures: Path) -> Album | None:
    """Thumbnails of the pictures nearest to the threshold."""
    if found is None:
        return None
    background = () if found.background is None else found.background.most_alike
    shown = [each.path for each in (*found.nearly_refused, *found.nearly_accepted, *background)]
    if not shown:
        return None
    album = Album(pictures)
    album.fill(shown, pictures=len(shown), characters=_THUMBNAILS)
    return album
