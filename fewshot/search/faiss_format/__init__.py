"""The FAISS files that an index writes, checked from their bytes before FAISS opens them."""

from fewshot.search.faiss_format.file import check_file
from fewshot.search.faiss_format.reading import MOST_WIDTH, SQUARED_WITHIN, Layout

__all__ = ["MOST_WIDTH", "SQUARED_WITHIN", "Layout", "check_file"]
