"""What a table says about itself: JSON in the metadata of its schema."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from fewshot.search.faiss_format import MOST_WIDTH
from finetune.errors import InputError
from finetune.files.reading import as_type, parse_json

FORMAT = 1
NAME = b"fewtune"
_MADE_BY = "fewtune table"

TableKind = Literal["auto", "exact", "ivf", "pq"]
TableStructure = Literal["exact", "ivf", "pq"]
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
Effort = Annotated[int, Meta(ge=1, le=1 << 20)]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the vector index of a table is searched.

    Attributes:
        structure: Of the vector index.
        lists: Number of its inverted lists.
        probes: Lists that a search compares.
        refine: A search ranks this many times k candidates again, by their exact similarity.
        recall: Share of the 10 nearest found, measured with these.
        rows: Number of vectors when the index was built.
    """

    structure: Literal["ivf", "pq"]
    lists: Effort
    probes: Effort
    refine: Effort
    recall: Annotated[float, Meta(ge=0, le=1)]
    rows: Count


@dataclass(frozen=True, kw_only=True)
class TableHeader:
    """Attributes as for `LanceIndex`; tuning: None without a vector index, so that searches compare all vectors."""

    width: Annotated[int, Meta(ge=1, le=MOST_WIDTH)]
    kind: TableKind
    fingerprint: str | None
    about: dict[str, Any]
    least_recall: Annotated[float, Meta(gt=0, le=1)]
    tuning: Tuning | None = None

    def as_metadata(self) -> dict[bytes, bytes]:
        text = json.dumps({"made_by": _MADE_BY, "format": FORMAT} | asdict(self), allow_nan=False)
        return {NAME: text.encode()}


def read_header(schema: Any, source: str) -> TableHeader:
    """The header in the metadata of a schema. InputError if there is none, or it is damaged or of a newer format."""
    text = (schema.metadata or {}).get(NAME)
    if text is None:
        raise InputError(f"{source} is a Lance table, but not an index that fewtune made")
    found = parse_json(text, source)
    if not isinstance(found, dict) or found.get("made_by") != _MADE_BY:
        raise InputError(f"{source} is a Lance table, but not an index that fewtune made")
    if found.get("format") != FORMAT:
        raise InputError(
            f"{source} has format {found.get('format')!r}, this version reads {FORMAT}: upgrade fewtune, or embed again"
        )
    return as_type(found, TableHeader, source)
