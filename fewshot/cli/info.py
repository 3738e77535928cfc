"""The main facts about an index, a gallery or an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewshot.embedding.embedder import Embedder
from fewshot.recognition.gallery_files import GALLERY_FILE
from fewshot.recognition.operating_point import Share
from fewshot.recognition.recognizer import Recognizer
from fewshot.search.index import Index
from fewshot.search.index_files import ABOUT_FILE
from fewshot.search.table.lance_index import LanceIndex
from fewshot.search.table.location import MANIFESTS, is_address


def info(path: str) -> dict[str, Any]:
    """Describe an index, a gallery or an encoder.

    Args:
        path: Folder of an index or a gallery, a Lance table, or an encoder as `Embedder.load` takes it.

    Returns:
        The main facts, as JSON values.

    Raises:
        InputError: If the path holds none of them.

    Example:
        >>> from fewshot import info
        >>> info("omniglot")["width"]
        256
    """
    folder = Path(path)
    if is_address(path) or (folder / ABOUT_FILE).is_file() or (folder / MANIFESTS).is_dir():
        return _of_index(path)
    if (folder / GALLERY_FILE).is_file():
        return _of_gallery(folder)
    return _of_embedder(Embedder.load(path, device="cpu"))


def _of_index(place: str) -> dict[str, Any]:
    index = Index.open(place, memory_mapped=True, device="cpu")
    of_table = {"version": index.version, "versions": len(index.versions())} if isinstance(index, LanceIndex) else {}
    return {
        "what": "index",
        "pictures": len(index),
        "width": index.width,
        "structure": index.structure,
        "recall_of_10_nearest": index.recall,
        "pictures_below": index.about.get("folder"),
        "embedder": index.about.get("embedder"),
        "fingerprint": index.fingerprint,
    } | of_table


def _of_gallery(folder: Path) -> dict[str, Any]:
    recognizer = Recognizer.load(folder, device="cpu")
    gallery = recognizer.gallery
    expectation = recognizer.expect() if gallery.labels else None
    return {
        "what": "gallery",
        "classes": gallery.counts,
        "background_pictures": len(gallery.background),
        "trial_pictures": len(gallery.trials[1]),
        "false_accept_rate": gallery.false_accept_rate,
        "threshold": None if expectation is None else expectation.value,
        "threshold_chosen_by": None if expectation is None else expectation.chosen_by,
        "expected_false_accepts": _share(None if expectation is None else expectation.false_accepts),
        "expected_refusals": _share(None if expectation is None else expectation.refusals),
        "too_alike": [f"{pair.label} and {pair.other}" for pair in recognizer.alike()],
        "embedder": recognizer.embedder.origin,
        "fingerprint": recognizer.embedder.fingerprint,
    }


def _share(share: Share | None) -> dict[str, float] | None:
    return None if share is None else {name: round(value, 4) for name, value in share._asdict().items()}


def _of_embedder(embedder: Embedder) -> dict[str, Any]:
    calibration = embedder.verification
    return {
        "what": "encoder",
        "network": embedder.spec.network,
        "width": embedder.width,
        "side": embedder.spec.side,
        "parameters": sum(tensor.numel() for tensor in embedder.network.parameters()),
        "fingerprint": embedder.fingerprint,
        "learned_from_characters": len(embedder.trained_on),
        "same_from_similarity": None if calibration is None else calibration["threshold"],
    }
