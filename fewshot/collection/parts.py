"""The folder of the embedded parts of a shard.

parts.json                    format, width, fingerprint, the shard, and whether it is complete
part-<token>.safetensors      keys, SHA-256 of the contents and vectors of some pictures; reasons of unreadable ones
unreadable.csv                keys and reasons of all unreadable pictures, once the shard is complete

A part is written whole or not at all, under a new name. So several processes may write parts at the same time, and one
that is killed loses no more than the part that it was about to write.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from fewshot.search.picture_index import collection_of
from finetune.errors import InputError
from finetune.files.reading import as_type, parse_json, read_json, read_tensors
from finetune.files.tensors import check_tensor
from finetune.files.writing import write_json, write_tensors

FORMAT = 1
PARTS_FILE = "parts.json"
UNREADABLE_FILE = "unreadable.csv"
_MADE_BY = "fewtune parts"
_PART = re.compile(r"part-[0-9a-f]{16}\.safetensors")
_OURS = re.compile(rf"\.?{_PART.pattern}(\.\d+)?|\.?(parts\.json|unreadable\.csv)(\.\d+)?")
# Bytes of the texts of a part: its keys, or its reasons. 2,000 keys of 250 bytes have half a megabyte.
_MOST_TEXT = 256 << 20
_MOST_WIDTH = 1 << 20
# Seconds after which a part that is not finished was left by a killed process.
_LEFT_AFTER = 3600.0
DIGEST_BYTES = 32

Count = Annotated[int, Meta(ge=0, lt=1 << 53)]


@dataclass(frozen=True, kw_only=True)
class PartsHeader:
    """What parts.json says about the parts of a shard.

    Attributes:
        width: Length of a vector.
        fingerprint: Of the embedder.
        about: JSON values: "embedder", the arguments of `Embedder.load`, and those of `about_collection`.
        shard, shards: The shard's number, from 1 on, and the number of shards of the collection.
        complete: Whether all pictures of the shard are in the parts, and no others.
        pictures, unreadable: Numbers of pictures of a complete shard; 0 before.
    """

    width: Annotated[int, Meta(ge=1, le=_MOST_WIDTH)]
    fingerprint: str
    about: dict[str, Any]
    shard: Annotated[int, Meta(ge=1)]
    shards: Annotated[int, Meta(ge=1)]
    complete: bool = False
    pictures: Count = 0
    unreadable: Count = 0


@dataclass(frozen=True)
class Part:
    """Some embedded pictures.

    Attributes:
        keys: Of n pictures.
        digests: SHA-256 of their contents, shape (n, 32), uint8.
        vectors: Shape (n, width), float32, unit length.
        unreadable: Key -> why a picture cannot be read, for further pictures.
    """

    keys: Sequence[str]
    digests: NDArray[np.uint8]
    vectors: NDArray[np.float32]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, rows: NDArray[np.bool_], unreadable: Mapping[str, str]) -> Part:
        """The pictures of these rows, (n,), with other unreadable ones."""
        keys = [key for key, wanted in zip(self.keys, rows, strict=True) if wanted]
        return Part(keys, self.digests[rows], self.vectors[rows], unreadable)


def part_of(
    keys: Sequence[str], digests: Sequence[str], vectors: NDArray[np.float32], unreadable: Mapping[str, str]
) -> Part:
    """A part, from digests in hex."""
    return Part(keys, digest_bytes(digests), vectors, unreadable)


def digest_bytes(digests: Sequence[str]) -> NDArray[np.uint8]:
    """SHA-256 in hex as bytes, shape (n, 32)."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), DIGEST_BYTES)


# --- parts.json -------------------------------------------------------------------------------------------------------


def open_parts(folder: Path, header: PartsHeader) -> None:
    """Make the folder of parts, or check that it holds parts of the same shard, embedder and collection.

    The shard is not complete from then on, until `write_header` says so.

    Raises:
        InputError: If the folder holds anything else.
    """
    _remove_leftovers(folder)
    if (folder / PARTS_FILE).exists():
        there = read_header(folder)
        check_same_collection(folder, there, header)
        if (there.shard, there.shards) != (header.shard, header.shards):
            raise InputError(
                f"{folder} holds shard {there.shard}/{there.shards}, not {header.shard}/{header.shards}; "
                "choose another --out"
            )
        if not there.complete:
            return
    elif folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and not _ours(path))
        if others:
            raise InputError(f"{folder} holds {others[0]} and no {PARTS_FILE}; choose another --out")
    write_header(folder, header)


def check_same_collection(folder: Path, there: PartsHeader, header: PartsHeader) -> None:
    """InputError where the parts in `folder`, with the header `there`, cannot be mixed with those of `header`."""
    if (there.fingerprint, there.width) != (header.fingerprint, header.width):
        raise InputError(
            f"{folder} holds vectors of embedder {there.fingerprint}, not of {header.fingerprint}: give all shards the "
            "same --model and --weights, and an --out of their own"
        )
    if (of := collection_of(there.about)) != (other := collection_of(header.about)):
        raise InputError(
            f"{folder} is of the pictures in {of}, not of {other}: give all shards the collection by the same path, "
            "and an --out of their own"
        )


