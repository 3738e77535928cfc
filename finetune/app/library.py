"""FastAPI, uvicorn and python-multipart: whether they are installed."""

from __future__ import annotations

from importlib.util import find_spec

from finetune.errors import InputError

_MODULES = ("fastapi", "uvicorn", "python_multipart")


def check_installed() -> None:
    """InputError where a package of the extra is missing."""
    if any(find_spec(module) is None for module in _MODULES):
        raise InputError("a service or a page needs packages that are missing: pip install 'fewtune[app]'")
