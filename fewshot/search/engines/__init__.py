"""Search engines of an index, by FAISS: exact search, and approximate search by inverted lists or a graph."""

from fewshot.search.engines.approximate import Approximate
from fewshot.search.engines.building import Engine, build, effort_bounds, restore
from fewshot.search.engines.exact import Exact
from fewshot.search.engines.library import ROUNDING, Found, Structure, Vectors, import_faiss, on_gpu

__all__ = [
    "ROUNDING",
    "Approximate",
    "Engine",
    "Exact",
    "Found",
    "Structure",
    "Vectors",
    "build",
    "effort_bounds",
    "import_faiss",
    "on_gpu",
    "restore",
]
