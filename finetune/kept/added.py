"""Pictures that the page of `finetune try` has copied into a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

from finetune.classifier.run_folder import ADDED, PICTURES_FILE
from finetune.files.tables import read_csv
from finetune.files.writing import replacing

_ENDINGS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"GI": ".gif", b"RI": ".webp", b"BM": ".bmp", b"II": ".tif"}
# Digits of the sha256 that name a file.
_DIGITS = 16


def keep_picture(run: Path, picture: bytes) -> Path:
    """Write the content of a picture into the run folder; the file's name begins with its sha256."""
    path = run / ADDED / f"{hashlib.sha256(picture).hexdigest()[:_DIGITS]}{_ENDINGS.get(picture[:2], '.img')}"
    with replacing(path) as temporary:
        temporary.write_bytes(picture)
    return path


def used_copies(run: Path) -> set[Path]:
    """The copies of pictures that the run uses now."""
    copies = list((run / ADDED).glob("*"))
    if not copies:
        return set()
    used = {row["sha256"][:_DIGITS] for row in read_csv(run / PICTURES_FILE, ("sha256",))}
    return {path for path in copies if path.name[:_DIGITS] in used}


def delete_forgotten(run: Path) -> None:
    """Delete the copies of pictures that the run no longer uses."""
    used = used_copies(run)
    for path in (run / ADDED).glob("*"):
        if path not in used:
            path.unlink()
