"""One-shot learning: embeddings, Siamese training, the published protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot.embedder import Embedder

__all__ = ["Embedder"]


def __getattr__(name: str) -> Any:
    """Imported when first asked for: torch takes seconds, which `fewshot --help` need not wait."""
    if name == "Embedder":
        from fewshot.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
