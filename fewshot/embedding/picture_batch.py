"""What `Embedder.embed` takes: pictures in a list, an array, a tensor or a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finetune.data.collection.stored import StoredPicture
from finetune.data.folder import list_unlabelled
from finetune.data.images import Picture
from finetune.errors import InputError

PictureBatch = Sequence[Picture | StoredPicture | Tensor] | NDArray[Any] | Tensor | str | Path


def listed(pictures: PictureBatch) -> Sequence[Picture | StoredPicture | Tensor]:
    """One element a picture. InputError for a single picture."""
    if isinstance(pictures, (str, Path)) and Path(pictures).is_dir():
        return list_unlabelled([Path(pictures)])
    if isinstance(pictures, (str, Path, bytes, Image.Image)):
        raise InputError(f"embed takes a folder or a list of pictures, not one {type(pictures).__name__}; put it in []")
    if isinstance(pictures, (np.ndarray, Tensor)):
        if pictures.ndim != 4:
            raise InputError(
                f"one {type(pictures).__name__} of shape {tuple(pictures.shape)} may mean one picture or several: "
                "give a list of pictures, an array (n, h, w, 3) or a tensor (n, 3, h, w)"
            )
        return list(pictures)
    return pictures


def as_picture(picture: Picture | StoredPicture | Tensor) -> Picture | StoredPicture:
    """A tensor as an array with its channels last; other pictures unchanged."""
    if not isinstance(picture, Tensor):
        return picture
    array = picture.detach().cpu()
    if array.dtype in (torch.bfloat16, torch.float16):
        array = array.float()
    return (array.movedim(0, -1) if array.ndim == 3 else array).numpy()
