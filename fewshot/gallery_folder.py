"""A gallery in a folder, changed by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewshot.embedder import Embedder
from fewshot.recognizer import GALLERY_FILE, Recognizer
from finetune.errors import InputError
from finetune.files import locked

FALSE_ACCEPT_RATE = 0.05
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
    false_accept_rate: as saved, or FALSE_ACCEPT_RATE, when None. InputError where the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the gallery")
    there = folder.exists()
    if (
        there
        and not (folder / GALLERY_FILE).exists()
        and any(not path.name.startswith(".") for path in folder.iterdir())
    ):
        raise InputError(f"{folder} is not empty and holds no gallery; name another folder")
    embedder = embedder if there or embedder is not None else Embedder.load(SHIPPED, device=device)
    with locked(folder):
        if (folder / GALLERY_FILE).exists():
            recognizer = Recognizer.load(folder, embedder=embedder, device=device)
        else:
            recognizer = Recognizer(embedder or Embedder.load(SHIPPED, device=device))
            recognizer.gallery.false_accept_rate = FALSE_ACCEPT_RATE
        if false_accept_rate is not None:
            recognizer.gallery.false_accept_rate = false_accept_rate
        yield recognizer
        recognizer.save(folder)
