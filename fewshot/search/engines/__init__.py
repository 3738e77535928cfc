"""Search engines of an index, by FAISS: exact search, and approximate search by inverted lists, a graph or codes."""

from fewshot.search.engines.approximate import Approximate
from fewshot.search.engines.building import Engine, build, effort_bounds, restore
from fewshot.search.engines.exact import Exact
from fewshot.search.engines.library import ROUNDING, Found, Structure, Vectors, import_faiss, on_gpu
from fewshot.search.engines.quantised import CODE_BITS, MOST_FACTOR, QUANTISED_FROM, Quantised, code_bytes, parts_of

__all__ = [
    "CODE_BITS",
    "MOST_FACTOR",
    "QUANTISED_FROM",
    "ROUNDING",
    "Approximate",
    "Engine",
    "Exact",
    "Found",
    "Quantised",
    "Structure",
    "Vectors",
    "build",
    "code_bytes",
    "effort_bounds",
    "import_faiss",
    "on_gpu",
    "parts_of",
    "restore",
]
