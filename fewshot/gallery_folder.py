"""A gallery in a folder, changed by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewshot.embedding.embedder import Embedder
from fewshot.recognizer import GALLERY_FILE, Recognizer
from finetune.errors import InputError
from finetune.files import locked

SHIPPED = "omniglot"


@contextmanager
def change_gallery(
    folder: Path,
    embedder: Embedder | None,
    *,
    false_accept_rate: float | None = None,
    device: str = "auto",
) -> Iterator[Recognizer]:
    """The recognizer saved in `folder`, or a new one, to be changed; it is saved at the end unless that failed.

    embedder: of a new one, the encoder that ships when None; of a saved one it must be the one that it was made with.
    false_accept_rate: as saved, or as usual for a new one, when None. InputError where the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the gallery")
    saved = (folder / GALLERY_FILE).exists()
    if not saved and folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no gallery; name another folder")
    if embedder is None and not saved:
        embedder = Embedder.load(SHIPPED, device=device)  # before a folder is made for it
    with locked(folder):
        # Another process may have made the gallery meanwhile.
        if embedder is None or (folder / GALLERY_FILE).exists():
            recognizer = Recognizer.load(folder, embedder=embedder, device=device)
        else:
            recognizer = Recognizer(embedder)
        if false_accept_rate is not None:
            recognizer.gallery.false_accept_rate = false_accept_rate
        yield recognizer
        recognizer.save(folder)
