"""Displays of results in a notebook: a recognition, and the neighbours of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.notebook.parts import Bar, bars, block, line, muted, title

if TYPE_CHECKING:
    from fewshot.recognition.answers import Recognition
    from fewshot.search.neighbours import Neighbours

# Most classes, queries and neighbours of a query that are shown.
_CLASSES, _QUERIES, _EACH = 5, 5, 5


def recognition_html(found: Recognition) -> str:
    """The answer, and the most similar classes with the threshold."""
    answer = found.nearest if found.threshold is None else found.label or "unknown"
    words = []
    if answer == "unknown" and found.label is None:
        words.append(f"The nearest is {found.nearest}, which is not similar enough.")
    elif found.threshold is None:
        words.append("The nearest class; no threshold says whether it is similar enough.")
    if found.score is not None:
        words.append(f"{found.score:.0%} of the pictures of no class are less similar to their nearest.")
    rows = [
        Bar(name, similarity, f"{similarity:.3f}", mark=found.threshold, pale=similarity < (found.threshold or -1))
        for name, similarity in list(found.similarities.items())[:_CLASSES]
    ]
    mark = [] if found.threshold is None else [f"the line is the least that is accepted, {found.threshold:.3f}"]
    about = "; ".join([f"Cosine similarity to the most similar of {len(found.similarities):,} classes", *mark]) + "."
    return block(title(answer), *map(line, words), bars(rows), muted(about))


def neighbours_html(found: Neighbours) -> str:
    """The nearest keys of the first queries."""
    parts = []
    for number in range(min(len(found), _QUERIES)):
        rows = found[number][:_EACH]
        parts.append(line(f"Query {number + 1} of {len(found):,}" + ("" if rows else ": nothing is similar enough")))
        parts.append(bars([Bar(key, similarity, f"{similarity:.3f}") for key, similarity in rows]))
    return block(title("Nearest neighbours"), *parts, muted("Cosine similarity."))
