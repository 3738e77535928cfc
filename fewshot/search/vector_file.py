"""The FAISS file of an index: written with its checksum, and read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fewshot.search.engines import import_faiss
from finetune.errors import InputError
from finetune.files.writing import replacing


def write_vectors(path: Path, faiss_index: Any) -> str:
    """Write through a Python file: FAISS ignores errors on closing its own, which a full disk cuts short.

    Returns the SHA-256 of what was written, in hex.
    """
    faiss = import_faiss()
    failed: list[BaseException] = []
    digest = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as file:

        def write(block: bytes) -> None:
            try:
                file.write(block)
                digest.update(block)
            except BaseException as error:  # FAISS raises a RuntimeError instead, without the message
                failed.append(error)
                raise

        try:
            faiss.write_index(faiss_index, faiss.PyCallbackIOWriter(write))
        except RuntimeError as error:
            if failed:
                raise failed[0] from None
            raise InputError(f"{path} cannot be written: {_reason(error)}") from error
    return digest.hexdigest()


def read_vectors(path: Path, memory_mapped: bool) -> Any:
    """memory_mapped: Leave vectors in the file; codes are read."""
    faiss = import_faiss()
    try:
        # IO_FLAG_MMAP_IFC maps all structures; IO_FLAG_MMAP maps inverted lists alone.
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_mapped else 0)
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}") from error


def _reason(error: RuntimeError) -> str:
    """FAISS's message without the position in its source."""
    return str(error).rsplit("failed: ", 1)[-1]