def write_header(folder: Path, header: PartsHeader) -> None:
    write_json(folder / PARTS_FILE, {"made_by": _MADE_BY, "format": FORMAT} | asdict(header))


def read_header(folder: Path) -> PartsHeader:
    """The header of a folder of parts. InputError where it is none, or is damaged or of a newer format."""
    path = folder / PARTS_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no parts: it has no {PARTS_FILE}")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("made_by") != _MADE_BY:
        raise InputError(f"{path} is not of fewshot embed --shard")
    if found.get("format") != FORMAT:
        raise InputError(f"{path} has format {found.get('format')!r}, this version reads {FORMAT}: upgrade fewtune")
    header = as_type(found, PartsHeader, str(path))
    if header.shard > header.shards:
        raise InputError(f"{path} may be damaged: shard {header.shard} of {header.shards}")
    return header


# --- parts ------------------------------------------------------------------------------------------------------------


def write_part(folder: Path, part: Part, *, name: str | None = None) -> Path:
    """Write a part, whole or not at all; any number of processes may do so at once.

    Args:
        folder: Folder of the parts.
        part: What to write.
        name: File name of the part that this one replaces; None for a new one.

    Returns:
        The file.
    """
    texts = [key.encode(errors="surrogatepass") for key in part.keys]
    path = folder / (name or f"part-{secrets.token_hex(8)}.safetensors")
    tensors = {
        "vectors": torch.from_numpy(np.ascontiguousarray(part.vectors, np.float32)),
        "digests": torch.from_numpy(np.array(part.digests, np.uint8)),
        "keys": _bytes(b"".join(texts)),
        "key_lengths": torch.tensor([len(text) for text in texts], dtype=torch.int64),
        "unreadable": _bytes(json.dumps(dict(part.unreadable)).encode()),
    }
    write_tensors(path, tensors)
    return path


def part_files(folder: Path) -> list[Path]:
    """The files of the parts in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))


def read_parts(folder: Path, width: int) -> Iterator[tuple[Path, Part]]:
    """The parts in a folder with their files, one at a time: no more than one is in memory.

    Vectors are mapped from their file, so that a caller that uses keys and digests alone does not read them.

    Raises:
        InputError: If a part is damaged; the message names its file.
    """
    for path in part_files(folder):
        yield path, read_part(path, width)


def read_part(path: Path, width: int) -> Part:
    """The part in a file. InputError where it is damaged; whether vectors have length 1 is not checked here."""
    tensors, source = read_tensors(path), str(path)
    lengths = _checked(tensors, "key_lengths", (None,), torch.int64, source)
    n = len(lengths)
    digests = _checked(tensors, "digests", (n, DIGEST_BYTES), torch.uint8, source)
    vectors = _checked(tensors, "vectors", (n, width), torch.float32, source)
    text = _text(tensors, "keys", source)
    if (n and (lengths.min() < 1 or lengths.max() > len(text))) or int(lengths.sum()) != len(text):
        raise InputError(f"{source} may be damaged: the lengths of its keys are not those of their text")
    ends = lengths.cumsum().tolist()
    try:
        keys = [text[start:end].decode(errors="surrogatepass") for start, end in zip([0, *ends], ends, strict=False)]
    except UnicodeDecodeError as error:
        raise InputError(f"{source} may be damaged: a key is not text") from error
    unreadable = parse_json(_text(tensors, "unreadable", source), source)
    if not isinstance(unreadable, dict) or not all(isinstance(reason, str) for reason in unreadable.values()):
        raise InputError(f"{source} may be damaged: unreadable is not a mapping of keys to reasons")
    return Part(keys, digests, vectors, unreadable)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left of parts. Younger files may be of a process on another machine."""
    for path in folder.glob(".part-*.safetensors.*") if folder.is_dir() else ():
        with suppress(OSError):  # it is there no longer
            if time.time() - path.stat().st_mtime > _LEFT_AFTER:
                path.unlink()


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _checked(
    tensors: Mapping[str, Tensor], name: str, shape: Sequence[int | None], dtype: torch.dtype, source: str
) -> NDArray[Any]:
    return check_tensor(tensors, name, shape, source, formats=(dtype,), finite=False).numpy()


def _text(tensors: Mapping[str, Tensor], name: str, source: str) -> bytes:
    found = _checked(tensors, name, (None,), torch.uint8, source)
    if len(found) > _MOST_TEXT:
        raise InputError(f"{source} has {len(found):,} bytes of {name}, and at most {_MOST_TEXT:,} are read")
    return found.tobytes()


def _ours(path: Path) -> bool:
    return _OURS.fullmatch(path.name) is not None
